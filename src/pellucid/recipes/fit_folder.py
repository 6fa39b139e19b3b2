"""The folder of a run of fits: one subfolder per dictionary, each resumable and loadable alone.

run.json                       resolved config, command line, schema version
NAME/dictionary.json           parts, sites, widths, the model read, and the final figures
NAME/metrics.jsonl             one line per logged step
NAME/checkpoints/, NAME/latest see ``train/checkpoint.py``
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pellucid.core.config import from_dict, read_json, to_dict
from pellucid.core.errors import RunError
from pellucid.core.unit import Site
from pellucid.data.disk import write_atomically
from pellucid.dictionaries import Coder, CoderConfig, build_coder
from pellucid.recipes.dictionary import FitRun
from pellucid.recipes.folder import RunSummary, commit, is_run, kind_of, machine, new_folder
from pellucid.train.checkpoint import load_checkpoint, load_weights, step_of

SCHEMA = 1
KIND = "fit"


@dataclass(frozen=True, kw_only=True)
class DictionaryRecord:
    """What ``dictionary.json`` holds: enough to build the dictionary and to tell where it is from.

    ``model`` identifies the language model, ``figures`` are the final ones by name, and
    ``missing`` says of each figure that could not be measured why.
    """

    schema: int = SCHEMA
    kind: str = "dictionary"
    name: str
    reads: str
    writes: str
    d_in: int
    d_out: int
    seed: int
    coder: CoderConfig
    model: dict[str, str]
    figures: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def build(self) -> Coder:
        """The dictionary with its initial weights."""
        return build_coder(
            self.coder,
            name=self.name,
            reads=Site.parse(self.reads),
            writes=Site.parse(self.writes),
            d_in=self.d_in,
            d_out=self.d_out,
            seed=self.seed,
        )


def create_fit(run: Path, config: FitRun, *, command: list[str], overwrite: bool) -> None:
    """Make a new run folder; an existing one is a ``RunError`` unless it is to be replaced."""
    revision, dirty = commit()
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": command,
        "commit": revision,
        "dirty": dirty,
        "machine": machine(),
        "config": to_dict(config),
    }
    with new_folder(run, overwrite=overwrite):
        write_atomically(run / "run.json", json.dumps(record, indent=1) + "\n")


def is_fit(run: Path) -> bool:
    """Whether a folder holds a run of fits."""
    return is_run(run) and kind_of(run) == KIND


def read_fit(run: Path) -> FitRun:
    """The config of a run of fits."""
    path = run / "run.json"
    if not path.is_file():
        raise RunError(f"{run}: not a run; fit one with: pellucid fit SOURCE --run {run}")
    record = read_json(path)
    fields = record if isinstance(record, dict) else {}
    schema = fields.get("schema")
    if fields.get("kind") != KIND or not isinstance(schema, int) or "config" not in fields:
        raise RunError(f"{path}: expected a run of fits, found {fields.get('kind')!r}")
    if schema > SCHEMA:
        raise RunError(
            f"{path}: written in schema {schema}, this version reads up to {SCHEMA}; "
            "upgrade pellucid"
        )
    return from_dict(FitRun, fields["config"], where=str(path))


def write_record(folder: Path, record: DictionaryRecord) -> None:
    """Write ``dictionary.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(record), indent=1) + "\n"
    write_atomically(folder / "dictionary.json", text)


def read_record(folder: Path) -> DictionaryRecord:
    """Read ``dictionary.json``; a folder without one is a ``RunError``."""
    path = folder / "dictionary.json"
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/dictionary.json"))
        hint = f"name one of its dictionaries: {', '.join(inside)}" if inside else "fit one first"
        raise RunError(f"{folder}: not a dictionary; {hint}")
    record = from_dict(DictionaryRecord, read_json(path), where=str(path))
    if record.schema > SCHEMA:
        raise RunError(
            f"{path}: written in schema {record.schema}, this version reads up to {SCHEMA}; "
            "upgrade pellucid"
        )
    return record


def load_dictionary(folder: Path, *, device: str = "cpu") -> Coder:
    """The fitted dictionary of the newest checkpoint, verified, in evaluation mode."""
    record = read_record(folder)
    coder = record.build()
    load_weights(coder, load_checkpoint(folder))
    return coder.to(device).eval()


def with_figures(
    record: DictionaryRecord, figures: Mapping[str, float], missing: Mapping[str, str]
) -> DictionaryRecord:
    """The record with the final figures."""
    return replace(record, figures=dict(figures), missing=dict(missing))


def final_figures(run: Path) -> dict[str, dict[str, float]]:
    """The final figures of every dictionary of a run, by its name."""
    return {fit.name: read_record(run / fit.name).figures for fit in read_fit(run).fits}


def summarise_fit(run: Path) -> list[RunSummary]:
    """How far each dictionary of a run has come."""
    config = read_fit(run)
    found: list[RunSummary] = []
    for fit in config.fits:
        step = step_of(run / fit.name)
        sites = fit.reads if fit.reads == fit.writes else f"{fit.reads} to {fit.writes}"
        found.append(
            RunSummary(
                name=str(run / fit.name),
                recipe=f"{fit.name} on {sites}",
                step=step,
                steps=config.steps,
                tokens=step * config.batch,
                bits_per_byte=None,
            )
        )
    return found
