"""The whole dictionary: how it starts, folds, counts, trains, is saved and goes on."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.core.unit import Site, UnitPool
from pellucid.dictionaries import DICTIONARIES, Coder, CoderConfig, build_coder, settle
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.coder import DEAD_ROWS
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.thresholds import JumpReLUConfig

DOUBLE = torch.float64
HERE, THERE = Site.parse("m:in"), Site.parse("m:out")
TOPK = CoderConfig(latents=12, gate=TopKConfig(k=3))
EXPANDER = CoderConfig(
    latents=12, gate=TopKConfig(k=3, sign="signed"), atoms=ExpanderAtomsConfig(nonzeros=3), auxk=0.0
)
# Every dictionary as an autoencoder, and, save pursuit, as a skip transcoder.
FITTED = [(name, d_out) for name in DICTIONARIES for d_out in (None, 5) if name != "pursuit"]
FITTED.append(("pursuit", None))


def _data(rows: int = 63, width: int = 6) -> Tensor:
    return 3 * torch.randn(rows, width, dtype=DOUBLE) + torch.linspace(-2, 5, width, dtype=DOUBLE)


def _pair(d_out: int | None, rows: int = 63) -> tuple[Tensor, Tensor]:
    x = _data(rows)
    return x, x if d_out is None else _data(rows, d_out)


def _off_start(coder: Coder) -> Coder:
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
            if name == "gate.threshold":
                parameter.abs_()
    return coder


def _step(coder: Coder, adam: torch.optim.Optimizer, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One training step; returns the gradients that Adam saw."""
    adam.zero_grad()
    torch.stack(list(coder.losses(x, y).values())).sum().backward()
    coder.before_step()
    seen = {n: p.grad.clone() for n, p in coder.named_parameters() if p.grad is not None}
    adam.step()
    coder.after_step()
    return seen


def test_the_equation_by_hand(make):
    # c = 2: z = 2·(1, 2) − (1, 1) = (1, 3); π = z on unit rows, + b = (1, 0): (2, 3); k = 1 keeps
    # 3; ŷ = ((0, 3) + (1, 1)) / 2 = (.5, 2).
    coder = make(CoderConfig(latents=2, gate=TopKConfig(k=1)), d_in=2)
    with torch.no_grad():
        coder.encoder.weight.copy_(torch.eye(2))
        coder.decoder.weight.copy_(torch.eye(2))
        coder.bias.fill_(1.0)
        coder.gate.bias.copy_(torch.tensor([1.0, 0.0]))
        coder.in_scale.fill_(2.0)
        coder.out_scale.fill_(2.0)
    x = torch.tensor([[1.0, 2.0]], dtype=DOUBLE)
    assert coder(x).tolist() == [[0.5, 2.0]]
    assert coder.rest(x).tolist() == [[0.5, 0.5]]
    code = coder.activate(x)
    assert (code.unit.tolist(), code.value.tolist()) == ([[1]], [[3.0]])
    assert coder.read(torch.tensor([0, 1])).tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert coder.write(torch.tensor([1])).tolist() == [[0.0, 0.5]]


def test_a_skip_transcoder_by_hand(make):
    # c = 2, c' = 4: ŷ = (W_skip·2x + b_dec)/4 with nothing written: (3·2·1 + 2)/4 = 2.
    coder = make(CoderConfig(latents=1, gate=TopKConfig(k=1), skip=True), d_in=1, d_out=1)
    with torch.no_grad():
        coder.skip.fill_(3.0)
        coder.bias.fill_(2.0)
        coder.in_scale.fill_(2.0)
        coder.out_scale.fill_(4.0)
    x = torch.tensor([[1.0]], dtype=DOUBLE)
    assert coder(x).item() == coder.rest(x).item() == 2.0


