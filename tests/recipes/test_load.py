"""Trained models by their run folder, earlier checkpoints too."""

import shutil
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import CheckpointError, RunError
from pellucid.recipes.folder import create_run
from pellucid.recipes.language import LanguageRun
from pellucid.recipes.load import load_run
from pellucid.recipes.training import prepare_run, train_language


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache: Path, config: LanguageRun) -> Path:
    """A run of four steps with two checkpoints."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        prepared = prepare_run(config, lambda *_: None)
        create_run(path, prepared.config, recipe="pools-x", command=[], overwrite=False)
        train_language(path, prepared, name="test", say=print)
    return path


def test_the_newest_checkpoint(run: Path, config: LanguageRun):
    loaded = load_run(run)
    assert loaded.step == 4
    assert loaded.config == config
    assert not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("pool unit")) == "pool unit"
    saved = load_run(run, checkpoint="step_000000004")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(saved.model.state_dict()[name], tensor)


def test_an_earlier_checkpoint(run: Path):
    earlier = load_run(run, checkpoint="step_000000002")
    assert earlier.step == 2
    newest = load_run(run).model.embed.weight
    assert not torch.equal(earlier.model.embed.weight, newest)


def test_what_cannot_be_loaded(run: Path, tmp_path: Path):
    with pytest.raises(RunError, match=r"not a run: it holds no run\.json"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"the run has: step_000000002, step_000000004$"):
        load_run(run, checkpoint="step_3")
    other = Path(shutil.copytree(run, tmp_path / "other"))
    record = (other / "run.json").read_text()
    (other / "run.json").write_text(record.replace('"width": 16', '"width": 24'))
    with pytest.raises(CheckpointError, match=r"does not fit the model that run\.json describes"):
        load_run(other)
