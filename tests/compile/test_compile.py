"""Compiled and eager agree: logits, auxiliary losses and gradients, for every pool.

``aot_eager`` traces forward and backward as the real backends do and needs no compiler.
"""

import pytest
import torch
from torch import Tensor

from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS, PoolConfig

# torch's tracer makes an instance of every autograd function it meets, and looks at .grad of every
# tensor that enters a graph, both against torch's own advice.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

# These become one graph; the others choose pools or rows by data and fall back to eager for it.
ONE_GRAPH = {"dense", "swiglu", "monet-hd", "monet-vd"}


def decoder(pool: type[PoolConfig]) -> Transformer:
    config = TransformerConfig(
        width=12,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=6,
        vocab_size=37,
        context=9,
        ffn=(pool.tiny(),),
    )
    return Transformer(config).double()


def one_graph(model: Transformer) -> bool:
    return model.config.slot(0).kind in ONE_GRAPH


def loss_of(logits: Tensor, parts: dict[str, Tensor]) -> Tensor:
    return logits.square().mean() + sum(parts.values())


@pytest.fixture(params=POOLS, ids=lambda pool: pool.__name__)
def model(request: pytest.FixtureRequest) -> Transformer:
    torch._dynamo.reset()
    return decoder(request.param)


def test_forward_and_gradients_agree(model: Transformer) -> None:
    """float64, so that only the order of sums differs: 1e-10 is a thousand roundings or more."""
    tokens = torch.randint(37, (3, 9))
    compiled = torch.compile(
        model.forward_with_parts, backend="aot_eager", fullgraph=one_graph(model)
    )
    results = []
    for forward in (model.forward_with_parts, compiled):
        model.zero_grad()
        logits, parts = forward(tokens)
        loss_of(logits, dict(parts)).backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append({"logits": logits.detach(), **parts, **found})
    eager, traced = results
    assert eager.keys() == traced.keys()
    for name, expected in eager.items():
        torch.testing.assert_close(traced[name], expected, rtol=1e-10, atol=1e-12, msg=name)


def test_evaluation_agrees(model: Transformer) -> None:
    tokens = torch.randint(37, (2, 7))
    model.eval()
    with torch.no_grad():
        expected = model(tokens)
        found = torch.compile(model, backend="aot_eager", fullgraph=one_graph(model))(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
