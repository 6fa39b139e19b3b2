"""The demonstration's two arms, and the folder that it may replace."""

from pathlib import Path

import pytest

from pellucid.core.errors import RunError
from pellucid.recipes.demo import ARMS, MARK, clear_demo, demo_config


def test_the_arms_differ_in_their_slot_alone():
    pools, dense = (demo_config(arm, source="embedded", steps=None, seed=3) for arm in ARMS)
    assert pools.seed == dense.seed == 3
    assert pools.model.slot(0).kind == "pools"
    assert dense.model.slot(0).kind == "dense"
    for field in ("data", "optim", "schedule", "steps", "batch", "accumulate", "precision"):
        assert getattr(pools, field) == getattr(dense, field), field
    # 2·d·(P + e·n + k) = 4·d·f at width 128: f = (64 + 8·128 + 12) / 2.
    assert dense.model.slot(0).free_size == 550
    assert 900_000 <= pools.steps * pools.tokens_per_step <= 2_000_000


def test_clear_demo_makes_and_replaces(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    clear_demo(folder)
    (folder / "old").write_text("")
    clear_demo(folder)
    assert [path.name for path in folder.iterdir()] == [MARK]


def test_a_file_or_another_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="holds something that is not a demo"):
            clear_demo(taken)
    assert (tmp_path / "file").read_text() == "kept"
    clear_demo(tmp_path / "empty")
    assert (tmp_path / "empty" / MARK).is_file()
