"""Checkpoints: safetensors and JSON, written aside, synced, renamed; never a pickle.

    checkpoints/step_000000100/   model.safetensors  optimizer.safetensors  state.json
    latest                        the name of the newest complete checkpoint

A checkpoint exists under its name only once every byte of it is on disk, and ``latest`` moves only
after that, so a run killed at any instant leaves the previous checkpoint whole; one that is
removed loses its name first. ``state.json`` holds the checksums of all three files.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pellucid.core.errors import CheckpointError
from pellucid.data.disk import FULL_DISK, checksum, sync, write_atomically

SCHEMA = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


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
        _sweep(folder.parent)
        aside.mkdir(parents=True)
        for name, tensors in ((MODEL, checkpoint.model), (OPTIMIZER, checkpoint.optimizer)):
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside / name)
            sync(aside / name)
        sums = {name: checksum(aside / name) for name in (MODEL, OPTIMIZER)}
        state = {**checkpoint.state, "schema": SCHEMA, "step": step, "sha256": sums}
        sums[STATE] = _state_checksum(state)
        (aside / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        sync(aside / STATE)
        sync(aside)
        _remove(folder)
        aside.rename(folder)
        sync(folder.parent)
        write_atomically(run / "latest", folder.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written ({_reason(error)}); the earlier "
            f"checkpoints are intact: free some space, then run: "
            f"pellucid resume {shlex.quote(str(run))}"
        ) from None
    found = list_checkpoints(run)
    # A later step belongs to a future that was given up by going back.
    earlier = [path for path in found if path.name <= folder.name]
    for old in [*earlier[:-keep], *found[len(earlier) :]]:
        _remove(old)
    return folder


@contextmanager
def explaining_full_disk(run: Path) -> Iterator[None]:
    """Tell a disk that fills up while ``run`` writes anything else as a ``CheckpointError``."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise CheckpointError(
            f"{error.filename or run}: could not be written ({_reason(error)}); the checkpoints "
            f"are intact: free some space, then run: pellucid resume {shlex.quote(str(run))}"
        ) from None


def load_checkpoint(run: Path, name: str | None = None) -> Checkpoint:
    """Read and verify one checkpoint, the newest by default.

    Errors: a ``CheckpointError`` naming the file for a missing, truncated or altered file, a newer
    format, or a pickle; it offers the newest of the earlier checkpoints that is whole.
    """
    folder, state = _verified(run, name)
    return Checkpoint(
        model=load_file(folder / MODEL), optimizer=load_file(folder / OPTIMIZER), state=state
    )


def read_state(run: Path, name: str | None = None) -> Mapping[str, Any]:
    """The JSON state of one checkpoint, verified like the whole; errors as ``load_checkpoint``."""
    return _verified(run, name)[1]


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def step_of(run: Path, name: str | None = None) -> int:
    """The step of one checkpoint, by default of the newest; 0 if the run has none yet."""
    if name is None and not list_checkpoints(run):
        return 0
    return int(_folder(run, name).name.removeprefix("step_"))


def go_back(run: Path, name: str) -> None:
    """Make ``name`` the newest checkpoint, and remove the later ones."""
    write_atomically(run / "latest", name + "\n")
    for later in list_checkpoints(run):
        if later.name > name:
            _remove(later)


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
            # The fused step counts on the parameter's device, the others on the CPU.
            counter = p.device if group.get("fused") else torch.device("cpu")
            optimizer.state[p] = {
                key.removeprefix(prefix): value.to(counter if key == f"{prefix}step" else p.device)
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
    named = latest.read_text(errors="replace").strip() if latest.exists() else ""
    marked = run / "checkpoints" / named
    return marked if marked in found else found[-1]


def _verified(run: Path, name: str | None) -> tuple[Path, dict[str, Any]]:
    folder = _folder(run, name)
    try:
        return folder, _verify(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_offer(run, folder)}") from None


def _verify(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose every file is as it was written."""
    state = _read_state(folder / STATE)
    if state["schema"] > SCHEMA:
        raise CheckpointError(
            f"{folder / STATE}: written in checkpoint format {state['schema']}, this version reads "
            f"up to {SCHEMA}; upgrade pellucid"
        )
    sums = state["sha256"]
    _compare(folder / STATE, sums.get(STATE), _state_checksum(state))
    for path in (folder / MODEL, folder / OPTIMIZER):
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; the checkpoint is damaged")
        if _is_pickle(path):
            raise CheckpointError(
                f"{path}: expected safetensors, found a pickle, which is never loaded"
            )
        _compare(path, sums.get(path.name), checksum(path))
    return state


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is damaged") from None
    except ValueError:
        state = None
    if (
        isinstance(state, dict)
        and isinstance(state.get("schema"), int)
        and isinstance(state.get("sha256"), dict)
    ):
        return state
    raise CheckpointError(f"{path}: truncated or altered: expected a checkpoint's JSON state")


def _state_checksum(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state's values, its own checksum left out."""
    files = {name: found for name, found in state["sha256"].items() if name != STATE}
    text = json.dumps({**state, "sha256": files}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _compare(path: Path, expected: object, found: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path}: truncated or altered: expected sha256 {str(expected)[:12]}…, found "
            f"{found[:12]}…"
        )


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with the length of its header, which may well begin with 0x80.
    return head[8:] != b"{" and head.startswith((b"PK\x03\x04", b"\x80"))


def _offer(run: Path, folder: Path) -> str:
    for older in reversed(list_checkpoints(run)):
        if older.name < folder.name and _is_whole(older):
            command = f"pellucid resume {shlex.quote(str(run))} --checkpoint {older.name}"
            return f"an earlier one is whole: {command}"
    return "there is no earlier checkpoint to go back to"


def _is_whole(folder: Path) -> bool:
    try:
        _verify(folder)
    except CheckpointError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Take a checkpoint's name away, then its files: a kill never leaves half of one named."""
    if folder.exists():
        aside = folder.with_name(f".removing_{folder.name}")
        folder.rename(aside)
        shutil.rmtree(aside)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half written or half removed."""
    for pattern in (".writing_*", ".removing_*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
