"""The product-key router: its norms, its chunks, its counts, and where its gradient goes."""

from copy import deepcopy

import pytest
import torch

from pellucid.core.errors import ConfigError
from pellucid.pools import product_keys
from pellucid.pools.product_keys import (
    Norm,
    ProductKeyRouter,
    routing_flops,
    routing_params,
    square_side,
)


def _router(norm: Norm = "rms", *, k: int = 3, share_keys: bool = False) -> ProductKeyRouter:
    return ProductKeyRouter(
        width=6, side=5, heads=2, k=k, key_width=3, share_keys=share_keys, norm=norm
    )


@pytest.mark.parametrize("norm", ["rms", "none", "batch"])
def test_scores_are_those_of_the_equation(norm: Norm):
    router = _router(norm).double().eval()
    x = torch.randn(7, 6, dtype=torch.float64)
    address, gate = router(x)
    for head in range(2):
        query = x @ router.query[head].T
        if norm == "rms":
            query = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        if norm == "batch":
            # Fresh running statistics: mean 0, variance ‖query row‖² (that of Gaussian input),
            # and torch's ε of 1e-5.
            query = query / (router.query[head].square().sum(-1).float().double() + 1e-5).sqrt()
        score = (query[:, :3] @ router.keys[head, 0].T)[:, :, None]
        score = score + (query[:, 3:] @ router.keys[head, 1].T)[:, None, :]
        best = score.flatten(1).topk(3)
        assert torch.equal(best.indices, address[:, head])
        # Running statistics are kept in float32 until the module is made float64.
        torch.testing.assert_close(best.values.softmax(-1), gate[:, head], rtol=0, atol=1e-6)


def test_shared_keys_serve_every_head():
    router = _router(share_keys=True)
    assert router.keys.shape == (1, 2, 5, 3)
    with torch.no_grad():
        router.query[1] = router.query[0]
    address, gate = router(torch.randn(9, 6))
    assert torch.equal(address[:, 0], address[:, 1])
    assert torch.equal(gate[:, 0], gate[:, 1])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    router, x = _router().double(), torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 2, 3, dtype=torch.float64)
    found = []
    for chunk in (1 << 20, 1, 50):
        monkeypatch.setattr(product_keys, "CHUNK_SCORES", chunk)
        address, gate = router(x)
        grads = torch.autograd.grad((gate * weight).sum(), [x, router.query, router.keys])
        found.append((address, gate, *grads))
    for other in found[1:]:
        for one, two in zip(found[0], other):
            # The keys' gradient sums over chunks in another order.
            torch.testing.assert_close(one, two, rtol=0, atol=1e-14)


def test_gradient_reaches_every_query_and_key():
    router = _router()
    _, gate = router(torch.randn(200, 6))
    (gate * torch.randn_like(gate)).sum().backward()
    for parameter in (router.query, router.keys):
        assert parameter.grad is not None
        assert (parameter.grad.abs().amax(-1) > 0).all()


def test_one_choice_per_head_gives_the_router_no_gradient():
    # The hazard for which pools refuse it: a softmax over one score is 1 whatever the score.
    router = _router(k=1)
    _, gate = router(torch.randn(50, 6))
    (gate * torch.randn_like(gate)).sum().backward()
    assert router.query.grad is not None
    assert (router.query.grad == 0).all()


@pytest.mark.parametrize(("norm", "leaks"), [("rms", False), ("none", False), ("batch", True)])
def test_only_batch_norm_lets_training_rows_see_one_another(norm: Norm, leaks: bool):
    router = _router(norm).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    changed = torch.cat([x[:5], 3 * torch.randn(3, 6, dtype=torch.float64)])
    for training in (True, False):
        router.train(training)
        gates = [router(rows)[1][:5] for rows in (x, changed)]
        # float64 products of 6 terms: batching changes at most the last bits.
        equal = torch.allclose(gates[0], gates[1], rtol=0, atol=1e-12)
        assert equal != (leaks and training)


def test_autocast_does_not_coarsen_the_scores():
    router, x = _router(), torch.randn(9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        address, gate = router(x)
    assert torch.equal(address, router(x)[0])
    assert torch.equal(gate, router(x)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["rms", "none", "batch"])
def test_half_precision_routers_choose_as_their_precise_copies(norm: Norm, training, dtype):
    half = _router(norm).to(dtype).train(training)
    precise, x = deepcopy(half).float(), torch.randn(200, 6).to(dtype)
    for one, other in zip(half(x), precise(x.float())):
        assert torch.equal(one, other)


def test_only_training_that_is_tracked_moves_the_running_statistics():
    router, x = _router("batch"), torch.randn(9, 6)
    before = {name: buffer.clone() for name, buffer in router.named_buffers()}
    router.eval()(x, track=True)
    router.train()(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in router.named_buffers())
    router(x, track=True)
    assert not any(torch.equal(buffer, before[name]) for name, buffer in router.named_buffers())


@pytest.mark.parametrize("share_keys", [False, True])
def test_counts(share_keys: bool):
    router = _router(share_keys=share_keys)
    counted = sum(parameter.numel() for parameter in router.parameters())
    assert routing_params(6, 5, 2, 3, share_keys) == counted
    # Queries 2·2·6·6 = 144; each of 2 heads scores 2·5 keys of 3 numbers: 2·2·10·3 = 120.
    assert routing_flops(6, 5, 2, 3) == 264


def test_square_side():
    assert square_side("experts", 81) == 9
    with pytest.raises(ConfigError, match=r"^pools: .* found 80; use 64 or 81$"):
        square_side("pools", 80)
