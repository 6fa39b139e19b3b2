"""A labelled document, and the config that says where documents come from."""

from dataclasses import dataclass
from typing import Literal

from pellucid.core.config import check_positive
from pellucid.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text with the domain it belongs to and the split it may be used in.

    ``text`` is valid Unicode: ``len(text.encode())`` is the count that bits per byte divides by.
    """

    id: str
    text: str
    domain: str
    split: Literal["train", "validation"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where documents come from and how they become tokens.

    ``source`` is ``embedded``, a folder or file of .jsonl, .jsonl.zst, .parquet and .txt, or
    ``hub:NAME[:CONFIG]``. A record has a text and may have an id, a domain and a split; else the
    folder directly below ``source``, or the file's name, is the domain, unless it is the name of a
    split (train, validation, valid, dev, test, ...): then it is that. Test text is never read. An
    id PARENT#NUMBER makes a document a piece of PARENT, as the pieces of a .txt file are.
    ``validation_share`` holds out documents that name no split, by a hash of their id, and pieces
    of a .txt file in runs. ``tokenizer`` is ``train``, a tokenizer.json or its folder, or
    ``hub:NAME``; one that does not give text back (lower case, unknown words) makes bits per byte
    too good and is refused unless ``lossy_tokenizer``. ``max_bytes`` bounds the text used, shared
    evenly between files and the domains they hold; ``validation_share`` of it is kept for
    validation text. ``mask_documents`` is for the model: attention stays within a document.
    """

    source: str = "embedded"
    tokenizer: str = "train"
    text_field: str = "text"
    domain_field: str = "domain"
    split_field: str = "split"
    validation_share: float = 0.04
    max_bytes: int | None = None
    mask_documents: bool = False
    lossy_tokenizer: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_share < 1.0:
            raise ConfigError(
                f"validation_share = {self.validation_share}, expected a share between 0 and 1; "
                "0.04 holds out one document in 25"
            )
        if self.max_bytes is not None:
            check_positive(self, "max_bytes")
