"""Reconstruction, prefixes, AuxK by hand; whom AuxK teaches; and all sums against differences."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.dictionaries import DICTIONARIES, Coder, CoderConfig, settle
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.coder import DEAD_ROWS
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.latents import Latents, Pass
from pellucid.dictionaries.losses import auxiliary, reconstruction
from pellucid.dictionaries.router import ExpertReads, Routed, RouterConfig
from pellucid.ops.rows import DenseRows

DOUBLE = torch.float64
EYE = DenseRows(torch.eye(4, dtype=DOUBLE))


def _seen(target: Tensor, value: Tensor, variance: float = 1.0) -> Pass:
    """A pass of listed latents 0 … K − 1 on unit rows, with base 0."""
    unit = torch.arange(value.shape[1]).expand(value.shape)
    latents = Latents(unit=unit, gate=(value != 0).double(), act=value, value=value)
    return Pass(
        z=target,
        target=target,
        base=torch.zeros_like(target),
        reads=EYE,
        writes=EYE,
        latents=latents,
        variance=torch.tensor(variance, dtype=DOUBLE),
    )


def _rows(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def test_reconstruction_by_hand():
    # Residuals (1, 0, 2, 0) and (0, 3, 0, 0): mean (5 + 9)/2 = 7 over V = 2.
    seen = _seen(_rows([1, 1, 2, 0], [0, 3, 0, 0]), _rows([0, 1], [0, 0]), variance=2.0)
    parts = reconstruction(seen, seen.latents.decode(EYE), ())
    assert {name: part.item() for name, part in parts.items()} == {"reconstruction": 3.5}


def test_prefixes_by_hand():
    # Latents 1, 2, 3 of 4 with values (1, 2, 3) on target (1, 2, 3, 0). With one latent 4 + 9 is
    # left, with two 9, with all 0; V = 2: (6.5 + 4.5 + 0)/3.
    seen = _seen(_rows([1, 2, 3, 0]), _rows([1, 2, 3]), variance=2.0)
    found = reconstruction(seen, seen.latents.decode(EYE), (0.25, 0.5, 1.0))["reconstruction"]
    assert found.item() == pytest.approx(11 / 3)


def test_prefixes_of_unlisted_latents_are_the_same():
    value = _rows([1, 0, 3, 5], [0, 2, 0, 1])
    listed = _seen(_rows([1, 2, 3, 4], [4, 3, 2, 1]), value)
    every = replace(listed, latents=Latents(unit=None, gate=value, act=value, value=value))
    prefixes = (0.01, 0.5, 0.74, 1.0)
    found = [reconstruction(seen, EYE.combine(value), prefixes) for seen in (listed, every)]
    torch.testing.assert_close(found[0], found[1])


def test_prefixes_replace_the_reconstruction(make):
    x = torch.randn(20, 6, dtype=DOUBLE)
    for prefixes in ((), (1.0,), (0.25, 0.5, 1.0)):
        coder = make(CoderConfig(latents=12, gate=TopKConfig(k=3), prefixes=prefixes))
        settle(coder, x, x)
        parts = coder.losses(x, x)
        assert set(parts) == {"reconstruction", "auxk"}
        code, errors = coder.activate(x), []
        for share in prefixes or (1.0,):
            written = coder.decode(code.where(code.unit < share * 12))
            missed = coder.out_scale * (x - coder.rest(x) - written)
            errors.append(missed.square().sum(1).mean() / coder.variance)
        torch.testing.assert_close(parts["reconstruction"], torch.stack(errors).mean())


def _auxiliary(
    seen: Pass, dead: list[int], config: CoderConfig, **routing: ExpertReads | Routed
) -> Tensor:
    parts = auxiliary(
        seen,
        seen.latents.decode(EYE),
        config,
        torch.tensor(dead, dtype=torch.long),
        z=seen.z,
        bias=None,
        experts=routing.get("experts"),
        routed=routing.get("routed"),
    )
    assert list(parts) == ["auxk"]
    return parts["auxk"]


# Rows z = target; latent 0 takes its whole coordinate, so that e = (0, 2, 1, 1), (0, 0, −2, 3).
TARGET = _rows([5, 2, 1, 1], [7, 0, -2, 3])
SEEN = _seen(TARGET, TARGET[:, :1])


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        # ē = (0, 1, −.5, 2), e − ē = ±(0, 1, 1.5, −1): spread 2·4.25 = 8.5. Dead 1, 2 and 3; the
        # two strongest (d/2 = 2) of relu: (2, 1, 1) → 2 and one 1, leaving 1; (0, 0, 3) → 3,
        # leaving 4.
        ("relu", 5 / 8.5),
        # Signed: (2, 1, 1) → as before; (0, −2, 3) → 3 and 0, leaving 4.
        ("signed", 5 / 8.5),
        # In magnitude: (0, −2, 3) → 3 and −2, leaving 0.
        ("abs", 1 / 8.5),
    ],
)
def test_auxk_by_hand(sign, expected):
    config = CoderConfig(latents=4, gate=TopKConfig(k=1, sign=sign), auxk=0.5)
    assert _auxiliary(SEEN, [1, 2, 3], config).item() == pytest.approx(0.5 * expected)


def test_auxk_of_one_dead_latent_by_hand():
    # Latent 2 alone: relu(1) = 1 leaves (0, 2, 0, 1): 5; relu(−2) = 0 leaves 4 + 9: 13.
    config = CoderConfig(latents=4, gate=TopKConfig(k=1), auxk=0.5)
    assert _auxiliary(SEEN, [2], config).item() == pytest.approx(0.5 * 18 / 8.5)
    # With the ramp: min(1, #dead/(d/2)) = ½.
    ramp = replace(config, auxk_ramp=True)
    assert _auxiliary(SEEN, [2], ramp).item() == pytest.approx(0.25 * 18 / 8.5)
    assert _auxiliary(SEEN, [1, 2, 3], ramp).item() == _auxiliary(SEEN, [1, 2, 3], config).item()


def test_without_dead_latents_or_error_there_is_no_auxk():
    config = CoderConfig(latents=4, gate=TopKConfig(k=1))
    assert _auxiliary(SEEN, [], config).item() == 0.0
    perfect = _seen(TARGET, TARGET)
    assert _auxiliary(perfect, [1, 2], config).item() == 0.0


def test_auxk_of_active_experts_only_by_hand():
    # Experts {0, 1} and {2, 3}; row 0 opened the first, row 1 the second. Row 0 may use latent 1:
    # 2 of (0, 2, 1, 1) leaves 2. Row 1 may use 2 and 3: relu(−2) = 0 and 3 of (0, 0, −2, 3): 4.
    config = CoderConfig(latents=4, gate=TopKConfig(k=1), auxk=0.5)
    routed = Routed(
        expert=torch.tensor([[0], [1]]),
        gate=torch.ones(2, 1, dtype=DOUBLE),
        probability=torch.full((2, 2), 0.5, dtype=DOUBLE),
    )
    found = _auxiliary(SEEN, [1, 2, 3], config, experts=ExpertReads(EYE, None, 2), routed=routed)
    assert found.item() == pytest.approx(0.5 * 6 / 8.5)


AUXK = {
    "topk": CoderConfig(latents=12, gate=TopKConfig(k=3)),
    "abs": CoderConfig(latents=12, gate=TopKConfig(k=3, sign="abs")),
    "signed": CoderConfig(latents=12, gate=TopKConfig(k=3, sign="signed")),
    "batchtopk": CoderConfig(latents=12, gate=BatchTopKConfig(k=3)),
    "tied": CoderConfig(latents=12, gate=TopKConfig(k=3), atoms=DenseAtomsConfig(tied=True)),
    "expander": CoderConfig(
        latents=12, gate=TopKConfig(k=3), atoms=ExpanderAtomsConfig(nonzeros=3)
    ),
    "switch": CoderConfig(
        latents=12, gate=TopKConfig(k=3), router=RouterConfig(experts=4, active=2)
    ),
    "expander-switch": CoderConfig(
        latents=12,
        gate=TopKConfig(k=3),
        atoms=ExpanderAtomsConfig(nonzeros=3),
        router=RouterConfig(experts=4, active=2),
    ),
}


def _off_start(coder: Coder) -> Coder:
    """Every parameter moved, so that nothing is zero by chance."""
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
            if name == "gate.threshold":
                parameter.abs_()
    return coder


@pytest.mark.parametrize(
    ("name", "d_out"),
    [(name, d_out) for name in AUXK for d_out in (None, 5) if (name, d_out) != ("tied", 5)],
)
def test_auxk_teaches_rows_of_dead_latents_only(make, name, d_out):
    coder = _off_start(make(AUXK[name], d_out=d_out))
    dead = torch.tensor([1, 4, 5, 10])
    coder.silent[dead] = DEAD_ROWS
    x = torch.randn(99, 6, dtype=DOUBLE)
    y = x if d_out is None else torch.randn(99, d_out, dtype=DOUBLE)
    coder.losses(x, y)["auxk"].backward()
    alive = torch.ones(12, dtype=torch.bool).scatter_(0, dead, False)
    taught = set()
    for parameter_name, parameter in coder.named_parameters():
        grad = parameter.grad
        if grad is None:
            continue
        assert len(grad) == 12, parameter_name
        assert (grad[alive] == 0).all(), parameter_name
        assert (grad[dead].abs().reshape(4, -1).sum(1) > 0).all(), parameter_name
        taught.add(parameter_name)
    expected = {
        n for n, _ in coder.named_parameters() if n.partition(".")[0] in ("encoder", "decoder")
    }
    assert taught == expected | {"gate.bias"}
    assert coder.bias.grad is None, "the decoder bias has no part in it"


def test_auxk_teaches_dead_latents_of_open_experts_only(make):
    coder = _off_start(make(AUXK["switch"]))
    coder.silent.fill_(DEAD_ROWS)
    with torch.no_grad():
        coder.router.offset.copy_(torch.tensor([50.0, 40.0, -50.0, -60.0]))
    x = torch.randn(33, 6, dtype=DOUBLE)
    coder.losses(x, x)["auxk"].backward()
    for grad in (coder.encoder.weight.grad, coder.decoder.weight.grad, coder.gate.bias.grad):
        assert (grad[6:] == 0).all()
        assert (grad[:6] != 0).any()


def test_the_error_that_auxk_learns_is_detached(make):
    # Against finite differences the loss moves with e too; against the frozen one it does not.
    coder = _off_start(make(AUXK["topk"]))
    coder.silent[3:] = DEAD_ROWS
    x = torch.randn(33, 6, dtype=DOUBLE)
    coder.losses(x, x)["auxk"].backward()
    z = (x - coder.bias).detach()
    error = (x - coder(x)).detach()
    weights = [
        p.detach().clone().requires_grad_() for p in (coder.encoder.weight, coder.decoder.weight)
    ]
    pre = F.relu(z @ weights[0][3:].T + coder.gate.bias[3:].detach())
    top = pre.topk(3, dim=-1)
    guess = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ weights[1][3:]
    spread = (error - error.mean(0)).square().sum()
    ((error - guess).square().sum() / spread / 32).backward()
    torch.testing.assert_close(coder.encoder.weight.grad, weights[0].grad)
    torch.testing.assert_close(coder.decoder.weight.grad, weights[1].grad)


def _total(parts: Mapping[str, Tensor], without: tuple[str, ...] = ()) -> Tensor:
    return torch.stack([part for name, part in parts.items() if name not in without]).sum()


# What differences cannot see: thresholds learn by a straight-through gradient, and the gated
# auxiliary detaches the decoder that it decodes with.
STRAIGHT_THROUGH = {"gate.threshold"}
DETACHED = ("gate_reconstruction",)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in DICTIONARIES
        for kind in ("sae", "transcoder", "skip")
        if name != "pursuit" or kind == "sae"
    ],
)
def test_gradients_of_the_whole_sum(make, shrink, name, kind):
    config = replace(shrink(DICTIONARIES[name]), skip=kind == "skip")
    d_out = None if kind == "sae" else 5
    coder = make(config, d_out=d_out)
    x = torch.randn(9, 6, dtype=DOUBLE)
    y = x if d_out is None else torch.randn(9, d_out, dtype=DOUBLE)
    settle(coder, x, y)
    _off_start(coder)
    _total(coder.losses(x, y), DETACHED).backward()
    for parameter_name, parameter in coder.named_parameters():
        if parameter_name in STRAIGHT_THROUGH:
            continue
        direction = torch.randn_like(parameter)
        assert parameter.grad is not None, parameter_name
        found = (parameter.grad * direction).sum().item()
        # A central difference of width 2e-6 is exact to 1e-9 here; ties are a null set.
        sides = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                sides.append(_total(coder.losses(x, y), DETACHED).item())
                parameter -= step * direction
        difference = (sides[0] - sides[1]) / 2e-6
        assert found == pytest.approx(difference, rel=1e-5, abs=1e-7), parameter_name


@pytest.mark.parametrize(
    "config",
    [
        CoderConfig(latents=12, gate=TopKConfig(k=2, multi=True)),
        CoderConfig(latents=12, gate=TopKConfig(k=3), reduction="sum", prefixes=(0.5, 1.0)),
        CoderConfig(latents=12, gate=ReLUConfig(plain=True), auxk=0.0),
        CoderConfig(
            latents=12,
            gate=TopKConfig(k=3),
            router=RouterConfig(experts=4, active=2, lowpass="mean", reads="dense"),
            atoms=ExpanderAtomsConfig(nonzeros=3),
        ),
        CoderConfig(
            latents=12,
            gate=TopKConfig(k=3),
            router=RouterConfig(experts=4, active=1, gate="p", fraction="top1", sums=True),
            reduction="sum",
        ),
    ],
    ids=["multi", "prefixes", "plain", "dense-reads", "authors-switch"],
)
def test_gradients_of_other_parts(make, config):
    coder = _off_start(make(config))
    x = torch.randn(9, 6, dtype=DOUBLE)
    named = dict(coder.named_parameters())

    def total(*values: Tensor) -> Tensor:
        replaced = dict(zip(named, values))
        return _total(
            torch.func.functional_call(
                _Losses(coder), {f"coder.{n}": v for n, v in replaced.items()}, (x,)
            )
        )

    for parameter_name, parameter in named.items():
        direction = torch.randn_like(parameter)
        (grad,) = torch.autograd.grad(total(*named.values()), parameter)
        sides = []
        for step in (1e-6, -1e-6):
            moved = named | {parameter_name: parameter + step * direction}
            sides.append(total(*moved.values()).item())
        difference = (sides[0] - sides[1]) / 2e-6
        assert (grad * direction).sum().item() == pytest.approx(difference, rel=1e-5, abs=1e-7)


class _Losses(torch.nn.Module):
    """``losses`` as a forward pass, so that parameters can be handed in."""

    def __init__(self, coder: Coder) -> None:
        super().__init__()
        self.coder = coder

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        return self.coder.losses(x, x)


def test_raw_sums_are_the_variance_times_the_mean(make):
    x = torch.randn(33, 6, dtype=DOUBLE)
    found = {}
    for reduction in ("variance", "sum"):
        coder = make(CoderConfig(latents=12, gate=TopKConfig(k=3), reduction=reduction))
        settle(coder, x, x)
        found[reduction] = coder.losses(x, x)["reconstruction"].item()
        scaled = coder.in_scale * x
        spread = (scaled - scaled.mean(0)).square().sum(1).mean().item()
    assert found["sum"] == pytest.approx(found["variance"] * spread)
