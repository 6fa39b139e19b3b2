"""PEER against scoring every expert, by hand, and in its counts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laws
from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.pools.peer import Peer, PeerConfig

TINY = PeerConfig.tiny()
VARIANTS = {
    "tiny": TINY,
    "shared-keys": replace(TINY, share_keys=True),
    "no-norm": replace(TINY, norm="none"),
    "batch-norm": replace(TINY, norm="batch"),
    "relu": replace(TINY, activation="relu"),
    "all-experts": replace(TINY, k=9, heads=3),
    "large": replace(TINY, experts=49, heads=3, k=11),
}


def _build(config: PeerConfig, width: int = 8) -> Peer:
    pool = config.build(name="blocks.0.ffn", width=width, output_rms=1.0).double().eval()
    laws.perturb(pool)
    return pool


def _oracle(pool: Peer, x: Tensor) -> Tensor:
    """Score all N experts in every head, mask all but the k best, read and write all N."""
    router, config, y = pool.router, pool.config, torch.zeros_like(x)
    act = x @ pool.reads.T
    act = F.gelu(act) if config.activation == "gelu" else F.relu(act)
    for head in range(config.heads):
        query = x @ router.query[head].T
        if config.norm == "rms":
            query = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        keys = router.keys[0 if config.share_keys else head]
        half = query.shape[-1] // 2
        row, col = query[:, :half] @ keys[0].T, query[:, half:] @ keys[1].T
        score = (row[:, :, None] + col[:, None, :]).flatten(1)
        worst = score.topk(config.k).values[:, -1:]
        gate = score.masked_fill(score < worst, -torch.inf).softmax(-1)
        y = y + (gate * act) @ pool.writes
    return y


def _hand_pool(heads: int) -> Peer:
    config = PeerConfig(experts=4, heads=heads, k=2, key_width=1, norm="none", activation="relu")
    pool = config.build(name="ffn", width=2, output_rms=1.0)
    with torch.no_grad():
        pool.router.query.copy_(torch.eye(2).expand(heads, 2, 2))
        pool.router.keys.copy_(
            torch.tensor([[[1.0], [-1.0]], [[0.5], [1.0]]]).expand(heads, 2, 2, 1)
        )
        pool.reads.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 9.0]]))
        pool.writes.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [9.0, 9.0], [9.0, 9.0]]))
    return pool


def test_by_hand():
    # q = x = (1, 2): r = (1, -1), t = (1, 2); the sums 2, 3, 0, 1 put experts 1 and 0 first, with
    # gates softmax(3, 2) = .7311, .2689. Acts 2 and 1: y = .7311·2·(1, 0) + .2689·1·(0, 1).
    pool, x = _hand_pool(1), torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(pool(x), torch.tensor([[1.4621, 0.2689]]), rtol=0, atol=1e-4)
    code = pool.activate(x)
    assert code.unit.tolist() == [[0, 1]]
    torch.testing.assert_close(code.gate, torch.tensor([[0.2689, 0.7311]]), rtol=0, atol=1e-4)
    assert code.act.tolist() == [[1.0, 2.0]]


def test_a_second_equal_head_doubles_the_output_and_lists_no_unit_twice():
    pool, x = _hand_pool(2), torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(pool(x), torch.tensor([[2.9242, 0.5379]]), rtol=0, atol=1e-4)
    code = pool.activate(x)
    on = code.gate[0] > 0
    assert code.unit[0][on].tolist() == [0, 1]
    torch.testing.assert_close(code.gate[0][on], torch.tensor([0.5379, 1.4621]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 63])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "batch-norm"])
def test_equals_scoring_every_expert(variant: str, rows: int):
    pool = _build(VARIANTS[variant])
    x = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    wrt = [x, *pool.parameters()]
    fast, slow = pool(x), _oracle(pool, x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)  # sums of 27 terms of order 1
    weight = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), wrt),
        torch.autograd.grad((slow * weight).sum(), wrt),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # and over 63 rows


def test_gradient_reaches_every_parameter_and_no_unretrieved_expert():
    pool = _build(TINY).train()
    x = torch.randn(500, 8, dtype=torch.float64)
    y, parts = pool.forward_with_parts(x)
    assert parts == {}
    y.square().sum().backward()
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().amax(-1) > 0).all(), name
    pool.zero_grad()
    pool(x[:1]).square().sum().backward()
    retrieved = pool.activate(x[:1]).unit.unique()
    for table in pool.unit_tables():
        assert table.grad is not None
        touched = table.grad.abs().amax(-1) > 0
        assert touched[retrieved].all()
        assert touched.sum() == len(retrieved)


def test_more_retrievals_than_experts_train_under_autocast():
    # Eight heads of two are 16 entries over 4 experts.
    pool = PeerConfig(experts=4, heads=8, k=2, key_width=3)
    pool = pool.build(name="ffn", width=6, output_rms=0.3).train()
    x = torch.randn(9, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = pool.forward_with_parts(x)
    y.float().square().sum().backward()
    grads = [x.grad, *(parameter.grad for parameter in pool.parameters())]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    # Every product here is exempt from autocast.
    assert torch.equal(y, pool(x))


def test_gradient_flows_through_the_code_too():
    pool = _build(TINY)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    (direct,) = torch.autograd.grad(pool(x).sum(), x)
    (coded,) = torch.autograd.grad(pool.decode(pool.activate(x)).sum(), x)
    torch.testing.assert_close(direct, coded, rtol=0, atol=1e-12)  # the same sums, reordered


def test_starts_at_the_requested_rms():
    pool = TINY.build(name="ffn", width=8, output_rms=0.25)
    # 20,000 rows of a heavy-tailed output: the mean square wanders by a few per cent.
    rms = pool(torch.randn(20_000, 8)).square().mean().sqrt()
    assert rms.item() == pytest.approx(0.25, rel=0.1)


def test_builds_without_memory():
    with torch.device("meta"):
        pool = PeerConfig(norm="batch").build(name="ffn", width=1024, output_rms=0.1)
    assert pool.writes.is_meta
    assert pool.spec.num_units == 1024**2


@pytest.mark.parametrize("variant", VARIANTS)
def test_cost_counts_the_parameters(variant: str):
    config = VARIANTS[variant]
    pool = config.build(name="ffn", width=8, output_rms=1.0)
    assert config.cost(8).total == sum(parameter.numel() for parameter in pool.parameters())


def test_cost_by_hand():
    # d 8, √N 3, h 2, dk 3, K 8. Routing: queries 8·2·2·3 = 96, keys 2·2·3·3 = 36.
    cost = TINY.cost(8)
    assert cost.total == 96 + 36 + 2 * 9 * 8
    assert cost.active == 96 + 36 + 2 * 8 * 8
    # 4hd·dk + 4h√N·dk + 4Kd = 192 + 72 + 256.
    assert cost.forward == 520
    assert cost.training == 3 * 520


def test_defaults_are_the_papers():
    config = PeerConfig()
    assert (config.experts, config.heads, config.k) == (1_048_576, 8, 16)
    assert config.cost(1024).active < config.cost(1024).total // 100


def test_the_free_size_is_k():
    assert TINY.free_size == 4
    assert TINY.with_size(7) == replace(TINY, k=7)
    rise = TINY.with_size(7).cost(8).forward - TINY.cost(8).forward
    assert rise == 4 * 2 * 3 * 8  # 3 more experts in each of 2 heads


def test_round_trips_through_json():
    assert from_dict(PeerConfig, to_dict(VARIANTS["shared-keys"])) == VARIANTS["shared-keys"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 10}, "^experts: .* found 10; use 9 or 16$"),
        ({"experts": 0}, "^experts: expected at least 1, found 0"),
        ({"k": 10}, "^k: expected at most experts = 9, found 10; lower k$"),
        ({"heads": 0}, "^heads: "),
        ({"key_width": -1}, "^key_width: "),
    ],
)
def test_refuses_in_one_line(change: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_refuses_to_build_one_expert_per_head():
    with pytest.raises(ConfigError, match=r"^k: expected at least 2 per head, found 1; .*no grad"):
        replace(TINY, k=1).build(name="ffn", width=8, output_rms=1.0)


def test_decode_takes_edited_codes():
    pool = _build(TINY)
    code = Code(torch.tensor([3, 3, 0]), torch.ones(3).double(), torch.tensor([1.0, 2, 0]).double())
    torch.testing.assert_close(pool.decode(code), 3 * pool.write(torch.tensor(3)))
