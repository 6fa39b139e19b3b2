"""PEER against the package PEER-pytorch on the same weights.

Its layout: one query matrix ordered (half, head, key width), keys ordered (head, key, half, width).
``non_competing_scores=False`` is the paper's softmax over k experts per head; its default keeps one
expert per head and gates it by a ReLU.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.pools.peer import Peer, PeerConfig

pytestmark = pytest.mark.interop

WIDTH, HEADS, K, SIDE, KEY_WIDTH = 12, 3, 4, 5, 7


def _theirs() -> Any:
    from PEER_pytorch import PEER

    return PEER(
        WIDTH,
        heads=HEADS,
        num_experts=SIDE**2,
        num_experts_per_head=K,
        dim_key=KEY_WIDTH,
        non_competing_scores=False,
    )


def _ours(theirs: Any) -> Peer:
    config = PeerConfig(experts=SIDE**2, heads=HEADS, k=K, key_width=KEY_WIDTH, norm="none")
    pool = config.build(name="ffn", width=WIDTH, output_rms=1.0).to(theirs.keys.dtype)
    query = theirs.to_queries[0].weight.view(2, HEADS, KEY_WIDTH, WIDTH)
    with torch.no_grad():
        pool.router.query.copy_(query.transpose(0, 1).flatten(1, 2))
        pool.router.keys.copy_(theirs.keys.transpose(1, 2))
        pool.reads.copy_(theirs.weight_down_embed.weight)
        pool.writes.copy_(theirs.weight_up_embed.weight)
    return pool


def _grads(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Sums of 12 terms of order 1 in another order, at either precision.
    [(torch.float64, 1e-10), (torch.float32, 1e-5)],
)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 63)])
def test_same_weights_same_output_and_gradients(
    batch: int, length: int, dtype: torch.dtype, tolerance: float
):
    theirs = _theirs().to(dtype)
    with torch.no_grad():
        theirs.keys.normal_()  # its initial keys of 0.02 leave all gates alike
    ours = _ours(theirs)
    x = torch.randn(batch, length, WIDTH, dtype=dtype)
    (y, grad), (expected_y, expected_grad) = _grads(ours, x), _grads(theirs, x)
    torch.testing.assert_close(y, expected_y, rtol=tolerance, atol=tolerance)
    # Gradients sum over up to 126 rows.
    close = {"rtol": 10 * tolerance, "atol": 10 * tolerance}
    torch.testing.assert_close(grad, expected_grad, **close)
    torch.testing.assert_close(ours.reads.grad, theirs.weight_down_embed.weight.grad, **close)
    torch.testing.assert_close(ours.writes.grad, theirs.weight_up_embed.weight.grad, **close)
    assert ours.router.keys.grad is not None
    torch.testing.assert_close(ours.router.keys.grad, theirs.keys.grad.transpose(1, 2), **close)
    query = theirs.to_queries[0].weight.grad.view(2, HEADS, KEY_WIDTH, WIDTH)
    torch.testing.assert_close(ours.router.query.grad, query.transpose(0, 1).flatten(1, 2), **close)


def test_its_default_is_another_layer():
    from PEER_pytorch import PEER

    theirs = PEER(
        WIDTH, heads=HEADS, num_experts=SIDE**2, num_experts_per_head=K, dim_key=KEY_WIDTH
    )
    x = torch.randn(1, 9, WIDTH)
    assert not torch.allclose(_ours(theirs)(x), theirs(x), atol=1e-3)
