"""Teachers by name: what they say, where their attention ends, and which are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pellucid.core.errors import ConfigError
from pellucid.data.tokenizer import TextTokenizer, fit_bpe
from pellucid.models.hf import export_pretrained
from pellucid.recipes.folder import create_run
from pellucid.recipes.language import LanguageRun
from pellucid.recipes.load import load_run
from pellucid.recipes.prepare import prepare_run
from pellucid.recipes.teacher import check_vocabulary, load_teacher
from pellucid.recipes.training import train_language
from pellucid.train.language import Teacher

# Two documents in a row: 0 0 0 1 1 1.
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache: Path, config: LanguageRun) -> dict[bool, Path]:
    """A run of four steps that keeps to one document, and one that does not."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        for mask in (False, True):
            asked = replace(config, data=replace(config.data, mask_documents=mask))
            prepared = prepare_run(asked, lambda *_: None)
            run = folder / str(mask)
            create_run(run, prepared.config, recipe="pools-x", command=[], overwrite=False)
            train_language(run, prepared, name="test", say=print)
    return {mask: folder / str(mask) for mask in (False, True)}


@pytest.fixture
def teach(runs) -> Callable[..., Teacher]:
    """A teacher for a student with the runs' own tokenizer."""
    tokenizer = load_run(runs[False]).tokenizer

    def load(name: Path, *, mask_documents: bool = False) -> Teacher:
        return load_teacher(str(name), "cpu", tokenizer=tokenizer, mask_documents=mask_documents)

    return load


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    ("trained", "student", "masked"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_a_run_teaches_within_documents_where_either_is_trained_so(
    runs, teach, trained: bool, student: bool, masked: bool
):
    tokens = torch.randint(270, (1, 6))
    model = load_run(runs[trained]).model
    found = teach(runs[trained], mask_documents=student)(tokens, DOCUMENTS)
    whole, within = model(tokens), model(tokens, DOCUMENTS)
    assert torch.equal(found, within if masked else whole)
    # The two differ from the second document on.
    assert torch.equal(whole[:, 0], within[:, 0])
    assert not torch.allclose(whole[:, 4], within[:, 4])


def test_our_exported_model_teaches(runs, teach, tmp_path: Path):
    model = load_run(runs[False]).model
    export_pretrained(model, tmp_path, tokens_end=0)
    tokens = torch.randint(270, (1, 6))
    # The same modules behind another wrapper.
    found = teach(tmp_path)(tokens, DOCUMENTS)
    torch.testing.assert_close(found, model(tokens), rtol=1e-5, atol=1e-6)


def test_a_model_of_transformers_teaches(teach, gpt2: Path):
    tokens = torch.randint(50, (2, 6))
    expected = GPT2LMHeadModel.from_pretrained(gpt2)(tokens).logits
    # Saved and loaded in float32.
    torch.testing.assert_close(teach(gpt2)(tokens, DOCUMENTS.expand(2, 6)), expected)


def test_a_model_of_transformers_cannot_keep_to_one_document(teach, gpt2: Path):
    with pytest.raises(ConfigError) as caught:
        teach(gpt2, mask_documents=True)
    assert str(caught.value) == (
        f"distil.teacher {str(gpt2)!r}: expected a run folder, since models of transformers cannot "
        "keep attention within a document; distil from a run, or leave data.mask_documents off"
    )


def test_a_run_with_another_tokenizer_is_refused(runs):
    """As many tokens, and other ones: the logits would fit and mean something else."""
    own = load_run(runs[False]).tokenizer
    other: TextTokenizer = fit_bpe(["quite another text " * 20], own.vocab_size)
    assert other.vocab_size == own.vocab_size
    with pytest.raises(ConfigError) as caught:
        load_teacher(str(runs[False]), "cpu", tokenizer=other, mask_documents=False)
    assert str(caught.value) == (
        f"distil.teacher {str(runs[False])!r}: was trained with another tokenizer than "
        f"data.tokenizer gives; give data.tokenizer {runs[False]}"
    )


def test_a_teacher_that_is_none_is_refused_in_one_line(teach, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        teach(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"distil.teacher {str(tmp_path)!r}: neither a run folder nor a model ")
    assert "\n" not in text


def test_the_vocabulary_of_a_teacher(teach, gpt2: Path):
    check_vocabulary("gpt2", teach(gpt2), 50, "cpu")
    with pytest.raises(ConfigError, match="'gpt2': expected logits over 51 tokens, found 50; give"):
        check_vocabulary("gpt2", teach(gpt2), 51, "cpu")
