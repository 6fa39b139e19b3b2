"""Documents from ``hub:NAME[:CONFIG]``, streamed by the ``datasets`` library.

NAME is whatever that library opens, a dataset folder on this machine included. A split called
train or validation (or the usual short forms) is used as such and test is never read; where no
validation split exists, documents are held out by the hash of their id.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import DataError, MissingExtra
from pellucid.data.balance import bounded
from pellucid.data.document import DataConfig, Document
from pellucid.data.records import SPLITS, to_document
from pellucid.data.text import one_line

if TYPE_CHECKING:
    from datasets import DatasetBuilder

PREFIX = "hub:"


def hub_fingerprint(source: str) -> str:
    """A hash of the dataset's files: their content where local, else address and revision."""
    lines: list[str] = []
    for split, files in (_builder(source).config.data_files or {}).items():
        for file in map(str, files):
            path = Path(file)
            if path.is_file():
                with path.open("rb") as handle:
                    file = f"{path.name} {hashlib.file_digest(handle, 'sha256').hexdigest()}"
            lines.append(f"{split} {file}")
    return hashlib.sha256("\n".join([source, *lines]).encode()).hexdigest()


def hub_documents(config: DataConfig) -> Iterator[Document]:
    """The dataset's documents as a stream; whatever the library refuses is a ``DataError``."""
    builder = _builder(config.source)
    try:
        splits = builder.as_streaming_dataset()
    except Exception as error:  # as in _builder
        raise _refused(config.source, error) from None
    names = {str(name): SPLITS.get(str(name)) for name in splits}
    wanted = {name: kind for name, kind in names.items() if kind != "test"}
    if "validation" not in wanted.values():
        wanted = dict.fromkeys(wanted)  # one split to be divided by hash, whatever its name
    streams = [_split_documents(splits[n], config, n, kind) for n, kind in wanted.items()]
    if config.max_bytes is None:
        return chain.from_iterable(streams)
    kinds = list(wanted.values())
    held_out = kinds.count("validation")
    reserved = int(config.max_bytes * config.validation_share) if held_out else 0
    limits = [
        reserved // held_out
        if kind == "validation"
        else (config.max_bytes - reserved) // (len(kinds) - held_out)
        for kind in kinds
    ]
    shares = [config.validation_share if kind is None else None for kind in kinds]
    return chain.from_iterable(
        bounded(stream, limit, validation_share=share)
        for stream, limit, share in zip(streams, limits, shares)
    )


def _split_documents(
    rows: Iterable[Mapping[str, Any]], config: DataConfig, name: str, split: str | None
) -> Iterator[Document]:
    dataset, _, subset = config.source.removeprefix(PREFIX).partition(":")
    domain = subset or Path(dataset).name
    stream = enumerate(rows, start=1)
    while True:
        try:
            number, row = next(stream)
        except StopIteration:
            return
        except Exception as error:  # the library lets its backends' errors through
            raise DataError(f"{config.source}: {name} cannot be read: {one_line(error)}") from None
        place = f"{name}:{number}"
        document = to_document(
            row,
            config,
            where=f"{config.source}: {place}",
            default_id=place,
            domain=domain,
            split=split,
        )
        if document is not None:
            yield document


def _builder(source: str) -> "DatasetBuilder":
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "data", f"the source {source}") from None
    name, _, subset = source.removeprefix(PREFIX).partition(":")
    if not name:
        raise DataError(f"{source!r}: expected hub:NAME or hub:NAME:CONFIG")
    try:
        return datasets.load_dataset_builder(name, subset or None)
    except Exception as error:  # not found, no network, no such config: each its own kind
        raise _refused(source, error) from None


def _refused(source: str, error: Exception) -> DataError:
    return DataError(f"{source}: cannot be opened: {' '.join(str(error).split())[:300]}")
