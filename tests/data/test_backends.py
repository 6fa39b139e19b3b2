"""The two kinds of tokenizer underneath, and the threads of the compiled one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from pellucid.data.backends import (
    PARALLELISM,
    Backend,
    CompiledBackend,
    PythonBackend,
    parallel_tokenizers,
)
from pellucid.data.tokenizer import TextTokenizer


def word_level() -> Tokenizer:
    """Words of a fixed list, with a post-processor, truncation and padding, all to be ignored."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "</s>": 2, "a": 3, "b": 4, "<": 5, "/": 6, "s": 7, ">": 8}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken("</s>", special=True), AddedToken("[CLS]")])
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    return tokenizer


@pytest.fixture
def byt5() -> Backend:
    """Bytes shifted by three, in Python; its vocabulary needs no file."""
    from transformers import ByT5Tokenizer

    return PythonBackend(ByT5Tokenizer())


def test_nothing_is_added_cut_or_padded() -> None:
    backend = CompiledBackend(word_level())
    assert backend.encode("abab") == [3, 4, 3, 4]
    assert backend.encode_batch(["abab", "a"]) == [[3, 4, 3, 4], [3]]


def test_the_given_tokenizer_keeps_its_own_settings() -> None:
    given = word_level()
    CompiledBackend(given)
    assert given.encode("abab").ids == [1, 3, 0, 0, 0, 0, 0, 0, 0]


def test_a_spelled_special_token_is_text() -> None:
    """'a</s>b' is a, the four characters of the token, b."""
    assert CompiledBackend(word_level()).encode("a</s>b") == [3, 5, 6, 7, 8, 4]


def test_special_tokens_are_decoded() -> None:
    assert CompiledBackend(word_level()).decode([3, 2, 4]) == "a </s> b"


def test_pieces_and_vocabulary() -> None:
    backend = CompiledBackend(word_level())
    assert (backend.piece(2), backend.piece(99)) == ("</s>", None)
    assert backend.vocabulary()["b"] == 4


def test_byte_level_is_recognised_alone_and_in_a_sequence() -> None:
    tokenizer = word_level()
    assert not CompiledBackend(tokenizer).is_byte_level()
    tokenizer.decoder = decoders.ByteLevel()
    assert CompiledBackend(tokenizer).is_byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()])
    assert CompiledBackend(tokenizer).is_byte_level()


def test_digest_follows_the_encoding_alone() -> None:
    """Post-processor, truncation and padding do not reach an encoding here."""
    plain = word_level()
    plain.post_processor = processors.Sequence([])
    plain.no_truncation()
    plain.no_padding()
    assert CompiledBackend(plain).digest() == CompiledBackend(word_level()).digest()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    assert CompiledBackend(plain).digest() != CompiledBackend(word_level()).digest()


def test_python_tokenizer_encodes_text_as_text(byt5: Backend) -> None:
    """Byte b has the id b + 3; '</s>' is four of them and no end of text (1)."""
    assert byt5.encode("a</s>") == [byte + 3 for byte in b"a</s>"]
    assert byt5.encode_batch(["é", "a"]) == [[0xC3 + 3, 0xA9 + 3], [ord("a") + 3]]
    assert byt5.decode(byt5.encode("naïve </s> .")) == "naïve </s> ."


def test_python_tokenizer_pieces(byt5: Backend) -> None:
    assert byt5.piece(1) == "</s>"
    assert byt5.piece(10**6) is None
    assert byt5.piece(-1) is None
    assert not byt5.is_byte_level()


def test_python_tokenizer_is_saved_as_its_own_kind(byt5: Backend, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    byt5.save(tmp_path, "</s>")
    again = PythonBackend(AutoTokenizer.from_pretrained(str(tmp_path)))
    assert again.encode("xyz") == byt5.encode("xyz")
    assert again.digest() == byt5.digest()


def test_a_disk_that_refuses_the_file_is_an_error_of_its_own(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(IsADirectoryError):
        tokenizer.save(tmp_path)


def test_the_file_is_what_the_library_writes(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    ours = (tmp_path / "tokenizer.json").read_bytes()
    Tokenizer.from_file(str(tmp_path / "tokenizer.json")).save(str(tmp_path / "theirs.json"))
    assert (tmp_path / "theirs.json").read_bytes() == ours


def test_parallelism_is_on_inside_and_off_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the variable is set, so a fork prints no warning, and means off."""
    monkeypatch.delenv(PARALLELISM, raising=False)
    for _ in range(2):
        with parallel_tokenizers():
            assert os.environ[PARALLELISM] == "true"
        assert os.environ[PARALLELISM] == ""


def test_parallelism_is_switched_off_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARALLELISM, raising=False)
    with pytest.raises(KeyError), parallel_tokenizers():
        raise KeyError
    assert os.environ[PARALLELISM] == ""


@pytest.mark.parametrize("choice", ["true", "false", "0"])
def test_the_users_choice_stands(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARALLELISM, choice)
    with parallel_tokenizers():
        assert os.environ[PARALLELISM] == choice
    assert os.environ[PARALLELISM] == choice


FORK = """
import os
from pellucid.data.tokenizer import fit_bpe
text = "some words to train on, again and again " * 50
tokenizer = fit_bpe([text], 280)
tokenizer.encode_batch([text] * 200)
child = os.fork()
if child == 0:
    tokenizer.encode_batch([text] * 200)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_neither_warns_nor_hangs() -> None:
    """The library's own default would print a warning; threads kept on would wait for ever."""
    environment = {name: value for name, value in os.environ.items() if name != PARALLELISM}
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "7\n"
    assert done.stderr == ""
