"""Every domain is halved, one parent after the other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.explore.halves import CHOOSE, SHOW, Halves


def test_parents_of_a_domain_alternate():
    # Domain 7: parents 0, 2, 3, 5. Domain 1: parents 1, 4.
    halves = Halves(torch.tensor([7, 1, 7, 7, 1, 7]))
    expected = [CHOOSE, CHOOSE, SHOW, CHOOSE, SHOW, SHOW]
    assert halves.of(torch.arange(6)).tolist() == expected


def test_only_parents_that_appear_are_dealt():
    # Parents 0 and 2 are never seen; 3 appears before 1.
    halves = Halves(torch.zeros(4, dtype=torch.long))
    assert halves.of(torch.tensor([3, 1, 3, 1])).tolist() == [CHOOSE, SHOW, CHOOSE, SHOW]


def test_a_parent_keeps_its_half_over_batches():
    halves = Halves(torch.zeros(3, dtype=torch.long))
    assert halves.of(torch.tensor([2, 2])).tolist() == [CHOOSE, CHOOSE]
    assert halves.of(torch.tensor([2, 0])).tolist() == [CHOOSE, SHOW]
    assert halves.of(torch.tensor([1, 0])).tolist() == [CHOOSE, SHOW]


def test_no_parents():
    assert Halves(torch.tensor([0])).of(torch.zeros(0, dtype=torch.long)).tolist() == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.randoms())
def test_halves_differ_by_one_at_most(labels: list[int], random):
    domain = torch.tensor(labels)
    halves = Halves(domain)
    order = list(range(len(labels)))
    random.shuffle(order)
    for start in range(0, len(order), 7):
        halves.of(torch.tensor(order[start : start + 7]))
    half = halves.of(torch.arange(len(labels)))
    for label in set(labels):
        count = torch.bincount(half[domain == label], minlength=2)
        assert 0 <= int(count[CHOOSE] - count[SHOW]) <= 1
