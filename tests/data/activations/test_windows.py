"""Windows and their rows: counted by hand, and against a walk over every position."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import DataError
from pellucid.data.activations.config import HarvestConfig
from pellucid.data.activations.windows import Windows, train_windows, validation_windows
from pellucid.data.packing import PADDING
from pellucid.data.store import Corpus, Split

MakeSplit = Callable[..., Split]
First = Literal["drop", "keep"]
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def windows_of(
    make_split: MakeSplit, lengths: Sequence[int], context: int, first: First
) -> Windows:
    """Documents in reverse order, all tokens 1."""
    split = make_split([[1] * length for length in lengths])
    order = np.arange(len(lengths))[::-1].copy()
    return Windows(split, order, context=context, first=first)


def test_windows_by_hand(make_split: MakeSplit) -> None:
    """Documents [5 6] and [7], second first: 0 7 0 | 5 6 and padding, which is 0 too.

    7 and 6 are rows; 5 starts a window, so it is one only where the first position is kept.
    """
    split = make_split([[5, 6], [7]])
    for first, rows in (("drop", [[0, 1, 0], [0, 1, 0]]), ("keep", [[0, 1, 0], [1, 1, 0]])):
        windows = Windows(split, np.array([1, 0]), context=3, first=first)
        assert len(windows) == 2
        batch = windows.read(0, 2)
        assert batch.tokens.tolist() == [[0, 7, 0], [5, 6, 0]]
        assert batch.document.tolist() == [[1, 1, 0], [0, 0, PADDING]]
        assert batch.row.int().tolist() == rows
        assert windows.rows == np.sum(rows)
        assert windows.rows_before_window(1) == 1
        assert windows.read(1, 2).tokens.tolist() == [[5, 6, 0]]
        assert windows.read(1, 2).row.int().tolist() == rows[1:]


def test_a_window_that_begins_with_an_end_of_text_loses_one_position_only(
    make_split: MakeSplit,
) -> None:
    """Two documents of three tokens in windows of four: 0 1 1 1 | 0 1 1 1, six rows either way."""
    for first in ("drop", "keep"):
        windows = windows_of(make_split, [3, 3], 4, first)
        assert windows.rows == 6
        assert windows.read(0, 2).row.int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]


@given(LENGTHS, st.integers(2, 7), st.sampled_from(["drop", "keep"]))
def test_counts_agree_with_a_walk(
    make_split: MakeSplit, lengths: list[int], context: int, first: First
) -> None:
    """Before every position, in every window, and in any range of windows."""
    windows = windows_of(make_split, lengths, context, first)
    everything = windows.read(0, len(windows))
    flat = everything.row.flatten().int().numpy()
    total = sum(lengths) + len(lengths)
    before = np.concatenate(([0], np.cumsum(flat)))
    assert [windows.rows_before(p) for p in range(total + 1)] == before[: total + 1].tolist()
    assert windows.rows == flat.sum()
    assert (everything.document.flatten() == PADDING).sum() == len(windows) * context - total
    for window in range(len(windows)):
        part = windows.read(window, window + 1)
        assert part.tokens.tolist() == everything.tokens[window : window + 1].tolist()
        assert part.row.tolist() == everything.row[window : window + 1].tolist()
        assert windows.rows_before_window(window) == before[window * context]


@settings(max_examples=40)
@given(LENGTHS, st.integers(2, 7), st.sampled_from(["drop", "keep"]))
def test_the_least_windows_and_documents_that_hold_rows(
    make_split: MakeSplit, lengths: list[int], context: int, first: First
) -> None:
    windows = windows_of(make_split, lengths, context, first)
    for rows in range(1, windows.rows + 1):
        count = windows.windows_for(rows)
        assert windows.rows_before_window(count - 1) < rows <= windows.rows_before_window(count)
        documents = windows.documents_for(rows)
        for held, enough in ((documents, True), (documents - 1, False)):
            if held:
                part = Windows(windows.split, windows.order[:held], context=context, first=first)
                assert (part.rows >= rows) == enough


def test_training_epochs_are_all_documents_in_new_orders(
    corpus: Corpus, config: Callable[..., HarvestConfig]
) -> None:
    orders = {tuple(train_windows(corpus, config(), e).order.tolist()) for e in range(3)}
    assert len(orders) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(20))}
    same, other = (train_windows(corpus, config(seed=seed)).order.tolist() for seed in (0, 1))
    assert train_windows(corpus, config()).order.tolist() == same != other


def test_held_out_windows_hold_whole_documents(
    corpus: Corpus, config: Callable[..., HarvestConfig]
) -> None:
    """9, 8 and 7 tokens: for one row one document is enough, for nearly all of them none fewer."""
    few = validation_windows(corpus, config(validation_tokens=1))
    assert len(few.order) == 1
    all_rows = validation_windows(corpus, config(validation_tokens=19))
    assert sorted(all_rows.order.tolist()) == [0, 1, 2]
    assert few.order.tolist() == all_rows.order[:1].tolist()


@pytest.mark.parametrize(
    ("field", "text"), [("tokens", "training"), ("validation_tokens", "validation")]
)
def test_too_little_text(
    corpus: Corpus, config: Callable[..., HarvestConfig], field: str, text: str
) -> None:
    """Of the 151 training tokens some start a window of 8, of which 171 positions need 22."""
    make = train_windows if field == "tokens" else validation_windows
    with pytest.raises(DataError, match=rf"^{field} = 999, but the {text} text has only") as error:
        make(corpus, config(**{field: 999}))
    enough = int(str(error.value).split("only ")[1].split()[0])
    assert enough < (151 if field == "tokens" else 24)
    assert f"lower {field} or add text" in str(error.value)
    assert make(corpus, config(**{field: enough})).rows == enough
    with pytest.raises(DataError, match="only"):
        make(corpus, config(**{field: enough + 1}))


def test_a_later_epoch_may_hold_a_row_less(
    make_corpus: Callable[..., Corpus], config: Callable[..., HarvestConfig]
) -> None:
    """Where windows begin depends on the order; what was promised was about the first epoch."""
    corpus = make_corpus([3, 4, 5, 6, 7])
    first = train_windows(corpus, config(tokens=1, context=4))
    asked = config(tokens=first.rows, context=4)
    rows = {train_windows(corpus, asked, epoch).rows for epoch in range(20)}
    assert min(rows) < first.rows or len(rows) > 1
