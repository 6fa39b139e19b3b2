"""Dictionaries with every awkwardness at once, and what tests of converters compare."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.dictionaries.atoms import DenseAtoms
from pellucid.dictionaries.gates import BatchTopKGate
from pellucid.dictionaries.thresholds import JumpReLUGate


@pytest.fixture
def make() -> Callable[..., Coder]:
    """A fitted-looking dictionary: large bias, uneven rows, scales, biases and thresholds.

    An SAE on ``model.layers.1:out`` of width ``d``, or with ``d_out`` a transcoder of the MLP.
    """

    def build(
        config: CoderConfig,
        *,
        d: int = 8,
        d_out: int | None = None,
        dtype: torch.dtype = torch.float64,
        layer: int = 1,
    ) -> Coder:
        sae = d_out is None
        place = f"model.layers.{layer}" + ("" if sae else ".mlp")
        coder = build_coder(
            config,
            name="made",
            reads=Site.parse(f"{place}:out" if sae else f"{place}:in"),
            writes=Site.parse(f"{place}:out"),
            d_in=d,
            d_out=d if d_out is None else d_out,
            seed=1,
        ).to(dtype)
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
            if isinstance(coder.decoder, DenseAtoms):
                unit = coder.gate.solves
                norm = torch.rand(config.latents, 1, dtype=dtype) * 1.5 + 0.5
                rows = coder.decoder.weight
                rows.copy_(rows / rows.norm(dim=1, keepdim=True) * (1.0 if unit else norm))
            coder.bias.add_(torch.randn_like(coder.bias) * 5)
            if isinstance(coder.gate, JumpReLUGate):
                coder.gate.threshold.copy_(torch.rand(config.latents) * 0.5)
            if isinstance(coder.gate, BatchTopKGate):
                coder.gate.threshold.fill_(0.37)
            coder.in_scale.fill_(1.7)
            coder.out_scale.fill_(1.7 if sae else 0.6)
        return coder.eval()

    return build


@pytest.fixture
def rows() -> Callable[..., Tensor]:
    """Raw rows about a dictionary's bias, so that its latents are neither all on nor all off."""

    def draw(coder: Coder, count: int = 24) -> Tensor:
        centre = coder.bias if coder.is_sae else torch.zeros(coder.spec.d_in)
        noise = torch.randn(count, coder.spec.d_in, dtype=coder.bias.dtype)
        return ((noise + centre) / coder.in_scale).detach()

    return draw


@pytest.fixture
def close() -> Callable[[Tensor, Tensor], None]:
    """float64 to 1e-9, float32 to 1e-5, both of the largest expected value."""

    def check(found: Tensor, expected: Tensor) -> None:
        assert found.shape == expected.shape
        assert expected.isfinite().all()
        tolerance = 1e-9 if expected.dtype == found.dtype == torch.float64 else 1e-5
        scale = max(float(expected.detach().abs().max()), 1e-30)
        torch.testing.assert_close(
            found.double(), expected.double(), rtol=0, atol=tolerance * scale
        )

    return check
