"""Bits per byte by hand."""

import math

import pytest
import torch

from pellucid.core.errors import DataError
from pellucid.stats.bits import bits_per_byte, bits_per_byte_by_domain


def test_two_losses_over_four_bytes():
    # (3 ln 2 + 5 ln 2) / (ln 2 · 4) = 8 / 4 = 2
    assert bits_per_byte(3 * math.log(2) + 5 * math.log(2), 4) == pytest.approx(2.0, abs=1e-12)


def test_uniform_predictor_pays_log2_of_the_vocabulary_per_token():
    # 10 tokens of ln 256 nats over 25 bytes: 10 · 8 bits / 25 bytes = 3.2
    assert bits_per_byte(10 * math.log(256), 25) == pytest.approx(3.2, abs=1e-12)


def test_no_text_is_refused():
    with pytest.raises(DataError, match="expected at least one byte"):
        bits_per_byte(1.0, 0)


def test_per_domain_is_the_pooled_figure_of_each_domain():
    nats = torch.tensor([3.0, 5.0, 7.0]) * math.log(2)
    result = bits_per_byte_by_domain(
        nats, torch.tensor([1, 3, 2]), torch.tensor([0, 0, 2]), domains=3
    )
    # Domain 0: 8 bits / 4 bytes; domain 1 has no text; domain 2: 7 bits / 2 bytes.
    assert result[0].item() == pytest.approx(2.0, abs=1e-6)
    assert math.isnan(result[1].item())
    assert result[2].item() == pytest.approx(3.5, abs=1e-6)


def test_a_token_without_bytes_still_costs():
    # An end-of-text token spells nothing but its loss is paid: (2 + 6) bits / 4 bytes.
    nats = torch.tensor([2.0, 6.0]) * math.log(2)
    result = bits_per_byte_by_domain(nats, torch.tensor([4, 0]), torch.tensor([0, 0]), domains=1)
    assert result.item() == pytest.approx(2.0, abs=1e-6)


def test_loss_without_bytes_is_no_figure():
    # Domain 1 pays 6 bits and spells nothing: neither 0 nor infinity says anything about it.
    nats = torch.tensor([2.0, 6.0]) * math.log(2)
    result = bits_per_byte_by_domain(nats, torch.tensor([4, 0]), torch.tensor([0, 1]), domains=2)
    assert result[0].item() == pytest.approx(0.5, abs=1e-6)
    assert math.isnan(result[1].item())
