"""Simple gates by hand, their budgets and schedules, and their gradients against dense autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.dictionaries.gates import (
    BatchTopKConfig,
    BatchTopKGate,
    Gate,
    GroupmaxConfig,
    GroupmaxGate,
    ReLUConfig,
    ReLUGate,
    TopKConfig,
    TopKGate,
    all_pre,
    some_pre,
    warm,
)
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.ops.rows import DenseRows

DOUBLE = torch.float64
# With these rows the pre-activations of z are z itself.
UNIT4 = DenseRows(torch.eye(4, dtype=DOUBLE))


def _z(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def _dense(latents: Latents, num: int) -> Tensor:
    """Values of every latent, repeated units added up."""
    if latents.unit is None:
        return latents.value
    empty = latents.value.new_zeros(latents.value.shape[0], num)
    return empty.scatter_add(1, latents.unit, latents.value)


def _seen(gate: Gate, z: Tensor, writes: Tensor, *, variance: float = 1.0) -> Pass:
    """A training pass whose target and base are 0."""
    nothing = torch.zeros(z.shape[0], writes.shape[1], dtype=DOUBLE)
    return Pass(
        z=z,
        target=nothing,
        base=nothing,
        reads=UNIT4,
        writes=DenseRows(writes),
        latents=gate(UNIT4, z, fit=True),
        variance=torch.tensor(variance, dtype=DOUBLE),
    )


def _topk(num: int = 4, **fields: object) -> TopKGate:
    return TopKGate(TopKConfig(**fields), num).double()


def _batch(num: int = 4, plan: int | None = None, **fields: int) -> BatchTopKGate:
    return BatchTopKGate(BatchTopKConfig(**fields), num, plan=plan).double()


def test_relu_by_hand():
    gate = ReLUGate(ReLUConfig(), 4).double()
    assert gate.bias is not None
    gate.bias.data[1] = 3.0
    latents = gate(UNIT4, _z([1, -2, 0, -4]), fit=False)
    assert latents.value.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert latents.gate.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert latents.act.tolist() == [[1.0, 1.0, 0.0, -4.0]]
    assert latents.pre is latents.act


def test_the_relu_penalty_by_hand():
    # Norms (2, 1, 0, 5). Row sums f·‖D‖: 1·2 + 3·1 = 5 and 4·5 = 20; mean 12.5, times λ = .1.
    writes = torch.diag(torch.tensor([2.0, -1.0, 0.0, 5.0], dtype=DOUBLE))
    z = _z([1, 3, 2, -1], [0, 0, 7, 4])
    gate = ReLUGate(ReLUConfig(l1=0.1), 4).double()
    parts = gate.parts(_seen(gate, z, writes), 1.0)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx({"l1": 1.25})
    # Plain: (1 + 3 + 2) and (7 + 4), mean 8.5.
    gate = ReLUGate(ReLUConfig(l1=0.1, plain=True), 4).double()
    assert gate.parts(_seen(gate, z, writes), 1.0)["l1"].item() == pytest.approx(0.85)


def test_the_penalty_warms_up():
    gate = ReLUGate(ReLUConfig(l1=0.1, plain=True, warmup=0.5), 4).double()
    seen = _seen(gate, _z([1, 0, 0, 0]), torch.eye(4, dtype=DOUBLE))
    found = [gate.parts(seen, share)["l1"].item() for share in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.0, 0.05, 0.1, 0.1])


def test_warming_by_hand():
    assert [warm(share, 0.2) for share in (0.0, 0.1, 0.2, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert warm(0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        # Of (3, −5, −1, 2): the two largest are 3 and 2; in magnitude −5 and 3.
        ("relu", [3.0, 0.0, 0.0, 2.0]),
        ("signed", [3.0, 0.0, 0.0, 2.0]),
        ("abs", [3.0, -5.0, 0.0, 0.0]),
    ],
)
def test_topk_by_hand(sign, expected):
    latents = _topk(k=2, sign=sign)(UNIT4, _z([3, -5, -1, 2]), fit=True)
    assert _dense(latents, 4).tolist() == [expected]
    assert latents.value.shape == (1, 2)
    assert torch.equal(latents.value, latents.gate * latents.act)


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        # Fewer than k positive: relu leaves them off, signed keeps the least negative.
        ("relu", [1.0, 0.0, 0.0, 0.0]),
        ("signed", [1.0, -2.0, 0.0, 0.0]),
        ("abs", [0.0, 0.0, -4.0, -3.0]),
    ],
)
def test_topk_of_a_row_with_too_few_positive(sign, expected):
    latents = _topk(k=2, sign=sign)(UNIT4, _z([1, -2, -4, -3]), fit=False)
    assert _dense(latents, 4).tolist() == [expected]
    assert torch.equal(latents.gate != 0, latents.value != 0)


def test_an_exact_zero_does_not_speak():
    for sign in ("relu", "signed", "abs"):
        latents = _topk(k=4, sign=sign)(UNIT4, _z([0, 0, 0, 0]), fit=False)
        assert (latents.gate == 0).all()


def test_the_bias_competes():
    gate = _topk(k=1)
    assert gate.bias is not None
    gate.bias.data.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    latents = gate(UNIT4, _z([3, -1, 0, 0]), fit=True)
    assert latents.unit is not None
    assert latents.unit.tolist() == [[1]]
    assert latents.act.tolist() == [[4.0]]


def test_annealing_by_hand():
    # From 8 to 2 over half of 10 steps: 2 + 6·(1 − s/5), rounded: 6.8, 5.6, 4.4, 3.2, 2.
    gate = _topk(16, k=2, start_k=8, anneal=0.5)
    found = [gate.k]
    for done in range(1, 8):
        gate.after_step(done, done / 10)
        found.append(gate.k)
    assert found == [8, 7, 6, 4, 3, 2, 2, 2]


def test_annealing_holds_in_training_only():
    gate = _topk(4, k=1, start_k=3)
    z = _z([4, 3, 2, 1])
    assert _dense(gate(UNIT4, z, fit=True), 4).tolist() == [[4.0, 3.0, 2.0, 0.0]]
    assert _dense(gate(UNIT4, z, fit=False), 4).tolist() == [[4.0, 0.0, 0.0, 0.0]]


def test_annealing_over_no_share_jumps():
    gate = _topk(8, k=2, start_k=8, anneal=0.0)
    gate.after_step(1, 0.001)
    assert gate.k == 2


def test_an_annealed_budget_is_resumed():
    gate = _topk(8, k=2, start_k=8)
    gate.after_step(1, 0.05)
    again = _topk(8, k=2, start_k=8)
    assert again.k == 8
    again.load_state_dict(gate.state_dict())
    assert again.k == gate.k == 5
    assert list(_topk(k=2).state_dict()) == ["bias"], "a constant is no state"


def test_multi_adds_an_eighth_of_the_error_at_four_k():
    # Target 0, z = (4, 3, 2, 1), D = I, V = 2. At k = 1 the error is 16/2; at 4k it is
    # (16 + 9 + 4 + 1)/2 = 15, of which the part is an eighth.
    gate = _topk(k=1, multi=True)
    seen = _seen(gate, _z([4, 3, 2, 1]), torch.eye(4, dtype=DOUBLE), variance=2.0)
    assert seen.error(seen.latents.decode(seen.writes)).item() == 8.0
    assert {n: p.item() for n, p in gate.parts(seen, 1.0).items()} == {"multi": 15 / 8}


def test_multi_takes_no_more_latents_than_there_are():
    gate = _topk(k=3, multi=True)
    seen = _seen(gate, _z([4, 3, 2, 1]), torch.eye(4, dtype=DOUBLE))
    assert gate.parts(seen, 1.0)["multi"].item() == 30 / 8
    assert _topk(k=3).parts(seen, 1.0) == {}


def test_batchtopk_by_hand():
    # B·k = 4 of the batch: 9, 8, 7 and 5; row 0 keeps three of them.
    z = _z([9, 8, 5, 1], [7, 4, -9, 3])
    gate = _batch(k=2)
    latents = gate(UNIT4, z, fit=True)
    assert _dense(latents, 4).tolist() == [[9.0, 8.0, 5.0, 0.0], [7.0, 0.0, 0.0, 0.0]]
    assert gate.smallest.item() == 5.0
    assert latents.value.shape == (2, 3), "as wide as the fullest row"


@settings(max_examples=40)
@given(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_batchtopk_keeps_at_most_its_budget(rows, num, k, seed):
    torch.manual_seed(seed)
    k = min(k, num)
    table = DenseRows(torch.randn(num, 3, dtype=DOUBLE))
    z = torch.randn(rows, 3, dtype=DOUBLE)
    latents = _batch(num, k=k)(table, z, fit=True)
    speaking = int((latents.value != 0).sum())
    positive = int((table.all(z) > 0).sum())
    assert speaking == min(rows * k, positive)
    assert (latents.value >= 0).all()
    assert latents.code().unit.shape == latents.value.shape


def test_batchtopk_infers_each_row_alone():
    gate = _batch(k=1)
    gate.threshold.fill_(2.0)
    z = _z([9, 8, 2, 1], [-3, 1, 0, 2.5])
    latents = gate(UNIT4, z, fit=False)
    assert latents.value.tolist() == [[9.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.5]]
    for row in range(2):
        assert torch.equal(gate(UNIT4, z[row : row + 1], fit=False).value[0], latents.value[row])


def test_an_unmeasured_threshold_lets_the_positive_through():
    gate = _batch(k=1)
    assert gate.threshold.item() == -1.0
    found = gate(UNIT4, _z([-0.5, 0, 0.5, 3]), fit=False).value
    assert found.tolist() == [[0.0, 0.0, 0.5, 3.0]]


def test_the_threshold_follows_the_smallest_kept():
    # From step 2 on: first 5 as it is, then .999·5 + .001·9.
    gate = _batch(k=1, threshold_from=2)
    for step, smallest, expected in ((1, 7.0, -1.0), (2, 5.0, 5.0), (3, 9.0, 5.004)):
        gate(UNIT4, _z([smallest, 0, 0, 0]), fit=True)
        gate.after_step(step, 0.0)
        assert gate.threshold.item() == pytest.approx(expected, abs=1e-12)


def test_a_batch_without_positive_latents_leaves_the_threshold():
    gate = _batch(k=1, threshold_from=0)
    silent = _z([-1, -1, -1, -1])
    gate(UNIT4, silent, fit=True)
    gate.after_step(1, 0.0)
    assert gate.threshold.item() == -1.0, "the first value is still to come"
    gate.threshold.fill_(3.0)
    gate.after_step(2, 0.0)
    assert gate.threshold.item() == 3.0


@pytest.mark.parametrize(("plan", "first"), [(None, 1000), (50, 5), (9, 0), (10**6, 1000)])
def test_a_short_plan_measures_the_threshold_early(plan, first):
    gate = _batch(k=1, plan=plan)
    gate(UNIT4, _z([4, 0, 0, 0]), fit=True)
    gate.after_step(first - 1, 0.0)
    assert gate.threshold.item() == -1.0
    gate.after_step(first, 0.0)
    assert gate.threshold.item() == 4.0


def test_the_threshold_is_state_and_the_last_batch_is_not():
    gate = _batch(k=1, threshold_from=0)
    gate(UNIT4, _z([4, 0, 0, 0]), fit=True)
    gate.after_step(1, 0.0)
    assert sorted(gate.state_dict()) == ["bias", "threshold"]
    again = _batch(k=1)
    again.load_state_dict(gate.state_dict())
    assert again.threshold.item() == 4.0


def test_groupmax_by_hand():
    # Blocks (1, 3) and (−2, −1): 3 wins the first, −1 the second without speaking.
    gate = GroupmaxGate(GroupmaxConfig(k=2), 4).double()
    latents = gate(UNIT4, _z([1, 3, -2, -1], [5, 4, 0, 7]), fit=True)
    assert latents.unit is not None
    assert latents.unit.tolist() == [[1, 3], [0, 3]]
    assert latents.value.tolist() == [[3.0, 0.0], [5.0, 7.0]]
    assert latents.gate.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert latents.act.tolist() == [[3.0, -1.0], [5.0, 7.0]]
    assert gate.parts(_seen(gate, _z([1, 3, -2, -1]), torch.eye(4, dtype=DOUBLE)), 1.0) == {}


GATES = {
    "relu": lambda num: ReLUGate(ReLUConfig(), num),
    "topk": lambda num: TopKGate(TopKConfig(k=3), num),
    "signed": lambda num: TopKGate(TopKConfig(k=3, sign="signed"), num),
    "abs": lambda num: TopKGate(TopKConfig(k=3, sign="abs"), num),
    "batchtopk": lambda num: BatchTopKGate(BatchTopKConfig(k=3), num, plan=None),
    "groupmax": lambda num: GroupmaxGate(GroupmaxConfig(k=3), num),
}


@pytest.mark.parametrize("rows", [0, 1, 63])
@pytest.mark.parametrize("name", GATES)
def test_gradients_are_those_of_the_kept_entries(name, rows):
    # The dense oracle: pre-activations of all, times a mask of what was kept.
    num, width = 12, 5
    gate = GATES[name](num).double()
    assert gate.bias is not None
    gate.bias.data.normal_()
    table = torch.randn(num, width, dtype=DOUBLE, requires_grad=True)
    z = torch.randn(rows, width, dtype=DOUBLE, requires_grad=True)
    upstream = torch.randn(rows, num, dtype=DOUBLE)
    inputs = (z, table, gate.bias)
    found = _dense(gate(DenseRows(table), z, fit=True), num)
    grads = torch.autograd.grad((found * upstream).sum(), inputs)
    whole = (z @ table.T + gate.bias) * (found.detach() != 0)
    expected = torch.autograd.grad((whole * upstream).sum(), inputs)
    torch.testing.assert_close(found, whole)
    for grad, wanted in zip(grads, expected):
        torch.testing.assert_close(grad, wanted)
    if rows:
        kept = (found != 0).sum()
        assert 0 < kept < found.numel()


def test_pre_activations_agree_however_they_are_named():
    table, bias = torch.randn(9, 4, dtype=DOUBLE), torch.randn(9, dtype=DOUBLE)
    z, unit = torch.randn(5, 4, dtype=DOUBLE), torch.randint(9, (5, 3))
    for offset in (None, bias):
        every = all_pre(DenseRows(table), z, offset)
        torch.testing.assert_close(
            some_pre(DenseRows(table), z, offset, unit), every.gather(1, unit)
        )
    torch.testing.assert_close(all_pre(DenseRows(table), z, bias), z @ table.T + bias)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopKConfig(k=0), "k: expected at least 1, found 0"),
        (lambda: BatchTopKConfig(k=-3), "k: expected at least 1, found -3"),
        (lambda: GroupmaxConfig(k=0), "k: expected at least 1, found 0"),
        (lambda: TopKConfig(k=5, start_k=4), "start_k: expected at least k = 5, found 4"),
        (lambda: TopKConfig(anneal=-0.1), "anneal: expected a share from 0 to 1, found -0.1"),
        (lambda: ReLUConfig(l1=-1.0), "l1: expected at least 0, found -1.0"),
        (lambda: ReLUConfig(l1=float("nan")), "l1: expected at least 0, found nan"),
        (lambda: ReLUConfig(warmup=1.5), "warmup: expected a share from 0 to 1, found 1.5"),
        (lambda: _topk(4, k=5), "gate.k: expected at most latents = 4, found 5"),
        (lambda: _topk(4, k=2, start_k=9), "gate.start_k: expected at most latents = 4, found 9"),
        (lambda: _batch(4, k=5), "gate.k: expected at most latents = 4, found 5"),
        (
            lambda: GroupmaxGate(GroupmaxConfig(k=3), 4),
            "gate.k: expected a divisor of latents = 4, found 3",
        ),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