def test_an_autoencoder_starts_tied_and_unit(make):
    coder = make(TOPK)
    torch.testing.assert_close(coder.encoder.weight.data, coder.decoder.weight.data)
    torch.testing.assert_close(coder.decoder.weight.norm(dim=1).data, torch.ones(12, dtype=DOUBLE))
    assert (coder.gate.bias == 0).all()
    assert (coder.bias == 0).all()
    assert coder.encoder.weight is not coder.decoder.weight


@pytest.mark.parametrize("name", [name for name in DICTIONARIES if name != "pursuit"])
def test_a_transcoder_starts_by_writing_nothing(make, shrink, name):
    coder = make(replace(shrink(DICTIONARIES[name]), skip=True), d_out=5)
    x, every = _data(), torch.arange(12)
    assert (coder.write(every) == 0).all()
    assert (coder.skip == 0).all()
    assert torch.equal(coder(x), torch.zeros(63, 5, dtype=DOUBLE))
    assert coder.encoder is not None
    torch.testing.assert_close(coder.encoder.rows().norms(), torch.ones(12, dtype=DOUBLE))


def test_weights_are_the_seeds(make):
    state = torch.get_rng_state()
    first, second, third = make(TOPK, seed=3), make(TOPK, seed=3), make(TOPK, seed=4)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is untouched"
    assert torch.equal(first.decoder.weight, second.decoder.weight)
    assert not torch.equal(first.decoder.weight, third.decoder.weight)


def test_the_spec_names_experts():
    config = CoderConfig(latents=12, gate=TopKConfig(k=3), router=RouterConfig(experts=4, active=2))
    for part, axes in (
        (config, (("expert", 4), ("latent", 3))),
        (TOPK, (("latent", 12),)),
        (replace(config, router=RouterConfig(experts=1, active=1)), (("latent", 12),)),
    ):
        coder = build_coder(part, name="d", reads=HERE, writes=THERE, d_in=6, d_out=5)
        assert isinstance(coder, UnitPool)
        assert coder.spec.axes == axes
        assert coder.spec.num_units == 12
        assert (coder.spec.name, coder.spec.d_in, coder.spec.d_out) == ("d", 6, 5)
        assert (coder.spec.reads, coder.spec.writes) == (HERE, THERE)


