"""Cross-entropy with a site replaced, on a host whose logits are what the site holds."""

import math

import pytest
import torch
from torch import Tensor

from pellucid.core.host import Trace
from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.data.activations import HeldOut
from pellucid.data.packing import IGNORED
from pellucid.train.splice import splice_losses

SITE = Site.parse("logits:out")


class Copying:
    """Logits are 2 at the token read and 0 elsewhere, and pass through one site."""

    def width(self, site: Site) -> int:
        return 3

    def run(self, tokens, *, edits=(), keep=()) -> Trace:
        logits = 2 * torch.nn.functional.one_hot(tokens, 3).float()
        for edit in edits:
            logits = edit.apply(logits, logits)
        return Trace(logits, dict.fromkeys(keep, logits))


class Scaled:
    """Writes ``factor`` times what it reads, by one unit per coordinate."""

    def __init__(self, factor: float) -> None:
        self.spec = PoolSpec(
            name="scaled", reads=SITE, writes=SITE, axes=(("latent", 3),), d_in=3, d_out=3
        )
        self.factor = factor

    def read(self, unit: Tensor) -> Tensor:
        return torch.eye(3)[unit]

    def write(self, unit: Tensor) -> Tensor:
        return self.factor * torch.eye(3)[unit]

    def activate(self, x, *, unit=None, limit=None) -> Code:
        return Code(torch.arange(3).expand(x.shape), torch.ones_like(x), x)

    def decode(self, code: Code) -> Tensor:
        return (code.value[..., None] * self.write(code.unit)).sum(-2)

    def rest(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def text() -> HeldOut:
    """Two windows of repeated tokens: the target is the token read; two targets do not count."""
    tokens = torch.tensor([[0, 0, 0], [1, 2, 2]])
    targets = torch.tensor([[0, 0, IGNORED], [IGNORED, 2, 2]])
    document = torch.zeros(2, 3, dtype=torch.long)
    return HeldOut(tokens=tokens, targets=targets, document=document, num_bytes=4)


def nats(logit: float) -> float:
    """−log of the target's probability where its logit is ``logit`` and two others are 0."""
    return math.log(math.exp(logit) + 2) - logit


def test_every_replacement_by_hand():
    # All four targets are the token read. Half the logit with the splice, none with zeros.
    found = splice_losses(Copying(), Scaled(0.5), text(), batch=1)
    assert found.tokens == 4
    assert found.clean == pytest.approx(nats(2.0), rel=1e-6)
    assert found.splice == pytest.approx(nats(1.0), rel=1e-6)
    assert found.zero == pytest.approx(math.log(3), rel=1e-6)
    assert found.recovered == pytest.approx(
        (math.log(3) - nats(1.0)) / (math.log(3) - nats(2.0)), rel=1e-5
    )
    # The mean over all six positions: 2 · (3, 1, 2) / 6 = (1, 1/3, 2/3), the same everywhere.
    total = math.log(math.exp(1) + math.exp(1 / 3) + math.exp(2 / 3))
    assert found.mean == pytest.approx((2 * (total - 1) + 2 * (total - 2 / 3)) / 4, rel=1e-6)


def test_with_its_error_added_back_nothing_is_lost():
    found = splice_losses(Copying(), Scaled(0.1), text())
    assert found.with_error == pytest.approx(found.clean, rel=1e-6)
    assert found.splice > found.clean


def test_a_perfect_dictionary_recovers_everything_and_an_empty_one_nothing():
    assert splice_losses(Copying(), Scaled(1.0), text()).recovered == pytest.approx(1.0)
    assert splice_losses(Copying(), Scaled(0.0), text()).recovered == pytest.approx(0.0)


def test_only_the_first_windows():
    assert splice_losses(Copying(), Scaled(1.0), text(), windows=1).tokens == 2


def test_figures_by_name():
    figures = splice_losses(Copying(), Scaled(0.5), text()).figures()
    assert set(figures) == {
        "ce_clean",
        "ce_splice",
        "ce_with_error",
        "ce_zero",
        "ce_mean",
        "ce_recovered",
    }
