"""The nine laws over every dictionary: as SAE, transcoder and skip transcoder, in every mode.

To them come three that only dictionaries have: reads are what a latent really applies to a raw
input, training leaves ``activate`` alone, and ``activate`` leaves the state alone. Mistakes that a
dictionary invites are planted at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

import laws
from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.dictionaries import DICTIONARIES, Coder, CoderConfig, build_coder, settle
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, GroupmaxConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.ops.pursuit import matching

D_IN, D_OUT, LATENTS = 6, 5, 12
EXPERTS = 4
HERE, THERE = Site.parse("m:in"), Site.parse("m:out")
DOUBLE = torch.float64


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A config, fitted to one site or, as a transcoder, from one site to another."""

    config: CoderConfig
    transcoder: bool = False


def _small(config: CoderConfig) -> CoderConfig:
    """The same with 12 latents, of which a gate with a budget keeps 3."""
    router, atoms = config.router, config.atoms
    if router is not None:
        router = replace(router, experts=EXPERTS, active=min(2, router.active))
    if isinstance(atoms, ExpanderAtomsConfig):
        atoms = replace(atoms, nonzeros=3)
    gate = config.with_k(3).gate
    return replace(config, latents=LATENTS, gate=gate, router=router, atoms=atoms)


SMALL = {name: _small(config) for name, config in DICTIONARIES.items()}
SPARSE = ExpanderAtomsConfig(nonzeros=3)


def _registered() -> Iterator[tuple[str, Variant]]:
    for name, config in SMALL.items():
        yield f"{name}-sae", Variant(config=config)
        if name != "pursuit":
            yield f"{name}-transcoder", Variant(config=config, transcoder=True)
            yield f"{name}-skip", Variant(config=replace(config, skip=True), transcoder=True)


def _routed() -> Iterator[tuple[str, Variant]]:
    """Every router gate, and every way of scaling over both kinds of atoms."""
    for gate in ("p", "softmax_of_p", "renorm", "ones"):
        router = RouterConfig(experts=EXPERTS, active=2, gate=gate)
        yield f"switch-{gate}", Variant(config=replace(SMALL["switch"], router=router))
    for lowpass in ("none", "mean", "learned"):
        for reads in ("masked", "dense")[: 1 if lowpass == "none" else 2]:
            for name in ("scale", "expander-scale"):
                config = SMALL[name]
                router = RouterConfig(experts=EXPERTS, active=2, lowpass=lowpass, reads=reads)
                variant = Variant(config=replace(config, router=router))
                yield f"{name}-{lowpass}-{reads}", variant
                if lowpass == "learned":
                    yield f"{name}-{lowpass}-{reads}-transcoder", replace(variant, transcoder=True)
    others = {
        "quirks": RouterConfig(experts=EXPERTS, active=1, gate="softmax_of_p", quirks=True),
        "one-expert": RouterConfig(experts=1, active=1, gate="renorm"),
        "all-active": RouterConfig(experts=EXPERTS, active=EXPERTS, lowpass="mean"),
        "no-bias": RouterConfig(experts=EXPERTS, active=2, bias=False),
        "no-bias-scaled": RouterConfig(experts=EXPERTS, active=2, bias=False, lowpass="learned"),
        "top1-sums": RouterConfig(experts=EXPERTS, active=2, fraction="top1", sums=True),
    }
    for name, router in others.items():
        yield f"switch-{name}", Variant(config=replace(SMALL["switch"], router=router))
    coordinate = replace(SMALL["scale"], atoms=DenseAtomsConfig(norm="coordinate"))
    yield "scale-coordinate", Variant(config=coordinate)
    tied = replace(SMALL["scale"], atoms=DenseAtomsConfig(tied=True))
    yield "scale-tied", Variant(config=tied)


def _inferred() -> Iterator[tuple[str, Variant]]:
    """Solvers in the place of the encoder."""
    for mode in ("oneshot", "gomp", "omp"):
        for name, sign in (("expander", "signed"), ("expander", "abs"), ("topk", "abs")):
            config = replace(SMALL[name], inference=mode, solver_sign=sign, solver_width=2)
            yield f"{name}-{mode}-{sign}", Variant(config=config)
    for name in ("expander", "gated", "jumprelu", "batchtopk", "abstopk", "pursuit"):
        yield f"{name}-refit", Variant(config=replace(SMALL[name], inference="refit"))


