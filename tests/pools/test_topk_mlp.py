"""The top-k MLP by hand, against a dense masked oracle, and at its dense limit."""

import pytest
import torch
from torch import Tensor

from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.pools.topk_mlp import TopKMLP, TopKMLPConfig

# (rows, width, hidden, k)
SIZES = [(1, 1, 1, 1), (63, 7, 13, 3), (100, 63, 100, 63), (63, 5, 20, 20)]
EXACT = {"atol": 1e-11, "rtol": 1e-11}  # float64 sums of at most a few hundred products


def _pool(width: int, hidden: int, k: int) -> TopKMLP:
    pool = TopKMLPConfig(hidden=hidden, k=k).build(name="ffn", width=width, output_rms=1.0).double()
    with torch.no_grad():
        pool.read_bias.normal_(std=0.3)
        pool.bias.normal_()
    return pool


def _hand(k: int) -> TopKMLP:
    """Reads that make a = (3, −1, 2) of x = (1, 1); writes (1,0), (0,1), (1,1); c = 0."""
    pool = TopKMLPConfig(hidden=3, k=k).build(name="ffn", width=2, output_rms=1.0).double()
    with torch.no_grad():
        pool.reads.copy_(torch.tensor([[1.0, 2.0], [1.0, -1.0], [0.0, 2.0]]))
        pool.read_bias.copy_(torch.tensor([0.0, -1.0, 0.0]))
        pool.writes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    return pool


X = torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "y"),
    # k = 1: 3(1,0). k = 2: 3(1,0) + 2(1,1). k = 3: unit 1 reads −1, so nothing more.
    [(1, [3.0, 0.0]), (2, [5.0, 2.0]), (3, [5.0, 2.0])],
)
def test_by_hand(k, y):
    assert _hand(k)(X).tolist() == y


def test_what_does_not_speak_has_gate_zero():
    code = _hand(3).activate(X)
    gates = dict(zip(code.unit.tolist(), code.gate.tolist()))
    assert gates == {0: 1.0, 1: 0.0, 2: 1.0}


def test_a_named_unit_shows_what_it_would_have_said():
    code = _hand(1).activate(X, unit=torch.tensor([2, 0]))
    # Unit 2 reads 2 but lost; unit 0 won with 3.
    assert code.gate.tolist() == [0.0, 1.0]
    assert code.act.tolist() == [2.0, 3.0]


def _oracle(pool: TopKMLP, x: Tensor, k: int) -> Tensor:
    act = torch.relu(x @ pool.reads.t() + pool.read_bias)
    keep = torch.zeros_like(act).scatter(1, act.topk(k, 1).indices, 1.0)
    return (act * keep) @ pool.writes + pool.bias


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients_equal_the_masked_oracles(size):
    rows, width, hidden, k = size
    pool = _pool(width, hidden, k)
    x = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    leaves = [x, *pool.parameters()]
    ours, plain = pool(x), _oracle(pool, x, k)
    torch.testing.assert_close(ours, plain, **EXACT)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, leaves, upstream)
    for found, right in zip(torch.autograd.grad(ours, leaves, upstream), expected):
        torch.testing.assert_close(found, right, **EXACT)


def test_keeping_all_units_is_the_dense_relu_layer():
    pool = _pool(7, 13, 13)
    x = torch.randn(63, 7, dtype=torch.float64)
    dense = torch.relu(x @ pool.reads.t() + pool.read_bias) @ pool.writes + pool.bias
    torch.testing.assert_close(pool(x), dense, **EXACT)


def test_units_that_lose_get_no_gradient():
    pool = _pool(7, 13, 3)
    x = torch.randn(1, 7, dtype=torch.float64)
    pool(x).sum().backward()
    kept = pool.activate(x)
    won = set(kept.unit[kept.gate > 0].tolist())
    for table in pool.unit_tables():
        assert table.grad is not None
        moved = table.grad.reshape(13, -1).abs().sum(1).nonzero().flatten()
        assert set(moved.tolist()) == won


def test_training_and_evaluation_agree():
    pool = _pool(7, 13, 3)
    x = torch.randn(63, 7, dtype=torch.float64)
    assert torch.equal(pool.train()(x), pool.eval()(x))
    assert pool.train().forward_with_parts(x)[1] == {}
    before = {name: value.clone() for name, value in pool.state_dict().items()}
    pool.after_step()
    assert all(torch.equal(value, before[name]) for name, value in pool.state_dict().items())


def test_cost_by_hand():
    # d = 8, f = 5, k = 2: 2·40 + 5 + 8 = 93 held; 40 + 5 + 16 + 8 = 69 touched;
    # 80 + 2·16 = 112 forward; 80 + 10·16 = 240 in training.
    assert TopKMLPConfig(hidden=5, k=2).cost(8) == Cost(
        total=93, active=69, forward=112, training=240
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 0}, "hidden: expected at least 1, found 0"),
        ({"k": 0}, "k: expected at least 1, found 0"),
        ({"hidden": 4, "k": 5}, "k: expected at most hidden = 4, found 5; lower k"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ConfigError) as caught:
        TopKMLPConfig(**sizes)
    assert str(caught.value) == message
