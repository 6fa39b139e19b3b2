"""Scales, variance and centres by hand, what is refused, and how idle rows are turned."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.dictionaries import DICTIONARIES, Coder, CoderConfig, reaim, settle
from pellucid.dictionaries.atoms import ExpanderAtomsConfig
from pellucid.dictionaries.gates import ReLUConfig, TopKConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.settle import IDLE_FIRINGS, MOSTLY_IDLE

DOUBLE = torch.float64
TOPK = CoderConfig(latents=12, gate=TopKConfig(k=3))


def _data(rows: int = 40, width: int = 6) -> Tensor:
    return 3 * torch.randn(rows, width, dtype=DOUBLE) + torch.linspace(-2, 5, width, dtype=DOUBLE)


def test_scales_by_hand(make):
    # Squared norms 4, 16, 40: mean 20 at width 2: c = √(2/20).
    x = torch.tensor([[2.0, 0.0], [0.0, 4.0], [2.0, 6.0]], dtype=DOUBLE)
    coder = make(TOPK, d_in=2)
    settle(coder, x, x)
    assert coder.in_scale.item() == pytest.approx(math.sqrt(0.1))
    assert coder.out_scale.item() == pytest.approx(math.sqrt(0.1))
    # V of the scaled rows: mean (4/3, 10/3); Σ‖y‖² = 60 less 3·(116/9) over 3, times .1.
    assert coder.variance.item() == pytest.approx((60 - 116 / 3) / 3 * 0.1)


@pytest.mark.parametrize("d_out", [None, 5])
def test_the_mean_squared_norm_becomes_the_width(make, d_out):
    coder, x = make(TOPK, d_out=d_out), _data()
    y = x if d_out is None else 7 * _data(width=d_out)
    settle(coder, x, y)
    for scale, rows in ((coder.in_scale, x), (coder.out_scale, y)):
        square = (scale * rows).square().sum(1).mean().item()
        assert square == pytest.approx(rows.shape[1])
    target = coder.out_scale * y
    spread = (target - target.mean(0)).square().sum(1).mean().item()
    assert coder.variance.item() == pytest.approx(spread)


def test_raw_rows_and_raw_sums_are_left_as_they_are(make):
    coder, x = make(replace(TOPK, normalise=False)), _data()
    settle(coder, x, x)
    assert (coder.in_scale.item(), coder.out_scale.item()) == (1.0, 1.0)
    assert coder.variance.item() == pytest.approx((x - x.mean(0)).square().sum(1).mean().item())
    coder = make(replace(TOPK, reduction="sum"))
    settle(coder, x, x)
    assert coder.variance.item() == 1.0


def test_an_autoencoder_starts_at_the_geometric_median(make):
    coder, x = make(TOPK), _data(63)
    settle(coder, x, x)
    # At the median the unit vectors to the rows cancel; 1e-3: Weiszfeld stops at 1e-6 of √V.
    away = coder.in_scale * x - coder.bias
    pull = (away / away.norm(dim=1, keepdim=True)).mean(0)
    assert pull.norm() < 1e-3
    mean = (coder.in_scale * x).mean(0)
    assert (coder.bias - mean).norm() > 1e-2, "the mean is another point"
    assert (coder.gate.bias == 0).all()


def test_the_median_is_that_of_the_first_batch(make):
    x = _data(63)
    centres = []
    for rows in (x, x[:20]):
        coder = make(replace(TOPK, batch=20, normalise=False))
        settle(coder, rows, rows)
        centres.append(coder.bias.detach())
    torch.testing.assert_close(*centres)


def test_a_centre_of_zero_stays_there(make):
    coder, x = make(replace(TOPK, center="zero")), _data()
    settle(coder, x, x)
    assert (coder.bias == 0).all()


EXPANDER = CoderConfig(
    latents=12, gate=TopKConfig(k=3, sign="signed"), atoms=ExpanderAtomsConfig(nonzeros=3), auxk=0.0
)
SCALE = CoderConfig(
    latents=12,
    gate=TopKConfig(k=3),
    router=RouterConfig(experts=4, active=2, lowpass="learned"),
)


@pytest.mark.parametrize("config", [TOPK, EXPANDER, SCALE, replace(TOPK, skip=True)])
def test_a_transcoder_starts_at_the_mean_target(make, config):
    coder, x, y = make(config, d_out=5), _data(), _data(width=5)
    settle(coder, x, y)
    torch.testing.assert_close(coder(x), y.mean(0).expand(40, 5))
    # b_enc = −W · mean: the mean input activates nothing.
    mean = coder.in_scale * x.mean(0, keepdim=True)
    pre = coder.encoder.rows().all(mean) + coder.gate.bias
    assert pre.abs().max() < 1e-10
    assert coder.gate.bias.abs().min() > 1e-3
    torch.testing.assert_close(coder.encoder.rows().norms(), torch.ones(12, dtype=DOUBLE))


def test_a_transcoder_never_subtracts_its_bias_from_the_input(make):
    coder, x, y = make(TOPK, d_out=5), _data(), _data(width=5)
    settle(coder, x, y)
    before = coder.activate(x)
    with torch.no_grad():
        coder.bias += 1.0
    assert torch.equal(coder.activate(x).act, before.act)


def test_a_transcoder_of_equal_widths_is_none_the_less_one(make):
    coder, x, y = make(TOPK, d_out=6), _data(), 2 * _data()
    settle(coder, x, y)
    assert coder.in_scale != coder.out_scale
    torch.testing.assert_close(coder.bias.detach(), (coder.out_scale * y).mean(0))


@pytest.mark.parametrize("d_out", [None, 5])
def test_the_router_is_centred_like_an_autoencoder(make, d_out):
    coder, x = make(SCALE, d_out=d_out), _data()
    settle(coder, x, x if d_out is None else _data(width=d_out))
    away = coder.in_scale * x - coder.router.center
    assert (away / away.norm(dim=1, keepdim=True)).mean(0).norm() < 1e-3
    if d_out is None:
        assert torch.equal(coder.router.center, coder.bias)


@pytest.mark.parametrize("name", DICTIONARIES)
@pytest.mark.parametrize("d_out", [None, 5])
def test_every_dictionary_settles_in_float32(make, shrink, name, d_out):
    if name == "pursuit":
        d_out = None
    coder, x = make(shrink(DICTIONARIES[name]), d_out=d_out).float(), _data().float()
    settle(coder, x, x if d_out is None else _data(width=d_out).float())
    for buffer in (coder.in_scale, coder.out_scale, coder.variance, coder.bias):
        assert buffer.dtype == torch.float32
        assert buffer.isfinite().all()
    # The very first step starts from a reconstruction of the order of the variance.
    assert (coder(x) - x).isfinite().all() if d_out is None else coder(x).isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["reads", "writes"])
def test_rows_that_are_not_finite_are_counted_and_refused(make, bad, where):
    coder, x, y = make(TOPK, d_out=5), _data(), _data(width=5)
    broken = x if where == "reads" else y
    broken[3, 2] = broken[3, 4] = broken[7, 0] = bad
    site = "m:in" if where == "reads" else "m:out"
    with pytest.raises(DataError, match=rf"^{site}: 2 of 40 rows are not finite"):
        settle(coder, x, y)
    assert coder.in_scale.item() == 1.0, "nothing was measured"


# 0.1 has no exact mean over 40 rows in binary, and a large constant hides any rounding.
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1 / 3])
def test_rows_that_do_not_vary_are_refused(make, value):
    x = torch.full((40, 6), value, dtype=DOUBLE)
    with pytest.raises(DataError, match=r"^m:in: all 40 rows are equal"):
        settle(make(TOPK), x, x)
    varied = _data()
    with pytest.raises(DataError, match=r"^m:out: all 40 rows are equal"):
        settle(make(TOPK, d_out=6), varied, x)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_are_refused(make, rows):
    with pytest.raises(DataError, match=rf"^m:in: all {rows} rows are equal"):
        settle(make(TOPK), _data(rows), _data(rows))


def test_one_coordinate_that_varies_is_enough(make):
    x = torch.ones(40, 6, dtype=DOUBLE)
    x[0, 3] = 2.0
    coder = make(TOPK)
    settle(coder, x, x)
    assert coder.variance > 0


def _idle(coder: Coder, idle: list[int]) -> None:
    """All latents fired often, save those named."""
    coder.fires.fill_(IDLE_FIRINGS)
    coder.fires[idle] = IDLE_FIRINGS - 1
    coder.silent.fill_(77)
    if coder.gate.bias is not None:
        coder.gate.bias.data.fill_(0.5)


def _one_bad_row(coder: Coder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Targets that are the outputs, but for row 5; returns them and what is missing there."""
    missing = torch.randn(x.shape[0], coder.spec.d_out, dtype=DOUBLE)
    missing[torch.arange(x.shape[0]) != 5] = 0.0
    return (coder(x) + missing).detach(), missing


