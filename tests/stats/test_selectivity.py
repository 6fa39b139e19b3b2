"""Domain selectivity by hand."""

import math

import pytest
import torch

from pellucid.stats.selectivity import domain_selectivity, domain_shares


def test_shares_are_at_equal_tokens():
    # Rates 6/20 = .3 and 1/10 = .1: shares .75 and .25, though the counts say 6 to 1.
    shares = domain_shares(torch.tensor([[6, 1], [0, 0]]), torch.tensor([20, 10]))
    assert shares.tolist() == [pytest.approx([0.75, 0.25]), [0.0, 0.0]]


def test_selectivity_by_hand():
    fires = torch.tensor([[5, 0], [7, 7], [3, 1], [0, 0]])
    # One domain only; equal; 1 − H(.75, .25)/ln 2 = 1 − .562335/.693147 = .188722; never fired.
    found = domain_selectivity(fires, torch.tensor([10, 10]))
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.188722, 0.0], abs=1e-6)


def test_a_domain_without_tokens_does_not_count():
    # Domains 0 and 2 were seen; a unit equal in both tells nothing, whatever D would be.
    fires = torch.tensor([[4, 0, 4]])
    shares = domain_shares(fires, torch.tensor([8, 0, 8]))
    assert shares.tolist() == [[0.5, 0.0, 0.5]]
    assert domain_selectivity(fires, torch.tensor([8, 0, 8])).item() == pytest.approx(0.0)


def test_one_domain_cannot_be_selected():
    assert domain_selectivity(torch.tensor([[4]]), torch.tensor([8])).tolist() == [0.0]


def test_half_of_four_domains():
    # Uniform over two of four: 1 − ln 2 / ln 4 = .5
    found = domain_selectivity(torch.tensor([[2, 2, 0, 0]]), torch.tensor([9, 9, 9, 9]))
    assert found.item() == pytest.approx(1 - math.log(2) / math.log(4))
