"""Dictionaries out to the formats of other tools, and back into run folders.

An imported dictionary lies in a folder like a fitted one, so whatever loads those loads it; beside
it ``provenance.json`` keeps the foreign config whole.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pellucid.core.config import read_json
from pellucid.core.errors import ConfigError, nearest
from pellucid.data.disk import write_atomically
from pellucid.interop import CONVERTERS, Converter, Imported, ReadOptions, WriteOptions
from pellucid.recipes.fit_folder import (
    DictionaryRecord,
    load_dictionary,
    read_record,
    write_record,
)
from pellucid.recipes.folder import RunSummary, commit, new_folder
from pellucid.train.checkpoint import Checkpoint, save_checkpoint, weights

SCHEMA = 1
KIND = "import"


def converter(name: str) -> Converter:
    """The converter of a format; an unknown one is a ``ConfigError`` with the nearest."""
    found = {one.name: one for one in CONVERTERS}
    if name not in found:
        raise ConfigError(f"format {name!r}: {nearest(name, found)}")
    return found[name]


def export_dictionaries(
    folders: Sequence[Path], format: str, out: Path, options: WriteOptions
) -> tuple[str, ...]:
    """Write dictionaries in a foreign format; returns what the user should know.

    Errors: a ``RunError`` for what is no dictionary, an ``InteropError`` for a form that the format
    cannot hold; nothing is written then.
    """
    chosen = converter(format)
    if chosen.write is None:
        raise ConfigError(f"format {format!r}: can be read only")
    models = [read_record(folder).model for folder in folders]
    coders = tuple(load_dictionary(folder) for folder in folders)
    return chosen.write(coders, out, replace(options, model=models[0]))


def import_dictionaries(
    source: Path,
    format: str,
    run: Path,
    options: ReadOptions,
    *,
    command: list[str],
    overwrite: bool,
) -> tuple[Imported, ...]:
    """Read every dictionary of a foreign folder into ``run``, one folder each."""
    found = converter(format).read(source, options)
    revision, dirty = commit()
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": command,
        "commit": revision,
        "dirty": dirty,
        "format": format,
        "dictionaries": [one.coder.spec.name for one in found],
    }
    with new_folder(run, overwrite=overwrite):
        for one in found:
            _keep(run / one.coder.spec.name, one)
        write_atomically(run / "run.json", json.dumps(record, indent=1) + "\n")
    return found


def _keep(folder: Path, imported: Imported) -> None:
    coder, spec = imported.coder, imported.coder.spec
    record = DictionaryRecord(
        name=spec.name,
        reads=str(spec.reads),
        writes=str(spec.writes),
        d_in=spec.d_in,
        d_out=spec.d_out,
        seed=0,
        coder=coder.config,
        model=imported.model,
    )
    write_record(folder, record)
    provenance = json.dumps(imported.provenance, indent=1) + "\n"
    write_atomically(folder / "provenance.json", provenance)
    state = Checkpoint(model=weights(coder), optimizer={}, state={"metrics_bytes": 0})
    save_checkpoint(folder, 0, state, keep=1)


def summarise_import(run: Path) -> list[RunSummary]:
    """A row of a listing for each dictionary that was read from a foreign folder."""
    record = read_json(run / "run.json")
    return [
        RunSummary(
            name=str(run / name),
            recipe=f"{name} from {record['format']}",
            step=0,
            steps=0,
            tokens=0,
            bits_per_byte=None,
        )
        for name in record["dictionaries"]
    ]
