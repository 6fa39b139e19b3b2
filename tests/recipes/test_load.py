"""Models by name: our runs, their earlier checkpoints, and models of transformers."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pellucid.core.errors import CheckpointError, ConfigError, RunError
from pellucid.models.hf import HuggingFaceHost, export_pretrained
from pellucid.models.transformer import Transformer
from pellucid.recipes.folder import create_run
from pellucid.recipes.language import LanguageRun
from pellucid.recipes.load import load_run, load_teacher
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


def test_a_run_teaches(run: Path):
    teacher = load_teacher(str(run), "cpu")
    assert isinstance(teacher, Transformer)
    tokens = torch.randint(270, (1, 5))
    assert torch.equal(teacher.run(tokens).logits, load_run(run).model(tokens))


def test_our_exported_model_teaches(run: Path, tmp_path: Path):
    model = load_run(run).model
    export_pretrained(model, tmp_path, tokens_end=0)
    teacher = load_teacher(str(tmp_path), "cpu")
    assert isinstance(teacher, HuggingFaceHost)
    tokens = torch.randint(270, (1, 5))
    # The same modules behind another wrapper.
    torch.testing.assert_close(teacher.run(tokens).logits, model(tokens), rtol=1e-5, atol=1e-6)


def test_a_model_of_transformers_teaches(tmp_path: Path):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50)).eval()
    model.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), "cpu")
    tokens = torch.randint(50, (2, 7))
    # Saved and loaded in float32.
    torch.testing.assert_close(teacher.run(tokens).logits, model(tokens).logits)


def test_a_teacher_that_is_none_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_teacher(str(tmp_path), "cpu")
    text = str(caught.value)
    assert text.startswith(f"distil.teacher {str(tmp_path)!r}: neither a run folder nor a model ")
    assert "\n" not in text
