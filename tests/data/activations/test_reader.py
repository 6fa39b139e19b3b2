"""Rows of one pass: which token each is of, and what a site may not give."""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.core.host import Edit, Host, Trace
from pellucid.core.unit import Site
from pellucid.data.activations.reader import RowReader
from pellucid.data.activations.rows import DType, Layout
from pellucid.data.activations.windows import Windows
from pellucid.data.store import Corpus

A, B = Site(module="a", port="out"), Site(module="b", port="in")


@pytest.fixture
def windows(make_corpus: Callable[..., Corpus]) -> Windows:
    """0 1 2 3 | 0 4 5 6 | 7 8 9 pad, the documents in order, first positions dropped."""
    split = make_corpus([3, 6]).train
    return Windows(split, np.array([0, 1]), context=4, first="drop")


def reader(host: Host, *, dtype: DType = "float32", drop: bool = False) -> RowReader:
    return RowReader(
        host=host,
        layout=Layout(sites=(A, B), widths=(3, 2), dtype=dtype),
        nonfinite="drop" if drop else "refuse",
        device="cpu",
    )


def test_rows_by_hand(token_host: Callable[..., Host], windows: Windows) -> None:
    """Tokens 1 to 6 are rows 0 to 5; of 7, 8, 9 the first starts a window."""
    block = reader(token_host()).read(windows, 1, 3, rows=99)
    index, a, b = block.columns
    assert index.tolist() == [[4, 1, 1], [5, 1, 2], [6, 1, 3], [8, 1, 1], [9, 1, 2]]
    assert block.number.tolist() == [3, 4, 5, 6, 7]
    assert a.tolist() == [[t, p, 7] for t, _, p in index.tolist()]
    assert b.tolist() == [[-t, p / 2] for t, _, p in index.tolist()]
    assert block.nonfinite == (0, 0)


def test_rows_behind_the_last_wanted_are_left(
    token_host: Callable[..., Host], windows: Windows
) -> None:
    for rows, tokens in ((5, [4, 5]), (3, []), (2, [])):
        block = reader(token_host()).read(windows, 1, 2, rows=rows)
        assert block.columns[0][:, 0].tolist() == tokens


def test_tokens_go_to_the_device_and_no_gradient_is_kept(windows: Windows) -> None:
    class Trained:
        def width(self, site: Site) -> int:
            return 2

        def run(
            self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
        ) -> Trace:
            weight = torch.ones(2, requires_grad=True)
            seen.append((tokens.device.type, (weight * 2).requires_grad))
            x = tokens[..., None] * weight
            return Trace(x, dict.fromkeys(keep, x))

    seen: list[tuple[str, bool]] = []
    narrow = dataclasses.replace(
        reader(Trained()), layout=Layout(sites=(A,), widths=(2,), dtype="float32")
    )
    assert narrow.read(windows, 0, 1, rows=99).columns[1].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert seen == [("cpu", False)]


class ShapedHost:
    """Site b gives whatever shape it is told to."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def width(self, site: Site) -> int:
        return 3 if site == A else 2

    def run(
        self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
    ) -> Trace:
        kept = {A: torch.zeros(*tokens.shape, 3), B: torch.zeros(self.shape)}
        return Trace(torch.zeros(*tokens.shape, 1), kept)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 3), r"its width changes: expected 2, found 3; choose"),
        ((8, 2), r"expected a tensor of \[sequences, positions, width\], found the shape \[8, 2\]"),
        ((2, 4, 2, 1), r"found the shape \[2, 4, 2, 1\]"),
        ((2, 5, 2), r"expected 2 sequences of 4 positions, found \[2, 5\]"),
        ((1, 4, 2), r"expected 2 sequences of 4 positions, found \[1, 4\]"),
    ],
)
def test_a_site_of_another_shape(windows: Windows, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"^site b:in: .*{message}") as error:
        reader(ShapedHost(*shape)).read(windows, 0, 2, rows=99)
    assert "\n" not in str(error.value)


def test_rows_that_are_not_finite_are_refused_by_document(
    token_host: Callable[..., Host], windows: Windows
) -> None:
    """Token 7 starts a window: it is no row, and nobody minds it."""
    expected = (
        r"^site b:in: 3 of the 8 rows of this batch hold NaN or inf, in the documents 'train-0', "
        r"'train-1'; mend the model, or set nonfinite to drop, which leaves them out$"
    )
    with pytest.raises(DataError, match=expected):
        reader(token_host(bad=[2, 5, 7, 9])).read(windows, 0, 3, rows=99)
    block = reader(token_host(bad=[7])).read(windows, 0, 3, rows=99)
    assert len(block.number) == 8


def test_at_most_five_documents_are_named(
    token_host: Callable[..., Host], make_corpus: Callable[..., Corpus]
) -> None:
    """Seven documents of two tokens: the first token never starts a window of 3."""
    split = make_corpus([2] * 7).train
    windows = Windows(split, np.arange(7), context=3, first="keep")
    with pytest.raises(DataError, match=r"7 of the 14 .*'train-3', 'train-4' and 2 more; mend"):
        reader(token_host(bad=range(1, 15, 2))).read(windows, 0, 7, rows=99)


def test_rows_that_are_not_finite_are_left_out_and_counted(
    token_host: Callable[..., Host], windows: Windows
) -> None:
    """A row goes at both sites; numbers go on counting it."""
    block = reader(token_host(bad=[2, 5]), drop=True).read(windows, 0, 3, rows=99)
    assert block.columns[0][:, 0].tolist() == [1, 3, 4, 6, 8, 9]
    assert [len(column) for column in block.columns] == [6, 6, 6]
    assert block.number.tolist() == [0, 2, 3, 5, 6, 7]
    assert block.nonfinite == (0, 2)
    assert all(np.isfinite(column).all() for column in block.columns)


def test_too_large_for_the_type(token_host: Callable[..., Host], windows: Windows) -> None:
    """10⁶ is finite, and inf in float16, whose largest is 65,504."""
    host = token_host(large=[3])
    with pytest.raises(DataError, match=r"a:out: 1 of .* too large for float16, .* another dtype"):
        reader(host, dtype="float16").read(windows, 0, 1, rows=99)
    assert len(reader(host, dtype="bfloat16").read(windows, 0, 1, rows=99).number) == 3
    dropped = reader(host, dtype="float16", drop=True).read(windows, 0, 1, rows=99)
    assert dropped.nonfinite == (1, 0)
    assert dropped.number.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_torchs(
    token_host: Callable[..., Host], windows: Windows, dtype: DType
) -> None:
    """2,049 has 12 significant bits, one more than float16 and four more than bfloat16 hold."""
    host = token_host()
    layout = Layout(sites=(A, B), widths=(3, 2), dtype=dtype)
    block = reader(host, dtype=dtype).read(windows, 0, 3, rows=99)
    rows = layout.decode(block.columns[0], {1: block.columns[1], 2: block.columns[2]})
    exact = torch.stack((rows.token, rows.position, torch.full_like(rows.token, 7)), -1)
    assert torch.equal(rows.x[A], exact.to(getattr(torch, dtype)).float())
