"""Held-out windows: targets by hand, and every token of whole documents scored once."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.activations.heldout import HeldOut, held_out_bytes, held_out_table
from pellucid.data.activations.windows import Windows
from pellucid.data.packing import IGNORED, PADDING, DocumentStream
from pellucid.data.store import Split

MakeSplit = Callable[..., Split]
I, P = IGNORED, PADDING  # noqa: E741


def held_out(windows: Windows) -> HeldOut:
    return HeldOut.of(held_out_table(windows), held_out_bytes(windows))


def test_by_hand(make_split: MakeSplit) -> None:
    """Documents [5 6] and [7 8 9], second first: 0 7 8 | 9 0 5 | 6 and padding.

    9 is not followed by a word of its document, nor is 6; 9 is the target across windows. A token
    stands for as many bytes as its value: 24 + 11.
    """
    split = make_split([[5, 6], [7, 8, 9]])
    found = held_out(Windows(split, np.array([1, 0]), context=3, first="drop"))
    assert found.tokens.tolist() == [[0, 7, 8], [9, 0, 5], [6, 0, 0]]
    assert found.targets.tolist() == [[7, 8, 9], [I, 5, 6], [I, I, I]]
    assert found.document.tolist() == [[1, 1, 1], [1, 0, 0], [0, P, P]]
    assert found.num_bytes == 35


def test_only_chosen_documents_count(make_split: MakeSplit) -> None:
    found = held_out(
        Windows(make_split([[5, 6], [7, 8, 9]]), np.array([1]), context=4, first="keep")
    )
    assert found.tokens.tolist() == [[0, 7, 8, 9]]
    assert found.targets.tolist() == [[7, 8, 9, I]]
    assert found.num_bytes == 24


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(2, 7),
)
def test_every_token_is_a_target_once(
    make_split: MakeSplit, documents: list[list[int]], context: int
) -> None:
    """So the targets' values per document sum to its bytes, and no end of text is scored."""
    split = make_split(documents)
    order = np.arange(len(documents))[::-1].copy()
    found = held_out(Windows(split, order, context=context, first="drop"))
    scored = found.targets != IGNORED
    tokens: Counter[int] = Counter()
    for target, document in zip(found.targets[scored].tolist(), found.document[scored].tolist()):
        tokens[document] += target
    assert dict(tokens) == dict(enumerate(map(sum, documents)))
    assert sum(tokens.values()) == found.num_bytes
    assert 0 not in found.targets.tolist()
    text = found.document.flatten() != PADDING
    flat = found.tokens.flatten()[text]
    assert flat.tolist() == DocumentStream(split, order).read(0, len(flat))[0].tolist()
    assert torch.equal(text, text.sort(descending=True).values)
