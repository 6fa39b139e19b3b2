"""FVU by hand and against two passes; recovered cross-entropy; the median by geometry."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.stats.reconstruction import (
    FVU,
    Moments,
    ce_recovered,
    geometric_median,
    total_variance,
)


def _fvu(batches: list[tuple[Tensor, Tensor]]) -> FVU:
    fvu = FVU()
    for y, prediction in batches:
        fvu.update(y, prediction)
    return fvu


def _two_pass(y: Tensor, prediction: Tensor) -> float:
    missed = (y - prediction).square().sum()
    return (missed / (y - y.mean(0)).square().sum()).item()


def test_two_rows_away_from_the_origin():
    # ȳ = (2, 12): Σ‖y − ȳ‖² = 1 + 4 + 1 + 4 = 10; Σ‖y − ŷ‖² = (0 + 1) + (1 + 0) = 2.
    y = torch.tensor([[1.0, 10.0], [3.0, 14.0]])
    fvu = _fvu([(y, torch.tensor([[1.0, 11.0], [2.0, 14.0]]))])
    assert fvu.value == 0.2
    assert fvu.explained_variance == 0.8
    assert fvu.rows == 2


def test_explained_half():
    # y 1, 3 about 2: 2. ŷ 1, 2 misses 1.
    fvu = _fvu([(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]))])
    assert fvu.explained_variance == 0.5


@pytest.mark.parametrize(
    ("cuts", "rounding"),
    [([4], 0.0), ([2, 2], 0.0), ([4, 0], 0.0), ([1, 3], 1e-14), ([1, 1, 1, 1], 1e-14)],
)
def test_the_mean_predictor_leaves_exactly_everything(cuts: list[int], rounding: float):
    # Means of 2 and 4 rows are exact in binary; those of 1 and 3 meet thirds on the way. The mean
    # of the whole set is (5.25, -100.5).
    y = torch.tensor([[5.0, -100.0], [6.0, -102.0], [4.0, -99.0], [6.0, -101.0]])
    prediction = torch.tensor([[5.25, -100.5]]).expand_as(y)
    found = _fvu(list(zip(y.split(cuts), prediction.split(cuts)))).value
    assert found == pytest.approx(1.0, rel=rounding, abs=0.0)


def test_it_is_no_mean_of_batch_ratios():
    # Batch 1: y 0, 2, missed 1 + 1, own spread 2: ratio 1. Batch 2: y 10, 14, missed 0: ratio 0.
    # Together ȳ = 6.5: 42.25 + 20.25 + 12.25 + 56.25 = 131, so 2/131 and not 1/2.
    first = (torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    second = (torch.tensor([[10.0], [14.0]]), torch.tensor([[10.0], [14.0]]))
    assert _fvu([first, second]).value == pytest.approx(2 / 131, rel=1e-15)


def test_a_huge_mean_keeps_its_digits():
    """Against two passes over the same rows with the offset taken away, which is exact."""
    centred = torch.randn(1000, 3, dtype=torch.float64).mul(2**20).round().div(2**20)
    y = centred + 2.0**27
    prediction = y + 0.5
    fvu = _fvu(list(zip(y.split(64), prediction.split(64))))
    # A mean near 1.3e8 is known to 1.5e-8, its squared steps between batches of size .1 to 3e-9.
    assert fvu.value == pytest.approx(_two_pass(centred, centred + 0.5), rel=1e-8)


def test_sums_are_float64_for_float32_rows():
    # 2²⁵ + 1 is no float32: a float32 sum would lose every miss of 1 beside the first.
    y = torch.zeros(9, 1)
    y[0] = 4096.0
    prediction = y + 1.0
    prediction[0] = 0.0
    # Missed 2²⁴ + 8; spread 4096²·8/9.
    assert _fvu([(y, prediction)]).value == pytest.approx((2**24 + 8) / (2**24 * 8 / 9), rel=1e-14)


@given(
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2), min_size=3).filter(
        lambda rows: len({tuple(row) for row in rows}) > 1
    ),
    st.randoms(use_true_random=False),
)
def test_order_and_batches_do_not_matter(rows: list[list[float]], random):
    y = torch.tensor(rows, dtype=torch.float64)
    prediction = 0.5 * y + 1.0
    whole = _fvu([(y, prediction)])
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    size = random.randint(1, len(rows))
    parts = _fvu(list(zip(y[order].split(size), prediction[order].split(size))))
    # Rows within 100 that differ by a float32 step may have a spread of 1e-10 only: both figures
    # then carry the rounding of means near 100, squared.
    assert parts.targets._squares == pytest.approx(whole.targets._squares, rel=1e-9, abs=1e-20)
    assert parts._missed == pytest.approx(whole._missed, rel=1e-12)


def test_merging_is_updating():
    y, prediction = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    left, right = _fvu([(y[:13], prediction[:13])]), _fvu([(y[13:], prediction[13:])])
    left.merge(right)
    left.merge(FVU())
    assert left.rows == 50
    # Two orders of the same float64 sums.
    assert left.value == pytest.approx(_two_pass(y, prediction), rel=1e-12)
    empty = FVU()
    empty.merge(left)
    assert empty.value == left.value
    # A copy, not a shared mean: the source is unmoved by what its copy sees next.
    before = left.targets.mean.clone()
    empty.update(y + 100.0, prediction)
    assert torch.equal(left.targets.mean, before)


@pytest.mark.parametrize("value", [0.1, 0.0, 1e8])
def test_equal_rows_have_no_variance(value: float):
    # .1 is no binary fraction, so a mean by plain sums would leave a spread of its rounding.
    fvu = _fvu([(torch.full((7, 3), value), torch.zeros(7, 3))] * 3)
    with pytest.raises(DataError, match="expected rows that differ, found 21 equal rows"):
        _ = fvu.value
    with pytest.raises(DataError, match="found 7 equal rows"):
        total_variance(torch.full((7, 3), value))


def test_no_rows_have_no_variance():
    with pytest.raises(DataError, match="found none"):
        _ = FVU().value
    with pytest.raises(DataError, match="expected at least one, found none"):
        _ = Moments().mean


def test_gradients_do_not_flow():
    y = torch.randn(4, 2, requires_grad=True)
    fvu = _fvu([(y, y * 0.5)])
    assert not fvu.targets.mean.requires_grad


def test_total_variance_is_the_mean_squared_distance():
    # Rows (0, 0), (4, 0), (2, 6) about (2, 2): 8 + 8 + 16 = 32, a third of it each.
    assert total_variance(torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 6.0]])) == pytest.approx(
        32 / 3, rel=1e-15
    )


def test_moments_know_the_mean():
    moments = Moments()
    for part in torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 6.0]]).split(2):
        moments.update(part)
    assert moments.mean.tolist() == pytest.approx([2.0, 2.0], rel=1e-15)
    assert moments.squares == pytest.approx(32.0, rel=1e-15)


def test_three_quarters_of_the_loss_come_back():
    # (5 − 3.5) / (5 − 3)
    assert ce_recovered(5.0, 3.5, 3.0) == 0.75
    # A splice worse than zeroing recovers less than nothing: (5 − 6) / 2.
    assert ce_recovered(zero=5.0, splice=6.0, clean=3.0) == -0.5


@pytest.mark.parametrize("zero", [3.0, 3.009, 2.0])
def test_a_site_that_does_not_matter_has_nothing_to_recover(zero: float):
    assert ce_recovered(zero, 3.0, 3.0) is None


def _median(rows: list[list[float]], **options: float) -> list[float]:
    return geometric_median(torch.tensor(rows, dtype=torch.float64), **options).tolist()


def test_the_fermat_point_of_a_right_triangle():
    # Legs 1: by symmetry (t, t), and sides are seen at 120°, hence t = (3 − √3)/6 = .2113.
    t = (3 - math.sqrt(3)) / 6
    found = _median([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], tolerance=1e-9)
    # Weiszfeld converges linearly, at about a third a step here: ten tolerances are ample.
    assert found == pytest.approx([t, t], abs=1e-8)


def test_a_wide_angle_is_its_own_median():
    # The angle at (0, 0) is 2·atan(4) = 152° > 120°; the mean is elsewhere.
    assert _median([[0.0, 0.0], [-4.0, 1.0], [4.0, 1.0]]) == pytest.approx([0.0, 0.0], abs=1e-5)


def test_a_start_on_a_row_that_is_not_the_median():
    # The mean, 5, is a row; the median is 2. Plain Weiszfeld divides by 0 here or stays for ever.
    found = _median([[0.0], [1.0], [2.0], [5.0], [17.0]])
    assert found == pytest.approx([2.0], abs=1e-4)


def test_a_start_on_a_row_that_is_the_median():
    assert _median([[-3.0, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, -2.0]]) == [0.0, 0.0]


def test_a_majority_at_one_row_decides():
    rows = [[1.0, 1.0]] * 6 + [[50.0, -3.0], [9.0, 40.0], [-7.0, 0.0], [100.0, 100.0], [3.0, 3.0]]
    assert _median(rows) == pytest.approx([1.0, 1.0], abs=1e-4)


def test_equal_rows_and_one_row():
    assert _median([[0.1, 7.0]] * 5) == [0.1, 7.0]
    assert _median([[0.1, 7.0]]) == [0.1, 7.0]


def test_the_median_resists_one_outlier_and_keeps_the_dtype():
    rows = torch.cat((torch.randn(99, 4), torch.full((1, 4), 1e6)))
    found = geometric_median(rows)
    assert found.dtype == torch.float32
    # The mean is 10,000 away; the median of 99 standard normal rows lies within their spread.
    assert found.norm() < 1.0


def test_no_rows_have_no_median():
    with pytest.raises(DataError, match="expected at least one"):
        geometric_median(torch.zeros(0, 3))


@given(st.integers(0, 1000), st.integers(3, 12))
def test_the_median_is_where_the_pulls_cancel(seed: int, count: int):
    """Nowhere nearby is the summed distance smaller, whatever the rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    found = geometric_median(rows, iterations=500, tolerance=1e-8)
    least = (rows - found).norm(dim=1).sum()
    around = found + 0.05 * torch.randn(64, 3, generator=generator, dtype=torch.float64)
    sums = (rows - around.unsqueeze(1)).norm(dim=2).sum(1)
    # A stop at 1e-8 leaves the sum within 1e-6 of the least even for a slow last stretch.
    assert bool((sums >= least - 1e-6).all())