def _parts() -> Iterator[tuple[str, Variant]]:
    """Gates, atoms and options that no registered dictionary has."""
    gates = {
        "signed": TopKConfig(k=3, sign="signed"),
        "multi": TopKConfig(k=3, multi=True),
        "annealed": TopKConfig(k=3, start_k=8),
        "all": TopKConfig(k=LATENTS),
        "batchtopk-unmeasured": BatchTopKConfig(k=3),
    }
    for name, gate in gates.items():
        yield f"gate-{name}", Variant(config=CoderConfig(latents=LATENTS, gate=gate))
    jump = JumpReLUConfig(threshold=0.5, l0=3.0)
    for gate in (TopKConfig(k=3, sign="abs"), jump, GatedConfig(), GroupmaxConfig(k=3)):
        name = f"expander-{gate.kind}"
        config = CoderConfig(latents=LATENTS, gate=gate, atoms=SPARSE, auxk=0.0)
        yield name, Variant(config=config)
    for gate in (PursuitConfig(k=6, stop_repeats=False), PursuitConfig(k=6, residual=1.0)):
        for atoms in (DenseAtomsConfig(tied=True), SPARSE):
            name = f"pursuit-{atoms.kind}-repeats={not gate.stop_repeats}"
            config = CoderConfig(latents=LATENTS, gate=gate, atoms=atoms, auxk=0.0)
            yield name, Variant(config=config)
    for name in ("topk", "gated"):
        tied = replace(SMALL[name], atoms=DenseAtomsConfig(tied=True))
        yield f"{name}-tied", Variant(config=tied)
    free = replace(SMALL["topk"], atoms=DenseAtomsConfig(norm="free"), reduction="sum")
    yield "topk-free", Variant(config=free)
    raw = replace(SMALL["topk"], normalise=False, center="zero")
    yield "topk-raw", Variant(config=raw)
    for mask in ("clustered", "shared"):
        atoms = replace(SPARSE, mask=mask, stored=True, group=4)
        yield f"expander-{mask}", Variant(config=replace(SMALL["expander"], atoms=atoms))


REGISTERED = dict(_registered())
OTHERS = dict([*_routed(), *_inferred(), *_parts()])
VARIANTS = REGISTERED | OTHERS
# One without and one with each way to select, rows of each kind, and each solver.
SHAPED = (*REGISTERED, "expander-omp-abs", "topk-oneshot-abs", "gated-refit", "scale-learned-dense")


