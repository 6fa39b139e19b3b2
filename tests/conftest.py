"""Shared by all tests: fresh memory is NaN, and every test starts from one seed."""

import pytest
import torch
from hypothesis import settings

# A busy machine is no fault of the code: examples are bounded in number, not in time.
settings.register_profile("pellucid", deadline=None)
settings.load_profile("pellucid")


@pytest.fixture(autouse=True)
def _seed_and_poison() -> None:
    """Seed torch; fill ``torch.empty`` with NaN so that a read of unwritten memory shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
