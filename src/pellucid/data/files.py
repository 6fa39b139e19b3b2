"""Documents from local files: .jsonl, .jsonl.zst, .parquet and .txt, read as a stream.

A domain is the record's own, else the folder directly under the source, else the file's stem; a
split is the record's own, else the one that its path names (``places``). A .txt file becomes
pieces of at most 8,000 characters, each a document of its own with the id FILE#NUMBER. Memory is
one block, one line or one parquet row group, whatever the file's size.

The pieces of one .txt file continue one another, so they are held out in runs of up to 16: a
held-out piece between two that train would be judged on text that was half seen. Run r of a file
is held out where ⌊(r + 1) · share + φ⌋ > ⌊r · share + φ⌋ with φ in [0, 1) from the file's name:
``validation_share`` of the runs, evenly spaced. Runs are short enough for two of a file to be held
out, where it has the pieces.
"""

import json
from collections.abc import Iterator
from math import floor
from pathlib import Path
from typing import Any

import zstandard

from pellucid.core.errors import DataError, MissingExtra
from pellucid.data.document import DataConfig, Document
from pellucid.data.places import SUFFIXES, Place, places_of, unnamed_place
from pellucid.data.records import to_document
from pellucid.data.text import PIECE_CHARACTERS, cut_pieces, one_line, unit_hash

LONGEST_RUN = 16  # pieces of a .txt file that go into one split together
BLOCK_BYTES = 1 << 20
PARQUET_ROWS = 256
WINDOW_BYTES = 1 << 31  # what `zstd --long=31` writes, the most the format's tools produce


def list_files(source: Path) -> list[Path]:
    """The readable files of a folder by name, or the one file; hidden ones are left out."""
    try:
        return _list_files(source)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or one_line(error)}") from None


def _list_files(source: Path) -> list[Path]:
    if source.is_file():
        if source.name.endswith(SUFFIXES):
            return [source]
        raise DataError(f"{source}: expected a file ending in {', '.join(SUFFIXES)}")
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder; give a path, embedded, or hub:NAME")
    found = [path for path in source.rglob("*") if path.name.endswith(SUFFIXES)]
    files = [path for path in found if path.is_file() and not _hidden(path, source)]
    if not files:
        raise DataError(f"{source}: expected files ending in {', '.join(SUFFIXES)}, found none")
    return sorted(files, key=lambda path: relative_name(path, source))


def relative_name(file: Path, source: Path) -> str:
    """The file's name below the source, the same on every machine."""
    return file.name if file == source else file.relative_to(source).as_posix()


def list_places(source: Path, files: list[Path]) -> dict[Path, Place]:
    """What the path of each file of ``source`` says; see ``places``."""
    if files == [source]:
        return {source: unnamed_place(source.name)}
    named = {relative_name(file, source): file for file in files}
    return {named[name]: place for name, place in places_of(named).items()}


def read_documents(
    file: Path, source: Path, config: DataConfig, place: Place
) -> Iterator[Document]:
    """The documents of one file of ``source``; any fault is a ``DataError`` naming its line."""
    name = relative_name(file, source)
    in_pieces = file.name.endswith(".txt")
    try:
        size = file.stat().st_size
        for number, record in _records(file, config):
            split = place.split
            if in_pieces and split is None:
                held_out = in_held_out_run(name, number, size, config.validation_share)
                split = "validation" if held_out else "train"
            document = to_document(
                record,
                config,
                where=f"{file}:{number}",
                default_id=f"{name}#{number}" if in_pieces else f"{name}:{number}",
                domain=place.domain,
                split=split,
            )
            if document is not None:
                yield document
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or one_line(error)}") from None


def in_held_out_run(name: str, number: int, size: int, share: float) -> bool:
    """Whether a piece, counted from 1, of the .txt file ``name`` of ``size`` bytes is held out."""
    # Two runs of the file are held out, or one where every letter takes two bytes.
    length = min(LONGEST_RUN, max(1, int(size // PIECE_CHARACTERS * share / 2)))
    run, phase = (number - 1) // length, unit_hash(name)
    return floor((run + 1) * share + phase) > floor(run * share + phase)


def _records(file: Path, config: DataConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.name.endswith(".parquet"):
        yield from _parquet(file, config)
    elif file.name.endswith(".txt"):
        for number, piece in enumerate(cut_pieces(line for _, line in _lines(file)), start=1):
            yield number, {config.text_field: piece}
    else:
        for number, line in _lines(file):
            if line.strip():
                yield number, _parse(line, f"{file}:{number}")


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected one JSON object a line, found {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected one JSON object a line, found {line.strip()[:40]!r}")
    return record


def _parquet(file: Path, config: DataConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "data", f"{file}: reading .parquet") from None
    wanted = ("id", config.text_field, config.domain_field, config.split_field)
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            columns = [name for name in names if name in wanted]
            if config.text_field not in columns:
                raise DataError(
                    f"{file}: expected the column {config.text_field!r}, found the columns "
                    f"{', '.join(names)}; set text_field to the one that holds the text"
                )
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected parquet, found {one_line(error)}") from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file, ends included, decoded strictly."""
    blocks = _decompress(file) if file.name.endswith(".zst") else _blocks(file)
    for number, line in enumerate(_split_lines(blocks), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}:{number}: expected UTF-8, found the byte 0x{line[error.start]:02x} at "
                f"column {error.start + 1}; convert the file to UTF-8"
            ) from None


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for line in whole:
            held += (line, b"\n")
            yield b"".join(held)
            held.clear()
        held.append(rest)
    if last := b"".join(held):
        yield last


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            yield block


def _decompress(file: Path) -> Iterator[bytes]:
    """The bytes of all frames of a .zst file; one that ends inside a frame is an error."""
    library = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    frame = library.decompressobj()
    try:
        for block in _blocks(file):
            while block:
                if frame.eof:
                    frame = library.decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data
    except zstandard.ZstdError as error:
        raise DataError(f"{file}: expected zstd data, found {one_line(error)}") from None
    if not frame.eof:
        raise DataError(f"{file}: the zstd data ends early; the file is truncated, copy it again")


def _hidden(path: Path, source: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(source).parts)
