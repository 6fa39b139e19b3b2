"""The grouped read and top-k against scoring every unit and masking."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.ops.pool_mlp import fast, pool_select, reference

# (T rows, d width, P pools, m slots, e open, k kept)
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (63, 7, 5, 3, 2, 4),
    (100, 63, 63, 5, 8, 12),
    (100, 4, 3, 100, 1, 63),
    (63, 5, 4, 6, 4, 24),
    (0, 3, 4, 2, 2, 2),
]


def _inputs(
    size: tuple[int, int, int, int, int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x, pool, gate, reads, bias) with distinct pools in every row."""
    rows, width, pools, slots, opened, _ = size
    return (
        torch.randn(rows, width).to(dtype),
        torch.rand(rows, pools).argsort(1)[:, :opened],
        (torch.rand(rows, opened) + 0.1).to(dtype),
        torch.randn(pools, slots, width).to(dtype),
        torch.randn(pools, slots).to(dtype),
    )


def _strength(
    x: Tensor, pool: Tensor, gate: Tensor, reads: Tensor, bias: Tensor, score: str
) -> Tensor:
    """[T, P·m] strengths, 0 in closed pools; written once more, row by row."""
    strength = torch.zeros(len(x), *reads.shape[:2], dtype=x.dtype)
    for row in range(len(x)):
        for place, index in enumerate(pool[row].tolist()):
            pre = reads[index] @ x[row] + bias[index]
            act = pre.clamp_min(0) if score == "relu" else torch.nn.functional.gelu(pre)
            strength[row, index] = (gate[row, place] * act).abs()
    return strength.flatten(1)


def _speaking(unit: Tensor, strength: Tensor) -> list[set[int]]:
    """The chosen units of each row, those of strength 0 (ties) left out."""
    return [{int(u) for u in row if strength[t, u] > 0} for t, row in enumerate(unit.tolist())]


def _check(size: tuple[int, int, int, int, int, int], score: fast.Score, scale: float) -> None:
    inputs, k = _inputs(size), size[-1]
    strength = _strength(*inputs, score)
    threshold = None
    ranked = strength
    if scale:
        threshold = scale * torch.randn(size[2:4], dtype=torch.float64)
        ranked = (strength - threshold.flatten()).masked_fill(strength <= 0, -torch.inf)
    found = pool_select(*inputs, k, score=score, threshold=threshold)
    plain = reference.pool_select(*inputs, k, score=score, threshold=threshold)
    assert found.shape == plain.shape == (size[0], k)
    expected = _speaking(ranked.topk(k, 1).indices, strength)
    assert _speaking(found, strength) == expected
    assert _speaking(plain, strength) == expected
    for row, units in enumerate(found.tolist()):
        assert len(set(units)) == k, "a unit was chosen twice"
        assert {u // size[3] for u in units} <= set(inputs[1][row].tolist()), "a closed pool"


@pytest.mark.parametrize("scale", [0.0, 0.5], ids=["plain", "threshold"])
@pytest.mark.parametrize("score", ["relu", "gelu_abs"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_same_units_as_the_oracle(size, score, scale):
    _check(size, score, scale)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_same_units_at_any_size(data):
    rows, width, pools, slots = (data.draw(st.integers(1, 9)) for _ in range(4))
    opened = data.draw(st.integers(1, pools))
    k = data.draw(st.integers(1, opened * slots))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    score = data.draw(st.sampled_from(["relu", "gelu_abs"]))
    _check((rows, width, pools, slots, opened, k), score, data.draw(st.sampled_from([0.0, 1.0])))


def test_by_hand():
    # x = (1, 2), gates (.8, .2): strengths .8, 1.6 in pool 0 and .6, 0 in pool 1.
    reads = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [-1.0, 0.0]]])
    x, pool, gate = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 0]]), torch.tensor([[0.2, 0.8]])
    for k, units in ((1, [1]), (2, [0, 1]), (3, [0, 1, 2])):
        found = pool_select(x, pool, gate, reads, torch.zeros(2, 2), k)
        assert sorted(found[0].tolist()) == units
    # A threshold of 1 on unit 1 leaves it .6; one of −10 lifts unit 2 but not unit 3, which is off.
    lifted = torch.tensor([[0.0, 1.0], [-10.0, -10.0]])
    assert sorted(
        pool_select(x, pool, gate, reads, torch.zeros(2, 2), 2, threshold=lifted)[0].tolist()
    ) == [0, 2]


def test_gelu_ranks_negative_acts_by_their_size():
    # gelu(−1) = −.1587, gelu(.1) = .0540: the negative one is the stronger.
    reads = torch.tensor([[[-1.0], [0.1]]])
    x, pool, gate = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
    bias = torch.zeros(1, 2)
    assert pool_select(x, pool, gate, reads, bias, 1, score="gelu_abs").tolist() == [[0]]
    assert pool_select(x, pool, gate, reads, bias, 1, score="relu").tolist() == [[1]]