@pytest.mark.parametrize("config", [TOPK, EXPANDER], ids=["dense", "expander"])
@pytest.mark.parametrize("d_out", [None, 5])
def test_idle_rows_turn_to_the_one_bad_row(make, config, d_out):
    coder, x = make(config, d_out=d_out), _data()
    settle(coder, x, x if d_out is None else _data(width=d_out))
    _idle(coder, [2, 9])
    y, missing = _one_bad_row(coder, x)
    before = {name: p.detach().clone() for name, p in coder.named_parameters()}
    turned = reaim(coder, x, y, seed=0)
    assert turned.tolist() == [2, 9]
    residual = coder.out_scale * missing[5]
    aimed = [(coder.decoder, residual)]
    if coder.encoder is not None:
        source = residual if d_out is None else coder.in_scale * x[5]
        aimed.append((coder.encoder, source))
    for atoms, direction in aimed:
        for unit in (2, 9):
            wanted = direction
            if config is EXPANDER:
                wanted = direction[atoms.index[unit].long()]
            row = atoms.table()[unit].detach()
            length = 1.0 if config is TOPK else 3**-0.5
            torch.testing.assert_close(row, length * wanted / wanted.norm())
    others = [j for j in range(12) if j not in (2, 9)]
    for name, parameter in coder.named_parameters():
        if len(parameter) == 12:
            assert torch.equal(parameter[others], before[name][others]), name
        else:
            assert torch.equal(parameter, before[name]), name
    assert coder.gate.bias[[2, 9]].tolist() == [0.0, 0.0]
    assert (coder.fires == 0).all(), "the count starts again"
    assert coder.silent[[2, 9]].tolist() == [0, 0]
    assert (coder.silent[others] == 77).all()


