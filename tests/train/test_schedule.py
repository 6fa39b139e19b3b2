"""Rates at named steps, worked out by hand; the schedule's promises at any step."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.train.schedule import ScheduleConfig, lr_factor

shares = st.floats(0, 1)
configs = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "wsd"]),
    warmup_share=shares,
    decay_share=shares,
    final=shares,
)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        # 1,000 steps, warm-up .02: the first 20 steps climb by 1/20 each.
        (0, 0.05),
        (9, 0.5),
        (19, 1.0),
        # From there t = (s − 20) / 980: cos 0 = 1, cos(π/2) = 0, cos(π/4) = √½.
        (20, 1.0),
        (265, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        (510, 0.55),
        # The last step has t = 979/980: (1 − cos(π/980)) / 2 = (π/980)²/4 to six digits.
        (999, 0.1 + 0.9 * (math.pi / 980) ** 2 / 4),
        # Past the plan the rate stays at its last value.
        (1000, 0.1),
        (5000, 0.1),
    ],
)
def test_cosine(step: int, factor: float):
    # The small-angle form of the last step errs by (π/980)⁴/48 ≈ 2e-12.
    assert lr_factor(ScheduleConfig(), step, 1000) == pytest.approx(factor, abs=1e-11)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        # 100 steps: 10 of warm-up, 70 stable, the last 20 down to .2 by .8/20 = .04 each.
        (0, 0.1),
        (9, 1.0),
        (10, 1.0),
        (79, 1.0),
        (80, 1.0),
        (81, 0.96),
        (90, 0.6),
        (99, 0.24),
    ],
)
def test_warmup_stable_decay(step: int, factor: float):
    config = ScheduleConfig(kind="wsd", warmup_share=0.1, decay_share=0.2, final=0.2)
    assert lr_factor(config, step, 100) == pytest.approx(factor, abs=1e-12)


def test_a_plan_of_one_step_trains_at_the_full_rate():
    assert lr_factor(ScheduleConfig(), 0, 1) == 1.0
    assert lr_factor(ScheduleConfig(warmup_share=0.0), 0, 1) == 1.0


def test_no_warmup_starts_at_the_full_rate():
    assert lr_factor(ScheduleConfig(warmup_share=0.0), 0, 50) == 1.0


@settings(deadline=None)
@given(configs, st.integers(1, 3000), st.data())
def test_every_factor_is_a_share_and_never_zero_before_the_end(config, steps, data):
    step = data.draw(st.integers(0, steps - 1))
    factor = lr_factor(config, step, steps)
    # The sum of two rounded products may pass 1 by one unit in the last place.
    assert 0 < factor <= 1 + 1e-15


@settings(deadline=None)
@given(configs, st.integers(2, 3000), st.data())
def test_after_the_warmup_the_rate_never_rises(config, steps, data):
    warmup = max(1, round(config.warmup_share * steps))
    first = data.draw(st.integers(min(warmup, steps), steps))
    later = data.draw(st.integers(first, steps))
    assert lr_factor(config, later, steps) <= lr_factor(config, first, steps) + 1e-15


@pytest.mark.parametrize("field", ["warmup_share", "decay_share", "final"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_a_share_outside_0_to_1_is_named(field: str, value: float):
    with pytest.raises(ConfigError, match=rf"^{field}: expected a share from 0 to 1, found "):
        ScheduleConfig(**{field: value})
