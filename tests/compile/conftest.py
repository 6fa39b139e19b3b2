"""The run-time shape checks of the first pytest run cannot be compiled: leave this folder to the
second run, ``make compile``."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore everything here where the shape checks are on."""
    return True if config.getoption("jaxtyping_packages") else None
