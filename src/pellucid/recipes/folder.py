"""The run folder: what a run was told, where it ran, and how far it has come.

run.json           resolved config, command line, schema version
environment.json   commit, dirty flag, package versions, device, threads, seed
metrics.jsonl      step, tokens, seconds, name: number
log.jsonl          events and warnings
checkpoints/       see ``train/checkpoint.py``;  latest names the newest
config.json model.safetensors tokenizer*.json      the newest weights under Hugging Face names
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pellucid.core.config import from_dict, read_json, to_dict
from pellucid.core.errors import RunError
from pellucid.data.disk import write_atomically
from pellucid.data.text import one_line
from pellucid.recipes.language import LanguageRun
from pellucid.train.checkpoint import step_of

SCHEMA = 1
FIELDS = ("schema", "kind", "recipe", "command", "config")
PACKAGES = ("pellucid", "torch", "numpy", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run in a listing."""

    name: str
    recipe: str
    step: int
    steps: int
    tokens: int
    bits_per_byte: float | None


def check_new(run: Path, *, overwrite: bool) -> None:
    """Whether a run folder may be made here; if not, a ``RunError`` says what to do instead."""
    taken = run.exists() and (not run.is_dir() or any(run.iterdir()))
    if taken and not is_run(run):
        raise RunError(
            f"{run}: exists already and is not a run, so it is left alone; choose another --run, "
            "or remove it first"
        )
    if taken and not overwrite:
        raise RunError(
            f"{run}: exists already; choose another --run, add --overwrite to replace it, or "
            f"continue it with: pellucid resume {shlex.quote(str(run))}"
        )


@contextmanager
def new_folder(run: Path, *, overwrite: bool) -> Iterator[None]:
    """An empty run folder to write into, or none where the disk refuses: then a ``RunError``."""
    check_new(run, overwrite=overwrite)
    if run.exists():
        shutil.rmtree(run)
    try:
        run.mkdir(parents=True)
        yield
    except OSError as error:
        shutil.rmtree(run, ignore_errors=True)
        raise RunError(
            f"{run}: cannot be made: {error.strerror or one_line(error)}; free some space or "
            "choose another --run"
        ) from None


def create_run(
    run: Path, config: LanguageRun, *, recipe: str, command: list[str], overwrite: bool
) -> None:
    """Make a new run folder; an existing one is a ``RunError`` unless it is to be replaced."""
    environment = json.dumps(_environment(config), indent=1) + "\n"
    with new_folder(run, overwrite=overwrite):
        write_run(run, config, recipe=recipe, command=command)
        write_atomically(run / "environment.json", environment)


def write_run(run: Path, config: LanguageRun, *, recipe: str, command: list[str]) -> None:
    """Write ``run.json``."""
    record = {
        "schema": SCHEMA,
        "kind": "language",
        "recipe": recipe,
        "command": command,
        "config": to_dict(config),
    }
    write_atomically(run / "run.json", json.dumps(record, indent=1) + "\n")


def is_run(run: Path) -> bool:
    """Whether a folder holds a run."""
    return (run / "run.json").is_file()


def kind_of(run: Path) -> str | None:
    """What a run folder holds: ``language``, ``fit`` or ``import``."""
    record = read_json(run / "run.json")
    return record.get("kind") if isinstance(record, dict) else None


def read_run(run: Path) -> tuple[LanguageRun, dict[str, Any]]:
    """The config of a run and the rest of its ``run.json``."""
    if not is_run(run):
        found = "holds no run.json" if run.exists() else "does not exist"
        raise RunError(f"{run}: not a run: it {found}; list the runs with: pellucid runs FOLDER")
    record = read_json(run / "run.json")
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RunError(
            f"{run / 'run.json'}: written in schema {schema}, this version reads up to "
            f"{SCHEMA}; upgrade pellucid"
        )
    if not isinstance(schema, int) or not set(FIELDS) <= record.keys():
        raise RunError(
            f"{run / 'run.json'}: expected a run's record with the fields {', '.join(FIELDS)}"
        )
    config = from_dict(LanguageRun, record.pop("config"), where=str(run / "run.json"))
    return config, record


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Every complete line of ``metrics.jsonl``; one that is no record is a ``RunError``."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = (line for line in lines if line.endswith("\n"))
    return [_metrics_line(line, f"{path}:{number}") for number, line in enumerate(whole, start=1)]


def _metrics_line(line: str, where: str) -> dict[str, float]:
    try:
        record = json.loads(line, parse_int=float)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise RunError(
            f"{where}: expected one JSON object a line, found {line.strip()[:40]!r}; remove that "
            "line"
        )
    return record


def cut_metrics(run: Path, size: int) -> None:
    """Take away what stands behind the first ``size`` bytes of ``metrics.jsonl``, and half lines.

    A file that has lost its end already is only rid of its last half line.
    """
    path = run / "metrics.jsonl"
    if path.exists():
        os.truncate(path, path.read_bytes()[:size].rfind(b"\n") + 1)


def summarise(run: Path) -> RunSummary:
    """How far a run has come, from its newest checkpoint and its metrics."""
    config, record = read_run(run)
    step = step_of(run)
    scored = [m["val/bits_per_byte"] for m in read_metrics(run) if "val/bits_per_byte" in m]
    return RunSummary(
        name=str(run),
        recipe=record["recipe"],
        step=step,
        steps=config.steps,
        tokens=step * config.tokens_per_step,
        bits_per_byte=scored[-1] if scored else None,
    )


def log_event(run: Path, event: str, fields: Mapping[str, Any]) -> None:
    """Append one event to ``log.jsonl``."""
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "event": event, **fields})
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def commit() -> tuple[str | None, bool]:
    """The commit of the checkout this package runs from, if any, and whether it is dirty.

    A package installed into an environment inside somebody's checkout is not that checkout's.
    """
    here = Path(__file__)

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args],
                cwd=here.parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None, False
    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))


def machine() -> str:
    """The processor and its cores, for the record beside a figure."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def _environment(config: LanguageRun) -> dict[str, Any]:
    revision, dirty = commit()
    return {
        "commit": revision,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "device": config.device,
        "seed": config.seed,
    }
