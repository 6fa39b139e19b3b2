"""The fast product top-k against the full sort, and the order of ties by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.ops.product_topk import product_topk, reference, stable_topk
from pellucid.ops.product_topk.fast import _staircase

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def test_two_best_sums_by_hand():
    # 1+1=2, 1+2=3, -1+1=0, -1+2=1: the best are (0, 1) and (0, 0).
    first, second = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 2.0]])
    score, i, j = product_topk(first, second, 2)
    assert score.tolist() == [[3.0, 2.0]]
    assert i.tolist() == [[0, 0]]
    assert j.tolist() == [[1, 0]]


def test_equal_scores_go_to_the_lower_index():
    first, second = torch.ones(1, 2), torch.zeros(1, 3)
    _, i, j = product_topk(first, second, 4)
    assert list(zip(i[0].tolist(), j[0].tolist())) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_equal_sums_go_to_the_better_rank_in_the_first_list():
    # Ranked, first is 2 (place 1), 1 (place 0) and second 1 (place 1), 0 (place 0). The sums 2 + 0
    # and 1 + 1 are equal; the first list's better entry is place 1.
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    score, i, j = product_topk(first, second, 3)
    assert score.tolist() == [[3.0, 2.0, 2.0]]
    assert list(zip(i[0].tolist(), j[0].tolist())) == [(1, 1), (1, 0), (0, 1)]


def test_sums_made_equal_by_rounding_keep_the_order_of_their_lists():
    # In float32 2^25 + 1 and 2^25 + 0 round to the same number; t_1 = 1 still ranks above t_0 = 0.
    first, second = torch.tensor([[0.0, 2.0**25]]), torch.tensor([[0.0, 1.0]])
    score, i, j = product_topk(first, second, 1)
    assert (score.item(), i.item(), j.item()) == (2.0**25, 1, 1)


def test_negative_zero_ties_with_zero():
    assert stable_topk(torch.tensor([-0.0, 0.0, -0.0]), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_are_ordered(dtype: torch.dtype):
    score = torch.tensor([0.0, -torch.inf, torch.inf, -1.0], dtype=dtype)
    assert stable_topk(score, 4).tolist() == [2, 0, 3, 1]


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
    double=st.booleans(),
)
def test_stable_topk_is_pythons_stable_sort(scores: list[float], double: bool):
    dtype = torch.float64 if double else torch.float32
    expected = sorted(range(len(scores)), key=lambda place: -scores[place])
    for k in (1, len(scores)):
        assert stable_topk(torch.tensor(scores, dtype=dtype), k).tolist() == expected[:k]


@settings(deadline=None)
@given(data=st.data(), double=st.booleans())
def test_equals_the_reference_with_many_ties(data: st.DataObject, double: bool):
    # Small whole numbers: nearly every choice has to break a tie.
    number = st.integers(-2, 2)
    n, m = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, n * m))
    dtype = torch.float64 if double else torch.float32
    first = torch.tensor([data.draw(st.lists(number, min_size=n, max_size=n))], dtype=dtype)
    second = torch.tensor([data.draw(st.lists(number, min_size=m, max_size=m))], dtype=dtype)
    for fast, slow in zip(product_topk(first, second, k), reference.product_topk(first, second, k)):
        assert torch.equal(fast, slow)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "n", "m", "k"),
    [(1, 1, 1, 1), (63, 7, 7, 49), (100, 91, 91, 14), (0, 5, 5, 3), (5, 3, 100, 16), (9, 64, 2, 9)],
)
def test_equals_the_reference(rows: int, n: int, m: int, k: int, dtype: torch.dtype):
    first, second = torch.randn(rows, n).to(dtype), torch.randn(rows, m).to(dtype)
    for fast, slow in zip(product_topk(first, second, k), reference.product_topk(first, second, k)):
        assert fast.dtype == slow.dtype
        assert torch.equal(fast, slow)


def test_leading_axes_are_rows():
    first, second = torch.randn(4, 3, 6), torch.randn(4, 3, 5)
    stacked = product_topk(first, second, 7)
    flat = product_topk(first.flatten(0, 1), second.flatten(0, 1), 7)
    for one, other in zip(stacked, flat):
        assert torch.equal(one.flatten(0, 1), other)


@pytest.mark.parametrize(("rows", "n", "m", "k"), [(1, 1, 1, 1), (63, 7, 5, 9), (100, 30, 30, 16)])
def test_gradients_equal_autograd_through_the_reference(rows: int, n: int, m: int, k: int):
    lists = [torch.randn(rows, size, dtype=torch.float64, requires_grad=True) for size in (n, m)]
    weight = torch.randn(rows, k, dtype=torch.float64)
    fast = torch.autograd.grad((product_topk(*lists, k)[0] * weight).sum(), lists)
    slow = torch.autograd.grad((reference.product_topk(*lists, k)[0] * weight).sum(), lists)
    for one, other in zip(fast, slow):
        # A list entry's gradient sums up to k terms, in another order.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_gradcheck():
    first = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[1.1, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: product_topk(a, b, 4)[0].softmax(-1), (first, second)
    )


def test_only_fifty_of_256_pairs_are_weighed_at_sixteen():
    a, _ = _staircase(16, 1024, 1024, torch.device("cpu"))
    # Σ_{r=1..16} floor(16 / r) = 16+8+5+4+3+2+2+2 + 8·1 = 50.
    assert a.shape == (50,)


def test_short_lists_bound_the_pairs():
    a, b = _staircase(6, 2, 3, torch.device("cpu"))
    assert list(zip(a.tolist(), b.tolist())) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
