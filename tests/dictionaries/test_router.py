"""Routing by hand, the search against a brute-force one, scaling, and experts that stay closed."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.core.errors import ConfigError
from pellucid.dictionaries import DICTIONARIES, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.coder import DEAD_ROWS
from pellucid.dictionaries.gates import ReLUConfig, TopKConfig
from pellucid.dictionaries.router import Routed, Router, RouterConfig
from pellucid.ops.expander import expander_mask
from pellucid.ops.rows import AtomRows, DenseRows, SparseRows

DOUBLE = torch.float64


def _router(num: int = 12, width: int = 4, **fields: object) -> Router:
    """A router whose every parameter is off its initial value."""
    router = Router(RouterConfig(**({"experts": 3, "active": 2} | fields)), num, width).double()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return router


def _rows(sparse: bool, num: int = 12, width: int = 4) -> AtomRows:
    if not sparse:
        return DenseRows(torch.randn(num, width, dtype=DOUBLE))
    mask = expander_mask(num, 2, width, 0)
    return SparseRows(torch.randn(num, 2, dtype=DOUBLE), mask.index, width)


def _by_hand(**fields: object) -> Routed:
    """p = (1, 2, 5)/8 from logits that are the input."""
    router = Router(RouterConfig(**({"experts": 3, "active": 2} | fields)), 12, 3).double()
    router.weight.data.copy_(torch.eye(3))
    return router(torch.tensor([[1.0, 2.0, 5.0]], dtype=DOUBLE).log())


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("p", [5 / 8, 2 / 8]),
        ("renorm", [5 / 7, 2 / 7]),
        # softmax(5/8, 2/8): e^(3/8) to 1.
        ("softmax_of_p", [1 / (1 + math.exp(-3 / 8)), 1 / (1 + math.exp(3 / 8))]),
        ("ones", [1.0, 1.0]),
    ],
)
def test_gates_by_hand(gate, expected):
    routed = _by_hand(gate=gate)
    assert routed.expert.tolist() == [[2, 1]]
    assert routed.gate.tolist()[0] == pytest.approx(expected)
    assert routed.probability.tolist()[0] == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_the_centre_and_the_offset_enter_the_logits():
    router = _router(width=5)
    x = torch.randn(7, 5, dtype=DOUBLE)
    assert router.offset is not None
    logits = (x - router.center) @ router.weight.T + router.offset
    torch.testing.assert_close(router(x).probability, logits.softmax(-1))
    bare = _router(width=5, bias=False)
    assert bare.offset is None
    logits = (x - bare.center) @ bare.weight.T
    torch.testing.assert_close(bare(x).probability, logits.softmax(-1))


def test_experts_of_a_row_differ_and_are_its_likeliest():
    routed = _router(experts=6, active=3)(torch.randn(63, 4, dtype=DOUBLE))
    assert all(len(set(row)) == 3 for row in routed.expert.tolist())
    chosen = routed.probability.gather(1, routed.expert)
    rest = routed.probability.scatter(1, routed.expert, -1.0)
    assert (chosen.min(1).values >= rest.max(1).values).all()


def _brute(
    router: Router, rows: AtomRows, bias: Tensor | None, z: Tensor, routed: Routed, k: int
) -> list[dict[int, tuple[float, float]]]:
    """{unit: (gate, act)} of every row that speaks, one unit after another."""
    reads = router.reads(rows).gather(torch.arange(rows.num))
    size, found = rows.num // router.config.experts, []
    for b in range(z.shape[0]):
        speaking = {}
        for slot, i in enumerate(routed.expert[b].tolist()):
            for j in range(i * size, (i + 1) * size):
                act = float(reads[j] @ z[b]) + (0.0 if bias is None else float(bias[j]))
                if act > 0:
                    speaking[j] = (float(routed.gate[b, slot]), act)
        best = sorted(speaking, key=lambda j: -math.prod(speaking[j]))[:k]
        found.append({j: speaking[j] for j in best})
    return found


@pytest.mark.parametrize("lowpass", ["none", "mean", "learned"])
@pytest.mark.parametrize("reads", ["masked", "dense"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_the_search_is_a_brute_force_one(lowpass, reads, sparse, biased):
    router, rows = _router(lowpass=lowpass, reads=reads, bias=biased), _rows(sparse)
    bias = torch.randn(12, dtype=DOUBLE) if biased else None
    z, x, k = torch.randn(9, 4, dtype=DOUBLE), torch.randn(9, 4, dtype=DOUBLE), 3
    routed = router(x)
    latents = router.keep(router.reads(rows), bias, z, routed, k)
    assert latents.unit is not None
    torch.testing.assert_close(latents.value, latents.gate * latents.act)
    for b, expected in enumerate(_brute(router, rows, bias, z, routed, k)):
        entries = zip(latents.unit[b].tolist(), latents.gate[b].tolist(), latents.act[b].tolist())
        speaking = {unit: (gate, act) for unit, gate, act in entries if gate != 0}
        assert speaking.keys() == expected.keys()
        for unit, pair in speaking.items():
            assert pair == pytest.approx(expected[unit])


@pytest.mark.parametrize("rows", [0, 1, 63])
def test_any_number_of_rows(rows):
    router, table = _router(), _rows(False)
    z = torch.randn(rows, 4, dtype=DOUBLE)
    latents = router.keep(router.reads(table), None, z, router(z), 5)
    assert latents.value.shape == (rows, 5)


def test_l0_may_stay_below_k():
    # All pre-activations are −1: nothing speaks, and padding lies in active experts.
    router, rows = _router(), DenseRows(torch.zeros(12, 4, dtype=DOUBLE))
    z = torch.randn(9, 4, dtype=DOUBLE)
    routed = router(z)
    latents = router.keep(router.reads(rows), -torch.ones(12, dtype=DOUBLE), z, routed, 3)
    assert latents.unit is not None
    assert (latents.gate == 0).all()
    assert (latents.value == 0).all()
    active = latents.unit.unsqueeze(-1) // 4 == routed.expert.unsqueeze(1)
    assert active.any(-1).all()


def test_k_above_the_open_latents_keeps_them_all():
    router, rows = _router(active=1, gate="p"), _rows(False)
    z = torch.randn(9, 4, dtype=DOUBLE)
    assert router.keep(router.reads(rows), None, z, router(z), 12).value.shape == (9, 4)


@pytest.mark.parametrize("lowpass", ["none", "mean", "learned"])
@pytest.mark.parametrize("reads", ["masked", "dense"])
@pytest.mark.parametrize("sparse", [False, True])
def test_reads_are_the_same_whoever_asks(lowpass, reads, sparse):
    found = _router(lowpass=lowpass, reads=reads).reads(_rows(sparse))
    z, bias = torch.randn(9, 4, dtype=DOUBLE), torch.randn(12, dtype=DOUBLE)
    every = torch.arange(12)
    whole = z @ found.gather(every).T + bias
    torch.testing.assert_close(found.some(z, every.expand(9, 12), bias), whole)
    for i in range(3):
        torch.testing.assert_close(found.one(z, i, bias), whole[:, 4 * i : 4 * i + 4])
        torch.testing.assert_close(found.one(z, i, None), (whole - bias)[:, 4 * i : 4 * i + 4])


def _scaled(rows: AtomRows, router: Router) -> Tensor:
    """ŵ_j = (1 + ω_i) w_j − ω_i Λ w̄_i, dense."""
    table = rows.gather(torch.arange(12)).view(3, 4, 4)
    assert router.omega is not None
    omega = router.omega[:, None, None]
    matrix = torch.eye(4, dtype=DOUBLE) if router.low_pass is None else router.low_pass
    return ((1 + omega) * table - omega * (table.mean(1, keepdim=True) @ matrix.T)).view(12, 4)


@pytest.mark.parametrize("lowpass", ["mean", "learned"])
@pytest.mark.parametrize("reads", ["masked", "dense"])
@pytest.mark.parametrize("sparse", [False, True])
def test_scaled_reads_are_their_formula(lowpass, reads, sparse):
    router, rows = _router(lowpass=lowpass, reads=reads), _rows(sparse)
    expected = _scaled(rows, router)
    if sparse and reads == "masked":
        assert isinstance(rows, SparseRows)
        expected = expected * torch.zeros(12, 4).scatter_(1, rows.index.long(), 1.0)
        assert isinstance(router.reads(rows).rows, SparseRows)
    torch.testing.assert_close(router.reads(rows).gather(torch.arange(12)), expected)


def test_scaling_starts_as_none():
    rows = _rows(False)
    for lowpass, count in (("none", 3), ("mean", 4), ("learned", 5)):
        router = Router(RouterConfig(experts=3, active=2, lowpass=lowpass), 12, 4).double()
        assert len(list(router.parameters())) == count
        assert torch.equal(router.reads(rows).gather(torch.arange(12)), rows.weights)


def _balance(probability: Tensor, expert: Tensor, **fields: object) -> float:
    router = Router(RouterConfig(**({"experts": 4, "active": 2} | fields)), 8, 5).double()
    routed = Routed(expert=expert, gate=torch.ones(expert.shape), probability=probability)
    parts = router.parts(routed)
    assert list(parts) == ["balance"]
    return parts["balance"].item()


@pytest.mark.parametrize("fraction", ["top1", "top_e"])
def test_perfect_balance_costs_its_weight(fraction):
    even = torch.full((4, 4), 0.25, dtype=DOUBLE)
    expert = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    assert _balance(even, expert, fraction=fraction, balance=0.7) == pytest.approx(0.7)


@pytest.mark.parametrize("fraction", ["top1", "top_e"])
def test_load_fractions_sum_to_one(fraction):
    # With P = 1/E the loss is λ ΣF, whatever the load.
    even = torch.full((63, 4), 0.25, dtype=DOUBLE)
    expert = torch.rand(63, 4).argsort(1)[:, :2]
    assert _balance(even, expert, fraction=fraction, balance=1.0) == pytest.approx(1.0)


def test_the_balance_by_hand():
    # Two rows. P = (.5, .3, .15, .05). top1: F = (1, 0, 0, 0): 4·.5 = 2.
    # top_e: slots 0, 1, 0, 2 of 4: F = (½, ¼, ¼, 0): 4·(.25 + .075 + .0375) = 1.45.
    probability = torch.tensor([[0.6, 0.3, 0.06, 0.04], [0.4, 0.3, 0.24, 0.06]], dtype=DOUBLE)
    expert = torch.tensor([[0, 1], [0, 2]])
    assert _balance(probability, expert, fraction="top1", balance=1.0) == pytest.approx(2.0)
    assert _balance(probability, expert, fraction="top_e", balance=1.0) == pytest.approx(1.45)
    assert _balance(probability, expert, balance=0.1) == pytest.approx(0.145)
    # Raw sums: times the width, 5.
    assert _balance(probability, expert, balance=0.1, sums=True) == pytest.approx(0.725)


def test_the_balance_trains_the_router_towards_the_idle():
    router = _router(experts=4, num=8, balance=1.0)
    router.center.data.zero_()
    assert router.offset is not None
    router.offset.data.copy_(torch.tensor([9.0, 8.0, 0.0, 0.0]))
    router.parts(router(torch.randn(63, 4, dtype=DOUBLE)))["balance"].backward()
    assert router.offset.grad is not None
    assert (router.offset.grad[:2] > 0).any()
    assert (router.offset.grad[2:] < 0).all(), "descent raises the idle experts"


def test_the_reconstruction_trains_the_router_unless_gates_are_constant():
    rows, z = _rows(False), torch.randn(9, 4, dtype=DOUBLE)
    for gate, active, learns in (
        ("p", 1, True),
        ("p", 2, True),
        ("renorm", 2, True),
        ("softmax_of_p", 2, True),
        ("ones", 2, False),
        ("renorm", 1, False),
        ("softmax_of_p", 1, False),
    ):
        router = _router(gate=gate, active=active, quirks=True)
        rows.weights.requires_grad_()
        router.keep(router.reads(rows), None, z, router(z), 3).value.sum().backward()
        grad = router.weight.grad
        size = 0.0 if grad is None else float(grad.abs().max())
        # 1e-12: p / p differs from a constant by rounding.
        assert (size > 1e-12) == learns, (gate, active)


CLOSED, EXPERTS, LATENTS = 2, 4, 12
ATOMS = {
    "dense": DenseAtomsConfig(),
    "tied": DenseAtomsConfig(tied=True),
    "expander": ExpanderAtomsConfig(nonzeros=3),
}
CLOSED_CASES = [
    (atoms, lowpass, reads, d_out)
    for atoms in ATOMS
    for lowpass, reads in (
        ("none", "masked"),
        ("mean", "masked"),
        ("learned", "masked"),
        ("mean", "dense"),
        ("learned", "dense"),
    )
    for d_out in ((None, 5) if atoms != "tied" else (None,))
]


@pytest.mark.parametrize(("atoms", "lowpass", "reads", "d_out"), CLOSED_CASES, ids=str)
def test_closed_experts_are_never_read(make, atoms, lowpass, reads, d_out):
    config = CoderConfig(
        latents=LATENTS,
        gate=TopKConfig(k=3),
        atoms=ATOMS[atoms],
        router=RouterConfig(experts=EXPERTS, active=2, lowpass=lowpass, reads=reads),
    )
    coder = make(config, d_out=d_out)
    units = slice(CLOSED * 3, CLOSED * 3 + 3)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        coder.router.offset[CLOSED] = -1e3
        for part in (coder.decoder, coder.encoder):
            if part is not None:
                for parameter in part.parameters():
                    parameter[units] = math.nan
        coder.gate.bias[units] = math.nan
        # All are dead, so the closed ones are candidates for the error of others.
        coder.silent.fill_(DEAD_ROWS)
    x = torch.randn(63, 6, dtype=DOUBLE)
    y = x if d_out is None else torch.randn(63, d_out, dtype=DOUBLE)
    parts = coder.losses(x, y)
    assert parts["auxk"] > 0
    assert all(torch.isfinite(part) for part in parts.values())
    sum(parts.values()).backward()
    for name, parameter in coder.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        if name == "router.low_pass":
            continue  # Λ multiplies the mean row of every expert, once per step and not per token.
        if name in ("router.omega", "decoder.values", "decoder.gain", "encoder.values"):
            # The closed expert's own scale and norms belong to the closed expert.
            own = grad.view(EXPERTS, -1)
            grad = own[torch.arange(EXPERTS) != CLOSED]
        elif len(grad) == LATENTS:
            assert (grad[units] == 0).all(), name
        assert torch.isfinite(grad).all(), name
    assert torch.isfinite(coder(x)).all()
    code = coder.activate(x)
    assert torch.isfinite(code.value).all()
    assert not ((code.unit >= units.start) & (code.unit < units.stop)).any()


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            # A sparse pattern's own size is nominal; its values are seen as they come out.
            if isinstance(part, Tensor) and part.layout == torch.strided:
                self.size = max(self.size, part.numel())
        return found


def _largest(make, config: CoderConfig, rows: int) -> int:
    coder, x = make(config), torch.randn(rows, 6, dtype=DOUBLE)
    with _Largest() as seen:
        torch.stack(list(coder.losses(x, x).values())).sum().backward()
        coder.activate(x)
        coder(x)
    return seen.size


@pytest.mark.parametrize("name", ["switch", "scale", "expander-switch", "expander-scale"])
def test_no_step_holds_a_score_for_every_latent_and_row(make, name):
    # 1,024 latents in 32 experts of which 2 are open: [B, 64] of [B, 1024], and rows of width 6.
    config = DICTIONARIES[name]
    assert config.router is not None
    router = replace(config.router, experts=32, active=2)
    config = replace(config, latents=1024, router=router, gate=TopKConfig(k=4))
    if isinstance(config.atoms, ExpanderAtomsConfig):
        config = replace(config, atoms=ExpanderAtomsConfig(nonzeros=3))
    rows = 128
    assert _largest(make, config, rows) <= max(rows * 64, 1024 * 6) < rows * 1024
    scored = replace(config, router=None, gate=ReLUConfig(), auxk=0.0)
    assert _largest(make, scored, rows) >= rows * 1024, "what the measure would find"


def test_a_router_that_scores_every_expert_is_caught():
    # The oracle evaluates all latents and masks: NaN comes through its gradient.
    reads = torch.randn(12, 4, dtype=DOUBLE)
    reads[6:9] = math.nan
    bias = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    strength = F.relu((torch.randn(9, 4, dtype=DOUBLE) - bias) @ reads.T)
    strength = torch.where(torch.arange(12) // 3 == 2, 0.0, strength)
    assert torch.isfinite(strength).all()
    strength.sum().backward()
    assert bias.grad is not None
    assert not torch.isfinite(bias.grad).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RouterConfig(experts=0), "experts: expected at least 1, found 0"),
        (lambda: RouterConfig(active=0), "active: expected at least 1, found 0"),
        (lambda: RouterConfig(active=17), "active: expected at most experts = 16, found 17"),
        (lambda: RouterConfig(balance=-1.0), "balance: expected at least 0, found -1.0"),
        (lambda: RouterConfig(gate="renorm"), "gate: renorm is identically 1"),
        (lambda: RouterConfig(gate="softmax_of_p"), "gate: softmax_of_p is identically 1"),
        (
            lambda: Router(RouterConfig(experts=5), 12, 4),
            "router.experts: expected a divisor of latents = 12, found 5",
        ),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_constant_gates_are_a_quirk_to_be_asked_for():
    for gate in ("renorm", "softmax_of_p"):
        assert RouterConfig(gate=gate, quirks=True).gate == gate
        assert RouterConfig(gate=gate, active=2).gate == gate
        assert RouterConfig(experts=1, gate=gate).gate == gate, "one expert has no router to learn"


def test_the_registered_routers():
    switch, scale = DICTIONARIES["switch"].router, DICTIONARIES["scale"].router
    assert switch is not None
    assert scale is not None
    assert (switch.gate, switch.active, switch.lowpass) == ("p", 1, "none")
    assert (scale.gate, scale.lowpass, scale.fraction) == ("renorm", "learned", "top_e")
    assert replace(scale, active=1, gate="p", lowpass="none") == switch, (
        "the same but for the paper's factors"
    )
