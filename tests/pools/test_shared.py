"""The sink unit and the tied MLP beside a pool."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pellucid.core.unit import Code
from pellucid.pools.hierarchy import Hierarchy, HierarchyConfig
from pellucid.pools.pool import pool_spec
from pellucid.pools.shared import SinkUnit, TiedMLP

WIDTH = 6
SINK = replace(HierarchyConfig.tiny(), shared="sink_unit")
TIED = replace(HierarchyConfig.tiny(), shared="tied_mlp")


def _sink() -> SinkUnit:
    sink = SinkUnit(pool_spec("blocks.1.ffn", 2, ("pool", 3))).double()
    with torch.no_grad():
        sink.reads.copy_(torch.tensor([[1.0, -1.0]]))
        sink.read_bias.fill_(0.5)
        sink.writes.copy_(torch.tensor([[2.0, 3.0]]))
    return sink


def _with_sink() -> Hierarchy:
    pool = SINK.build(name="ffn", width=WIDTH, output_rms=1.0).double().eval()
    assert pool.sink is not None
    with torch.no_grad():
        pool.sink.writes.normal_()
        pool.sink.read_bias.fill_(0.1)
        pool.bias.normal_()
    return pool


def test_the_sink_unit_by_hand():
    # x = (3, 1): act = relu(3 − 1 + .5) = 2.5, y = 2.5 (2, 3). x = (0, 1): relu(−.5) = 0.
    y = _sink()(torch.tensor([[3.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
    assert y.tolist() == [[5.0, 7.5], [0.0, 0.0]]


def test_the_sink_has_a_name_of_its_own_on_the_sites_of_its_pool():
    spec = _sink().spec
    assert spec.name == "blocks.1.ffn.sink"
    assert str(spec.reads) == "blocks.1.ffn:in"
    assert str(spec.writes) == "blocks.1.ffn:out"
    assert spec.num_units == 1


def test_an_edited_sink_code_decodes_linearly():
    code = Code(
        torch.tensor([[0, 0]]), torch.tensor([[2.0, -1.0]]).double(), torch.ones(1, 2).double()
    )
    # (2 − 1) · (2, 3)
    assert _sink().decode(code).tolist() == [[2.0, 3.0]]


def test_the_sink_is_in_the_rest_of_its_pool():
    pool, x = _with_sink(), torch.randn(9, WIDTH, dtype=torch.float64)
    assert pool.sink is not None
    act = torch.relu(x @ pool.sink.reads[0] + pool.sink.read_bias)
    expected = pool.bias + act[:, None] * pool.sink.writes[0]
    torch.testing.assert_close(pool.rest(x), expected, atol=1e-12, rtol=0)  # float64 rounding


def test_the_sink_stays_out_of_the_competition():
    pool, x = _with_sink(), torch.randn(9, WIDTH, dtype=torch.float64)
    assert pool.sink is not None
    before = pool.activate(x)
    with torch.no_grad():
        pool.sink.read_bias.fill_(100.0)
    after = pool.activate(x)
    assert torch.equal(before.unit, after.unit)
    assert torch.equal(before.value, after.value)


def test_the_sink_is_trained():
    pool = _with_sink().train()
    assert pool.sink is not None
    pool(torch.randn(9, WIDTH, dtype=torch.float64)).sum().backward()
    for parameter in pool.sink.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).any()


def test_the_tied_mlp_by_hand():
    mlp = TiedMLP(2, 1).double()
    with torch.no_grad():
        mlp.up.copy_(torch.tensor([[1.0, 0.0]]))
        mlp.down.copy_(torch.tensor([[2.0, -1.0]]))
    # gelu(1) = .841345
    y = mlp(torch.tensor([1.0, 7.0], dtype=torch.float64))
    assert y.tolist() == [pytest.approx(1.682689, abs=1e-6), pytest.approx(-0.841345, abs=1e-6)]


def test_the_tied_mlp_is_in_the_rest_and_belongs_to_the_model():
    mlp = TiedMLP(WIDTH, 3)
    pool = TIED.build(name="ffn", width=WIDTH, output_rms=1.0, tied=mlp)
    x = torch.randn(9, WIDTH)
    expected = F.gelu(x @ mlp.up.t()) @ mlp.down + pool.bias
    torch.testing.assert_close(pool.rest(x), expected, atol=1e-6, rtol=0)  # float32 rounding
    assert not {id(p) for p in mlp.parameters()} & {id(p) for p in pool.parameters()}
    assert TIED.cost(WIDTH).total == sum(p.numel() for p in pool.parameters())


def test_the_tied_mlp_learns_through_every_pool_that_uses_it():
    mlp = TiedMLP(WIDTH, 3)
    pools = [TIED.build(name=f"{i}", width=WIDTH, output_rms=1.0, tied=mlp) for i in range(2)]
    x = torch.randn(9, WIDTH)
    alone = torch.autograd.grad(pools[0](x).sum(), mlp.down)[0]
    both = torch.autograd.grad(pools[0](x).sum() + pools[1](x).sum(), mlp.down)[0]
    torch.testing.assert_close(both, 2 * alone)
    assert (alone != 0).any()


def test_a_pool_without_a_shared_path_takes_no_tied_mlp():
    pool = HierarchyConfig.tiny().build(
        name="ffn", width=WIDTH, output_rms=1.0, tied=TiedMLP(WIDTH, 3)
    )
    x = torch.randn(9, WIDTH)
    assert torch.equal(pool.rest(x), pool.bias.expand(9, WIDTH))


def test_calibration_leaves_the_shared_path_out():
    pool = SINK.build(name="ffn", width=WIDTH, output_rms=1.0)
    x = torch.randn(20_000, WIDTH)
    units = (pool.eval()(x) - pool.rest(x)).square().mean().sqrt().item()
    # 4,096 rows against 20,000 others: some per cent.
    assert units == pytest.approx(1.0, rel=0.05)
