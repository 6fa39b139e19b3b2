"""Each law fails on the mistakes it exists for: they are planted here, one at a time.

A mistake is a real pool with one member replaced. ``Plain`` replaces none and keeps every law, so
what fails is the mistake and not the wrapping.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import laws
from pellucid.core.unit import Code, PoolSpec
from pellucid.pools import Pool
from pellucid.pools.dense import DenseConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.topk_mlp import TopKMLPConfig

WIDTH = 6
HIERARCHY = HierarchyConfig.tiny()


class Plain:
    """A pool that hands every call on to another."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __call__(self, x: Tensor) -> Tensor:
        return self.pool(x)

    @property
    def spec(self) -> PoolSpec:
        return self.pool.spec

    def read(self, unit: Tensor) -> Tensor:
        return self.pool.read(unit)

    def write(self, unit: Tensor) -> Tensor:
        return self.pool.write(unit)

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x, unit=unit, limit=limit)

    def decode(self, code: Code) -> Tensor:
        return self.pool.decode(code)

    def rest(self, x: Tensor) -> Tensor:
        return self.pool.rest(x)


class WrongFastKernel(Plain):
    """The trained path loses the last unit of every row that speaks; the read path does not."""

    def __call__(self, x: Tensor) -> Tensor:
        code = self.pool.activate(x)
        speaks = code.value > 0
        last = speaks & (speaks.cumsum(-1) == speaks.sum(-1, keepdim=True))
        return self.pool.rest(x) + self.pool.decode(code.where(~last))


class SinglePrecisionKernel(Plain):
    """The trained path rounds once to float32: right to six digits, and wrong."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.pool(x).float().to(x.dtype)


class ForgottenDecoderBias(Plain):
    def rest(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class SwappedHalves(Plain):
    """Writes and decode agree with each other, and with nothing that was trained."""

    def write(self, unit: Tensor) -> Tensor:
        return self.pool.write(unit).roll(WIDTH // 2, -1)

    def decode(self, code: Code) -> Tensor:
        return self.pool.decode(code).roll(WIDTH // 2, -1)


class ForeignScale(Plain):
    """An adapter whose package scales its input, which the adapter was not told."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.pool(x * 1.001)


class NormFoldedIntoDecode(Plain):
    def decode(self, code: Code) -> Tensor:
        norm = self.pool.write(code.unit).norm(dim=-1)
        return self.pool.decode(Code(code.unit, code.gate / norm, code.act))


class DecodeKeepsItsOwnCodesOnly(Plain):
    """Right for every code the pool made, wrong for an edited one."""

    def decode(self, code: Code) -> Tensor:
        return self.pool.decode(Code(code.unit, code.gate.clamp_min(0), code.act))


class DecodeRescalesSurvivors(Plain):
    """Values are normalised to a fixed sum, as a softmax over what is left would."""

    def decode(self, code: Code) -> Tensor:
        total = code.value.abs().sum(-1, keepdim=True).clamp_min(1e-9)
        return self.pool.decode(Code(code.unit, code.gate / total, code.act))


class NamedUnitsSkipTheCompetition(Plain):
    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        code = self.pool.activate(x, unit=unit, limit=limit)
        return code if unit is None else Code(code.unit, torch.ones_like(code.gate), code.act)


class NamedUnitsCompeteAmongThemselves(Plain):
    """Gates renormalised over the units that were asked for, not over all that competed."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        code = self.pool.activate(x, unit=unit, limit=limit)
        if unit is None:
            return code
        total = code.gate.sum(-1, keepdim=True).clamp_min(1e-9)
        return Code(code.unit, code.gate / total, code.act)


class NamedUnitsComeBackSorted(Plain):
    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x, unit=None if unit is None else unit.sort()[0], limit=limit)


class CentredOverTheBatch(Plain):
    """Batch statistics in evaluation, as a BatchNorm left in training mode has."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        mean = x.reshape(-1, x.shape[-1]).mean(0)
        return self.pool.activate(x - mean, unit=unit, limit=limit)


class UnmergedHeads(Plain):
    """Two heads that retrieve the same units, each with half of the gate."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        code = self.pool.activate(x, unit=unit, limit=limit)
        if unit is not None:
            return code
        return Code(
            torch.cat((code.unit, code.unit), -1),
            torch.cat((code.gate, code.gate), -1) / 2,
            torch.cat((code.act, code.act), -1),
        )


class OneAtomTwice(Plain):
    """The strongest unit of every row is listed a second time with half of its gate."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        code = self.pool.activate(x, unit=unit, limit=limit)
        if unit is not None:
            return code
        best = code.value.argmax(-1, keepdim=True)
        gate = code.gate.scatter(-1, best, code.gate.gather(-1, best) / 2)
        return Code(
            torch.cat((code.unit, code.unit.gather(-1, best)), -1),
            torch.cat((gate, gate.gather(-1, best)), -1),
            torch.cat((code.act, code.act.gather(-1, best)), -1),
        )


class PermutedEncoder(Plain):
    def read(self, unit: Tensor) -> Tensor:
        return self.pool.read((unit + 1) % self.spec.num_units)


