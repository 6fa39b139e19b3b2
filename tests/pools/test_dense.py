"""Dense slots by hand, against torch's own layers, and in their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.pools.dense import Dense, DenseConfig, SwiGLU, SwiGLUConfig

SIZES = [(1, 1, 1), (63, 7, 5), (100, 63, 100)]  # (rows, width, hidden)


def _dense(width: int, hidden: int) -> Dense:
    pool = DenseConfig(hidden=hidden).build(name="ffn", width=width, output_rms=1.0).double()
    with torch.no_grad():
        pool.read_bias.normal_()
        pool.bias.normal_()
    return pool


def _swiglu(width: int, hidden: int) -> SwiGLU:
    return SwiGLUConfig(hidden=hidden).build(name="ffn", width=width, output_rms=1.0).double()


def _one_swiglu() -> SwiGLU:
    """w = (1, 0), u = (0, 1), v = (1, 0): x = (1, 2) gives w·x = 1 and u·x = 2."""
    pool = _swiglu(2, 1)
    with torch.no_grad():
        pool.gates.copy_(torch.tensor([[1.0, 0.0]]))
        pool.reads.copy_(torch.tensor([[0.0, 1.0]]))
        pool.writes.copy_(torch.tensor([[1.0, 0.0]]))
    return pool


X = torch.tensor([1.0, 2.0], dtype=torch.float64)


def test_swiglu_by_hand():
    # silu(1) · 2 = 2 / (1 + e^-1) = 1.4621, along (1, 0)
    y = _one_swiglu()(X)
    assert y.tolist() == [pytest.approx(1.4621171572600098, abs=1e-12), 0.0]


def test_a_swiglu_unit_by_hand():
    code = _one_swiglu().activate(X)
    # gate silu(1) = .73106, act u·x = 2
    assert code.gate.item() == pytest.approx(0.7310585786300049, abs=1e-12)
    assert code.act.item() == 2.0


def test_gelu_by_hand():
    pool = _dense(2, 2)
    with torch.no_grad():
        pool.reads.copy_(torch.eye(2))
        pool.read_bias.copy_(torch.tensor([0.0, -3.0]))
        pool.writes.copy_(torch.tensor([[1.0, 0.0], [10.0, 10.0]]))
        pool.bias.copy_(torch.tensor([0.0, 5.0]))
    # a = (1, −1): gelu(1) = Φ(1) = .841345, gelu(−1) = −Φ(−1) = −.158655
    # y = .841345 (1,0) − .158655 (10,10) + (0,5) = (−.745208, 3.413447)
    y = pool(X)
    assert y.tolist() == [pytest.approx(-0.745208, abs=1e-6), pytest.approx(3.413447, abs=1e-6)]
    code = pool.activate(X)
    assert code.gate.tolist() == [1.0, 1.0]
    assert code.act.tolist() == [
        pytest.approx(0.841345, abs=1e-6),
        pytest.approx(-0.158655, abs=1e-6),
    ]


def _gelu_oracle(pool: Dense, x: Tensor) -> Tensor:
    up, down = nn.Linear(x.shape[-1], len(pool.reads)), nn.Linear(len(pool.reads), x.shape[-1])
    state = {"weight": pool.reads, "bias": pool.read_bias}
    hidden = F.gelu(torch.func.functional_call(up, state, x))
    return torch.func.functional_call(down, {"weight": pool.writes.t(), "bias": pool.bias}, hidden)


def _swiglu_oracle(pool: SwiGLU, x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for gate, read, write in zip(pool.gates, pool.reads, pool.writes):
        a = x @ gate
        total = total + (a * torch.sigmoid(a) * (x @ read))[:, None] * write
    return total


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("make", "oracle"), [(_dense, _gelu_oracle), (_swiglu, _swiglu_oracle)], ids=["gelu", "swiglu"]
)
def test_output_and_gradients_equal_the_oracles(make, oracle, size):
    rows, width, hidden = size
    pool = make(width, hidden)
    x = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    leaves = [x, *pool.parameters()]
    ours, plain = pool(x), oracle(pool, x)
    # float64 sums of at most 100 products.
    torch.testing.assert_close(ours, plain, atol=1e-11, rtol=1e-11)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, leaves, upstream)
    for found, right in zip(torch.autograd.grad(ours, leaves, upstream), expected):
        torch.testing.assert_close(found, right, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("make", [_dense, _swiglu], ids=["gelu", "swiglu"])
def test_every_unit_is_always_listed(make):
    pool = make(5, 4)
    code = pool.activate(torch.randn(2, 3, 5, dtype=torch.float64))
    assert torch.equal(code.unit, torch.arange(4).expand(2, 3, 4))
    assert pool.spec.axes == (("neuron", 4),)


@pytest.mark.parametrize("make", [_dense, _swiglu], ids=["gelu", "swiglu"])
def test_reads_and_writes_are_rows_of_the_tables(make):
    pool = make(5, 4)
    unit = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(pool.read(unit), pool.reads[unit])
    assert torch.equal(pool.write(unit), pool.writes[unit])


def test_an_edited_code_decodes_without_the_bias():
    pool = _dense(2, 3)
    one = Code(torch.tensor([1]), torch.tensor([2.0]).double(), torch.tensor([3.0]).double())
    torch.testing.assert_close(pool.decode(one), 6 * pool.writes[1])


def test_rest_is_the_decoder_bias():
    x = torch.randn(3, 5, dtype=torch.float64)
    pool = _dense(5, 4)
    assert torch.equal(pool.rest(x), pool.bias.expand(3, 5))
    assert (_swiglu(5, 4).rest(x) == 0).all()


def test_costs_by_hand():
    # d = 8, f = 5: 2·40 + 5 + 8 = 93 and 4·40 = 160; swiglu 3·40 = 120 and 6·40 = 240.
    assert DenseConfig(hidden=5).cost(8) == Cost(total=93, active=93, forward=160, training=480)
    assert SwiGLUConfig(hidden=5).cost(8) == Cost(total=120, active=120, forward=240, training=720)


@pytest.mark.parametrize("cls", [DenseConfig, SwiGLUConfig])
def test_a_layer_needs_a_neuron(cls):
    with pytest.raises(ConfigError, match=r"^hidden: expected at least 1, found 0$"):
        cls(hidden=0)


@pytest.mark.parametrize("make", [_dense, _swiglu], ids=["gelu", "swiglu"])
def test_training_and_evaluation_agree(make):
    pool = make(5, 4)
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(pool.train()(x), pool.eval()(x))
    before = {name: value.clone() for name, value in pool.state_dict().items()}
    pool.train().after_step()
    assert all(torch.equal(value, before[name]) for name, value in pool.state_dict().items())
