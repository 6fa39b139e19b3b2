"""Flatness and expansion by hand, and the search against every set of small graphs."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.ops.expander import (
    Diagnostics,
    clustered_mask,
    counting_bound,
    diagnose,
    expander_mask,
    expansion,
    flatness,
)


def _exact(index: Tensor, size: int) -> float:
    """The largest 1 − |N(S)|/(s·q) over every set of q latents."""
    rows = [set(support) for support in index.tolist()]
    covered = min(len(set().union(*chosen)) for chosen in combinations(rows, size))
    return 1 - covered / (index.shape[1] * size)


# Rows {0,1}, {0,1}, {2,3}, {1,2} of width 5.
SMALL = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 2]], dtype=torch.int16)


def test_flatness_by_hand():
    # (1, 1)/√2 gives √2·1/√2 = 1; (3, 4)/5 gives √2·4/5 = 1.1314; (0, 2)/2 gives √2.
    found = flatness(torch.tensor([[1.0, 1.0], [3.0, 4.0], [0.0, -2.0]]))
    assert found.largest == pytest.approx(2**0.5)
    assert found.median == pytest.approx(1.131371, abs=1e-6)
    assert found.p95 == pytest.approx(2**0.5)  # rank 0.95·2 = 1.9 rounds to the last of three


def test_flatness_of_an_empty_atom_is_zero():
    assert flatness(torch.zeros(1, 3)).largest == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 99))
def test_flatness_lies_between_one_and_the_root_of_s(atoms, nonzeros, seed):
    torch.manual_seed(seed)
    values = torch.randn(atoms, nonzeros)
    found = flatness(values)
    # Rounding of a float32 norm.
    assert 1 - 1e-6 <= found.median <= found.p95 <= found.largest <= nonzeros**0.5 + 1e-6
    assert flatness(5 * values).largest == pytest.approx(found.largest)


@pytest.mark.parametrize(
    ("size", "nonzeros", "width", "bound"),
    # 1 − 8/10, and 0 where q supports need not meet
    [(5, 2, 8, 0.2), (4, 2, 8, 0.0), (1, 3, 100, 0.0), (64, 200, 512, 0.96)],
)
def test_counting_bound_by_hand(size, nonzeros, width, bound):
    assert counting_bound(size, nonzeros, width) == pytest.approx(bound)


def test_expansion_by_hand():
    # One support never meets itself. Latents 0 and 1 cover {0,1}: 1 − 2/4. With latent 3, {0,1,2}:
    # 1 − 3/6. All four cover {0,1,2,3}: 1 − 4/8.
    assert expansion(SMALL, 5, (1, 2, 3, 4)) == (0.0, 0.5, 0.5, 0.5)
    assert [_exact(SMALL, q) for q in (1, 2, 3, 4)] == [0.0, 0.5, 0.5, 0.5]


def test_disjoint_supports_expand_fully():
    assert expansion(torch.arange(12).view(4, 3), 12, (2, 4)) == (0.0, 0.0)


def test_equal_supports_do_not_expand():
    # q latents cover 3 rows: 1 − 3/(3q)
    found = expansion(torch.tensor([[0, 2, 4]] * 5), 6, (2, 5))
    assert found == pytest.approx((0.5, 0.8))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 9), st.integers(1, 3), st.integers(0, 999), st.integers(1, 4))
def test_search_never_exceeds_the_true_expansion(latents, nonzeros, seed, size):
    index = expander_mask(latents, nonzeros, min(6, latents * nonzeros), seed).index
    (found,) = expansion(index, 6, (size,), seed=seed, restarts=2)
    # The counting bound holds for every set, hence for those searched too.
    assert counting_bound(size, nonzeros, 6) - 1e-12 <= found <= _exact(index, size) + 1e-12


def test_search_finds_most_of_the_worst_sets():
    """On 20 random graphs of 12 latents it reaches the true maximum in at least 18."""
    reached = 0
    for seed in range(20):
        index = expander_mask(12, 3, 10, seed).index
        (found,) = expansion(index, 10, (4,), seed=seed)
        reached += found == _exact(index, 4)
    assert reached >= 18


def test_planted_collision_is_found():
    """Ten of 250 latents on the same seven rows: every latent's neighbourhood is looked at."""
    index = expander_mask(250, 7, 512, 0).index.clone()
    (random,) = expansion(index, 512, (10,))
    index[::25] = index[0].clone()
    (planted,) = expansion(index, 512, (10,))
    assert planted == pytest.approx(1 - 7 / 70)
    assert random < 0.7


def test_diagnosis_by_hand():
    # k = 1: ε_2 = 0.5 at both sizes (k + 1 = 2k = 2); β² = 2 from the atom (0, 1).
    values = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    found = diagnose(values, SMALL, 5, 1)
    assert (found.epsilon_k1, found.epsilon_2k) == (0.5, 0.5)
    assert (found.counting_k1, found.counting_2k) == (0.0, 0.0)
    assert found.r_id == pytest.approx(2 * 2 * 0.5)
    assert found.r_omp == pytest.approx(2 * 0.5 * 3)


def test_dictionaries_of_at_most_2k_latents_are_left_out():
    found = diagnose(torch.ones(4, 2), SMALL, 5, 2)
    assert found == Diagnostics(k=2, flatness=flatness(torch.ones(4, 2)))
    assert found.r_id is found.r_omp is found.epsilon_2k is None
    assert diagnose(torch.ones(4, 2), SMALL, 5, 1).r_id is not None


def test_equal_seeds_give_equal_figures_and_inputs_stay():
    index, values = expander_mask(300, 5, 64, 0).index, torch.randn(300, 5, requires_grad=True)
    before = index.clone()
    first = diagnose(values, index, 64, 8, seed=4)
    assert first == diagnose(values, index, 64, 8, seed=4)
    assert torch.equal(index, before)
    state = torch.get_rng_state()
    diagnose(values, index, 64, 8, seed=4)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours to move"


def test_clusters_expand_worse_than_random_supports():
    # 9 blocks of 7: 12 latents can share one block, 1 − 7/84; random supports cannot come near.
    (clustered,) = expansion(clustered_mask(400, 7, 64, 0).index, 64, (12,))
    (random,) = expansion(expander_mask(400, 7, 64, 0).index, 64, (12,))
    assert clustered == pytest.approx(1 - 7 / 84)
    assert random < clustered
