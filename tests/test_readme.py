"""Every command and snippet of the README but its make targets, run in order as by a reader."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks() -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    page = (ROOT / "README.md").read_text("utf-8")
    return re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)


def test_blocks_are_shell_or_python() -> None:
    assert len(blocks()) > 5
    assert {language for language, _ in blocks()} == {"sh", "python"}


@pytest.mark.slow
def test_the_readme_runs_as_shown(tmp_path: Path) -> None:
    """``.ci/run`` calls ``make test`` itself, and ``pellucid demo`` with a few steps only."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    environment = os.environ | {"PELLUCID_CACHE": str(tmp_path / "cache")}
    for language, text in blocks():
        if text.startswith("make "):
            continue
        shell = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "a" / "model.safetensors").exists()
