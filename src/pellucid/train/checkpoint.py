"""Checkpoints: safetensors and JSON, written aside, synced, renamed; never a pickle.

    checkpoints/step_000000100/   model.safetensors  optimizer.safetensors  state.json
    latest                        the name of the newest complete checkpoint

A checkpoint exists under its name only once every byte of it is on disk, and ``latest`` moves only
after that, so a run killed at any instant leaves the previous checkpoint whole. ``state.json``
holds the checksums of the other two files.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pellucid.core.errors import CheckpointError

SCHEMA = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One complete checkpoint: its tensors by file and the JSON state of the run."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(run: Path, step: int, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write one checkpoint, move ``latest`` to it, and remove all but the newest ``keep``.

    Errors: a ``CheckpointError`` if the disk is full; the older checkpoints are then intact.
    """
    folder = run / "checkpoints" / f"step_{step:09d}"
    aside = folder.with_name(f".writing_{folder.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in ((MODEL, checkpoint.model), (OPTIMIZER, checkpoint.optimizer)):
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside / name)
            sync(aside / name)
        sums = {name: checksum(aside / name) for name in (MODEL, OPTIMIZER)}
        state = {**checkpoint.state, "schema": SCHEMA, "step": step, "sha256": sums}
        (aside / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        sync(aside / STATE)
        sync(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync(folder.parent)
        write_atomically(run / "latest", folder.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written ({_reason(error)}); the earlier "
            f"checkpoints are intact: free some space, then run: pellucid resume {run}"
        ) from None
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(run: Path, name: str | None = None) -> Checkpoint:
    """Read and verify one checkpoint, the newest by default.

    Errors: a ``CheckpointError`` naming the file for a missing, truncated or altered file, a newer
    format, or a pickle; it offers the previous checkpoint where there is one.
    """
    folder = _folder(run, name)
    state = _read_state(folder)
    if state.get("schema", 0) > SCHEMA:
        raise CheckpointError(
            f"{folder / STATE}: written in checkpoint format {state['schema']}, this version reads "
            f"up to {SCHEMA}; upgrade pellucid"
        )
    for file in (MODEL, OPTIMIZER):
        _verify(folder / file, state["sha256"].get(file), _offer(run, folder))
    return Checkpoint(
        model=load_file(folder / MODEL), optimizer=load_file(folder / OPTIMIZER), state=state
    )


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def newest_step(run: Path) -> int:
    """The step of the newest complete checkpoint, 0 if there is none."""
    found = list_checkpoints(run)
    return int(found[-1].name.removeprefix("step_")) if found else 0


def go_back(run: Path, name: str) -> None:
    """Make ``name`` the newest checkpoint: verify it, then remove the later ones."""
    load_checkpoint(run, name)
    write_atomically(run / "latest", name + "\n")
    for later in list_checkpoints(run):
        if later.name > name:
            shutil.rmtree(later)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state under the names of the parameters it belongs to, and torch's RNG."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {
        f"{names[id(p)]}:{key}": value
        for p, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    return {**tensors, "rng:torch": torch.get_rng_state()}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights, optimiser state and RNG back, in place."""
    load_weights(model, checkpoint)
    for group in optimizer.param_groups:
        group_params = {id(p): p for p in group["params"]}
        for name, p in model.named_parameters():
            if id(p) not in group_params:
                continue
            prefix = f"{name}:"
            optimizer.state[p] = {
                key.removeprefix(prefix): _like(key, value, p)
                for key, value in checkpoint.optimizer.items()
                if key.startswith(prefix)
            }
    torch.set_rng_state(checkpoint.optimizer["rng:torch"])


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor once: a tied embedding has its first name only."""
    unique: dict[int, str] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        unique.setdefault(tensor.data_ptr(), name)
    return {name: state[name] for name in state if unique[state[name].data_ptr()] == name}


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights into ``model``; names or shapes that differ are a ``CheckpointError``."""
    found, expected = checkpoint.model, weights(model)
    odd = sorted(set(found) ^ set(expected)) or [
        name for name in expected if found[name].shape != expected[name].shape
    ]
    if odd:
        raise CheckpointError(
            f"{MODEL}: does not fit the model that run.json describes: {odd[0]} is missing, "
            f"unknown or of another shape ({len(odd)} such); was run.json edited?"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file aside, sync it and rename it into place."""
    aside = path.with_name(f".writing_{path.name}")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _like(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    # Adam's step counter stays on the CPU; the moments follow their parameter.
    return value if key.endswith(":step") else value.to(parameter.device)


def _folder(run: Path, name: str | None) -> Path:
    found = list_checkpoints(run)
    if name is not None:
        folder = run / "checkpoints" / name
        if folder not in found:
            known = ", ".join(path.name for path in found) or "none"
            raise CheckpointError(f"{folder}: no such checkpoint; the run has: {known}")
        return folder
    if not found:
        raise CheckpointError(f"{run}: the run has no complete checkpoint; train it again")
    latest = run / "latest"
    marked = run / "checkpoints" / latest.read_text().strip() if latest.exists() else found[-1]
    return marked if marked in found else found[-1]


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        assert isinstance(state["sha256"], dict)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder / STATE}: no such file; the checkpoint is damaged"
        ) from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise CheckpointError(f"{folder / STATE}: expected a checkpoint's JSON state") from None
    return state


def _offer(run: Path, folder: Path) -> str:
    older = [path.name for path in list_checkpoints(run) if path.name < folder.name]
    if not older:
        return "there is no earlier checkpoint"
    return f"the previous one is whole: pellucid resume {run} --checkpoint {older[-1]}"


def _verify(path: Path, expected: str | None, offer: str) -> None:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; {offer}")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(b"PK\x03\x04") or magic[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: expected safetensors, found a pickle, which is never loaded; {offer}"
        )
    found = checksum(path)
    if found != expected:
        raise CheckpointError(
            f"{path}: truncated or altered: expected sha256 {str(expected)[:12]}…, found "
            f"{found[:12]}…; {offer}"
        )


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
