"""The streamed selection against a full sort: sizes, signs, ties, exclusions, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.ops.topk_encode import fast, reference, stream, stream_topk, topk_encode

SIGNS = ("relu", "signed", "abs")
# (B rows, n latents, d width, k)
SIZES = [
    (1, 1, 1, 1),
    (63, 100, 7, 5),
    (100, 63, 3, 63),
    (5, 1000, 11, 1),
    (3, 1001, 4, 9),
    (2, 4, 1, 3),
    (0, 5, 4, 2),
    (3, 5, 4, 0),
]


def _inputs(size: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, int]:
    """(z, table, bias, k) in float64, where chance ties do not happen."""
    rows, latents, width, k = size
    z = torch.randn(rows, width, dtype=torch.float64)
    table = torch.randn(latents, width, dtype=torch.float64)
    return z, table, torch.randn(latents, dtype=torch.float64), k


def test_by_hand():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 0.0]])
    z = torch.tensor([[1.0, 2.0]])  # scores 1, 2, -3, 2
    assert topk_encode(z, table, None, 3, "relu").tolist() == [[1, 3, 0]]
    assert topk_encode(z, table, None, 3, "signed").tolist() == [[1, 3, 0]]
    assert topk_encode(z, table, None, 3, "abs").tolist() == [[2, 1, 3]]
    # With the bias: 1, 2.5, 1, 2
    bias = torch.tensor([0.0, 0.5, 4.0, 0.0])
    assert topk_encode(z, table, bias, 4, "signed").tolist() == [[1, 3, 0, 2]]
    left_out = torch.tensor([[1]])
    assert topk_encode(z, table, None, 2, "abs", left_out).tolist() == [[2, 3]]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_full_sort(size, sign):
    z, table, bias, k = _inputs(size)
    for b in (None, bias):
        found = topk_encode(z, table, b, k, sign)
        assert torch.equal(found, reference.topk_encode(z, table, b, k, sign))
        assert found.shape == (size[0], k)


@pytest.mark.parametrize("elements", [1, 40, 1000])
@pytest.mark.parametrize("sign", SIGNS)
def test_blocks_of_latents_and_of_rows_do_not_show(monkeypatch, sign, elements):
    z, table, bias, k = _inputs((23, 101, 5, 7))
    monkeypatch.setattr(fast, "CHUNK_ROWS", 4)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", elements)
    right = reference.topk_encode(z, table, bias, k, sign)
    assert torch.equal(topk_encode(z, table, bias, k, sign), right)


@pytest.mark.parametrize("elements", [16, 1 << 22])
def test_excluded_latents_are_never_returned(monkeypatch, elements):
    z, table, bias, _ = _inputs((9, 50, 5, 6))
    monkeypatch.setattr(fast, "CHUNK_ROWS", 2)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", elements)
    best = topk_encode(z, table, bias, 6, "abs")
    rest = topk_encode(z, table, bias, 4, "abs", best[:, :2])
    assert torch.equal(rest, best[:, 2:])
    # All but two excluded: the two are what is left, also where every score is negative.
    order = torch.stack([torch.randperm(50) for _ in range(9)])
    few = topk_encode(z, table, bias - 100, 2, "signed", order[:, 2:])
    assert torch.equal(few.sort(1).values, order[:, :2].sort(1).values)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 90), st.integers(1, 12), st.integers(0, 99))
def test_ties_go_to_the_lower_latent(rows, latents, k, seed):
    """Small whole numbers tie all the time and are exact in every type and order of summation."""
    torch.manual_seed(seed)
    k = min(k, latents)
    z = torch.randint(-2, 3, (rows, 3)).double()
    table = torch.randint(-1, 2, (latents, 3)).double()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for sign in SIGNS:
            found = topk_encode(z.to(dtype), table.to(dtype), None, k, sign)
            assert torch.equal(found, reference.topk_encode(z, table, None, k, sign))


def test_ties_across_blocks_go_to_the_lower_latent():
    """Three blocks of equal scores: the first latents win, whatever block they are in."""
    blocks = [(start, torch.ones(5, 2)) for start in (0, 5, 10)]
    assert stream_topk(blocks, 7, "relu").tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2


def test_zero_and_minus_zero_tie():
    score = torch.tensor([[-0.0], [0.0], [-0.0], [0.0]])
    assert stream_topk([(0, score)], 3, "relu").tolist() == [[0, 1, 2]]


def test_a_block_smaller_than_k_is_kept_whole():
    blocks = [(0, torch.tensor([[3.0]])), (1, torch.tensor([[5.0], [1.0]]))]
    assert stream_topk(blocks, 3, "relu").tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("group", [2, 3, 4, 8])
def test_peaks_of_any_group_find_the_same(monkeypatch, group):
    monkeypatch.setattr(stream, "GROUP", group)
    monkeypatch.setattr(stream, "DIRECT", group)
    score = torch.randint(0, 40, (131, 6)).float()
    right = torch.sort(score.t(), dim=1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(stream_topk([(0, score)], 5, "relu"), right)


def test_inputs_that_ask_for_a_gradient_are_left_unchanged():
    z, table, bias, k = (
        t.requires_grad_() if isinstance(t, Tensor) else t for t in _inputs((4, 9, 3, 2))
    )
    before = [t.detach().clone() for t in (z, table, bias)]
    assert not topk_encode(
        z, table, bias, k, "abs", torch.zeros(4, 1, dtype=torch.long)
    ).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (z, table, bias)))


def test_rows_take_the_tables_type_and_the_bias_is_added_above_it():
    # In bfloat16 256 + 0.5 is 256: only a wider sum lets the bias decide.
    table = torch.full((2, 1), 256.0, dtype=torch.bfloat16)
    z, bias = torch.ones(1, 1), torch.tensor([0.0, 0.5])
    assert topk_encode(z, table, bias, 1, "signed").tolist() == [[1]]


class _Largest(TorchDispatchMode):
    """The most elements that any operation's result held."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return out


def test_no_more_scores_than_a_chunk_exist(monkeypatch):
    z, table, bias, k = _inputs((64, 2000, 3, 4))
    monkeypatch.setattr(fast, "CHUNK_ROWS", 8)
    monkeypatch.setattr(fast, "CHUNK_ELEMENTS", 4000)
    with _Largest() as seen:
        topk_encode(z, table, bias, k, "relu")
    assert seen.elements <= max(4000, table.numel())
    with _Largest() as seen:
        reference.topk_encode(z, table, bias, k, "relu")
    assert seen.elements >= 64 * 2000, "the recorder must see what it looks for"
