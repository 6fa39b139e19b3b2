"""A hierarchy small enough to follow by hand, for the two files that do."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pellucid.pools.hierarchy import Hierarchy, HierarchyConfig


@pytest.fixture
def hand() -> Callable[..., Hierarchy]:
    """``hand(**change)``, in evaluation: p = (.8, .2); reads (1,0), (0,1) | (1,1), (−1,0); writes
    (1,0), (0,1) | (1,1), (1,1); c = (0,1)."""

    def build(**change: object) -> Hierarchy:
        config = replace(HierarchyConfig(pools=2, slots=2, open_pools=2, k=2), **change)
        pool = config.build(name="ffn", width=2, output_rms=1.0).double().eval()
        with torch.no_grad():
            pool.router.zero_()
            pool.router_offset.copy_(torch.tensor([0.8, 0.2]).log())
            pool.reads.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [-1.0, 0.0]]]))
            pool.writes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]]))
            pool.bias.copy_(torch.tensor([0.0, 1.0]))
        return pool

    return build


@pytest.fixture
def row() -> Tensor:
    """(1, 2), which the pool of ``hand`` reads as 1, 2 | 3, −1."""
    return torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.fixture
def near() -> Callable[[Tensor, tuple[float, float]], None]:
    """Equal but for the 1e-7 that float32 logarithms of the probabilities leave."""

    def check(y: Tensor, expected: tuple[float, float]) -> None:
        assert y.tolist() == [pytest.approx(value, abs=1e-6) for value in expected]

    return check