def test_draws_follow_the_squared_error(make):
    # Two bad rows with residuals 3:1, so squared errors 9:1.
    coder = make(replace(TOPK, latents=1000, gate=TopKConfig(k=3)))
    x, idle = _data(), list(range(600))
    _idle(coder, idle)
    y = coder(x).detach()
    y[4] += torch.tensor([3.0, 0, 0, 0, 0, 0])
    y[8] += torch.tensor([0, 1.0, 0, 0, 0, 0])
    reaim(coder, x, y, seed=0)
    first = (coder.decoder.weight[idle, 0] > 0.99).sum().item()
    second = (coder.decoder.weight[idle, 1] > 0.99).sum().item()
    assert first + second == 600
    # Binomial(600, .9): standard deviation 7.3.
    assert abs(first - 540) < 37


def test_draws_are_the_seeds_and_the_steps(make):
    x, rows = _data(), []
    for seed, steps in ((0, 0), (0, 0), (1, 0), (0, 1)):
        coder = make(TOPK)
        coder.steps.fill_(steps)
        _idle(coder, [0, 1, 2, 3])
        reaim(coder, x, x, seed=seed)
        rows.append(coder.decoder.weight.detach()[:4])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[3])


def test_firings_below_five_are_idle(make):
    coder, x = make(TOPK), _data()
    coder.fires.copy_(torch.tensor([0, 4, 5, 6, *[99] * 8]))
    assert reaim(coder, x, x, seed=0).tolist() == [0, 1]


@pytest.mark.parametrize(("count", "turned"), [(0, 0), (9, 9), (10, 0), (12, 0)])
def test_nothing_turns_when_nearly_all_are_idle(make, count, turned):
    # Four fifths of 12 are 9.6.
    coder, x = make(TOPK), _data()
    _idle(coder, list(range(count)))
    before = coder.decoder.weight.detach().clone()
    found = reaim(coder, x, x, seed=0)
    assert found.shape == (turned,)
    assert (coder.fires == 0).all()
    assert torch.equal(before, coder.decoder.weight) == (turned == 0)
    assert MOSTLY_IDLE == 0.8


def test_dictionaries_without_a_bias_are_aimed_too(make, shrink):
    x = _data()
    for name in ("pursuit", "expander-scale", "scale"):
        config = shrink(DICTIONARIES[name])
        if config.router is not None:
            config = replace(config, router=replace(config.router, bias=False))
        coder = make(config)
        settle(coder, x, x)
        _idle(coder, [1])
        before = coder.decoder.table().detach()[1].clone()
        assert coder.gate.bias is None
        assert reaim(coder, x, x, seed=0).tolist() == [1]
        assert not torch.equal(coder.decoder.table()[1], before)


def test_an_aimed_latent_speaks_for_its_row(make):
    # Aimed at a row's residual, a latent of unit norm has pre-activation ⟨r/‖r‖, z⟩ there.
    coder, x = make(replace(TOPK, gate=ReLUConfig(), auxk=0.0)), _data()
    settle(coder, x, x)
    with torch.no_grad():
        coder.decoder.weight.zero_()
        coder.encoder.weight.zero_()
    _idle(coder, [7])
    coder.gate.bias.data.zero_()
    target = coder(x).detach().index_copy(0, torch.tensor([5]), x[5:6])
    error = (x[5] - coder(x)[5]).norm().item()
    reaim(coder, x, target, seed=0)
    assert (coder(x)[5] - x[5]).norm().item() < 1e-10 < error
