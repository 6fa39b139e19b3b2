"""What pools share: named gates, the largest entries, decoding, calibration, field checks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.host import edit_units
from pellucid.core.unit import Code, Site
from pellucid.pools import POOLS, TiedMLP
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.pool import calibrate, decode_rows, pool_spec


def test_a_native_spec_reads_the_input_and_writes_the_output():
    spec = pool_spec("blocks.1.ffn", 6, ("pool", 2), ("slot", 3))
    assert spec.reads == Site(module="blocks.1.ffn", port="in")
    assert spec.writes == Site(module="blocks.1.ffn", port="out")
    assert (spec.name, spec.d_in, spec.d_out, spec.num_units) == ("blocks.1.ffn", 6, 6, 6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=3), st.integers(0, 5), st.integers(0, 99))
def test_decode_rows_takes_any_leading_shape(shape, entries, seed):
    torch.manual_seed(seed)
    table = torch.randn(7, 4, dtype=torch.float64)
    code = Code(
        torch.randint(7, (*shape, entries)),
        torch.randn(*shape, entries, dtype=torch.float64),
        torch.randn(*shape, entries, dtype=torch.float64),
    )
    expected = (code.value[..., None] * table[code.unit]).sum(-2)
    # float64 rounding of five products.
    torch.testing.assert_close(decode_rows(code, table), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_every_pool_starts_with_the_same_influence(config):
    pool = config.build(name="ffn", width=16, output_rms=0.3).eval()
    x = torch.randn(20_000, 16)
    rms = (pool(x) - pool.rest(x)).square().mean().sqrt().item()
    # 4,096 calibration rows against 20,000 others. The heaviest tails (relu², few units) give the
    # mean square a relative standard error of .05, so the root .025; four of them.
    assert rms == pytest.approx(0.3, rel=0.1)


def test_calibration_leaves_the_mode_and_the_reads_alone():
    pool = HierarchyConfig.tiny().build(name="ffn", width=6, output_rms=1.0).train()
    reads, state = pool.reads.clone(), pool.pool_load.clone()
    writes = pool.writes.clone()
    calibrate(pool, 0.5)
    assert pool.training
    assert torch.equal(pool.reads, reads)
    assert torch.equal(pool.pool_load, state)
    # Linear in the writes: every entry by the same factor, about a half.
    factor = pool.writes / writes
    assert factor.std() < 1e-5
    assert factor.mean().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_pools_build_on_the_meta_device(config):
    with torch.device("meta"):
        pool = config.build(name="ffn", width=16, output_rms=0.3, tied=TiedMLP(16, 3))
    assert all(p.is_meta for p in pool.parameters())
    real = config.build(name="ffn", width=16, output_rms=0.3)
    assert {n: p.shape for n, p in pool.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


@pytest.mark.parametrize("width", [6, 63])
@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_the_counted_parameters_are_the_formulas(config, width):
    pool = config.build(name="ffn", width=width, output_rms=0.3)
    cost = config.cost(width)
    assert cost.total == sum(p.numel() for p in pool.parameters())
    assert 0 < cost.active <= cost.total
    assert 0 < cost.forward <= cost.training <= 3 * cost.forward + 6 * cost.total


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_the_free_size_is_what_grows(config):
    bigger = config.with_size(2 * config.free_size)
    assert bigger.free_size == 2 * config.free_size
    assert bigger.kind == config.kind
    assert bigger.cost(16).forward > config.cost(16).forward


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_unit_tables_are_parameters_once_each(config):
    pool = config.build(name="ffn", width=6, output_rms=0.3)
    own = {id(p) for p in pool.parameters()}
    for tables in (pool.unit_tables(), pool.write_tables()):
        assert len({id(t) for t in tables}) == len(tables) > 0
        assert {id(t) for t in tables} <= own


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_forward_is_the_first_of_its_parts(config):
    pool = config.build(name="ffn", width=6, output_rms=0.3).eval()
    x = torch.randn(2, 5, 6)
    y, parts = pool.forward_with_parts(x)
    assert torch.equal(pool(x), y)
    assert parts == {}, "evaluation has no auxiliary losses"


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_training_parts_are_finite_scalars(config):
    pool = config.build(name="ffn", width=6, output_rms=0.3).train()
    _, parts = pool.forward_with_parts(torch.randn(2, 5, 6))
    for part in parts.values():
        assert part.shape == ()
        assert torch.isfinite(part)


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_gradient_reaches_every_parameter_and_the_input(config):
    pool = config.build(name="ffn", width=6, output_rms=0.3).double().train()
    x = torch.randn(63, 6, dtype=torch.float64, requires_grad=True)
    y, _ = pool.forward_with_parts(x)
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    # A row may read below zero in every open unit, but few rows do.
    assert (x.grad != 0).any(1).double().mean() > 0.9
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_bfloat16_autocast_runs_forward_and_backward(config):
    pool = config.build(name="ffn", width=6, output_rms=0.3).train()
    x = torch.randn(63, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, parts = pool.forward_with_parts(x)
    (y.float().square().sum() + sum(parts.values(), torch.zeros(()))).backward()
    assert all(torch.isfinite(p.grad).all() for p in pool.parameters() if p.grad is not None)
    exact = pool.eval()(x)
    # bfloat16 acts round by 2^-8; a unit at the edge of the top-k may change places as well.
    assert (y.float() - exact).square().mean().sqrt() < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_half_precision_models_run_and_keep_their_type(config, training, dtype):
    pool = config.build(name="ffn", width=16, output_rms=0.3).to(dtype).train(training)
    x = torch.randn(63, 16).to(dtype)
    y, parts = pool.forward_with_parts(x)
    assert y.dtype == pool.decode(pool.activate(x)).dtype == dtype
    assert all(torch.isfinite(part) for part in (*parts.values(), y.sum()))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("config", [cls.tiny() for cls in POOLS], ids=lambda c: c.kind)
def test_one_unit_leaves_bfloat16_to_a_rounding(config, named):
    pool = config.build(name="ffn", width=64, output_rms=0.3).bfloat16().eval()
    x = torch.randn(30, 64).bfloat16()
    whole = pool.activate(x)
    strongest = whole.unit.flatten()[whole.value.abs().argmax()][None]

    def change(code: Code) -> Code:
        return code.where(code.unit != strongest)

    edit = edit_units(pool, change, unit=strongest if named else None)
    delta = edit.apply(x, torch.zeros_like(x)).double()
    code = pool.activate(x, unit=strongest) if named else whole
    value = (code.value.double() * (code.unit == strongest)).sum(-1, keepdim=True)
    on = (value != 0).squeeze(-1)
    assert on.any()
    # The other units cancel to the rounding of a float32 sum, at values of order 1.
    assert (delta[~on].abs() < (1e-30 if named else 1e-6)).all()
    expected = -value * pool.write(strongest).double()
    error = ((delta - expected).norm(dim=-1) / expected.norm(dim=-1))[on]
    # A value and a sum are rounded to bfloat16, by 2^-8 = .0039 at most each.
    assert error.max() < 0.008