@pytest.mark.parametrize("rows", [1, 7, 62, 63, 64])
def test_chunks_change_nothing(monkeypatch, rows):
    inputs = _inputs(SIZES[1])
    whole = pool_select(*inputs, 4)
    monkeypatch.setattr(fast, "SMALLEST_CHUNK", rows)
    monkeypatch.setattr(fast, "CHUNK_SCORES", 1)
    seen: list[int] = []
    inner = fast._select_chunk

    def count(x: Tensor, *rest: object) -> Tensor:
        seen.append(len(x))
        return inner(x, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(fast, "_select_chunk", count)
    strength = _strength(*inputs, "relu")
    assert _speaking(pool_select(*inputs, 4), strength) == _speaking(whole, strength)
    assert sum(seen) == 63
    assert max(seen) == min(rows, 63)


def test_a_chunk_is_as_many_tokens_as_its_scores_allow(monkeypatch):
    monkeypatch.setattr(fast, "SMALLEST_CHUNK", 1)
    monkeypatch.setattr(fast, "CHUNK_SCORES", 60)  # 60 // (2 open · 3 slots) = 10 tokens
    seen: list[int] = []
    inner = fast._grouped_read

    def count(x: Tensor, pool: Tensor, reads: Tensor, bias: Tensor) -> Tensor:
        seen.append(len(x))
        return inner(x, pool, reads, bias)

    monkeypatch.setattr(fast, "_grouped_read", count)
    pool_select(*_inputs(SIZES[1]), 4)
    assert seen == [10, 10, 10, 10, 10, 10, 3]


def test_closed_pools_are_not_read():
    x, pool, gate, reads, bias = _inputs((63, 7, 5, 3, 2, 4))
    pool = torch.tensor([[0, 3]]).expand(63, 2).contiguous()
    expected = pool_select(x, pool, gate, reads, bias, 4)
    for closed in (1, 2, 4):
        reads[closed] = bias[closed] = torch.nan
    assert torch.equal(pool_select(x, pool, gate, reads, bias, 4), expected)


class _Multiplied(TorchDispatchMode):
    """Where in its storage each matrix product found its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.addmm:
            self.offsets.append(args[2].storage_offset())
        return func(*args, **(kwargs or {}))


def test_each_open_pool_is_multiplied_once_and_no_closed_one():
    x, pool, gate, reads, bias = _inputs((63, 7, 5, 3, 2, 4))
    pool = torch.tensor([[3, 0]]).expand(63, 2).contiguous()
    with _Multiplied() as seen:
        pool_select(x, pool, gate, reads, bias, 4)
    assert seen.offsets == [0, 3 * 3 * 7]  # pool · slots · width


def test_inputs_are_left_as_they_were():
    inputs = _inputs(SIZES[1])
    before = [t.clone() for t in inputs]
    threshold = torch.rand(5, 3, dtype=torch.float64)
    kept = threshold.clone()
    pool_select(*inputs, 4, threshold=threshold)
    assert all(torch.equal(a, b) for a, b in zip((*inputs, threshold), (*before, kept)))


def test_no_gradient_is_recorded():
    x, pool, gate, reads, bias = _inputs(SIZES[1])
    found = pool_select(x, pool, gate, reads.requires_grad_(), bias.requires_grad_(), 4)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_take_the_tables_type(dtype):
    x, pool, gate, reads, bias = _inputs(SIZES[1], dtype)
    found = pool_select(x.double(), pool, gate.double(), reads, bias, 4)
    strength = _strength(
        *(t.double() for t in (x,)), pool, *(t.double() for t in (gate, reads, bias)), "relu"
    )
    # Units may swap only where strengths agree to the type's rounding, here .05 of a unit's size.
    slack = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-4}[dtype]
    worst = strength.gather(1, found).min(1).values
    assert (worst >= strength.topk(4, 1).values[:, -1] - slack).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99))
def test_a_row_does_not_depend_on_the_others(rows, seed):
    torch.manual_seed(seed)
    x, pool, gate, reads, bias = _inputs((rows, 4, 5, 3, 2, 3))
    strength = _strength(x, pool, gate, reads, bias, "relu")
    assume(rows > 1)
    whole = _speaking(pool_select(x, pool, gate, reads, bias, 3), strength)
    alone = [
        _speaking(
            pool_select(x[i : i + 1], pool[i : i + 1], gate[i : i + 1], reads, bias, 3),
            strength[i : i + 1],
        )[0]
        for i in range(rows)
    ]
    assert alone == whole
