"""MONET's router: which entries each rule keeps, what rows see of one another, and the losses."""

import math
from copy import deepcopy
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from pellucid.pools.monet_router import MonetRouter, Routing, Rule, ambiguity, uniformity

RULES = ("topk", "row", "batch")


def _router(rule: Rule, *, side: int = 16, kept: int = 4, heads: int = 2) -> MonetRouter:
    return MonetRouter(width=6, side=side, kept=kept, heads=heads, rule=rule).double()


def _routing(logits: Tensor) -> Routing:
    row, col = logits.softmax(-1).unbind(1)
    return Routing(row, col, logits)


@pytest.mark.parametrize("kept", [1, 4, 16])
def test_topk_keeps_exactly_the_largest(kept: int):
    router, x = _router("topk", kept=kept), torch.randn(9, 6, dtype=torch.float64)
    routing = router(x)
    for gate, weight in zip((routing.row, routing.col), router.weight):
        z = torch.einsum("td,hnd->thn", x, weight)
        worst = z.sort(descending=True).values[..., kept - 1 : kept]
        expected = z.masked_fill(z < worst, -torch.inf).softmax(-1)
        assert ((gate > 0).sum(-1) == kept).all()
        torch.testing.assert_close(gate, expected, rtol=0, atol=1e-14)


def test_topk_breaks_ties_by_the_lower_index():
    routing = _router("topk")(torch.zeros(1, 6, dtype=torch.float64))
    assert routing.row[0, 0].tolist() == [0.25] * 4 + [0.0] * 12


def test_row_threshold_by_hand():
    # Two entries, z = (ln 3, 0): standardised (1, -1). κ = 1 of 2 cuts at Φ⁻¹(1/2) = 0: one stays.
    # κ = 2 cuts nowhere: gates 3/4 and 1/4.
    x = torch.tensor([[1.0]], dtype=torch.float64)
    for kept, expected in ((1, [1.0, 0.0]), (2, [0.75, 0.25])):
        router = MonetRouter(width=1, side=2, kept=kept, heads=1, rule="row").double()
        with torch.no_grad():
            router.weight.copy_(torch.tensor([math.log(3), 0.0]).view(1, 1, 2, 1))
        torch.testing.assert_close(router(x).row[0, 0], torch.tensor(expected).double())


@pytest.mark.parametrize("rule", ["row", "batch"])
def test_threshold_keeps_about_kappa_and_never_none(rule: Rule):
    router = _router(rule, side=512, kept=32)
    kept = (router(torch.randn(400, 6, dtype=torch.float64)).row > 0).sum(-1).double()
    assert kept.min() >= 1
    # 512 logits of one token are correlated through only 6 inputs, hence the room.
    assert kept.mean().item() == pytest.approx(32, rel=0.15)


def test_batch_statistics_are_per_head_over_tokens_and_entries():
    router, x = _router("batch"), torch.randn(40, 6, dtype=torch.float64)
    routing = router(x)
    cut = NormalDist().inv_cdf(1 - 4 / 16)
    for gate, weight in zip((routing.row, routing.col), router.weight):
        z = torch.einsum("td,hnd->thn", x, weight)
        for head in range(2):
            mine = z[:, head]
            score = (mine - mine.mean()) / (mine.var(correction=0) + 1e-5).sqrt()
            keep = score >= score.amax(-1, keepdim=True).clamp_max(cut)
            expected = mine.masked_fill(~keep, -torch.inf).softmax(-1)
            torch.testing.assert_close(gate[:, head], expected, rtol=0, atol=1e-13)