@cache
def _build(name: str) -> Coder:
    """A dictionary off its initial values, its scales measured, in float64 and evaluation mode."""
    variant = VARIANTS[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        d_out = D_OUT if variant.transcoder else D_IN
        coder = build_coder(
            variant.config,
            name=name,
            reads=HERE,
            writes=THERE if variant.transcoder else HERE,
            d_in=D_IN,
            d_out=d_out,
        ).double()
        x = 3 * torch.randn(40, D_IN, dtype=DOUBLE) + 1
        y = torch.randn(40, D_OUT, dtype=DOUBLE) - 2 if variant.transcoder else x
        settle(coder, x, y)
        measured = coder.in_scale.clone()
        laws.perturb(coder)
    for parameter_name, parameter in coder.named_parameters():
        if parameter_name == "gate.threshold":
            parameter.data.abs_()
    if isinstance(variant.config.gate, BatchTopKConfig) and "unmeasured" not in name:
        dict(coder.gate.named_buffers())["threshold"].fill_(0.5)
    assert variant.config.normalise == (measured != 1)
    # Laws look at values only; a graph would cost most of their time.
    return coder.eval().requires_grad_(False)


@pytest.mark.parametrize("law", laws.LAWS)
@pytest.mark.parametrize("variant", REGISTERED)
def test_every_dictionary_obeys(variant, law):
    law(_build(variant), torch.randn(2, D_IN, dtype=DOUBLE))


@pytest.mark.parametrize("variant", OTHERS)
def test_every_part_and_mode_obeys(variant):
    x = torch.randn(2, D_IN, dtype=DOUBLE)
    for law in laws.LAWS:
        law(_build(variant), x)


@pytest.mark.parametrize("variant", SHAPED)
def test_any_leading_shape(variant):
    coder = _build(variant)
    for shape in ((), (2, 0), (2, 1, 9)):
        x = torch.randn(*shape, D_IN, dtype=DOUBLE)
        laws.law_1_forward_is_rest_plus_decode(coder, x)
        laws.law_2_decode_sums_value_times_write(coder, x)
        laws.law_8_widths_match_the_spec(coder, x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_laws_are_not_kept_by_silence(variant):
    coder = _build(variant)
    code = coder.activate(torch.randn(40, D_IN, dtype=DOUBLE))
    speaking = (code.value != 0).sum(-1)
    assert speaking.sum() > 0
    assert all(bool((parameter != 0).all()) for parameter in coder.parameters())
    if variant != "gate-all":
        assert speaking.min() < LATENTS
    assert coder.decode(code).abs().max() > 1e-3
    assert coder.in_scale != coder.out_scale


def test_latents_selected_by_threshold_stand_on_both_sides_of_it():
    # Without this the gates with a threshold could be plain ReLUs.
    for variant in ("jumprelu-sae", "batchtopk-sae", "expander-jumprelu"):
        code = _build(variant).activate(
            torch.randn(40, D_IN, dtype=DOUBLE), unit=torch.arange(LATENTS)
        )
        assert ((code.gate == 0) & (code.act > 0)).any(), variant
        assert (code.value > 0).any(), variant


def test_the_two_conditions_of_gated_differ():
    code = _build("gated-sae").activate(
        torch.randn(99, D_IN, dtype=DOUBLE), unit=torch.arange(LATENTS)
    )
    assert ((code.gate == 0) & (code.act > 0)).any()
    assert (code.value > 0).any()


def reads_are_applied(pool: Coder, x: Tensor) -> None:
    """A step s moves every act by ⟨read, s⟩, where the act speaks on both sides if it is a ReLU."""
    every = torch.arange(pool.spec.num_units)
    step = 0.5 * torch.randn_like(x)
    before, after = (pool.activate(v, unit=every).act for v in (x, x + step))
    expected = step @ pool.read(every).T
    rectified = pool.router is not None
    both = (before > 0) & (after > 0) if rectified else torch.ones_like(before, dtype=torch.bool)
    assert both.sum() > 10
    laws.same((after - before)[both], expected[both])


def _applies_reads(name: str) -> bool:
    config = VARIANTS[name].config
    return config.inference == "encoder" and not isinstance(config.gate, PursuitConfig)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if _applies_reads(name)])
