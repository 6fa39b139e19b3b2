"""What a finished cache holds: its origin, its shards and their checksums, in ``manifest.json``.

    manifest.json             this file, with a checksum of its own
    train.00000.rows.bin      token, document and position of each row of the shard, int32
    train.00000.site0.bin     its vectors at the first site, row after row; then site1, ...
    validation.00000.*.bin    the same for held-out text, in the order of that text
    heldout.bin               the held-out windows: [windows, (tokens, documents), context], int32

Numbers are little-endian; bfloat16 is kept as its 16 bits. File sizes follow from the rows, so a
truncated file shows without reading it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError, DataError
from pellucid.data.activations.config import Origin
from pellucid.data.activations.sealed import AGAIN, read_sealed, write_sealed
from pellucid.data.disk import checksum

MANIFEST = "manifest.json"
HELDOUT = "heldout.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows that lie together; ``sha256`` of its files: the rows' index, then every site."""

    rows: int
    sha256: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFile:
    """The held-out windows, and the UTF-8 bytes of the documents they hold whole."""

    windows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CacheManifest:
    """All there is to know about a cache. ``nonfinite`` counts per site rows with NaN or inf."""

    origin: Origin
    nonfinite: dict[str, int]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    heldout: HeldOutFile

    @property
    def rows(self) -> int:
        """Training rows."""
        return sum(shard.rows for shard in self.train)

    @property
    def validation_rows(self) -> int:
        """Held-out rows."""
        return sum(shard.rows for shard in self.validation)

    @property
    def dropped(self) -> int:
        """Rows left out because they were not finite at some site."""
        config = self.origin.config
        return config.tokens + config.validation_tokens - self.rows - self.validation_rows


def shard_files(origin: Origin, split: str, shard: int) -> tuple[str, ...]:
    """The names of one shard's files, in the order of the columns."""
    columns = ("rows", *(f"site{i}" for i in range(len(origin.config.sites))))
    return tuple(f"{split}.{shard:05d}.{column}.bin" for column in columns)


def write_manifest(out: Path, manifest: CacheManifest) -> None:
    """Make a cache of the folder."""
    write_sealed(out / MANIFEST, to_dict(manifest))


def read_manifest(out: Path) -> CacheManifest:
    """The manifest of a cache; missing, newer or altered, it is a ``DataError``."""
    path = out / MANIFEST
    try:
        return from_dict(CacheManifest, read_sealed(path), where=str(path))
    except ConfigError as error:
        raise DataError(f"{error}; {AGAIN}") from None


def verify_files(out: Path, manifest: CacheManifest, *, checksums: bool) -> None:
    """Compare every file with the manifest: its size, and its checksum where that is asked.

    Errors: a ``DataError`` names the first file that is missing, truncated or altered.
    """
    for path, size, expected in _expected(out, manifest):
        if not path.exists():
            raise DataError(f"{path}: no such file, though the manifest lists it; {AGAIN}")
        found = path.stat().st_size
        if found != size:
            raise DataError(
                f"{path}: truncated or altered: expected {size} bytes, found {found}; {AGAIN}"
            )
        if checksums and (digest := checksum(path)) != expected:
            raise DataError(
                f"{path}: altered: expected sha256 {expected[:12]}…, found {digest[:12]}…; {AGAIN}"
            )


def _expected(out: Path, manifest: CacheManifest) -> Iterator[tuple[Path, int, str]]:
    row_bytes = manifest.origin.layout.row_bytes
    for split, shards in (("validation", manifest.validation), ("train", manifest.train)):
        for number, shard in enumerate(shards):
            names = shard_files(manifest.origin, split, number)
            for name, width, expected in zip(names, row_bytes, shard.sha256, strict=True):
                yield out / name, shard.rows * width, expected
    heldout = manifest.heldout
    size = heldout.windows * 2 * manifest.origin.config.context * 4
    yield out / HELDOUT, size, heldout.sha256
