"""Tokenizers that give text back pass; what others lose is shown in one line."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pellucid.data import lossless
from pellucid.data.backends import CompiledBackend
from pellucid.data.document import Document
from pellucid.data.lossless import LosslessCheck
from pellucid.data.tokenizer import TextTokenizer


def document(text: str, *, domain: str = "d", name: str = "a") -> Document:
    return Document(id=name, text=text, domain=domain, split="train")


@pytest.fixture(scope="module")
def letters() -> TextTokenizer:
    """One token a letter of "abc" or space; capitals become small, other characters unknown."""
    vocabulary = {"?": 0, "<end>": 1, "a": 2, "b": 3, "c": 4, " ": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return TextTokenizer(CompiledBackend(tokenizer), 1)


def loss(tokenizer: TextTokenizer, *texts: str) -> str | None:
    """What the check says after documents of these texts."""
    check = LosslessCheck(tokenizer)
    for text in texts:
        check.see(document(text))
    return check.loss


@pytest.mark.parametrize("text", ["naïve  café\n\n", "", "\t x = 1\r\n", "\ufffd \0 \U0001f600"])
def test_bytes_come_back(tokenizer: TextTokenizer, text: str) -> None:
    assert loss(tokenizer, text) is None


def test_what_is_lost_is_shown(letters: TextTokenizer) -> None:
    # Decoding joins the words of a vocabulary with spaces: "abc" comes back as "a b c".
    check = LosslessCheck(letters)
    check.see(document("abc", name="law#3"))
    check.see(document("X", name="another"))
    assert check.loss == (
        "the tokenizer loses text, which would make bits per byte too good: in document law#3 "
        "'bc' comes back as ' b c'; choose another tokenizer, or set lossy_tokenizer to go on"
    )


@pytest.mark.parametrize(("text", "shown"), [("A", "'A' comes back as 'a'"), ("x", "'x' comes")])
def test_capitals_and_unknown_words_are_losses(
    letters: TextTokenizer, text: str, shown: str
) -> None:
    assert shown in (loss(letters, text) or "")


def test_a_loss_at_the_end_is_shown(letters: TextTokenizer, monkeypatch) -> None:
    monkeypatch.setattr(letters, "decode", lambda _: "a")
    assert "'bc' comes back as ''" in (loss(letters, "abc") or "")


def test_white_space_at_the_ends_is_left_out_of_account(letters: TextTokenizer) -> None:
    assert loss(letters, " a\n") is None


def test_only_the_first_documents_of_a_domain_are_looked_at(
    letters: TextTokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(lossless, "DOCUMENTS", 2)
    check = LosslessCheck(letters)
    for text in ("a", "b", "X", "Y"):
        check.see(document(text))
    assert check.loss is None
    check.see(document("X", domain="other"))
    assert check.loss is not None


def test_only_the_beginning_of_a_document_is_looked_at(letters: TextTokenizer, monkeypatch) -> None:
    monkeypatch.setattr(lossless, "CHARACTERS", 1)
    assert loss(letters, "aXX") is None
    assert loss(letters, "Xaa") is not None
