"""Tokenised documents on disk, memory-mapped: written once, whole or not at all.

A store is a folder with, per split, one flat file of token ids (uint16 where the vocabulary fits,
else uint32), the documents' edges, byte counts and domains, and a meta.json that lists every
file's size, so a truncated one is found. Reading costs the pages touched.
"""

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from pellucid.data.disk import sync
from pellucid.data.document import Document
from pellucid.data.tokenizer import TextTokenizer

FORMAT = 1
META = "meta.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The documents of one split: document i holds ``tokens[start[i] : start[i + 1]]``.

    ``end_of_text`` is not among the tokens; batches place it before each document. ``num_bytes``
    counts a document's UTF-8 bytes, ``domain`` indexes ``Corpus.domains``.
    """

    tokens: UInt[np.ndarray, " tokens"]
    start: Int[np.ndarray, " edges"]
    num_bytes: Int[np.ndarray, " documents"]
    domain: Int[np.ndarray, " documents"]
    ids: Sequence[str]
    end_of_text: int

    @property
    def num_documents(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int[np.ndarray, " documents"]:
        """Tokens per document."""
        return np.diff(self.start)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Two splits under one tokenizer; ``identity`` names the content, tokenizer and reading."""

    tokenizer: TextTokenizer
    domains: tuple[str, ...]
    train: Split
    validation: Split
    identity: str


class SplitWriter:
    """Appends tokenised documents to one split's files; domains are indexed as they appear."""

    def __init__(self, folder: Path, split: str, domains: dict[str, int], wide: bool) -> None:
        self._folder = folder
        self._split = split
        self._domains = domains
        self._type = np.uint32 if wide else np.uint16
        self._handle = (folder / f"{split}.tokens").open("wb")
        self._start = array("q", [0])
        self._num_bytes = array("q")
        self._domain = array("q")
        self._ids: list[str] = []
        self.documents: Counter[str] = Counter()

    def add(self, document: Document, tokens: Sequence[int]) -> None:
        """Append one document; one without tokens has nothing to learn from and is left out."""
        if not tokens:
            return
        self._handle.write(np.array(tokens, dtype=self._type).tobytes())
        self._start.append(self._start[-1] + len(tokens))
        self._num_bytes.append(len(document.text.encode()))
        self._domain.append(self._domains.setdefault(document.domain, len(self._domains)))
        self._ids.append(document.id)
        self.documents[document.domain] += 1

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def finish(self) -> None:
        """Write the tables, once both splits have all their domains, in alphabetical order."""
        ranks = {name: rank for rank, name in enumerate(sorted(self._domains))}
        rank_of = np.array([ranks[name] for name in self._domains], dtype=np.int64)
        tables = {
            "start": np.array(self._start, dtype=np.int64),
            "num_bytes": np.array(self._num_bytes, dtype=np.int64),
            "domain": rank_of[np.array(self._domain, dtype=np.int64)],
        }
        for name, table in tables.items():
            np.save(self._folder / f"{self._split}.{name}.npy", table)
        ids = json.dumps(self._ids, ensure_ascii=False)
        (self._folder / f"{self._split}.ids.json").write_text(ids, encoding="utf-8")


def write_meta(folder: Path, identity: str, domains: Sequence[str], wide: bool) -> None:
    """Seal a store: what it is and how long each of its files must be."""
    meta = {
        "format": FORMAT,
        "identity": identity,
        "domains": sorted(domains),
        "type": "uint32" if wide else "uint16",
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


def open_store(folder: Path, identity: str, tokenizer: TextTokenizer) -> Corpus | None:
    """Memory-map the store of ``identity``; ``None`` where it or part of a file is missing."""
    try:
        meta: Any = json.loads((folder / META).read_text(encoding="utf-8"))
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != META}
    except (OSError, ValueError):
        return None
    if not isinstance(meta, dict) or meta.get("files") != sizes:
        return None
    if (meta.get("format"), meta.get("identity")) != (FORMAT, identity):
        return None
    train, validation = (
        _open_split(folder, split, meta["type"], tokenizer.end_of_text) for split in SPLITS
    )
    return Corpus(
        tokenizer=tokenizer,
        domains=tuple(meta["domains"]),
        train=train,
        validation=validation,
        identity=identity,
    )


def _open_split(folder: Path, split: str, kind: str, end_of_text: int) -> Split:
    tables = {
        name: np.load(folder / f"{split}.{name}.npy") for name in ("start", "num_bytes", "domain")
    }
    return Split(
        tokens=np.memmap(folder / f"{split}.tokens", dtype=kind, mode="r"),
        ids=json.loads((folder / f"{split}.ids.json").read_text(encoding="utf-8")),
        end_of_text=end_of_text,
        **tables,
    )


@contextmanager
def replacing(folder: Path, whole: Callable[[], bool]) -> Iterator[Path]:
    """A folder to fill that becomes ``folder`` at the end, on the disk for good, or vanishes.

    It vanishes too where ``whole()`` says that another process has put a good one there meanwhile.
    What a killed process left behind under the same name is removed first.
    """
    parent = folder.parent
    created = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    for abandoned in parent.glob(f".{folder.name}.*"):
        if not _is_another(int(abandoned.suffix[1:])):
            shutil.rmtree(abandoned)
    aside = parent / f".{folder.name}.{os.getpid()}"
    aside.mkdir()
    try:
        yield aside
        for file in (*aside.iterdir(), aside):
            sync(file)
        _take_place(aside, folder, whole)
        sync(parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if created and not any(parent.iterdir()):
            parent.rmdir()
        raise


def _take_place(aside: Path, folder: Path, whole: Callable[[], bool]) -> None:
    try:
        if not whole():
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            return
    except OSError:
        # Renamed into the gap by the other process.
        if not whole():
            raise
    shutil.rmtree(aside)


def _is_another(process: int) -> bool:
    """Whether a process of this number runs that is not the present one."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