class HiddenNormalisation(Plain):
    """x is normalised inside the pool, so no act depends on one direction alone."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x / x.norm(dim=-1, keepdim=True), unit=unit, limit=limit)


class UnscaledReads(Plain):
    """The directions as stored, not as applied: a scaling of the coordinates is left out."""

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        scale = torch.linspace(0.5, 2.0, WIDTH, dtype=x.dtype)
        return self.pool.activate(x * scale, unit=unit, limit=limit)


class TransposedReads(Plain):
    def read(self, unit: Tensor) -> Tensor:
        return self.pool.read(torch.arange(self.spec.num_units)).t()[unit]


class TransposedWrites(Plain):
    def write(self, unit: Tensor) -> Tensor:
        return self.pool.write(torch.arange(self.spec.num_units)).t()[unit]


class LostLeadingAxes(Plain):
    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x.reshape(-1, x.shape[-1]), unit=unit, limit=limit)


class ScalarRest(Plain):
    """Broadcasts where it is added, and has no width of its own."""

    def rest(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class PositionalLimit(Plain):
    def activate(self, x: Tensor, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x, unit=unit, limit=limit)


class RenamedArgument(Plain):
    def activate(self, x: Tensor, *, units: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x, unit=units, limit=limit)


class UnitAndLimitAtOnce(Plain):
    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        return self.pool.activate(x, unit=unit, limit=None if unit is not None else limit)


class LimitKeepsTheFirst(Plain):
    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        if unit is not None or limit is None:
            return self.pool.activate(x, unit=unit, limit=limit)
        code = self.pool.activate(x)
        return Code(code.unit[..., :limit], code.gate[..., :limit], code.act[..., :limit])


def _without(name: str) -> type[Plain]:
    """``Plain`` with one member gone."""
    members = {key: value for key, value in vars(Plain).items() if key != name}
    members.pop("__dict__", None)
    members.pop("__weakref__", None)
    return type(f"Missing_{name}", (), members)


MISTAKES: tuple[tuple[laws.Law, type[Plain]], ...] = (
    (laws.law_1_forward_is_rest_plus_decode, WrongFastKernel),
    (laws.law_1_forward_is_rest_plus_decode, SinglePrecisionKernel),
    (laws.law_1_forward_is_rest_plus_decode, ForgottenDecoderBias),
    (laws.law_1_forward_is_rest_plus_decode, SwappedHalves),
    (laws.law_1_forward_is_rest_plus_decode, ForeignScale),
    (laws.law_2_decode_sums_value_times_write, NormFoldedIntoDecode),
    (laws.law_2_decode_sums_value_times_write, DecodeKeepsItsOwnCodesOnly),
    (laws.law_3_removal_subtracts_one_contribution, DecodeRescalesSurvivors),
    (laws.law_4_named_units_agree, NamedUnitsSkipTheCompetition),
    (laws.law_4_named_units_agree, NamedUnitsCompeteAmongThemselves),
    (laws.law_4_named_units_agree, NamedUnitsComeBackSorted),
    (laws.law_5_rows_are_independent, CentredOverTheBatch),
    (laws.law_6_a_unit_occurs_once, UnmergedHeads),
    (laws.law_6_a_unit_occurs_once, OneAtomTwice),
    (laws.law_7_act_changes_only_along_read, PermutedEncoder),
    (laws.law_7_act_changes_only_along_read, HiddenNormalisation),
    (laws.law_7_act_changes_only_along_read, UnscaledReads),
    (laws.law_8_widths_match_the_spec, TransposedReads),
    (laws.law_8_widths_match_the_spec, TransposedWrites),
    (laws.law_8_widths_match_the_spec, LostLeadingAxes),
    (laws.law_8_widths_match_the_spec, ScalarRest),
    *(
        (laws.law_9_protocol_conformance, _without(name))
        for name in ("spec", "read", "write", "activate", "decode", "rest")
    ),
    (laws.law_9_protocol_conformance, PositionalLimit),
    (laws.law_9_protocol_conformance, RenamedArgument),
    (laws.law_9_protocol_conformance, UnitAndLimitAtOnce),
    (laws.law_9_protocol_conformance, LimitKeepsTheFirst),
)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, WIDTH, dtype=torch.float64)


@pytest.fixture
def pool() -> Pool:
    """A hierarchy off its initial values, with decoder bias and unequal gates."""
    config = replace(HIERARCHY, gate="p")
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).double().eval()
    laws.perturb(pool)
    return pool


def _fails(law: laws.Law, pool: Plain | Pool, x: Tensor) -> None:
    with pytest.raises(AssertionError):
        law(pool, x)


@pytest.mark.parametrize("law", laws.LAWS)
def test_wrapping_alone_breaks_nothing(law, pool, x):
    law(Plain(pool), x)


@pytest.mark.parametrize(("law", "mistake"), MISTAKES)
def test_the_law_fails_on_its_mistake(law, mistake, pool, x):
    _fails(law, mistake(pool), x)


@pytest.mark.parametrize("law", laws.LAWS)
def test_every_law_has_a_mistake(law):
    assert law in {planted for planted, _ in MISTAKES}


def test_law_5_fails_on_batchtopk_left_in_training_mode(x):
    config = replace(HIERARCHY, select="batchtopk", k=2)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).double()
    laws.perturb(pool)
    laws.law_5_rows_are_independent(pool.eval(), x)
    _fails(laws.law_5_rows_are_independent, pool.train(), x)


@pytest.mark.parametrize(
    ("config", "spoil"),
    [
        (DenseConfig.tiny(), lambda pool: pool.reads.t()),
        (TopKMLPConfig.tiny(), lambda pool: pool.reads.flip(0)),
    ],
    ids=["dense-transposed", "topk-flipped"],
)
def test_laws_on_other_pools_bite_too(config, spoil: Callable[[Pool], Tensor], x):
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).double().eval()
    laws.perturb(pool)
    table = spoil(pool).detach()

    class Spoiled(Plain):
        def read(self, unit: Tensor) -> Tensor:
            return table[unit % len(table)]

    law = laws.LAWS[7] if table.shape[1] != WIDTH else laws.LAWS[6]
    _fails(law, Spoiled(pool), x)
