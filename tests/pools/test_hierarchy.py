"""Hierarchical pools: by hand, at their degenerate limits, and against a dense masked oracle."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.pools.hierarchy import Hierarchy, HierarchyConfig
from pellucid.pools.topk_mlp import TopKMLPConfig

TINY = HierarchyConfig.tiny()
WIDTH = 6
EXACT = {"atol": 1e-11, "rtol": 1e-11}  # float64 sums of at most a few hundred products


@pytest.mark.parametrize(
    ("change", "y"),
    [
        # s = .8·1, .8·2 | .2·3, .2·0 = .8, 1.6, .6, 0
        ({"k": 2}, (0.8, 2.6)),
        ({"k": 1}, (0.0, 2.6)),
        ({"k": 3}, (1.4, 3.2)),
        ({"k": 4}, (1.4, 3.2)),  # the fourth does not speak
        # One open pool: gate p leaves .8, 1.6.
        ({"open_pools": 1, "gate": "p"}, (0.8, 2.6)),
        # ones: s = 1, 2, 3, 0; the two largest are 2(0,1) and 3(1,1).
        ({"gate": "ones"}, (3.0, 6.0)),
        ({"gate": "ones", "open_pools": 1}, (1.0, 3.0)),
        # e^.8 / (e^.8 + e^.2) = .645656: s = .645656, 1.291313 | 1.063031, 0
        ({"gate": "softmax_of_p"}, (1.063031, 3.354344)),
        ({"gate": "p"}, (0.8, 2.6)),
        # θ = .7 keeps .8 and 1.6; θ = 1 keeps 1.6; θ = .1 keeps all three.
        ({"select": "jumprelu", "jump_threshold": 0.7}, (0.8, 2.6)),
        ({"select": "jumprelu", "jump_threshold": 1.0}, (0.0, 2.6)),
        ({"select": "jumprelu", "jump_threshold": 0.1}, (1.4, 3.2)),
    ],
    ids=str,
)
def test_by_hand(change, y, hand, row, near):
    near(hand(**change)(row), y)


def test_a_bias_shifts_the_reads(hand, row, near):
    pool = hand()
    with torch.no_grad():
        pool.read_bias.copy_(torch.tensor([[0.0, -2.0], [0.0, 6.0]]))
    # a = 1, 0 | 3, 5: s = .8, 0 | .6, 1.0; 1.0(1,1) + .8(1,0) + (0,1)
    near(pool(row), (1.8, 2.0))


def test_pool_scaling_by_hand(hand, row, near):
    pool = hand(pool_scaling=True)
    assert pool.scaling is not None
    near(pool(row), (0.8, 2.6))
    with torch.no_grad():
        pool.scaling.copy_(torch.tensor([1.0, 0.0]))
    # Pool mean (.5, .5): û = (1.5, −.5) and (−.5, 1.5), so a = .5, 2.5 and s = .4, 2.0 | .6, 0.
    near(pool(row), (0.6, 3.6))
    assert pool.read(torch.tensor([0])).tolist() == [[1.5, -0.5]]


def test_batchtopk_by_hand(hand, row, near):
    # k · rows = 4 of: .8, 1.6, .6, 0 (the row) and, for twice it, 1.6, 3.2, 1.2, 0.
    # Kept: 3.2, 1.6, 1.6, 1.2, so the first row keeps 1.6 alone and θ = 1.2.
    pool = hand(select="batchtopk").train()
    y = pool(torch.stack((row, 2 * row)))
    near(y[0], (0.0, 2.6))
    near(y[1], (2.8, 5.4))
    assert pool.threshold.item() == pytest.approx(1.2, abs=1e-6)
    # Evaluation keeps s > θ: of .8, 1.6, .6 only 1.6, whatever else is in the batch.
    near(pool.eval()(row), (0.0, 2.6))


def test_the_threshold_is_a_running_mean(hand, row):
    pool = hand(select="batchtopk").train()
    pool(row[None])  # 1.6 and .8 are kept: θ = .8
    assert pool.threshold.item() == pytest.approx(0.8, abs=1e-6)
    pool.after_step()
    pool(2 * row[None])  # 3.2 and 1.6: a plain mean at first, θ = (.8 + 1.6) / 2
    assert pool.threshold.item() == pytest.approx(1.2, abs=1e-6)
    pool.steps.fill_(5000)
    pool(row[None])  # later .999 · 1.2 + .001 · .8
    assert pool.threshold.item() == pytest.approx(1.1996, abs=1e-6)
    pool.eval()(4 * row[None])
    assert pool.threshold.item() == pytest.approx(1.1996, abs=1e-6)


def test_the_batches_of_one_step_count_as_their_mean(hand, row):
    pool = hand(select="batchtopk").train()
    pool.threshold.fill_(7.0)  # wherever θ was settled
    for factor, mean in ((1, 0.8), (2, 1.2), (6, 2.4)):
        # .8, 1.6 and 4.8: the smallest of each batch's two.
        pool(factor * row[None])
        assert pool.threshold.item() == pytest.approx(mean, abs=1e-6)
    pool.after_step()
    assert pool.batches.item() == 0
    # The second step's batches have 1.6 and 4.8. θ goes halfway to 1.6, then to the mean of 3.2.
    pool(2 * row[None])
    assert pool.threshold.item() == pytest.approx((2.4 + 1.6) / 2, abs=1e-6)
    pool(6 * row[None])
    assert pool.threshold.item() == pytest.approx(2.8, abs=1e-6)
    pool.after_step()
    # Later a thousandth of the way to the step's mean, as one batch of it would go.
    pool.steps.fill_(5000)
    pool(row[None])
    pool(2 * row[None])
    assert pool.threshold.item() == pytest.approx(2.8 + (1.2 - 2.8) / 1000, abs=1e-6)


def test_a_batch_in_which_nothing_speaks_has_threshold_zero(hand):
    pool = hand(select="batchtopk").train()
    with torch.no_grad():
        pool.read_bias.fill_(-99.0)
    y = pool(torch.ones(3, 2, dtype=torch.float64))
    assert torch.equal(y, pool.bias.expand(3, 2))
    assert pool.threshold.item() == 0.0


def test_the_code_by_hand(hand, row):
    code = hand(k=3).activate(row)
    found = {u: (g, a) for u, g, a in zip(*(t.tolist() for t in (code.unit, code.gate, code.act)))}
    assert found == {
        1: (pytest.approx(0.8), 2.0),
        0: (pytest.approx(0.8), 1.0),
        2: (pytest.approx(0.2), 3.0),
    }


def test_named_units_keep_the_gates_of_the_full_competition(hand, row):
    code = hand(k=1).activate(row, unit=torch.tensor([2, 1, 3]))
    # Unit 1 won; unit 2 would have said 3 and lost; unit 3 reads −1.
    assert code.gate.tolist() == [0.0, pytest.approx(0.8), 0.0]
    assert code.act.tolist() == [3.0, 2.0, 0.0]


def test_keys_are_router_rows():
    pool = TINY.build(name="ffn", width=WIDTH, output_rms=1.0)
    unit = torch.tensor([[0, 6], [7, 34]])
    assert torch.equal(pool.key(unit), pool.router[torch.tensor([[0, 0], [1, 4]])])


def test_one_pool_without_gates_is_the_topk_mlp():
    ours = HierarchyConfig(pools=1, slots=13, open_pools=1, k=3, gate="ones")
    pool = ours.build(name="ffn", width=WIDTH, output_rms=1.0).double()
    wide = TopKMLPConfig(hidden=13, k=3).build(name="ffn", width=WIDTH, output_rms=1.0).double()
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            parameter.normal_()
            dict(pool.named_parameters())[name].copy_(parameter.view_as(getattr(pool, name)))
    x = torch.randn(63, WIDTH, dtype=torch.float64)
    assert torch.equal(pool.eval()(x), wide(x))
    assert torch.equal(pool.train()(x), wide(x))
    assert torch.equal(pool.activate(x).unit, wide.activate(x).unit)


def _gates(pool: Hierarchy, x: Tensor) -> tuple[Tensor, Tensor]:
    """([T, P] gates, 0 in closed pools; [T, P] probabilities), written from the equations."""
    logits = x @ pool.router.t() + pool.router_offset
    chosen = (logits + pool.router_bias).topk(pool.config.open_pools, -1).indices
    opened = torch.zeros_like(logits).scatter(1, chosen, 1.0)
    p = logits.softmax(-1)
    gate = {
        "renorm": lambda: p / (p * opened).sum(-1, keepdim=True),
        "p": lambda: p,
        "softmax_of_p": lambda: p.exp() / (p.exp() * opened).sum(-1, keepdim=True),
        "ones": lambda: torch.ones_like(p),
    }[pool.config.gate]()
    return gate * opened, p


def _oracle(pool: Hierarchy, x: Tensor) -> Tensor:
    """Every unit of every pool is read and scored; those not selected are masked."""
    config = pool.config
    gate, _ = _gates(pool, x)
    reads = pool.reads
    if pool.scaling is not None:
        mean = reads.mean(1, keepdim=True)
        reads = reads + pool.scaling[:, None, None] * (reads - mean)
    act = torch.relu(torch.einsum("td,pnd->tpn", x, reads) + pool.read_bias)
    strength = (gate[..., None] * act).flatten(1)
    if config.select == "topk":
        keep = torch.zeros_like(strength).scatter(1, strength.topk(config.k, 1).indices, 1.0)
    elif pool.training:
        least = strength.flatten().topk(config.k * len(x)).values.min()
        keep = (strength >= least).to(strength.dtype)
    else:
        keep = (strength > pool.threshold).to(strength.dtype)
    return (strength * keep) @ pool.writes + pool.rest(x)


def _perturbed(config: HierarchyConfig) -> Hierarchy:
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).double()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        pool.router_bias.normal_(std=0.3)
        pool.threshold.fill_(0.2)
    return pool


ORACLES = {
    **{gate: replace(TINY, gate=gate) for gate in ("renorm", "p", "softmax_of_p", "ones")},
    "scaled": replace(TINY, pool_scaling=True),
    "sink": replace(TINY, shared="sink_unit"),
    "all-open": replace(TINY, open_pools=5, k=20),
    "one-open": replace(TINY, open_pools=1, gate="p"),
    "batchtopk": replace(TINY, select="batchtopk"),
}


@pytest.mark.parametrize("rows", [1, 63, 100])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ORACLES)
def test_output_and_sparse_gradients_equal_the_masked_oracles(name, training, rows):
    pool = _perturbed(ORACLES[name]).train(training)
    x = torch.randn(rows, WIDTH, dtype=torch.float64, requires_grad=True)
    leaves = [x, *pool.parameters()]
    plain, ours = _oracle(pool, x), pool(x)
    torch.testing.assert_close(ours, plain, **EXACT)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, leaves, upstream, allow_unused=True)
    found = torch.autograd.grad(ours, leaves, upstream, allow_unused=True)
    for grad, right, leaf in zip(found, expected, leaves):
        zeros = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zeros if grad is None else grad, zeros if right is None else right, **EXACT
        )


def test_jumprelu_output_equals_the_masked_oracles():
    pool = _perturbed(replace(TINY, select="jumprelu", jump_threshold=0.15)).eval()
    x = torch.randn(63, WIDTH, dtype=torch.float64)
    gate, _ = _gates(pool, x)
    act = torch.relu(torch.einsum("td,pnd->tpn", x, pool.reads) + pool.read_bias)
    strength = gate[..., None] * act
    assert pool.log_threshold is not None
    kept = strength * (strength > pool.log_threshold.exp())
    assert 0 < (kept > 0).sum() < (strength > 0).sum()
    torch.testing.assert_close(pool(x), kept.flatten(1) @ pool.writes + pool.bias, **EXACT)


def test_threshold_selections_keep_the_strongest_candidates_when_too_many_pass():
    # k = 1 has 8 candidates of 15: θ near 0 passes more, and the 8 with the largest s − θ stay.
    config = replace(TINY, k=1, select="jumprelu", jump_threshold=1e-9)
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).double().eval()
    with torch.no_grad():
        pool.read_bias.fill_(3.0)
    x = torch.randn(63, WIDTH, dtype=torch.float64)
    gate, _ = _gates(pool, x)
    act = torch.relu(torch.einsum("td,pnd->tpn", x, pool.reads) + pool.read_bias)
    strength = (gate[..., None] * act).flatten(1)
    code = pool.activate(x)
    assert code.unit.shape[1] == 8
    assert torch.equal(code.unit.sort(1).values, strength.topk(8, 1).indices.sort(1).values)


def test_the_straight_through_gradient_by_hand():
    # One unit, gate 1: s = relu(x), y = s · [s > θ] · v with θ = .5, ε = .1, s = .52, v = (2, 0).
    config = HierarchyConfig(
        pools=1, slots=1, open_pools=1, k=1, gate="ones", select="jumprelu",
        jump_threshold=0.5, jump_width=0.1, l0_weight=3.0, balance="none", router_z_weight=0.0,
    )  # fmt: skip
    pool = config.build(name="ffn", width=2, output_rms=1.0).double().train()
    with torch.no_grad():
        pool.reads.copy_(torch.tensor([[[1.0, 0.0]]]))
        pool.writes.copy_(torch.tensor([[2.0, 0.0]]))
    x = torch.tensor([[0.52, 7.0]], dtype=torch.float64)
    y, parts = pool.forward_with_parts(x)
    assert y.tolist() == [[pytest.approx(1.04), 0.0]]
    assert pool.log_threshold is not None
    (grad,) = torch.autograd.grad(y[0, 0], pool.log_threshold)
    # dy/dθ = −v · s / ε = −2 · .52 / .1 = −10.4, and dθ/dlog θ = θ = .5.
    assert grad.item() == pytest.approx(-5.2, abs=1e-6)
    # L0 = 1 = k: the loss is 0 and flat.
    assert parts["l0"].item() == 0.0
    _, parts = pool.forward_with_parts(
        torch.tensor([[0.52, 0.0], [0.51, 0.0], [0.1, 0.0]]).double()
    )
    # L0 = 2/3: 3 · (2/3 − 1)² = 1/3. Two of three rows are within ε/2 of θ, so dL0/dθ =
    # −2 / (3 · .1) = −20/3, dL/dθ = 3 · 2 · (−1/3) · (−20/3) = 40/3, and θ = .5 makes it 20/3.
    assert parts["l0"].item() == pytest.approx(1 / 3, abs=1e-6)
    (grad,) = torch.autograd.grad(parts["l0"], pool.log_threshold)
    assert grad.item() == pytest.approx(20 / 3, abs=1e-4)


def test_training_and_evaluation_agree_under_topk():
    pool = _perturbed(replace(TINY, shared="sink_unit", pool_scaling=True))
    x = torch.randn(63, WIDTH, dtype=torch.float64)
    assert torch.equal(pool.train()(x), pool.eval()(x))


@pytest.mark.parametrize("change", [{}, {"pool_scaling": True, "shared": "sink_unit"}], ids=str)
def test_gradient_reaches_every_parameter(change):
    for select in ("topk", "batchtopk", "jumprelu"):
        config = replace(TINY, select=select, jump_threshold=0.1, jump_width=0.5, **change)
        pool = _perturbed(config).train()
        y, parts = pool.forward_with_parts(torch.randn(100, WIDTH, dtype=torch.float64))
        (y.square().sum() + sum(parts.values(), torch.zeros(()))).backward()
        for name, parameter in pool.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            # Some of the 35 units may win nowhere in 100 rows, most win somewhere.
            assert (parameter.grad != 0).double().mean() > 0.7, f"{select}: {name}"


def test_a_frozen_router_gets_no_gradient_and_still_routes():
    pool = replace(TINY, frozen_router=True).build(name="ffn", width=WIDTH, output_rms=1.0).train()
    x = torch.randn(9, WIDTH)
    pool(x).sum().backward()
    assert pool.router.grad is None
    assert pool.router_offset.grad is None
    assert pool.reads.grad is not None
    assert len(pool.activate(torch.randn(99, WIDTH)).unit.unique()) > 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_model_opens_the_pools_of_its_precise_copy(dtype):
    config = HierarchyConfig(pools=256, slots=2, open_pools=8, k=8, balance="bias")
    half = config.build(name="ffn", width=WIDTH, output_rms=1.0).to(dtype).eval()
    with torch.no_grad():
        half.router_offset.normal_()
        half.router_bias.normal_(std=0.1)
    precise = deepcopy(half).float()
    x = torch.randn(1000, WIDTH).to(dtype)
    logits, opened = half._route(x)
    assert logits.dtype == torch.float32
    expected, same = precise._route(x.float())
    assert torch.equal(logits, expected)
    assert torch.equal(opened, same)
    # Rounded to the model's own type, 256 logits of a row do tie, and other pools would open.
    rounded = (expected.to(dtype) + half.router_bias).topk(8).indices
    assert not torch.equal(rounded.sort(-1).values, same.sort(-1).values)
    assert half(x).dtype == dtype


def test_the_router_stays_precise_under_autocast():
    pool = _perturbed(TINY).float().eval()
    x = torch.randn(63, WIDTH)
    exact = pool._route(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = pool._route(x)
    assert low[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(exact, low))


class _Largest(TorchDispatchMode):
    """The most elements that any operation's result held."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.layout == torch.strided:
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("select", ["topk", "batchtopk", "jumprelu"])
def test_neither_all_units_nor_gathered_rows_are_ever_built(select):
    rows, width = 64, 16
    config = HierarchyConfig(pools=32, slots=8, open_pools=2, k=8, select=select)
    pool = config.build(name="ffn", width=width, output_rms=1.0).train()
    x = torch.randn(rows, width, requires_grad=True)
    with _Largest() as seen:
        y, parts = pool.forward_with_parts(x)
        (y.sum() + sum(parts.values(), torch.zeros(()))).backward()
    # The tables hold 32 · 8 · 16 = 4,096; gathered rows would be 64 · 8 · 16, all scores 64 · 256.
    assert seen.elements <= 4096
    with _Largest() as seen:
        _oracle(pool, x) if select != "jumprelu" else torch.einsum("td,pnd->tpn", x, pool.reads)
    assert seen.elements >= rows * 256, "the recorder must see what it looks for"