@pytest.mark.parametrize(
    ("config", "d_out", "message"),
    [
        (
            CoderConfig(gate=PursuitConfig(), atoms=DenseAtomsConfig(tied=True), auxk=0.0),
            5,
            "gate: a pursuit reads along its own decoder",
        ),
        (
            replace(EXPANDER, inference="omp"),
            6,
            "inference: expected encoder for a transcoder, found omp",
        ),
        (
            replace(TOPK, atoms=DenseAtomsConfig(tied=True)),
            6,
            "atoms.tied: expected false for a transcoder, found true",
        ),
        (
            replace(EXPANDER, atoms=ExpanderAtomsConfig(nonzeros=3, share_support=True)),
            5,
            "atoms.share_support: expected equal widths, found 6 and 5",
        ),
        (
            replace(EXPANDER, atoms=ExpanderAtomsConfig(nonzeros=7)),
            None,
            "nonzeros: expected 1 to the width 6, found 7",
        ),
        (replace(TOPK, gate=TopKConfig(k=13)), None, "gate.k: expected at most latents = 12"),
        (
            replace(TOPK, gate=JumpReLUConfig(), auxk=0.0),
            None,
            "gate.l0: expected at most latents = 12, found 32.0",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(make, config, d_out, message):
    with pytest.raises(ConfigError) as caught:
        make(config, d_out=d_out)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_one_site_has_one_width():
    with pytest.raises(ConfigError, match=r"^m:in: one site has one width, found 6 and 5"):
        build_coder(TOPK, name="d", reads=HERE, writes=HERE, d_in=6, d_out=5)


def test_transcoders_share_a_support_on_demand(make):
    config = replace(EXPANDER, latents=64)
    shared = replace(config, atoms=ExpanderAtomsConfig(nonzeros=3, share_support=True))
    one, two = make(shared, d_out=6), make(config, d_out=6)
    assert torch.equal(one.encoder.index, one.decoder.index)
    assert not torch.equal(two.encoder.index, two.decoder.index)
    assert torch.equal(one.decoder.index, two.decoder.index)


def _folded(coder: Coder, make: Callable[..., Coder], d_out: int | None) -> Coder:
    """The dense untied dictionary on raw rows whose rows are ``read`` and ``write``."""
    config, every = coder.config, torch.arange(coder.config.latents)
    router = config.router and replace(config.router, lowpass="none")
    plain = replace(config, atoms=DenseAtomsConfig(norm="free"), router=router)
    folded = make(plain, d_out=d_out)
    state = folded.state_dict()
    same = {k: v for k, v in coder.state_dict().items() if k.startswith("gate.")}
    reads = coder.read(every)
    if coder.gate.log_scale is not None:
        reads = reads / coder.gate.log_scale.exp().unsqueeze(1)
    state |= same | {"encoder.weight": reads, "decoder.weight": coder.write(every)}
    state["bias"] = coder.bias / coder.out_scale
    if coder.router is not None:
        router = {k: v for k, v in coder.state_dict().items() if k.startswith("router.")}
        state |= {name: router[name] for name in router if name in state}
        state["router.weight"] = coder.router.weight * coder.in_scale
        state["router.center"] = coder.router.center / coder.in_scale
    if coder.skip is not None:
        state["skip"] = coder.skip * coder.in_scale / coder.out_scale
    folded.load_state_dict(state)
    return folded


@pytest.mark.parametrize(("name", "d_out"), FITTED[:-1])
@pytest.mark.parametrize("reads", ["masked", "dense"])
@torch.no_grad()
def test_folding_scales_norms_and_low_pass_changes_no_output(make, shrink, name, d_out, reads):
    # A pursuit is left out: its values are projections on unit rows, which folding would scale.
    config = replace(shrink(DICTIONARIES[name]), skip=d_out is not None)
    if config.router is not None:
        config = replace(config, router=replace(config.router, reads=reads))
    elif reads == "dense":
        config = replace(config, normalise=False)
    coder = make(config, d_out=d_out)
    x, y = _pair(d_out)
    settle(coder, x, y)
    _off_start(coder)
    if isinstance(config.gate, BatchTopKConfig):
        coder.gate.threshold.fill_(0.5)
    folded = _folded(coder, make, d_out)
    assert (folded.in_scale.item(), folded.out_scale.item()) == (1.0, 1.0)
    # 1e-10: a few hundred float64 products of order 10.
    torch.testing.assert_close(folded(x), coder(x), atol=1e-10, rtol=1e-10)
    for listed in (None, torch.arange(12)):
        found, expected = folded.activate(x, unit=listed), coder.activate(x, unit=listed)
        torch.testing.assert_close(found.value.sum(), expected.value.sum(), atol=1e-9, rtol=1e-10)
    assert (coder(x) - coder.rest(x)).abs().max() > 0.1


@pytest.mark.parametrize("name", [n for n, config in DICTIONARIES.items() if config.normalise])
def test_outputs_follow_the_scale_of_the_data(make, shrink, name):
    x, found = _data(), []
    for factor in (1.0, 1000.0):
        coder = make(shrink(DICTIONARIES[name]))
        settle(coder, factor * x, factor * x)
        found.append(coder(factor * x) / factor)
    # 1e-6: the geometric median stops at that share of its spread.
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-6)


def test_firings_and_silence_are_counted(make):
    coder = make(TOPK)
    first, second = _data(20), _data(7)
    fired = []
    for x in (first, second):
        code = coder.activate(x)
        fired.append(torch.bincount(code.unit[code.gate != 0], minlength=12))
        coder.losses(x, x)
    assert torch.equal(coder.fires, fired[0] + fired[1])
    expected = torch.where(fired[1] > 0, 0, torch.where(fired[0] > 0, 7, 27))
    assert torch.equal(coder.silent, expected)
    assert len(set(expected.tolist())) > 1


def test_what_is_dead(make):
    coder = make(TOPK)
    coder.silent[3] = DEAD_ROWS
    coder.silent[4] = DEAD_ROWS - 1
    assert coder.dead().nonzero().tolist() == [[3]]
    # A tenth of 1,000 planned steps of 8 rows.
    coder = make(replace(TOPK, plan=1000, batch=8))
    coder.silent[:2] = torch.tensor([799, 800])
    assert coder.dead().nonzero().tolist() == [[1]]
    assert not make(replace(TOPK, plan=1, batch=1)).dead().any(), "no window is empty"


PARTS = {
    "relu": {"l1"},
    "gated": {"l1", "gate_reconstruction"},
    "topk": {"auxk"},
    "batchtopk": {"auxk"},
    "jumprelu": {"sparsity"},
    "matryoshka": {"auxk"},
    "abstopk": {"auxk"},
    "groupmax": {"auxk"},
    "pursuit": set(),
    "switch": {"balance", "auxk"},
    "scale": {"balance", "auxk"},
    "expander": set(),
    "expander-switch": {"balance"},
    "expander-scale": {"balance"},
    "switch-authors": {"balance", "auxk"},
    "scale-authors": {"balance"},
    "expander-authors": set(),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_the_parts_of_each_loss(make, shrink, name):
    coder, x = make(shrink(DICTIONARIES[name])), _data()
    settle(coder, x, x)
    found = coder.losses(x, x)
    assert set(found) == PARTS[name] | {"reconstruction"}
    assert all(part.shape == () and part.isfinite() for part in found.values())


def test_the_variance_divides_the_reconstruction(make):
    # With nothing written and the mean as bias the loss is exactly V / V.
    coder = make(CoderConfig(latents=12, gate=TopKConfig(k=3)), d_out=5)
    x, y = _pair(5)
    settle(coder, x, y)
    assert coder.losses(x, y)["reconstruction"].item() == pytest.approx(1.0)


# Parameters that no step can reach, and why: a gate that is constant gives its router nothing.
@pytest.mark.parametrize(
    ("router", "silent"),
    [
        (
            RouterConfig(experts=4, active=2, gate="ones", balance=0.0),
            {"weight", "center", "offset"},
        ),
        (
            RouterConfig(experts=4, active=1, gate="renorm", balance=0.0, quirks=True),
            {"weight", "center", "offset"},
        ),
        (RouterConfig(experts=4, active=2, gate="ones", balance=0.1), set()),
        (RouterConfig(experts=4, active=2, gate="p", balance=0.0), set()),
    ],
)
def test_who_teaches_the_router(make, router, silent):
    coder = make(CoderConfig(latents=12, gate=TopKConfig(k=3), router=router))
    x = _data()
    settle(coder, x, x)
    torch.stack(list(coder.losses(x, x).values())).sum().backward()
    # 1e-12: p / p differs from a constant by rounding.
    untaught = {
        name
        for name, p in coder.router.named_parameters()
        if p.grad is None or p.grad.abs().max() < 1e-12
    }
    assert untaught == silent


@pytest.mark.parametrize(("name", "d_out"), FITTED)
def test_every_parameter_is_taught_within_three_steps(make, shrink, name, d_out):
    # From the true start: D = 0 hides a transcoder's encoder, and ω = 0 hides Λ, for one step.
    coder = make(replace(shrink(DICTIONARIES[name]), skip=d_out is not None), d_out=d_out)
    x, y = _pair(d_out, 200)
    settle(coder, x, y)
    adam = torch.optim.Adam(coder.parameters(), lr=0.01)
    taught = set()
    for _ in range(3):
        grads = _step(coder, adam, x, y)
        taught |= {name for name, grad in grads.items() if (grad != 0).any()}
    assert taught == {name for name, _ in coder.named_parameters()}


@pytest.mark.parametrize("name", [n for n in DICTIONARIES if n != "scale-authors"])
def test_rows_stay_within_their_constraint(make, shrink, name):
    coder, x = make(shrink(DICTIONARIES[name])), _data()
    settle(coder, x, x)
    adam = torch.optim.Adam(coder.parameters(), lr=0.1)
    for _ in range(3):
        rows = coder.decoder.table().detach().clone()
        grads = _step(coder, adam, x, x)
        table = "weight" if "decoder.weight" in grads else "values"
        along = (grads[f"decoder.{table}"] * rows).sum(1).abs().max()
        norms = coder.decoder.rows().norms()
        if name == "relu":
            assert (norms - 1).abs().max() > 1e-3, "free norms move"
            assert along > 1e-3
        else:
            assert (norms - 1).abs().max() < 1e-12
            assert along < 1e-10
    assert int(coder.steps) == 3


def test_coordinates_of_each_expert_stay_unit_where_that_is_asked_for(make, shrink):
    config = replace(shrink(DICTIONARIES["scale"]), atoms=DenseAtomsConfig(norm="coordinate"))
    coder, x = make(config), _data()
    settle(coder, x, x)
    adam = torch.optim.Adam(coder.parameters(), lr=0.1)
    for _ in range(3):
        _step(coder, adam, x, x)
        columns = coder.decoder.weight.view(4, 3, 6).norm(dim=1)
        assert (columns - 1).abs().max() < 1e-12
    assert (coder.decoder.rows().norms() - 1).abs().max() > 1e-3, "rows are not unit"


def test_an_expander_stores_n_times_s_values(make):
    for nonzeros in (1, 3, 6):
        config = replace(EXPANDER, latents=64, atoms=ExpanderAtomsConfig(nonzeros=nonzeros))
        coder = make(config).float()
        stored = sum(p.numel() * p.element_size() for p in coder.parameters())
        assert stored == 4 * (64 * nonzeros + 64 + 6), "values, one bias per latent, one per width"
        state = coder.state_dict()
        assert not any("index" in key for key in state)
        assert not any(v.shape == (64, 6) and nonzeros < 6 for v in state.values())


REBUILT = [
    *DICTIONARIES.values(),
    replace(EXPANDER, atoms=ExpanderAtomsConfig(nonzeros=3, stored=True)),
    CoderConfig(gate=TopKConfig(k=3, start_k=8, anneal=0.5), plan=8),
    CoderConfig(gate=BatchTopKConfig(k=3, threshold_from=1)),
]


@pytest.mark.parametrize("config", REBUILT, ids=lambda c: f"{c.atoms.kind}-{c.gate.kind}")
def test_a_saved_dictionary_goes_on_as_if_nothing_had_happened(make, shrink, config):
    config, x = shrink(config), _data(8 * 16)
    batches = [(8 * i, 8 * i + 8) for i in range(6)]
    coder = make(config)
    settle(coder, x, x)
    adam = torch.optim.Adam(coder.parameters(), lr=0.01)
    for first, last in batches[:3]:
        _step(coder, adam, x[first:last], x[first:last])
    # Another seed: all that matters must come from config and state.
    again = make(config, seed=99)
    again.load_state_dict(copy.deepcopy(coder.state_dict()))
    other = torch.optim.Adam(again.parameters(), lr=0.01)
    other.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert torch.equal(again(x), coder(x))
    for first, last in batches[3:]:
        grads = [
            _step(c, a, x[first:last], x[first:last]) for c, a in ((coder, adam), (again, other))
        ]
        assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    found, expected = again.state_dict(), coder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.equal(again(x), coder(x))


def test_the_threshold_of_batchtopk_is_measured_on_the_way(make):
    coder, x = make(CoderConfig(latents=12, gate=BatchTopKConfig(k=3), plan=20)), _data()
    settle(coder, x, x)
    adam = torch.optim.Adam(coder.parameters(), lr=0.001)
    before = (coder.activate(x).value != 0).sum(1).double().mean()
    for _ in range(4):
        _step(coder, adam, x, x)
    after = (coder.activate(x).value != 0).sum(1).double().mean()
    assert coder.gate.threshold > 0
    # k = 3 of the training batch; the threshold was measured on the same rows.
    assert abs(after.item() - 3) < 0.3 < before.item() - 3


def test_annealing_follows_the_plan(make):
    config = CoderConfig(latents=12, gate=TopKConfig(k=2, start_k=8, anneal=0.5), plan=10)
    coder, x, budgets = make(config), _data(), []
    settle(coder, x, x)
    for _ in range(7):
        before = coder.fires.sum().item()
        coder.losses(x, x)
        budgets.append((coder.fires.sum().item() - before) / 63)
        coder.after_step()
    # 8, 6.8, 5.6, 4.4, 3.2, 2 rounded; few rows have 8 positive latents of 12.
    assert budgets[5] <= 2.0
    assert budgets[5] == budgets[6]
    assert budgets[0] > budgets[2] > budgets[4] > budgets[5]


def _planted(rows: int, *, signed: bool = False) -> Tensor:
    """Two of 16 unit directions in 8 dimensions per row."""
    directions = F.normalize(torch.randn(16, 8, dtype=DOUBLE))
    strength = torch.rand(rows, 16, dtype=DOUBLE) + 0.5
    if signed:
        strength = strength * torch.randn(rows, 16).sign()
    chosen = torch.zeros(rows, 16).scatter_(1, torch.rand(rows, 16).argsort(1)[:, :2], 1.0)
    return (strength * chosen) @ directions


def _fvu(coder: Coder, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        missed = (coder(x) - y).square().sum()
    return (missed / (y - y.mean(0)).square().sum()).item()


@pytest.mark.parametrize("name", DICTIONARIES)
def test_training_lowers_the_error(make, shrink, name):
    config = replace(shrink(DICTIONARIES[name], latents=16, k=2), plan=30, batch=128)
    if name == "jumprelu":
        config = replace(config, gate=replace(config.gate, weight=0.1))
    coder, x = make(config, d_in=8), _planted(256, signed=name == "abstopk")
    settle(coder, x, x)
    before = _fvu(coder, x[128:], x[128:])
    adam = torch.optim.Adam(coder.parameters(), lr=0.03)
    for _ in range(30):
        _step(coder, adam, x[:128], x[:128])
    after = _fvu(coder, x[128:], x[128:])
    assert after < 0.75 * before


@pytest.mark.parametrize(
    ("name", "skip"), [("topk", True), ("scale", False), ("expander", True), ("gated", False)]
)
def test_training_a_transcoder_lowers_the_error(make, shrink, name, skip):
    config = replace(shrink(DICTIONARIES[name], latents=16, k=2), plan=30, skip=skip)
    coder, x = make(config, d_in=8, d_out=5), _planted(128)
    y = F.relu(x @ torch.randn(8, 5, dtype=DOUBLE))
    settle(coder, x, y)
    assert _fvu(coder, x, y) == pytest.approx(1.0), "the mean predictor"
    adam = torch.optim.Adam(coder.parameters(), lr=0.03)
    for _ in range(30):
        _step(coder, adam, x, y)
    assert _fvu(coder, x, y) < 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_any_type_are_read_in_the_parameters_type(make, dtype):
    coder = make(TOPK).float()
    x = _data().to(dtype)
    assert coder(x).dtype == torch.float32
    torch.testing.assert_close(coder(x), coder(x.float()))
    code = coder.activate(x)
    assert code.value.dtype == torch.float32
    assert coder.rest(x).dtype == torch.float32


def test_penalties_need_no_plan(make):
    # Without a plan a warm-up is over before it begins.
    coder = make(CoderConfig(latents=12, gate=ReLUConfig(l1=1.0, warmup=0.5), auxk=0.0))
    x = _data()
    full = coder.losses(x, x)["l1"].item()
    planned = make(replace(coder.config, plan=10))
    found = []
    for _ in range(6):
        found.append(planned.losses(x, x)["l1"].item())
        planned.after_step()
    assert found == pytest.approx([full * share for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)])
