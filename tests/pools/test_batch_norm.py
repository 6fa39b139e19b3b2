"""Batch normalisation against torch's module, and in models of half precision."""

import pytest
import torch
from torch import nn

from pellucid.pools.batch_norm import batch_norm


def _norm(channels: int = 3) -> nn.BatchNorm1d:
    """Running mean 0, 1, 2 and variance 4, 5, 6."""
    norm = nn.BatchNorm1d(channels, affine=False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.arange(channels))
    norm.running_var.copy_(torch.arange(channels) + 4)
    return norm


def test_evaluation_by_hand():
    norm = _norm(1).eval()
    # Mean 0, variance 4: 6 / √4 = 3, with torch's ε of 1e-5 a millionth less.
    y = batch_norm(norm, torch.tensor([[6.0]], dtype=torch.float64), track=True)
    assert y.item() == pytest.approx(3.0, abs=1e-5)
    assert norm.running_mean.tolist() == [0.0]


def test_training_by_hand():
    norm = _norm(1).train()
    # Rows −1 and 3: mean 1, variance 4 (8 where it is unbiased), so −1 and 1; the running figures
    # move by torch's momentum of a tenth: 0 + .1 · 1, and .9 · 4 + .1 · 8.
    y = batch_norm(norm, torch.tensor([[-1.0], [3.0]]), track=True)
    assert y.flatten().tolist() == [pytest.approx(-1.0, abs=1e-5), pytest.approx(1.0, abs=1e-5)]
    assert norm.running_mean.item() == pytest.approx(0.1, abs=1e-6)
    assert norm.running_var.item() == pytest.approx(4.4, abs=1e-6)
    assert norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("shape", [(63, 3), (100, 3, 7), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_equals_torchs_module_bit_by_bit(training, shape):
    ours, theirs = _norm().train(training), _norm().train(training)
    x = torch.randn(shape, requires_grad=True)
    for _ in range(2):
        y, expected = batch_norm(ours, x, track=True), theirs(x)
        assert torch.equal(y, expected)
    weight = torch.randn(shape)
    (one,) = torch.autograd.grad((y * weight).sum(), x)
    (other,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.equal(one, other)
    for name, buffer in theirs.named_buffers():
        assert torch.equal(dict(ours.named_buffers())[name], buffer), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_statistics_in_half_precision_serve_precise_rows(training, dtype):
    half, whole = _norm().to(dtype).train(training), _norm().train(training)
    x = torch.randn(63, 3)
    # The statistics above are exact in half precision, so nothing is lost on the way in.
    assert torch.equal(batch_norm(half, x, track=True), batch_norm(whole, x, track=True))
    assert half.running_mean.dtype == dtype
    for name, buffer in whole.named_buffers():
        # One rounding on the way out, of 2^-8 = .0039 at most in bfloat16.
        kept = dict(half.named_buffers())[name]
        torch.testing.assert_close(kept.to(buffer.dtype), buffer, rtol=0.004, atol=0)


def test_looking_leaves_the_statistics_alone():
    norm, x = _norm().train(), torch.randn(9, 3)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    looked = batch_norm(norm, x, track=False)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    assert torch.equal(looked, batch_norm(norm, x, track=True))
    assert not torch.equal(norm.running_mean, before["running_mean"])
