"""JumpReLU and Gated by hand: values, straight-through gradients, and every penalty."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.dictionaries.gates import Gate
from pellucid.dictionaries.latents import Pass
from pellucid.dictionaries.thresholds import GatedConfig, GatedGate, JumpReLUConfig, JumpReLUGate
from pellucid.ops.rows import DenseRows

DOUBLE = torch.float64
# With these rows the pre-activations of z are z itself.
UNIT4 = DenseRows(torch.eye(4, dtype=DOUBLE))


def _z(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE, requires_grad=True)


def _jump(num: int = 4, **fields: object) -> JumpReLUGate:
    """θ = .5, ε = .2, L0* = 1 and no warm-up unless told otherwise."""
    fields = {"threshold": 0.5, "bandwidth": 0.2, "l0": 1.0, "warmup": 0.0} | fields
    return JumpReLUGate(JumpReLUConfig(**fields), num).double()


def _gated(num: int = 4, **fields: float) -> GatedGate:
    return GatedGate(GatedConfig(**({"warmup": 0.0} | fields)), num).double()


def _seen(gate: Gate, z: Tensor, writes: Tensor | None = None, variance: float = 1.0) -> Pass:
    """A training pass with target 0 and base 0."""
    table = torch.eye(4, dtype=DOUBLE) if writes is None else writes
    nothing = torch.zeros(z.shape[0], table.shape[1], dtype=DOUBLE)
    return Pass(
        z=z,
        target=nothing,
        base=nothing,
        reads=UNIT4,
        writes=DenseRows(table),
        latents=gate(UNIT4, z, fit=True),
        variance=torch.tensor(variance, dtype=DOUBLE),
    )


def _values(parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: part.item() for name, part in parts.items()}


def test_jumprelu_by_hand():
    # Strictly above θ = .5.
    latents = _jump()(UNIT4, _z([0.6, 0.5, 0.4, -3]), fit=True)
    assert latents.value.tolist() == [[0.6, 0.0, 0.0, 0.0]]
    assert latents.gate.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert latents.act.tolist() == [[0.6, 0.5, 0.4, -3.0]]


def test_each_latent_has_its_own_threshold():
    gate = _jump()
    gate.threshold.data.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    found = gate(UNIT4, _z([1.5, 1.5, 1.5, 1.5]), fit=False).value
    assert found.tolist() == [[1.5, 1.5, 0.0, 0.0]]


def test_gradients_of_the_value_by_hand():
    # θ = .5, ε = .2: inside |π − θ| < .1 the gradient to θ is −θ/ε = −2.5 times upstream;
    # to π it is 1 where the latent is on. Upstream (1, 2, 3, 4), π = (.55, .45, 1, .1).
    gate, z = _jump(), _z([0.55, 0.45, 1.0, 0.1])
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    (gate(UNIT4, z, fit=True).value * upstream).sum().backward()
    assert gate.threshold.grad is not None
    assert z.grad is not None
    assert gate.threshold.grad.tolist() == pytest.approx([-2.5, -5.0, 0.0, 0.0])
    assert z.grad.tolist()[0] == pytest.approx([1.0, 0.0, 3.0, 0.0])


def test_the_step_reaches_the_input_on_demand():
    # As above, with +θ/ε = 2.5 times upstream added to π inside the window.
    gate, z = _jump(ste_to_input=True), _z([0.55, 0.45, 1.0, 0.1])
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    (gate(UNIT4, z, fit=True).value * upstream).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist()[0] == pytest.approx([3.5, 5.0, 3.0, 0.0])


# Two rows with L0 = 2 and 1 at θ = .5; (.55) and (.45) lie inside the window of ±.1.
ROWS = ([0.55, 2.0, 0.1, -1.0], [0.45, 0.3, 3.0, 0.0])


@pytest.mark.parametrize(
    ("penalty", "expected", "factor"),
    [
        # λ · mean L0 = 1.5 λ; each step has weight λ/2.
        ("l0", 1.5, 0.5),
        # λ (1.5/2 − 1)² = λ/16; d/dL0 of a row is 2 (1.5/2 − 1)/2 · ½ = −1/8.
        ("quadratic_batch", 1 / 16, -1 / 8),
    ],
)
def test_step_penalties_by_hand(penalty, expected, factor):
    gate, z = _jump(penalty=penalty, weight=3.0, l0=2.0), _z(*ROWS)
    parts = gate.parts(_seen(gate, z), 1.0)
    assert _values(parts) == pytest.approx({"sparsity": 3 * expected})
    parts["sparsity"].backward()
    # d step/dθ = −1/ε = −5 in each of the two rows, both of latent 0.
    assert gate.threshold.grad is not None
    assert gate.threshold.grad.tolist() == pytest.approx([2 * 3 * factor * -5, 0.0, 0.0, 0.0])
    assert z.grad is None or (z.grad == 0).all(), "a step has no gradient to its input"


def test_the_token_penalty_by_hand():
    # λ · mean (2/2)(L0 − 2)² over L0 = (2, 1): λ/2. d/dL0 = 2(L0 − 2)/2 = (0, −1) per row.
    gate, z = _jump(penalty="quadratic_token", weight=3.0, l0=2.0), _z(*ROWS)
    parts = gate.parts(_seen(gate, z), 1.0)
    assert _values(parts) == pytest.approx({"sparsity": 1.5})
    parts["sparsity"].backward()
    assert gate.threshold.grad is not None
    assert gate.threshold.grad.tolist() == pytest.approx([3 * -1 * -5, 0.0, 0.0, 0.0])


def test_the_token_penalty_punishes_variance_of_l0():
    # L0 of (2, 0) and (1, 1): the same mean, and only the batch form calls them equal.
    spread, even = _z([1, 1, 0, 0], [0, 0, 0, 0]), _z([1, 0, 0, 0], [0, 1, 0, 0])
    found = {}
    for penalty in ("quadratic_batch", "quadratic_token"):
        gate = _jump(penalty=penalty)
        found[penalty] = [
            gate.parts(_seen(gate, z), 1.0)["sparsity"].item() for z in (spread, even)
        ]
    # L0* = 1: batch (1 − 1)² = 0 twice; token mean 2·(1, 1) = 2 against 0.
    assert found == {"quadratic_batch": [0.0, 0.0], "quadratic_token": [2.0, 0.0]}


def test_the_tanh_penalty_by_hand():
    # Norms (2, 1, 1, 3). On: .6·2 and 2·1; off below θ by (.4, 1.5) at norms 1 and 3.
    writes = torch.diag(torch.tensor([2.0, 1.0, 1.0, 3.0], dtype=DOUBLE))
    gate, z = _jump(penalty="tanh", weight=3.0), _z([0.6, 2.0, 0.1, -1.0])
    parts = gate.parts(_seen(gate, z, writes), 1.0)
    tanh = torch.tanh(torch.tensor([4.8, 8.0], dtype=DOUBLE)).sum().item()
    assert _values(parts) == pytest.approx(
        {"sparsity": 3 * tanh, "pre_act": 3e-6 * (0.4 * 1 + 1.5 * 3)}
    )
    parts["pre_act"].backward()
    # d/dπ = −3e-6·‖D‖ where π < θ: a silent latent is pulled up.
    assert z.grad is not None
    assert z.grad.tolist()[0] == pytest.approx([0.0, 0.0, -3e-6, -9e-6])


def test_the_tanh_penalty_learns_through_the_value():
    # Inside the window f's straight-through gradient −θ/ε·(1 − tanh²) · 4 · ‖D‖ counts too.
    gate, z = _jump(penalty="tanh", weight=1.0), _z([0.55, -1.0, -1.0, -1.0])
    gate.parts(_seen(gate, z), 1.0)["sparsity"].backward()
    slope = 4 * (1 - torch.tanh(torch.tensor(2.2, dtype=DOUBLE)).square().item())
    assert gate.threshold.grad is not None
    assert z.grad is not None
    assert gate.threshold.grad[0].item() == pytest.approx(-2.5 * slope)
    assert z.grad[0, 0].item() == pytest.approx(slope)


@pytest.mark.parametrize("penalty", ["l0", "quadratic_batch", "quadratic_token", "tanh"])
def test_every_penalty_warms_up(penalty):
    gate = _jump(penalty=penalty, warmup=0.2, l0=3.0)
    seen = _seen(gate, _z(*ROWS))
    found = [gate.parts(seen, share)["sparsity"].item() for share in (0.0, 0.1, 0.2, 0.7)]
    assert found[0] == 0.0
    assert found[1] == pytest.approx(found[2] / 2)
    assert found[2] == found[3] > 0


def test_thresholds_start_in_float32_and_stay_above_zero():
    gate = JumpReLUGate(JumpReLUConfig(), 64)
    assert gate.threshold.dtype == torch.float32
    torch.testing.assert_close(gate.threshold.data, torch.full((64,), 0.01))
    gate.threshold.data[:2] = torch.tensor([-0.5, 0.7])
    gate.after_step(1, 0.1)
    assert gate.threshold[0].item() == 0.0
    assert gate.threshold[1].item() == pytest.approx(0.7)


def test_gated_by_hand():
    # b_g = −1, r = log 2, b_m = .5: π = (2, 1, −.1, .5): decided only for π > 1; act = 2π + .5.
    gate = _gated()
    assert gate.bias is not None
    assert gate.log_scale is not None
    gate.decision_bias.data.fill_(-1.0)
    gate.log_scale.data.fill_(torch.tensor(2.0, dtype=DOUBLE).log())
    gate.bias.data.fill_(0.5)
    latents = gate(UNIT4, _z([2, 1, -0.1, 0.5]), fit=True)
    assert latents.gate.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert latents.act.tolist()[0] == pytest.approx([4.5, 2.5, 0.3, 1.5])
    assert latents.value.tolist()[0] == pytest.approx([4.5, 0.0, 0.0, 0.0])


def test_a_decided_latent_of_negative_magnitude_is_off():
    gate = _gated()
    gate.decision_bias.data.fill_(1.0)
    latents = gate(UNIT4, _z([-0.5, 0.5, -2.0, 0.0]), fit=True)
    assert latents.gate.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_the_gated_parts_by_hand():
    # b_g = 1: relu(π + 1) = (3, 0, 1.5, 0); λ = .1: l1 = .45. With D = 2I, target and base 0,
    # ŷ_g = (6, 0, 3, 0): 45 over V = 9 is 5.
    gate = _gated(l1=0.1)
    gate.decision_bias.data.fill_(1.0)
    writes = 2 * torch.eye(4, dtype=DOUBLE)
    seen = _seen(gate, _z([2, -1, 0.5, -3]), writes, variance=9.0)
    expected = {"l1": 0.45, "gate_reconstruction": 5.0}
    assert _values(gate.parts(seen, 1.0)) == pytest.approx(expected)


def test_the_gated_penalty_warms_up_and_its_reconstruction_does_not():
    gate = _gated(l1=0.1, warmup=0.5)
    seen = _seen(gate, _z([2, -1, 0.5, -3]))
    early, late = (_values(gate.parts(seen, share)) for share in (0.25, 1.0))
    assert early["l1"] == pytest.approx(late["l1"] / 2)
    assert early["gate_reconstruction"] == late["gate_reconstruction"]


def test_the_gated_auxiliary_trains_the_decision_and_never_the_decoder():
    gate, z = _gated(), torch.randn(9, 4, dtype=DOUBLE)
    reads = torch.randn(4, 4, dtype=DOUBLE, requires_grad=True)
    writes = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    base = torch.randn(5, dtype=DOUBLE, requires_grad=True)
    target = torch.randn(9, 5, dtype=DOUBLE)
    seen = Pass(
        z=z,
        target=target,
        base=base.expand(9, 5),
        reads=DenseRows(reads),
        writes=DenseRows(writes),
        latents=gate(DenseRows(reads), z, fit=True),
        variance=torch.tensor(2.0, dtype=DOUBLE),
    )
    part = gate.parts(seen, 1.0)["gate_reconstruction"]
    decided = F.relu(z @ reads.T + gate.decision_bias)
    missed = target - base.detach() - decided @ writes.detach()
    expected = torch.autograd.grad(missed.square().sum(-1).mean() / 2, (reads, gate.decision_bias))
    part.backward()
    torch.testing.assert_close(reads.grad, expected[0])
    torch.testing.assert_close(gate.decision_bias.grad, expected[1])
    assert writes.grad is None
    assert base.grad is None
    assert gate.bias is not None
    assert gate.bias.grad is None, "the magnitude path has no part in it"


@pytest.mark.parametrize("rows", [0, 1, 63])
def test_gated_gradients_are_those_of_the_formula(rows):
    gate = _gated(5)
    for parameter in gate.parameters():
        parameter.data.normal_()
    assert gate.bias is not None
    assert gate.log_scale is not None
    table = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    z, upstream = torch.randn(rows, 3, dtype=DOUBLE), torch.randn(rows, 5, dtype=DOUBLE)
    inputs = (table, gate.bias, gate.log_scale)
    found = torch.autograd.grad(
        (gate(DenseRows(table), z, fit=True).value * upstream).sum(), inputs
    )
    pre = z @ table.T
    decided = (pre + gate.decision_bias > 0).double().detach()
    value = decided * F.relu(gate.log_scale.exp() * pre + gate.bias)
    for grad, wanted in zip(found, torch.autograd.grad((value * upstream).sum(), inputs)):
        torch.testing.assert_close(grad, wanted)


def test_gated_starts_as_a_relu():
    gate, z = _gated(), torch.randn(20, 4, dtype=DOUBLE)
    assert all((parameter == 0).all() for parameter in gate.parameters())
    assert torch.equal(gate(UNIT4, z, fit=False).value, F.relu(z))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: JumpReLUConfig(weight=-1.0), "weight: expected at least 0, found -1.0"),
        (lambda: JumpReLUConfig(l0=0.0), "l0: expected more than 0, found 0.0"),
        (lambda: JumpReLUConfig(bandwidth=0.0), "bandwidth: expected more than 0, found 0.0"),
        (lambda: JumpReLUConfig(threshold=-0.1), "threshold: expected at least 0, found -0.1"),
        (lambda: JumpReLUConfig(warmup=2.0), "warmup: expected a share from 0 to 1, found 2.0"),
        (lambda: GatedConfig(l1=float("nan")), "l1: expected at least 0, found nan"),
        (lambda: GatedConfig(warmup=-0.1), "warmup: expected a share from 0 to 1, found -0.1"),
        (lambda: _jump(4, l0=5.0), "gate.l0: expected at most latents = 4, found 5.0"),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_only_quadratic_penalties_have_a_target():
    for penalty in ("l0", "tanh"):
        assert _jump(4, penalty=penalty, l0=5.0).config.l0 == 5.0


@pytest.mark.parametrize("penalty", ["l0", "quadratic_batch", "quadratic_token"])
@pytest.mark.parametrize("to_input", [False, True])
def test_listing_few_latents_changes_no_value_and_no_gradient(penalty, to_input, monkeypatch):
    from pellucid.dictionaries import thresholds

    torch.manual_seed(3)
    config = JumpReLUConfig(
        penalty=penalty, l0=2.0, threshold=1.4, bandwidth=0.4, ste_to_input=to_input
    )
    z = torch.randn(50, 6, dtype=torch.float64)
    upstream = torch.randn(50, 6, dtype=torch.float64)
    found = []
    for listed in (1, 10**9):  # one in one: always listed; one in so many: never
        monkeypatch.setattr(thresholds, "LISTED", listed)
        gate = JumpReLUGate(config, 40).double()
        table = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        table = F.normalize(table).requires_grad_()
        rows = DenseRows(table)
        latents = gate(rows, z, fit=True)
        assert (latents.unit is None) == (listed > 1)
        written = latents.decode(rows)
        seen = Pass(
            z=z,
            target=z,
            base=torch.zeros_like(z),
            reads=rows,
            writes=rows,
            latents=latents,
            variance=torch.ones((), dtype=torch.float64),
        )
        loss = (written * upstream).sum() + gate.parts(seen, 1.0)["sparsity"]
        loss.backward()
        found.append([loss.detach(), written, table.grad, gate.threshold.grad, gate.bias.grad])
    assert (found[0][3] != 0).any()
    for one, other in zip(*found):
        # Sums over other orders of the same float64 terms.
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
