"""The two kinds of tokenizer underneath ``TextTokenizer``: compiled (tokenizers) and Python.

Both encode with special tokens off: nothing is added, and text that spells one stays text.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARALLELISM = "TOKENIZERS_PARALLELISM"
OURS = ""  # read by the library as "off", and never what a user would write


class Backend(ABC):
    """What a tokenizer must do for ``TextTokenizer``; texts are valid Unicode already."""

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str: ...

    @abstractmethod
    def piece(self, token: int) -> str | None:
        """The token as the vocabulary spells it; ``None`` where there is no such id."""

    @abstractmethod
    def vocabulary(self) -> dict[str, int]: ...

    @abstractmethod
    def is_byte_level(self) -> bool:
        """Whether pieces spell bytes in GPT-2's alphabet."""

    @abstractmethod
    def digest(self) -> str:
        """A hash equal for two tokenizers that encode alike."""

    @abstractmethod
    def save(self, folder: Path, end_of_text: str) -> None: ...


class CompiledBackend(Backend):
    """A ``tokenizers.Tokenizer``; ``wrapped`` is the transformers tokenizer it came from."""

    def __init__(
        self, tokenizer: Tokenizer, wrapped: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # flags below stay our own
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._wrapped = wrapped

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with parallel_tokenizers():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def piece(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(token)

    def vocabulary(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def is_byte_level(self) -> bool:
        decoder = json.loads(self._tokenizer.to_str())["decoder"] or {}
        kinds = [decoder, *decoder.get("decoders", [])]
        return any(kind.get("type") == "ByteLevel" for kind in kinds)

    def digest(self) -> str:
        content = json.loads(self._tokenizer.to_str())
        for unused in ("post_processor", "truncation", "padding"):  # transformers adds its own
            del content[unused]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path, end_of_text: str) -> None:
        if self._wrapped is not None:
            self._wrapped.save_pretrained(str(folder))
            return
        # The library's own writing turns what the disk refuses into a bare Exception.
        text = self._tokenizer.to_str(pretty=True)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end_of_text,
            "eos_token": end_of_text,
            "clean_up_tokenization_spaces": False,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


class PythonBackend(Backend):
    """A transformers tokenizer written in Python, such as ByT5's; one text at a time."""

    def __init__(self, wrapped: "PreTrainedTokenizerBase") -> None:
        self._wrapped = wrapped

    def encode(self, text: str) -> list[int]:
        return self._wrapped.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        text = self._wrapped.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def piece(self, token: int) -> str | None:
        if not 0 <= token < len(self._wrapped):
            return None
        piece = self._wrapped.convert_ids_to_tokens(token)
        assert isinstance(piece, str)
        return piece

    def vocabulary(self) -> dict[str, int]:
        return self._wrapped.get_vocab()

    def is_byte_level(self) -> bool:
        return False

    def digest(self) -> str:
        rows = [type(self._wrapped).__name__, *sorted(self.vocabulary().items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def save(self, folder: Path, end_of_text: str) -> None:
        self._wrapped.save_pretrained(str(folder))


@contextmanager
def parallel_tokenizers() -> Iterator[None]:
    """All cores for the tokenizers library, and afterwards none, unless the user decided.

    Deciding it keeps a later fork from printing the library's warning; off, because threads that
    the parent started are missing in a forked child, where a parallel call would wait for ever.
    """
    if os.environ.get(PARALLELISM, OURS) != OURS or os.getpid() != _threaded_process():
        yield
        return
    os.environ[PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[PARALLELISM] = OURS


@cache
def _threaded_process() -> int:
    """The process that first asked for threads; a forked child inherits the answer."""
    return os.getpid()
