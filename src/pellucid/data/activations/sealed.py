"""JSON files that prove themselves whole: a format number and a checksum of their own values."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pellucid.core.config import read_json
from pellucid.core.errors import ConfigError, DataError
from pellucid.data.disk import write_atomically

FORMAT = 1
SEAL = "sha256"
AGAIN = "harvest it again with overwrite"


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a value with its seal, whole or not at all."""
    sealed = {"format": FORMAT, **value}
    write_atomically(path, json.dumps({**sealed, SEAL: _digest(sealed)}, indent=1) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """The value written; a missing, truncated, altered or newer file is a ``DataError``."""
    try:
        value = read_json(path)
    except ConfigError as error:
        raise DataError(f"{error}; {AGAIN}") from None
    found = value.get("format") if isinstance(value, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise DataError(
            f"{path}: written in format {found}, this version reads up to {FORMAT}; upgrade "
            "pellucid"
        )
    if found != FORMAT or value.pop(SEAL, None) != _digest(value):
        raise DataError(f"{path}: altered: its values do not have the checksum in it; {AGAIN}")
    del value["format"]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