def test_fresh_running_statistics_fit_gaussian_rows():
    router = _router("batch", side=64)
    assert router.norm is not None
    assert router.norm.running_var is not None
    z = router.eval()(torch.randn(4000, 6, dtype=torch.float64)).logits
    expected = z.var(dim=(0, 3), correction=0).flatten()
    # A head's variance is estimated from 4,000 rows of 6 inputs.
    torch.testing.assert_close(router.norm.running_var, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_gates_sum_to_one_per_head(rule: Rule):
    routing = _router(rule)(torch.randn(63, 6, dtype=torch.float64))
    for gate in (routing.row, routing.col):
        torch.testing.assert_close(gate.sum(-1), torch.ones(63, 2).double())


@pytest.mark.parametrize("rule", RULES)
def test_only_batch_statistics_let_training_rows_see_one_another(rule: Rule):
    router = _router(rule)
    x = torch.randn(8, 6, dtype=torch.float64)
    changed = torch.cat([x[:5], 3 * torch.randn(3, 6, dtype=torch.float64)])
    for training in (True, False):
        router.train(training)
        gates = [router(rows).row[:5] for rows in (x, changed)]
        # float64 products of 6 terms: batching changes at most the last bits.
        equal = torch.allclose(gates[0], gates[1], rtol=0, atol=1e-12)
        assert equal != (rule == "batch" and training)


def test_published_initialisation_comes_with_the_published_rule():
    std = {rule: _router(rule, side=400).weight.std().item() for rule in RULES}
    # 9,600 draws: a standard error of 0.7 %.
    assert std["batch"] == pytest.approx(0.02, rel=0.05)
    assert std["topk"] == pytest.approx(6**-0.5, rel=0.05)


def test_losses_of_an_undecided_router():
    # All probabilities 1/4: uniformity ln 4, and the largest gate leaves 3/4 undecided.
    routing = _routing(torch.zeros(5, 2, 3, 4, dtype=torch.float64))
    assert uniformity(routing).item() == pytest.approx(math.log(4), abs=1e-12)
    assert ambiguity(routing).item() == pytest.approx(0.75, abs=1e-12)


def test_losses_by_hand():
    # Two tokens, one head, rows (3/4, 1/4) and (1/4, 3/4), columns (3/4, 1/4) twice.
    # Mean rows (1/2, 1/2), mean columns (3/4, 1/4): −(2 ln ½ + ln ¾ + ln ¼)/4.
    # Every largest gate is 3/4.
    one, other = [math.log(3), 0.0], [0.0, math.log(3)]
    routing = _routing(torch.tensor([[[one], [one]], [[other], [one]]], dtype=torch.float64))
    expected = -(2 * math.log(0.5) + math.log(0.75) + math.log(0.25)) / 4
    assert uniformity(routing).item() == pytest.approx(expected, abs=1e-12)
    assert ambiguity(routing).item() == pytest.approx(0.25, abs=1e-12)


def test_uniformity_is_finite_and_reaches_entries_that_no_token_keeps():
    # Positive inputs and a negative row weight: entry 0 is never among the kept.
    router, x = _router("topk"), torch.rand(50, 6, dtype=torch.float64)
    with torch.no_grad():
        router.weight[0, :, 0] = -5.0
    routing = router(x)
    assert (routing.row[..., 0] == 0).all()
    (task,) = torch.autograd.grad(routing.row.square().sum(), router.weight, retain_graph=True)
    assert (task[0, :, 0] == 0).all()
    (grad,) = torch.autograd.grad(uniformity(routing), router.weight)
    assert torch.isfinite(grad).all()
    # A step downhill raises the dead entry's logit on these inputs.
    assert (grad[0, :, 0] < 0).all()


def test_a_dead_row_comes_back_under_the_losses():
    router, x = _router("topk"), torch.rand(40, 6, dtype=torch.float64)
    with torch.no_grad():
        router.weight[0, :, 0] = -2.0
    assert (router(x).row[..., 0] == 0).all()
    optimiser = torch.optim.Adam(router.parameters(), lr=0.2)
    for _ in range(50):
        optimiser.zero_grad()
        uniformity(router(x)).backward()
        optimiser.step()
    assert (router(x).row[..., 0] > 0).any()


def test_autocast_does_not_coarsen_the_logits():
    router = MonetRouter(width=6, side=16, kept=4, heads=2, rule="topk")
    x = torch.randn(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(x)
    assert torch.equal(routing.row, router(x).row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_routers_choose_as_their_precise_copies(rule: Rule, training, dtype):
    half = _router(rule).to(dtype).train(training)
    precise, x = deepcopy(half).float(), torch.randn(200, 6).to(dtype)
    found, expected = half(x), precise(x.float())
    assert torch.equal(found.row, expected.row)
    assert torch.equal(found.col, expected.col)


def test_only_training_that_is_tracked_moves_the_running_statistics():
    router, x = _router("batch"), torch.randn(9, 6, dtype=torch.float64)
    before = {name: buffer.clone() for name, buffer in router.named_buffers()}
    router.eval()(x, track=True)
    router.train()(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in router.named_buffers())
    router(x, track=True)
    assert not any(torch.equal(buffer, before[name]) for name, buffer in router.named_buffers())
