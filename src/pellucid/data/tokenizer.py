"""Text to token ids and back: byte-level BPE trained here, or any Hugging Face tokenizer.

Byte-level BPE (Sennrich et al., Neural Machine Translation of Rare Words with Subword Units,
1508.07909, on bytes as in GPT-2) starts from the 256 bytes and merges the most frequent adjacent
pair until the vocabulary is full, so every text has an encoding and decoding gives it back. Cost:
O(n log n) a word to encode. Text is data: where it spells a special token it is encoded as
ordinary characters, so that id is placed by pellucid alone.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pellucid.core.errors import ConfigError, DataError
from pellucid.data.backends import (
    Backend,
    CompiledBackend,
    PythonBackend,
    parallel_tokenizers,
)
from pellucid.data.document import Document
from pellucid.data.text import mend_surrogates, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
END_FIELDS = ("eos_token", "bos_token", "sep_token", "cls_token")
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<s>", "<bos>", "[SEP]")
SAMPLE_BYTES = 32 << 20
LEAST_VOCABULARY = 257  # one token per byte and the end of text
PREFIX = "hub:"
# Words with one leading mark or space, numbers of up to three digits, runs of marks, line ends and
# other white space: the split of the cl100k vocabulary. No merge crosses a boundary.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """A tokenizer with one special role: ``end_of_text``, the id that starts every document.

    ``vocab_size`` is one more than the largest id; ``identity`` a hash of all that decides an
    encoding. Errors: ``DataError`` where text can spell the end of text.
    """

    def __init__(self, backend: Backend, end_of_text: int) -> None:
        self.end_of_text = end_of_text
        self._backend = backend
        self._byte_of = _byte_alphabet() if backend.is_byte_level() else {}
        self.vocab_size = 1 + max(backend.vocabulary().values())
        self.identity = hashlib.sha256(f"{backend.digest()} {end_of_text}".encode()).hexdigest()
        spelled = backend.piece(end_of_text)
        if end_of_text in self.encode(f"a{spelled}b"):
            raise DataError(
                f"tokenizer: text that spells {spelled!r} is encoded as the end of text; mark it "
                "as a special token in tokenizer.json"
            )

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, nothing added and no special token recognised."""
        return self._backend.encode(mend_surrogates(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of every text, on all cores where the backend can."""
        return self._backend.encode_batch([mend_surrogates(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens spelled out; broken UTF-8 becomes U+FFFD."""
        return self._backend.decode(ids)

    def token_text(self, token: int) -> str:
        """One token as it stands in text; bytes that are no whole character as ``\\xe2``."""
        piece = self._backend.piece(token)
        if piece is None:
            return f"⟨{token}⟩"
        if any(character not in self._byte_of for character in piece):
            return piece.replace("▁", " ")
        raw = bytes(self._byte_of[character] for character in piece)
        return raw.decode("utf-8", "backslashreplace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers loads too."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(folder, self._backend.piece(self.end_of_text) or END_OF_TEXT)


def fit_bpe(texts: Sequence[str], vocab_size: int) -> TextTokenizer:
    """Byte-level BPE from texts; too few of them for ``vocab_size`` give fewer tokens.

    Errors: a vocabulary below 257, no text.
    """
    if vocab_size < LEAST_VOCABULARY:
        raise ConfigError(
            f"vocab_size = {vocab_size}, expected at least {LEAST_VOCABULARY}: every byte has a "
            "token and the end of text one more"
        )
    if not texts:
        raise DataError("tokenizer: found no training text to learn from; check the corpus")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with parallel_tokenizers():
        tokenizer.train_from_iterator(texts, trainer)
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_text is not None
    return TextTokenizer(CompiledBackend(tokenizer), end_of_text)


def balanced_sample(documents: Iterable[Document], max_bytes: int = SAMPLE_BYTES) -> list[str]:
    """Training texts of at most ``max_bytes``: each domain's first ones, up to a common level.

    One pass: while the sample is over its bound, the largest domain gives back its last document
    and takes no more, which lowers the level as domains appear. Its only one is cut instead.
    """
    texts: dict[str, list[tuple[str, int]]] = {}
    sizes: dict[str, int] = {}
    full: set[str] = set()
    for document in documents:
        domain = document.domain
        if document.split != "train" or domain in full:
            continue
        size = len(document.text.encode())
        texts.setdefault(domain, []).append((document.text, size))
        sizes[domain] = sizes.get(domain, 0) + size
        while sum(sizes.values()) > max_bytes:
            largest = max(sizes, key=lambda name: sizes[name])
            text, size = texts[largest].pop()
            if not texts[largest]:
                over = sum(sizes.values()) - max_bytes
                kept = text.encode()[: size - over].decode(errors="ignore")
                texts[largest].append((kept, len(kept.encode())))
                size -= texts[largest][0][1]
            sizes[largest] -= size
            full.add(largest)
    return [text for domain in sorted(texts) for text, size in texts[domain] if size]


def load_tokenizer(name: str | Path) -> TextTokenizer:
    """A tokenizer.json, a folder that holds one, or ``hub:NAME`` for transformers to find.

    A folder without tokenizer.json goes to transformers too. Errors: ``DataError`` where nothing
    is found, it cannot be read, or it has no token that could start a document.
    """
    if str(name).startswith(PREFIX):
        return _from_transformers(str(name).removeprefix(PREFIX))
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        return _from_transformers(str(path))
    if not file.is_file():
        raise DataError(f"{name}: no such tokenizer; give a tokenizer.json, its folder or hub:NAME")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file}: expected a tokenizer, found {one_line(error)}") from None
    ends = [*_configured_ends(file.parent / "tokenizer_config.json"), *KNOWN_ENDS]
    found = (tokenizer.token_to_id(end) for end in ends)
    end_of_text = next((token for token in found if token is not None), None)
    if end_of_text is None:
        raise DataError(
            f"{file}: has no end-of-text token; expected one of {', '.join(KNOWN_ENDS)}"
        )
    return TextTokenizer(CompiledBackend(tokenizer), end_of_text)


def _from_transformers(name: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # not found, no network, a missing package: each its own kind
        raise DataError(f"{name}: the tokenizer cannot be loaded: {one_line(error)}") from None
    fields = (getattr(wrapped, f"{field}_id") for field in END_FIELDS)
    end_of_text = next((token for token in fields if token is not None), None)
    if end_of_text is None:
        raise DataError(f"{name}: the tokenizer has no end-of-text token; choose another")
    return TextTokenizer(_backend(wrapped), end_of_text)


def _backend(wrapped: "PreTrainedTokenizerBase") -> Backend:
    compiled = getattr(wrapped, "backend_tokenizer", None)
    if isinstance(compiled, Tokenizer):
        return CompiledBackend(compiled, wrapped)
    return PythonBackend(wrapped)


def _configured_ends(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: expected JSON, found {one_line(error)}") from None
    ends = [config.get(field) for field in END_FIELDS]
    return [end["content"] if isinstance(end, dict) else end for end in ends if end]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes spell themselves, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
