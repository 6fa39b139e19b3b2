"""The nine laws of a pool of units, each a function that asserts it on one pool and one input.

``test_laws.py`` runs them over every pool; ``test_laws_bite.py`` plants the mistakes that each law
exists for and demands that it fails. A law takes the pool as it finds it: in evaluation mode and
float64 if it is to hold.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pellucid.core.host import edit_units
from pellucid.core.unit import Code, PoolSpec, UnitPool

# float64 rounding of sums over some hundred terms of order 1 stays below 1e-12.
TOLERANCE = 1e-10

Law = Callable[[Any, Tensor], None]


def law_1_forward_is_rest_plus_decode(pool: Any, x: Tensor) -> None:
    """forward(x) = rest(x) + decode(activate(x))."""
    same(pool(x), pool.rest(x) + pool.decode(pool.activate(x)))


def law_2_decode_sums_value_times_write(pool: Any, x: Tensor) -> None:
    """decode is the sum of value · write, for its own codes and for any other."""
    own = pool.activate(x)
    shape = (*x.shape[:-1], 5)
    invented = Code(
        torch.randint(pool.spec.num_units, shape),
        torch.randn(shape, dtype=x.dtype),
        torch.randn(shape, dtype=x.dtype),
    )
    for code in (own, invented):
        expected = torch.einsum("...k,...kd->...d", code.value, pool.write(code.unit))
        same(pool.decode(code), expected)


def law_3_removal_subtracts_one_contribution(pool: Any, x: Tensor) -> None:
    """Removing a unit changes the output by exactly −value · write, whoever removes it."""
    code = pool.activate(x)
    lost = code.value[..., None] * pool.write(code.unit)
    entries = code.unit.shape[-1]
    for entry in range(entries):
        keep = torch.arange(entries) != entry
        without = pool.decode(code.where(keep.expand(code.unit.shape)))
        same(without - pool.decode(code), -lost[..., entry, :])
    whole = pool(x)
    for unit in code.unit.flatten().unique():
        edit = edit_units(pool, silence, unit=unit[None])
        share = torch.where(code.unit == unit, code.value, 0.0).sum(-1, keepdim=True)
        same(edit.apply(x, whole) - whole, -share * pool.write(unit))


def law_4_named_units_agree(pool: Any, x: Tensor) -> None:
    """activate(unit=all) agrees with the sparse code, and unit=some with unit=all."""
    sparse, every = pool.activate(x), torch.arange(pool.spec.num_units)
    named = pool.activate(x, unit=every)
    assert torch.equal(named.unit, every.expand(named.unit.shape))
    same(named.value, dense(sparse, sparse.value, len(every)))
    on = sparse.gate != 0
    for found, expected in ((named.gate, sparse.gate), (named.act, sparse.act)):
        same(found.gather(-1, sparse.unit)[on], expected[on])
    some = torch.randperm(len(every))[:3]
    few = pool.activate(x, unit=some)
    assert torch.equal(few.unit, some.expand(few.unit.shape))
    same(few.gate, named.gate[..., some])
    same(few.act, named.act[..., some])


def law_5_rows_are_independent(pool: Any, x: Tensor) -> None:
    """A row's code ignores the other rows: alone, among itself, or among strangers."""
    rows, units = x.reshape(-1, x.shape[-1]), pool.spec.num_units
    code = pool.activate(rows)
    gate, value = dense(code, code.gate, units), dense(code, code.value, units)
    for row in range(len(rows)):
        strangers = 10 * torch.randn_like(rows) + 3
        strangers[0] = rows[row]
        for batch in (rows[row : row + 1], strangers):
            other = pool.activate(batch)
            same(dense(other, other.gate, units)[0], gate[row])
            same(dense(other, other.value, units)[0], value[row])


def law_6_a_unit_occurs_once(pool: Any, x: Tensor) -> None:
    """A unit occurs at most once per row, entries of gate 0 aside, and every index is valid."""
    code, units = pool.activate(x), pool.spec.num_units
    assert code.unit.min() >= 0
    assert code.unit.max() < units
    occurs = dense(code, (code.gate != 0).to(x.dtype), units)
    assert occurs.max() <= 1, "a unit is listed twice in one row"


