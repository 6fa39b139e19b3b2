"""Edits on a toy host, worked by hand, and their precision in bfloat16."""

from collections.abc import Collection, Sequence

import pytest
import torch
from torch import Tensor

from pellucid.core.host import Edit, Host, Trace, edit_units
from pellucid.core.unit import Code, PoolSpec, Site

IN, OUT = Site(module="mlp", port="in"), Site(module="mlp", port="out")


class ThreeUnits:
    """ReLU units with reads and writes along the two axes and their diagonal; rest = 10."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.reads = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=dtype)
        self.writes = torch.tensor([[1, 0], [0, 1], [2, -1]], dtype=dtype)

    @property
    def spec(self) -> PoolSpec:
        return PoolSpec(name="mlp", reads=IN, writes=OUT, axes=(("unit", 3),), d_in=2, d_out=2)

    def read(self, unit: Tensor) -> Tensor:
        return self.reads[unit]

    def write(self, unit: Tensor) -> Tensor:
        return self.writes[unit]

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        unit = torch.arange(3) if unit is None else unit
        act = torch.relu(x @ self.reads[unit].t())
        return Code(unit.expand(act.shape), torch.ones_like(act), act)

    def decode(self, code: Code) -> Tensor:
        return torch.einsum("...k,...kd->...d", code.value, self.writes[code.unit])

    def rest(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 10)


class ToyHost:
    """Embeds a token as (token, 1), runs the pool, and unembeds by the identity."""

    def __init__(self) -> None:
        self.pool = ThreeUnits()

    def width(self, site: Site) -> int:
        return 2

    def run(
        self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
    ) -> Trace:
        x = torch.stack((tokens.double(), torch.ones_like(tokens).double()), -1)
        y = self.pool.rest(x) + self.pool.decode(self.pool.activate(x))
        for edit in edits:
            y = edit.apply(x, y)
        return Trace(logits=y, kept={site: {IN: x, OUT: y}[site] for site in keep})


def _scale(factor: float) -> object:
    return lambda code: Code(code.unit, code.gate * factor, code.act)


def _silence(code: Code) -> Code:
    return code.where(torch.zeros_like(code.unit, dtype=torch.bool))


TOKENS = torch.tensor([[2, -3]])
# x = (2, 1): acts 2, 1, 3, y = 10 + 2(1,0) + 1(0,1) + 3(2,−1) = (18, 8).
# x = (−3, 1): acts 0, 1, 0, y = (10, 11).
WHOLE = torch.tensor([[[18.0, 8.0], [10.0, 11.0]]], dtype=torch.float64)


def test_the_toy_is_a_host_by_protocol():
    assert isinstance(ToyHost(), Host)
    assert not isinstance(ThreeUnits(), Host)


def test_without_edits_nothing_changes():
    trace = ToyHost().run(TOKENS, keep=[IN, OUT])
    assert torch.equal(trace.logits, WHOLE)
    assert torch.equal(trace.kept[OUT], WHOLE)
    assert trace.kept[IN][0, 0].tolist() == [2.0, 1.0]


def test_ablation_subtracts_the_unit():
    host = ToyHost()
    edit = edit_units(host.pool, _silence, unit=torch.tensor([2]))
    # Without 3(2,−1): (12, 11); the unit is off at the second token.
    assert host.run(TOKENS, edits=[edit]).logits[0].tolist() == [[12.0, 11.0], [10.0, 11.0]]


def test_scaling_moves_by_the_difference():
    host = ToyHost()
    edit = edit_units(host.pool, _scale(3.0), unit=torch.tensor([1]))
    # Two more of 1(0,1) in both rows.
    assert host.run(TOKENS, edits=[edit]).logits[0].tolist() == [[18.0, 10.0], [10.0, 13.0]]


def test_an_edit_goes_from_the_pools_reads_to_its_writes():
    edit = edit_units(ThreeUnits(), _silence)
    assert (edit.reads, edit.writes) == (IN, OUT)


def test_edits_apply_in_order_each_on_what_the_last_left():
    host = ToyHost()
    remove = edit_units(host.pool, _silence, unit=torch.tensor([2]))
    double = Edit(reads=IN, writes=OUT, apply=lambda _, y: 2 * y)
    # Remove, then double: 2 · (12, 11). Double, then remove: (36, 16) − 3(2,−1).
    assert host.run(TOKENS, edits=[remove, double]).logits[0, 0].tolist() == [24.0, 22.0]
    assert host.run(TOKENS, edits=[double, remove]).logits[0, 0].tolist() == [30.0, 19.0]


def test_an_edit_may_list_units_that_were_not_on():
    host = ToyHost()

    def patch(code: Code) -> Code:
        unit = torch.tensor([0]).expand(*code.unit.shape[:-1], 1)
        one = torch.ones(unit.shape, dtype=torch.float64)
        return Code(unit, one, 5 * one)

    # Everything replaced by 5(1,0), at a token where unit 0 was off as well.
    assert host.run(TOKENS, edits=[edit_units(host.pool, patch)]).logits[0].tolist() == [
        [15.0, 10.0],
        [15.0, 10.0],
    ]


def test_what_the_units_do_not_explain_stays():
    pool = ThreeUnits()
    x = torch.randn(5, 2, dtype=torch.float64)
    y = torch.randn(5, 2, dtype=torch.float64)
    edit = edit_units(pool, _silence)
    # y is unrelated to the pool: only the units' own contribution leaves it. float64 rounding.
    expected = y - pool.decode(pool.activate(x))
    torch.testing.assert_close(edit.apply(x, y), expected, atol=1e-14, rtol=0)


def test_an_edit_that_changes_nothing_is_exactly_nothing():
    x, y = torch.randn(7, 2), torch.randn(7, 2)
    assert torch.equal(edit_units(ThreeUnits(torch.float32), lambda code: code).apply(x, y), y)


def test_naming_a_unit_is_exact_whatever_the_others_hold():
    pool = ThreeUnits(torch.float32)
    pool.writes[0] = 1e30
    x, y = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2)
    named = edit_units(pool, _silence, unit=torch.tensor([1])).apply(x, y)
    assert named.tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_output_keeps_its_type(dtype):
    x, y = torch.randn(3, 2).to(dtype), torch.randn(3, 2).to(dtype)
    assert edit_units(ThreeUnits(dtype), _silence).apply(x, y).dtype == dtype


class ManyUnits(ThreeUnits):
    """64 linear units of width 512 that share most of what they write."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = torch.randn(64, 512) / 512**0.5
        self.writes = torch.randn(64, 512) + 3 * torch.randn(512)

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        unit = torch.arange(64) if unit is None else unit
        act = (x @ self.reads[unit].to(x.dtype).t()) + 1
        return Code(unit.expand(act.shape), torch.ones_like(act), act)

    def decode(self, code: Code) -> Tensor:
        # As the shipped pools do: products and sum in float32, one rounding at the end.
        value = code.value.float()
        table = self.writes.bfloat16().float()
        return torch.einsum("...k,...kd->...d", value, table[code.unit]).bfloat16()


@pytest.mark.parametrize("named", [True, False])
def test_one_unit_leaves_bfloat16_to_a_rounding(named):
    pool = ManyUnits()
    x = torch.randn(9, 512).bfloat16()
    unit = torch.tensor([5])

    def change(code: Code) -> Code:
        return code.where(code.unit != 5)

    edit = edit_units(pool, change, unit=unit if named else None)
    delta = edit.apply(x, torch.zeros(9, 512, dtype=torch.bfloat16)).double()
    code = pool.activate(x, unit=unit)
    expected = -(code.value.double() * pool.writes.bfloat16().double()[unit])
    error = (delta - expected).norm(dim=-1) / expected.norm(dim=-1)
    # bfloat16 rounds by 2^-8 = .0039 at most; two rounded decodes of all units were off by .3.
    assert error.max() < 0.004
