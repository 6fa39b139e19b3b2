"""Documents from any source as one stream, and a fingerprint of what they are made from."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pellucid.core.errors import DataError
from pellucid.data import embedded, hub
from pellucid.data.balance import balanced
from pellucid.data.document import DataConfig, Document
from pellucid.data.files import list_files, list_places, read_documents, relative_name
from pellucid.data.places import unnamed_place

__all__ = ["DataConfig", "Document", "fingerprint", "open_corpus"]

VERSION = 1  # raise it when the same files give other documents
READING = " 2"  # the same for .txt files and files whose path names a split


def open_corpus(config: DataConfig) -> Iterator[Document]:
    """The documents of ``config.source``, one at a time, in an order that only they decide.

    Blank texts and the test split are left out. Errors: ``DataError`` for what cannot be read,
    ``MissingExtra`` for a format whose package is not installed.
    """
    if config.source == "embedded":
        return embedded.embedded_documents(config)
    if config.source.startswith(hub.PREFIX):
        return hub.hub_documents(config)
    source = Path(config.source)
    files = list_files(source)
    places = list_places(source, files)
    if config.max_bytes is None:
        return chain.from_iterable(
            read_documents(file, source, config, places[file]) for file in files
        )
    files.sort(key=lambda file: file.stat().st_size)
    streams = [read_documents(file, source, config, places[file]) for file in files]
    return balanced(streams, config.max_bytes, validation_share=config.validation_share)


def fingerprint(config: DataConfig) -> str:
    """A hash of the source's content and of the fields that decide what is read from it."""
    reading = dataclasses.asdict(config)
    for other in ("source", "tokenizer", "mask_documents", "lossy_tokenizer"):
        del reading[other]
    parts = [str(VERSION), json.dumps(reading, sort_keys=True), _content(config.source)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _content(source: str) -> str:
    if source == "embedded":
        return embedded.fingerprint()
    if source.startswith(hub.PREFIX):
        return hub.hub_fingerprint(source)
    root = Path(source)
    lines: list[str] = []
    files = list_files(root)
    places = list_places(root, files)
    for file in files:
        try:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        name = relative_name(file, root)
        changed = name.endswith(".txt") or places[file] != unnamed_place(name)
        lines.append(f"{digest} {name}{READING if changed else ''}")
    return "\n".join(lines)
