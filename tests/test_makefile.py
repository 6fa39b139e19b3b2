"""``make install`` with a stand-in for Python: when an environment is kept and when made anew."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Writes down what it is asked, and makes of ``-m venv --clear FOLDER`` what venv would.
PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
if [ "$2" = venv ]; then
    rm -rf "$4"
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    echo "#!$(pwd -P)/$4/bin/python" > "$4/bin/pip"
fi
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def install(tmp_path: Path) -> Callable[[Path], list[str]]:
    """``make install`` in a folder: which environments were made and which installations ran."""
    fake = tmp_path / "python3"
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    log = tmp_path / "log"

    def run(folder: Path) -> list[str]:
        log.write_text("")
        subprocess.run(
            ["make", "install", f"PYTHON={fake}"],
            cwd=folder,
            env=os.environ | {"LOG": str(log)},
            check=True,
            capture_output=True,
            timeout=60,
        )
        asked = log.read_text().splitlines()
        return [kind for line in asked for kind in ("venv --clear", "pip install") if kind in line]

    return run


def test_the_first_time_both_and_then_neither(checkout: Path, install) -> None:
    assert install(checkout) == ["venv --clear", "pip install"]
    assert install(checkout) == []


def test_a_changed_pin_installs_into_the_same_environment(checkout: Path, install) -> None:
    install(checkout)
    marker = next((checkout / ".venv").glob(".installed*"))
    later = marker.stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (later, later))
    assert install(checkout) == ["pip install"]


def test_after_a_move_the_environment_is_made_anew(checkout: Path, install, tmp_path: Path) -> None:
    install(checkout)
    moved = checkout.rename(tmp_path / "moved")
    assert install(moved) == ["venv --clear", "pip install"]
    assert install(moved) == []


def test_a_copy_makes_its_own(checkout: Path, install, tmp_path: Path) -> None:
    """The original's interpreter still runs, so the copy would silently install into it."""
    install(checkout)
    copy = Path(shutil.copytree(checkout, tmp_path / "copy", symlinks=True))
    assert install(copy) == ["venv --clear", "pip install"]


def test_an_environment_whose_interpreter_is_gone_is_made_anew(checkout: Path, install) -> None:
    install(checkout)
    (checkout / ".venv" / "bin" / "python").unlink()
    next((checkout / ".venv").glob(".installed*")).unlink()
    assert install(checkout) == ["venv --clear", "pip install"]
