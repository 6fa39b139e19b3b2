"""Means per token and the tokens nearest to a direction, by hand."""

import pytest
import torch

from pellucid.explore.token_means import TokenMeans


def test_nearest_by_hand():
    means = TokenMeans(4, 2)
    means.add(torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0, 1]))
    means.add(torch.tensor([[0.0, -5.0]]), torch.tensor([3]))
    # Token 0: mean (1, 1), cosine with (1, 0) .7071. Token 1: (3, 0), cosine 1. Token 3: 0.
    near = means.nearest(torch.tensor([10.0, 0.0]), listed=3, min_count=1)
    assert [token for token, _ in near] == [1, 0, 3]
    assert [score for _, score in near] == pytest.approx([1.0, 0.70711, 0.0], abs=1e-5)


def test_rare_tokens_are_left_out():
    means = TokenMeans(3, 1)
    means.add(torch.ones(3, 1), torch.tensor([0, 0, 1]))
    assert [t for t, _ in means.nearest(torch.ones(1), listed=5, min_count=2)] == [0]
    assert means.nearest(torch.ones(1), listed=5, min_count=3) == []


def test_adding_in_parts_is_adding_at_once():
    x, token = torch.randn(50, 6), torch.randint(9, (50,))
    once, parts = TokenMeans(9, 6), TokenMeans(9, 6)
    once.add(x, token)
    for start in range(0, 50, 7):
        parts.add(x[start : start + 7], token[start : start + 7])
    assert torch.equal(once.count, parts.count)
    # Sums in another order: a few roundings of float32 at size 1.
    torch.testing.assert_close(once.total, parts.total, rtol=1e-5, atol=1e-5)


def test_a_direction_of_zero_prefers_nothing():
    means = TokenMeans(2, 2)
    means.add(torch.eye(2), torch.tensor([0, 1]))
    near = means.nearest(torch.zeros(2), listed=2, min_count=1)
    assert [score for _, score in near] == [0.0, 0.0]
