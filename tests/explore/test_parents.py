"""Which documents are pieces of one parent, and which stand alone."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.store import Split
from pellucid.explore.parents import group_by_parent


def split_of(ids: Sequence[str], domain: Sequence[int]) -> Split:
    """Documents of one token each."""
    count = len(ids)
    return Split(
        tokens=np.zeros(count, dtype=np.uint16),
        start=np.arange(count + 1),
        num_bytes=np.ones(count, dtype=np.int64),
        domain=np.array(domain, dtype=np.int64),
        ids=list(ids),
        end_of_text=0,
    )


def test_by_hand():
    # Books b and c have two pieces each, the last document none.
    found = group_by_parent(split_of(["b#0", "c#0", "b#1", "note", "c#7"], [1, 0, 1, 1, 0]))
    assert found.of.tolist() == [0, 1, 0, 2, 1]
    assert found.domain.tolist() == [1, 0, 1]


def test_one_parent_in_two_domains_is_two():
    """A file's code and its docstrings carry two labels, which cannot move as one."""
    found = group_by_parent(split_of(["f#0", "f#1", "f#2"], [0, 1, 0]))
    assert found.of.tolist() == [0, 1, 0]
    assert found.domain.tolist() == [0, 1]


def test_no_documents():
    found = group_by_parent(split_of([], []))
    assert found.of.shape == found.domain.shape == (0,)
    assert found.of.dtype == found.domain.dtype == torch.int64


@given(st.lists(st.integers(0, 3), max_size=20))
def test_documents_that_stand_alone_keep_their_numbers(domain: list[int]):
    found = group_by_parent(split_of([f"document-{i}" for i in range(len(domain))], domain))
    assert found.of.tolist() == list(range(len(domain)))
    assert found.domain.tolist() == domain


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=20))
def test_every_document_has_its_parents_domain(drawn: list[tuple[int, int]]):
    ids = [f"book{book}#{index}" for index, (book, _) in enumerate(drawn)]
    domain = [label for _, label in drawn]
    found = group_by_parent(split_of(ids, domain))
    assert found.domain[found.of].tolist() == domain
    assert len(found.domain) == len(set(drawn))