def test_reads_are_what_is_applied_to_a_raw_input(variant):
    reads_are_applied(_build(variant), torch.randn(20, D_IN, dtype=DOUBLE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_mode_and_activate_leave_each_other_alone(variant):
    coder = _build(variant)
    x = torch.randn(9, D_IN, dtype=DOUBLE)
    before = {key: value.clone() for key, value in coder.state_dict().items()}
    evaluated = coder.activate(x)
    coder.train()
    trained = coder.activate(x)
    coder.activate(x, unit=torch.arange(3))
    coder.activate(x, limit=1)
    coder(x)
    coder.eval()
    for entry in ("unit", "gate", "act"):
        assert torch.equal(getattr(trained, entry), getattr(evaluated, entry))
    after = coder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_no_dictionary_is_lost():
    registered = {name.rpartition("-")[0] for name in VARIANTS if name.endswith("-sae")}
    assert registered == set(DICTIONARIES)
    routers = [variant.config.router for variant in VARIANTS.values()]
    assert {r.gate for r in routers if r} == {"p", "softmax_of_p", "renorm", "ones"}
    assert {variant.config.inference for variant in VARIANTS.values()} == {
        "encoder",
        "refit",
        "oneshot",
        "gomp",
        "omp",
    }


class Plain:
    """A dictionary that hands every call on to another."""

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self.router = coder.router

    def __call__(self, x: Tensor) -> Tensor:
        return self.coder(x)

    @property
    def spec(self) -> PoolSpec:
        return self.coder.spec

    def read(self, unit: Tensor) -> Tensor:
        return self.coder.read(unit)

    def write(self, unit: Tensor) -> Tensor:
        return self.coder.write(unit)

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.coder.activate(x, unit=unit, limit=limit)

    def decode(self, code: Code) -> Tensor:
        return self.coder.decode(code)

    def rest(self, x: Tensor) -> Tensor:
        return self.coder.rest(x)


class UnfoldedInputScale(Plain):
    """Encoder rows as trained, on scaled inputs."""

    def read(self, unit: Tensor) -> Tensor:
        return self.coder.read(unit) / self.coder.in_scale


class UnfoldedOutputScale(Plain):
    """Decoder rows as trained, towards scaled targets."""

    def write(self, unit: Tensor) -> Tensor:
        return self.coder.write(unit) * self.coder.out_scale


class MagnitudeScaleForgotten(Plain):
    """Gated reads without exp(r)."""

    def read(self, unit: Tensor) -> Tensor:
        assert self.coder.gate.log_scale is not None
        return self.coder.read(unit) / self.coder.gate.log_scale.exp()[unit].unsqueeze(-1)


class ReadsBeforeScaling(Plain):
    """The parameter of a scaled expert, its low-pass left out."""

    def read(self, unit: Tensor) -> Tensor:
        assert self.coder.encoder is not None
        return self.coder.in_scale * self.coder.encoder.rows().gather(unit)


class DecoderNormInDecodeOnly(Plain):
    """Norms folded into the values that decode takes, and not into what units write."""

    def decode(self, code: Code) -> Tensor:
        norm = self.coder.decoder.rows().norms()[code.unit]
        return self.coder.decode(Code(code.unit, code.gate * norm, code.act))


class ForgottenSkip(Plain):
    def rest(self, x: Tensor) -> Tensor:
        return (self.coder.bias / self.coder.out_scale).expand(*x.shape[:-1], -1)


class TrainingGate(Plain):
    """Latents compete over the batch in evaluation too."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        rows = x.reshape(-1, x.shape[-1])
        z = self.coder.in_scale * rows - self.coder.bias
        assert self.coder.encoder is not None
        code = self.coder.gate(self.coder.encoder.rows(), z, fit=True).code()
        shape = (*x.shape[:-1], code.unit.shape[-1])
        return Code(code.unit.view(shape), code.gate.view(shape), code.act.view(shape))


class NamedLatentsSkipTheCompetition(Plain):
    """A named latent speaks wherever it is positive, whoever won."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        code = self.coder.activate(x, unit=unit, limit=limit)
        return code if unit is None else Code(code.unit, (code.act > 0).to(x.dtype), code.act)


class UnmergedPicks(Plain):
    """Matching pursuit's steps as they came, an atom picked twice listed twice."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        if unit is not None or limit is not None:
            return self.coder.activate(x, unit=unit, limit=limit)
        rows = self.coder.decoder.rows()
        z = self.coder.in_scale * x - self.coder.bias
        picks, value = matching._Pursue.apply(z, rows.weights, rows, 9, 0.0, False)
        return Code(picks, value, torch.ones_like(value))


Check = Callable[..., None]
MISTAKES: tuple[tuple[str, Check, type[Plain]], ...] = (
    ("topk-sae", reads_are_applied, UnfoldedInputScale),
    ("gated-sae", reads_are_applied, MagnitudeScaleForgotten),
    ("scale-sae", reads_are_applied, ReadsBeforeScaling),
    ("scale-sae", laws.law_7_act_changes_only_along_read, ReadsBeforeScaling),
    ("topk-sae", laws.law_2_decode_sums_value_times_write, UnfoldedOutputScale),
    ("topk-free", laws.law_2_decode_sums_value_times_write, DecoderNormInDecodeOnly),
    ("topk-skip", laws.law_1_forward_is_rest_plus_decode, ForgottenSkip),
    ("batchtopk-sae", laws.law_1_forward_is_rest_plus_decode, TrainingGate),
    ("batchtopk-sae", laws.law_5_rows_are_independent, TrainingGate),
    ("topk-sae", laws.law_4_named_units_agree, NamedLatentsSkipTheCompetition),
    ("switch-sae", laws.law_4_named_units_agree, NamedLatentsSkipTheCompetition),
    ("jumprelu-sae", laws.law_4_named_units_agree, NamedLatentsSkipTheCompetition),
    ("pursuit-dense-repeats=True", laws.law_6_a_unit_occurs_once, UnmergedPicks),
)


@pytest.mark.parametrize(
    ("variant", "check", "mistake"),
    MISTAKES,
    ids=[f"{v}-{c.__name__}-{m.__name__}" for v, c, m in MISTAKES],
)
def test_a_planted_mistake_is_caught(variant, check, mistake):
    coder, x = _build(variant), torch.randn(15, D_IN, dtype=DOUBLE)
    check(Plain(coder), x)
    with pytest.raises(AssertionError):
        check(mistake(coder), x)