def law_7_act_changes_only_along_read(pool: Any, x: Tensor) -> None:
    """No step orthogonal to ``read`` changes a unit's act, however large."""
    every = torch.arange(pool.spec.num_units)
    rows = x.reshape(-1, x.shape[-1])
    read = pool.read(every)[:, None]
    step = 3 * torch.randn(len(every), *rows.shape, dtype=x.dtype)
    square = read.square().sum(-1, keepdim=True)
    along = (step * read).sum(-1, keepdim=True) / torch.where(square > 0, square, 1.0)
    moved = pool.activate(rows + step - along * read, unit=every).act
    own = moved.diagonal(dim1=0, dim2=2)
    same(own, pool.activate(rows, unit=every).act)


def law_8_widths_match_the_spec(pool: Any, x: Tensor) -> None:
    """Every member returns the widths, lengths and indices that the spec promises."""
    spec, batch = pool.spec, x.shape[:-1]
    assert x.shape[-1] == spec.d_in
    for unit in (torch.tensor([0]), torch.arange(spec.num_units).reshape(1, -1)):
        assert pool.read(unit).shape == (*unit.shape, spec.d_in)
        assert pool.write(unit).shape == (*unit.shape, spec.d_out)
    code = pool.activate(x)
    assert code.unit.shape == code.gate.shape == code.act.shape
    assert code.unit.shape[:-1] == batch
    assert not code.unit.is_floating_point()
    assert code.unit.shape[-1] <= spec.num_units
    assert pool.decode(code).shape == (*batch, spec.d_out)
    assert pool.rest(x).shape == (*batch, spec.d_out)
    assert pool.activate(x, unit=torch.arange(1)).unit.shape == (*batch, 1)


def law_9_protocol_conformance(pool: Any, x: Tensor) -> None:
    """Every member of ``UnitPool`` is there, is called as it is there, and keeps its word."""
    for name, member in vars(UnitPool).items():
        if name.startswith("_"):
            continue
        found = inspect.getattr_static(type(pool), name, None)
        assert found is not None, f"no member {name}"
        assert isinstance(found, property) == isinstance(member, property), name
        if not isinstance(member, property):
            assert _call_form(found) == _call_form(member), name
    assert isinstance(pool.spec, PoolSpec)
    assert pool.spec == pool.spec
    refused = True
    with suppress(ValueError):
        pool.activate(x, unit=torch.arange(1), limit=1)
        refused = False
    assert refused, "unit= and limit= at once: expected a ValueError"
    whole = pool.activate(x)
    weight = whole.value.abs() * pool.write(whole.unit).norm(dim=-1)
    for limit in (1, 2, pool.spec.num_units + 1):
        code = pool.activate(x, limit=limit)
        assert code.unit.shape[-1] == min(limit, whole.unit.shape[-1])
        kept = code.value.abs() * pool.write(code.unit).norm(dim=-1)
        best = weight.topk(code.unit.shape[-1], dim=-1).values
        same(kept.sort(descending=True).values, best)


LAWS: tuple[Law, ...] = (
    law_1_forward_is_rest_plus_decode,
    law_2_decode_sums_value_times_write,
    law_3_removal_subtracts_one_contribution,
    law_4_named_units_agree,
    law_5_rows_are_independent,
    law_6_a_unit_occurs_once,
    law_7_act_changes_only_along_read,
    law_8_widths_match_the_spec,
    law_9_protocol_conformance,
)


def same(found: Tensor, expected: Tensor) -> None:
    """Equal shapes, and entries equal to within ``TOLERANCE``, absolute and relative."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} against {tuple(expected.shape)}"
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def dense(code: Code, entry: Tensor, units: int) -> Tensor:
    """``entry`` of a code spread over all units; repeated units add up."""
    return entry.new_zeros(*entry.shape[:-1], units).scatter_add(-1, code.unit, entry)


def silence(code: Code) -> Code:
    """The code with every entry removed."""
    return code.where(torch.zeros_like(code.unit, dtype=torch.bool))


@torch.no_grad()
def perturb(module: torch.nn.Module) -> None:
    """Move every parameter and buffer off its initial value: biases, scales and thresholds too.

    Buffers only grow, so that a variance or a threshold stays positive.
    """
    for parameter in module.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer += 0.1 * torch.rand_like(buffer)


def _call_form(member: Any) -> list[tuple[str, Any, bool]]:
    parameters = inspect.signature(member).parameters.values()
    return [(p.name, p.kind, p.default is inspect.Parameter.empty) for p in parameters]
