"""Losses and gradients of sparsify's ``SparseCoder`` against ours, and where they differ."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.dictionaries.atoms import DenseAtomsConfig
from pellucid.dictionaries.coder import DEAD_ROWS
from pellucid.dictionaries.gates import GroupmaxConfig, TopKConfig

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

D, N, K, B = 8, 32, 4, 24
HERE, THERE = Site.parse("m:in"), Site.parse("m:out")
NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip")


def _theirs(activation: str = "topk", *, bias: float = 0.0, **fields: Any) -> Any:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(activation=activation, num_latents=N, k=K, **fields)
    theirs = SparseCoder(D, config, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (3 if name == "b_dec" else 0.4))
        theirs.encoder.bias.add_(bias)
    return theirs


def _ours(theirs: Any, y: Tensor, *, auxk: float = 0.0) -> Coder:
    cfg = theirs.cfg
    groups = cfg.activation == "groupmax"
    config = CoderConfig(
        latents=N,
        gate=GroupmaxConfig(k=K) if groups else TopKConfig(k=K, multi=cfg.multi_topk),
        atoms=DenseAtomsConfig(norm="free"),
        skip=cfg.skip_connection,
        auxk=auxk,
        normalise=False,
    )
    writes = THERE if cfg.transcode else HERE
    coder = build_coder(config, name="d", reads=HERE, writes=writes, d_in=D, d_out=D).double()
    with torch.no_grad():
        for name, parameter in _of(coder).items():
            parameter.copy_(dict(theirs.named_parameters())[name])
        # Their denominator: the batch's total variance, per row.
        coder.variance.copy_((y - y.mean(0)).square().sum() / len(y))
    return coder.train()


def _of(coder: Coder) -> dict[str, Tensor]:
    assert coder.encoder is not None
    assert coder.gate.bias is not None
    skip = {} if coder.skip is None else {"W_skip": coder.skip}
    return {
        "encoder.weight": coder.encoder.table(),
        "encoder.bias": coder.gate.bias,
        "W_dec": coder.decoder.table(),
        "b_dec": coder.bias,
        **skip,
    }


def _rows(theirs: Any) -> tuple[Tensor, Tensor]:
    x = torch.randn(B, D, dtype=torch.float64)
    if theirs.cfg.transcode:
        return x, torch.randn(B, D, dtype=torch.float64) * 2
    x = x + theirs.b_dec.detach()
    return x, x


def _same(found: Tensor, expected: Tensor) -> None:
    scale = max(float(expected.detach().abs().max()), 1e-30)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * scale)


def _same_gradients(coder: Coder, theirs: Any) -> None:
    other = dict(theirs.named_parameters())
    for name, parameter in _of(coder).items():
        assert parameter.grad is not None, name
        _same(parameter.grad, other[name].grad)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_fvu_and_gradients_on_rows_with_k_positive(activation, transcode, skip):
    theirs = _theirs(activation, bias=2.0, transcode=transcode, skip_connection=skip)
    x, y = _rows(theirs)
    ours = _ours(theirs, y)
    assert (theirs.encode(x).top_acts > 0).all()
    output, parts = theirs(x, y), ours.losses(x, y)
    _same(parts["reconstruction"], output.fvu)
    output.fvu.backward()
    parts["reconstruction"].backward()
    _same_gradients(ours, theirs)


def test_chosen_zeros_get_a_gradient_from_them():
    """Their fused backward forgets the ReLU: slots whose value is 0 move their latents' biases."""
    theirs = _theirs(bias=-3.0)
    x, y = _rows(theirs)
    ours = _ours(theirs, y)
    found = theirs.encode(x)
    silent = torch.ones(N, dtype=torch.bool)
    silent[found.top_indices[found.top_acts > 0]] = False
    chosen = torch.zeros(N, dtype=torch.bool)
    chosen[found.top_indices.flatten()] = True
    ghosts = silent & chosen
    assert ghosts.any()
    theirs(x, y).fvu.backward()
    parts = ours.losses(x, y)
    parts["reconstruction"].backward()
    assert ours.gate.bias is not None
    assert ours.gate.bias.grad is not None
    assert theirs.encoder.bias.grad[ghosts].any()
    assert not ours.gate.bias.grad[silent].any()
    # They also count as having fired, since only indices are looked at.
    assert not ours.fires[ghosts].any()


@pytest.mark.parametrize("dead_count", [2, 12])
def test_auxk(dead_count):
    """The same sum over the target's variance instead of the error's, and no encoder trained."""
    theirs = _theirs(bias=2.0)
    x, y = _rows(theirs)
    ours = _ours(theirs, y, auxk=1 / 32)
    dead = torch.arange(N) < dead_count
    ours.silent[dead] = DEAD_ROWS
    output, parts = theirs(x, y, dead_mask=dead), ours.losses(x, y)
    error = (y - ours(x)).detach()
    ratio = (error - error.mean(0)).square().sum() / (y - y.mean(0)).square().sum()
    ramp = min(1.0, dead_count / (D // 2))
    _same(parts["auxk"] * 32 * ratio * ramp, output.auxk_loss)
    output.auxk_loss.backward()
    (parts["auxk"] * 32 * ratio * ramp).backward()
    _same(ours.decoder.table().grad, theirs.W_dec.grad)
    assert ours.encoder is not None
    assert ours.encoder.table().grad is not None
    assert ours.encoder.table().grad[dead].any()
    assert theirs.encoder.weight.grad is None or not theirs.encoder.weight.grad.any()


def test_multi_topk():
    """The value of the 4k term, its weight of 1/8, and that theirs trains no encoder."""
    theirs = _theirs(bias=2.0, multi_topk=True)
    x, y = _rows(theirs)
    ours = _ours(theirs, y)
    output, parts = theirs(x, y), ours.losses(x, y)
    _same(parts["multi"] * 8, output.multi_topk_fvu)
    output.multi_topk_fvu.backward()
    (parts["multi"] * 8).backward()
    _same(ours.decoder.table().grad, theirs.W_dec.grad)
    assert ours.encoder is not None
    assert ours.encoder.table().grad is not None
    assert ours.encoder.table().grad.any()
    assert theirs.encoder.weight.grad is None or not theirs.encoder.weight.grad.any()


def test_their_multi_topk_forgets_the_skip():
    theirs = _theirs(bias=2.0, multi_topk=True, skip_connection=True, transcode=True)
    x, y = _rows(theirs)
    ours = _ours(theirs, y)
    output, parts = theirs(x, y), ours.losses(x, y)
    assert not torch.allclose(parts["multi"] * 8, output.multi_topk_fvu)
    assert ours.skip is not None
    with torch.no_grad():
        ours.skip.zero_()
    _same(ours.losses(x, y)["multi"] * 8, output.multi_topk_fvu)


def test_ten_adam_steps():
    theirs = _theirs(bias=2.0)
    x, y = _rows(theirs)
    ours = _ours(theirs, y)
    optimisers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (theirs, ours)]
    for _ in range(10):
        x, y = _rows(theirs)
        ours.variance.copy_((y - y.mean(0)).square().sum() / len(y))
        assert (theirs.encode(x).top_acts > 0).all()
        found = (theirs(x, y).fvu, ours.losses(x, y)["reconstruction"])
        for optimiser, loss in zip(optimisers, found):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    other = dict(theirs.named_parameters())
    for name, parameter in _of(ours).items():
        torch.testing.assert_close(parameter, other[name], rtol=0, atol=1e-6)
