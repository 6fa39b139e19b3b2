"""Checkpoints: what comes back, what survives a kill at any instant, and what is refused."""

import errno
import json
import os
import pickle
import random
import resource
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from pellucid.core.errors import CheckpointError
from pellucid.data.disk import checksum, write_atomically
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.train import checkpoint as module
from pellucid.train.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoint,
    explaining_full_disk,
    go_back,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    optimizer_tensors,
    restore,
    save_checkpoint,
    step_of,
    weights,
)
from pellucid.train.optim import OptimConfig, build_optimizer, param_groups

STEP_1, STEP_2, STEP_3 = (f"step_00000000{n}" for n in (1, 2, 3))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, no clean-up runs for it."""


def small(value: float, size: int = 5) -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.full((size,), value), "count": torch.tensor(7)},
        optimizer={"weight:exp_avg": torch.full((size,), -value)},
        state={"tokens": 12, "corpus": "abc", "metrics_bytes": 345},
    )


def value_of(found: Checkpoint) -> float:
    """The number ``small`` was made from, both files agreeing on it."""
    assert torch.equal(found.model["weight"], -found.optimizer["weight:exp_avg"])
    return found.model["weight"][0].item()


def left_behind(run: Path) -> list[str]:
    """Names of half-made files anywhere in a run."""
    return sorted(path.name for path in run.rglob(".*"))


def decoder(**changes: object) -> Transformer:
    """Two layers with every buffer that changes without a gradient."""
    pool = HierarchyConfig(pools=5, slots=7, open_pools=3, k=4)
    slots = (
        replace(pool, select="batchtopk", balance="bias"),
        replace(pool, unit_balance=0.1, unit_balance_steps=5),
    )
    shape = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8}
    return Transformer(TransformerConfig(**shape, vocab_size=32, context=8, ffn=slots, **changes))


class Training:
    """A decoder in training, its batches drawn from torch's generator as a careless user would."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = decoder()
        config = OptimConfig(lr=0.01)
        groups = param_groups(self.model, self.model.unit_tables(), config)
        self.optimizer = build_optimizer(groups, config)

    def step(self) -> float:
        tokens = torch.randint(32, (2, 8))
        logits, parts = self.model.forward_with_parts(tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss = loss + sum(parts.values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.after_step()
        return loss.item()

    def tensors(self) -> dict[str, Tensor]:
        both = {**self.model.state_dict(), **optimizer_tensors(self.model, self.optimizer)}
        return {name: tensor.clone() for name, tensor in both.items()}

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            model=weights(self.model),
            optimizer=optimizer_tensors(self.model, self.optimizer),
            state={},
        )


def test_what_is_saved_comes_back_bit_by_bit_and_goes_on_alike(tmp_path: Path):
    one = Training(seed=0)
    losses = [one.step() for _ in range(3)]
    save_checkpoint(tmp_path, 3, one.checkpoint(), keep=1)
    saved = one.tensors()
    losses = [one.step() for _ in range(3)]

    other = Training(seed=99)
    other.step()
    restore(other.model, other.optimizer, load_checkpoint(tmp_path))
    found = other.tensors()
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype
    assert [other.step() for _ in range(3)] == losses
    for name, tensor in one.tensors().items():
        assert torch.equal(other.tensors()[name], tensor), name


def test_every_moment_and_counter_is_in_the_file(tmp_path: Path):
    training = Training(seed=0)
    training.step()
    found = load_checkpoint(save_checkpoint(tmp_path, 1, training.checkpoint(), keep=1).parents[1])
    names = {name for name, _ in training.model.named_parameters()}
    entries = {f"{name}:{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    assert found.optimizer.keys() == {*entries, "rng:torch"}
    assert found.optimizer["rng:torch"].dtype == torch.uint8
    assert {"blocks.0.ffn.router_bias", "blocks.1.ffn.steps"} < found.model.keys()


def test_a_tied_embedding_is_saved_once():
    tied, untied = decoder(), decoder(tied_embeddings=False)
    assert "unembed.weight" not in weights(tied)
    assert "embed.weight" in weights(tied)
    assert {"unembed.weight", "embed.weight"} < weights(untied).keys()


def test_a_tied_embedding_stays_tied(tmp_path: Path):
    model, other = decoder(), decoder()
    save_checkpoint(tmp_path, 1, Checkpoint(model=weights(model), optimizer={}, state={}), keep=1)
    load_weights(other, load_checkpoint(tmp_path))
    assert other.unembed.weight is other.embed.weight
    assert torch.equal(other.unembed.weight, model.embed.weight)


def test_weights_that_are_not_contiguous_are_saved(tmp_path: Path):
    table = torch.arange(6.0).view(2, 3)
    save_checkpoint(tmp_path, 1, Checkpoint(model={"t": table.t()}, optimizer={}, state={}), keep=1)
    assert torch.equal(load_checkpoint(tmp_path).model["t"], table.t())


def test_weights_of_another_model_are_refused(tmp_path: Path):
    model = decoder()
    for change in (
        lambda tensors: tensors.pop("norm.gain"),
        lambda tensors: tensors.update(extra=torch.zeros(1)),
        lambda tensors: tensors.update({"norm.gain": torch.zeros(3)}),
    ):
        tensors = dict(weights(model))
        change(tensors)
        with pytest.raises(CheckpointError, match=r"does not fit the model that run\.json desc"):
            load_weights(model, Checkpoint(model=tensors, optimizer={}, state={}))


def test_the_folder_by_name(tmp_path: Path):
    folder = save_checkpoint(tmp_path, 120, small(1.0), keep=2)
    assert folder == tmp_path / "checkpoints" / "step_000000120"
    assert sorted(path.name for path in folder.iterdir()) == [MODEL, OPTIMIZER, STATE]
    assert (tmp_path / "latest").read_text() == "step_000000120\n"
    state = json.loads((folder / STATE).read_text())
    assert {key: state[key] for key in ("tokens", "corpus", "metrics_bytes", "schema", "step")} == {
        "tokens": 12,
        "corpus": "abc",
        "metrics_bytes": 345,
        "schema": 1,
        "step": 120,
    }
    assert state["sha256"][MODEL] == checksum(folder / MODEL)
    assert state["sha256"][OPTIMIZER] == checksum(folder / OPTIMIZER)
    assert left_behind(tmp_path) == []


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, small(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [STEP_3, "step_000000010"]
    assert value_of(load_checkpoint(tmp_path)) == 10
    assert value_of(load_checkpoint(tmp_path, STEP_3)) == 3
    assert step_of(tmp_path) == 10
    assert step_of(tmp_path, STEP_3) == 3


def test_a_step_saved_again_is_replaced(tmp_path: Path):
    save_checkpoint(tmp_path, 1, small(1), keep=2)
    save_checkpoint(tmp_path, 1, small(5), keep=2)
    assert value_of(load_checkpoint(tmp_path)) == 5
    assert left_behind(tmp_path) == []


def test_going_back_removes_what_came_later(tmp_path: Path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, small(step), keep=5)
    go_back(tmp_path, STEP_2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [STEP_1, STEP_2]
    assert value_of(load_checkpoint(tmp_path)) == 2


def test_a_save_removes_later_steps_before_it_counts_what_to_keep(tmp_path: Path):
    # A kill between ``latest`` and the removals of going back leaves later steps behind.
    for step in (1, 3):
        save_checkpoint(tmp_path, step, small(step), keep=5)
    write_atomically(tmp_path / "latest", STEP_1 + "\n")
    assert value_of(load_checkpoint(tmp_path)) == 1
    save_checkpoint(tmp_path, 2, small(2), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == [STEP_2]
    assert value_of(load_checkpoint(tmp_path)) == 2


def test_a_run_without_checkpoints(tmp_path: Path):
    assert list_checkpoints(tmp_path) == []
    assert step_of(tmp_path) == 0
    with pytest.raises(CheckpointError, match="the run has no complete checkpoint"):
        load_checkpoint(tmp_path)


def test_an_unknown_checkpoint_is_answered_with_the_known(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint; the run has: none$"):
        load_checkpoint(tmp_path, STEP_1)
    for step in (1, 2):
        save_checkpoint(tmp_path, step, small(step), keep=5)
    message = f"no such checkpoint; the run has: {STEP_1}, {STEP_2}$"
    for ask in (load_checkpoint, step_of):
        with pytest.raises(CheckpointError, match=message):
            ask(tmp_path, "step_7")


@pytest.mark.parametrize("latest", [None, b"", b"step_000000009\n", b"\xff\xfe"])
def test_without_a_usable_latest_the_last_folder_counts(tmp_path: Path, latest: bytes | None):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, small(step), keep=5)
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_bytes(latest)
    assert value_of(load_checkpoint(tmp_path)) == 2


# ``os`` functions through which everything that lasts goes, in pathlib and shutil too.
LASTING = ("fsync", "rename", "replace", "unlink", "rmdir")


@contextmanager
def interrupted(
    monkeypatch: pytest.MonkeyPatch, at: int, fault: Callable[[], BaseException], *, after: bool
) -> Iterator[list[str]]:
    """Raise ``fault()`` at the ``at``-th lasting operation, before it or right after it."""
    seen: list[str] = []
    with monkeypatch.context() as patch:
        for name in LASTING:
            real = getattr(os, name)

            def guarded(*args, _real=real, _name=name, **kwargs):
                seen.append(_name)
                if len(seen) - 1 == at and not after:
                    raise fault()
                result = _real(*args, **kwargs)
                if len(seen) - 1 == at:
                    raise fault()
                return result

            patch.setattr(os, name, guarded)
        yield seen


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_instant_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch, after: bool
):
    # One old checkpoint, keep = 1: the save also removes it, and a kill may fall in there too.
    start = tmp_path / "start"
    save_checkpoint(start, 1, small(1), keep=1)
    with interrupted(monkeypatch, -1, Killed, after=after) as seen:
        save_checkpoint(Path(shutil.copytree(start, tmp_path / "dry")), 2, small(2), keep=1)
    # Three files and their folder synced, the folder renamed and its parent synced, latest
    # synced, replaced and its parent synced, then the old folder renamed, its three files and
    # itself removed.
    written = ["fsync"] * 4 + ["rename", "fsync", "fsync", "replace", "fsync"]
    removed = ["rename"] + ["unlink"] * 3 + ["rmdir"]
    assert seen == written + removed
    for at in range(len(seen)):
        run = Path(shutil.copytree(start, tmp_path / str(at)))
        with pytest.raises(Killed), interrupted(monkeypatch, at, Killed, after=after):
            save_checkpoint(run, 2, small(2), keep=1)
        # What ``latest`` names is there, every listed checkpoint is whole, and one loads.
        latest = (run / "latest").read_text().strip()
        assert latest in [path.name for path in list_checkpoints(run)]
        for folder in list_checkpoints(run):
            assert value_of(load_checkpoint(run, folder.name)) == int(folder.name[5:])
        assert value_of(load_checkpoint(run)) in (1, 2)
        # The next save is not disturbed by what was left, and sweeps it away.
        save_checkpoint(run, 2, small(2), keep=1)
        assert value_of(load_checkpoint(run)) == 2
        assert [path.name for path in list_checkpoints(run)] == [STEP_2]
        save_checkpoint(run, 3, small(3), keep=1)
        assert left_behind(run) == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_instant_of_going_back_leaves_whole_checkpoints(
    tmp_path: Path, monkeypatch, after: bool
):
    start = tmp_path / "start"
    for step in (1, 2, 3):
        save_checkpoint(start, step, small(step), keep=5)
    with interrupted(monkeypatch, -1, Killed, after=after) as seen:
        go_back(Path(shutil.copytree(start, tmp_path / "dry")), STEP_1)
    for at in range(len(seen)):
        run = Path(shutil.copytree(start, tmp_path / str(at)))
        with pytest.raises(Killed), interrupted(monkeypatch, at, Killed, after=after):
            go_back(run, STEP_1)
        for folder in list_checkpoints(run):
            assert value_of(load_checkpoint(run, folder.name)) == int(folder.name[5:])
        assert value_of(load_checkpoint(run)) in (1, 3)
        go_back(run, STEP_1)
        assert [path.name for path in list_checkpoints(run)] == [STEP_1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_sync_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch, code: int):
    start = tmp_path / "start"
    save_checkpoint(start, 1, small(1), keep=5)
    # Seven operations until ``latest`` is synced; what follows needs no space.
    for at in range(7):
        run = Path(shutil.copytree(start, tmp_path / f"run {at}"))
        with (
            pytest.raises(CheckpointError) as caught,
            interrupted(monkeypatch, at, lambda: OSError(code, "full"), after=False),
        ):
            save_checkpoint(run, 2, small(2), keep=5)
        message = str(caught.value)
        assert os.strerror(code) in message
        assert message.endswith(f"then run: pellucid resume {shlex.quote(str(run))}")
        assert "\n" not in message
        assert value_of(load_checkpoint(run, STEP_1)) == 1
        assert load_checkpoint(run)
        assert left_behind(run) == []


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
    ids=["OSError", "SafetensorError"],
)
@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
def test_a_disk_that_fills_while_tensors_are_written(tmp_path, monkeypatch, fault, file: str):
    save_checkpoint(tmp_path, 1, small(1), keep=1)
    real = module.save_file

    def save_file(tensors, path):
        if path.name == file:
            path.write_bytes(b"half")
            raise fault
        real(tensors, path)

    monkeypatch.setattr(module, "save_file", save_file)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        save_checkpoint(tmp_path, 2, small(2), keep=1)
    assert "the earlier checkpoints are intact" in str(caught.value)
    assert [path.name for path in list_checkpoints(tmp_path)] == [STEP_1]
    assert value_of(load_checkpoint(tmp_path)) == 1
    assert left_behind(tmp_path) == []


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond ``limit`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_refuses(tmp_path: Path):
    # No stand-in here: 10,000 floats are 40 kB, and the kernel ends the write at 8 kB.
    save_checkpoint(tmp_path, 1, small(1), keep=1)
    with file_size_limit(8192), pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path, 2, small(2, size=10_000), keep=1)
    assert value_of(load_checkpoint(tmp_path)) == 1
    assert [path.name for path in list_checkpoints(tmp_path)] == [STEP_1]
    assert left_behind(tmp_path) == []
    save_checkpoint(tmp_path, 2, small(2, size=10_000), keep=1)
    assert value_of(load_checkpoint(tmp_path)) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_elsewhere_in_a_run_is_told_alike(tmp_path: Path, code: int):
    run = tmp_path / "my run"
    with pytest.raises(CheckpointError) as caught, explaining_full_disk(run):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == (
        f"{run}: could not be written ({os.strerror(code)}); the checkpoints are intact: free some "
        f"space, then run: pellucid resume '{run}'"
    )


def test_a_full_disk_is_told_with_the_file_where_there_is_one(tmp_path: Path):
    with (
        file_size_limit(10),
        pytest.raises(CheckpointError) as caught,
        explaining_full_disk(tmp_path),
    ):
        (tmp_path / "log.jsonl").write_text("more than ten bytes")
    assert str(caught.value).startswith(f"{tmp_path}: could not be written (File too large)")
    fault = OSError(errno.ENOSPC, "full", "a.json")
    with pytest.raises(CheckpointError, match=r"^a\.json: could"), explaining_full_disk(tmp_path):
        raise fault


def test_other_faults_pass_unexplained(tmp_path: Path):
    with pytest.raises(PermissionError), explaining_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "denied")
    with explaining_full_disk(tmp_path):
        pass


def test_another_fault_of_the_disk_is_not_called_a_full_one(tmp_path: Path, monkeypatch):
    save_checkpoint(tmp_path, 1, small(1), keep=1)
    with (
        pytest.raises(OSError, match="broken"),
        interrupted(monkeypatch, 2, lambda: OSError(errno.EIO, "broken"), after=False),
    ):
        save_checkpoint(tmp_path, 2, small(2), keep=1)
    assert value_of(load_checkpoint(tmp_path)) == 1
    assert left_behind(tmp_path) == []


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    path = tmp_path / "latest"
    write_atomically(path, "old")
    for at in range(2):
        with (
            pytest.raises(OSError, match="full"),
            interrupted(monkeypatch, at, lambda: OSError(errno.ENOSPC, "full"), after=False),
        ):
            write_atomically(path, "new")
        assert path.read_text() == "old"
        assert left_behind(tmp_path) == []
    write_atomically(path, "new")
    assert path.read_text() == "new"


def damaged(run: Path, message: str, *, offer: str | None) -> None:
    """Loading fails in one line with ``message``, and offers ``offer`` in a command that parses."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(run)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    if offer is None:
        assert text.endswith("; there is no earlier checkpoint to go back to")
        return
    _, _, command = text.partition("; an earlier one is whole: ")
    assert shlex.split(command) == ["pellucid", "resume", str(run), "--checkpoint", offer]
    assert load_checkpoint(run, offer)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three checkpoints, in a folder whose name needs quoting in a shell."""
    folder = tmp_path / "my run"
    for step in (1, 2, 3):
        save_checkpoint(folder, step, small(step), keep=5)
    return folder


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER, STATE])
@pytest.mark.parametrize("length", [0, 1, 8, 100, -1])
def test_a_truncated_file(run: Path, file: str, length: int):
    path = run / "checkpoints" / STEP_3 / file
    path.write_bytes(path.read_bytes()[:length])
    if (file, length) == (STATE, -1):
        # Only the line end is gone, and with it nothing that was said.
        assert value_of(load_checkpoint(run)) == 3
        return
    damaged(run, f"{path}: truncated or altered: expected ", offer=STEP_2)


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER, STATE])
def test_a_flipped_bit(run: Path, file: str):
    path = run / "checkpoints" / STEP_3 / file
    sound = path.read_bytes()
    draw = random.Random(0)
    for place in range(len(sound)):
        altered = bytearray(sound)
        altered[place] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"state\.json|safetensors") as caught:
            load_checkpoint(run)
        assert str(caught.value).endswith(f"--checkpoint {STEP_2}")


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER, STATE])
def test_a_missing_file(run: Path, file: str):
    path = run / "checkpoints" / STEP_3 / file
    path.unlink()
    damaged(run, f"{path}: no such file; the checkpoint is damaged", offer=STEP_2)


def test_an_earlier_checkpoint_is_offered_only_if_it_is_whole(run: Path):
    for name, file in ((STEP_3, MODEL), (STEP_2, OPTIMIZER)):
        (run / "checkpoints" / name / file).write_bytes(b"")
    damaged(run, "truncated or altered", offer=STEP_1)
    (run / "checkpoints" / STEP_1 / STATE).write_text("[]")
    damaged(run, "truncated or altered", offer=None)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"schema": 1}', '{"schema": "1", "sha256": {}}', '{"schema": 1, "s'],
)
def test_a_state_that_is_none(run: Path, text: str):
    path = run / "checkpoints" / STEP_3 / STATE
    path.write_text(text)
    damaged(run, f"{path}: truncated or altered: expected a checkpoint's JSON state", offer=STEP_2)


def test_a_newer_format(run: Path):
    path = run / "checkpoints" / STEP_3 / STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    damaged(
        run,
        f"{path}: written in checkpoint format 2, this version reads up to 1; upgrade pellucid",
        offer=STEP_2,
    )


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("kind", ["zip", "legacy", 2, 3, 4, 5])
def test_a_pickle_is_refused_and_never_loaded(run: Path, tmp_path: Path, file: str, kind):
    path, trap = run / "checkpoints" / STEP_3 / file, Trap(tmp_path / "sprung")
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps(trap, protocol=kind))
    else:
        torch.save(trap, path, _use_new_zipfile_serialization=kind == "zip")
    # Even where whoever put it there has mended the checksums.
    state = json.loads((path.parent / STATE).read_text())
    state["sha256"][file] = checksum(path)
    state["sha256"][STATE] = module._state_checksum(state)
    (path.parent / STATE).write_text(json.dumps(state))
    damaged(
        run,
        f"{path}: expected safetensors, found a pickle, which is never loaded",
        offer=STEP_2,
    )
    assert not trap.folder.exists()


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path):
    # safetensors begin with their header's length; 0x80 is also the first byte of a pickle.
    for length in range(1, 300, 8):
        tensors = {"n" * length: torch.zeros(1)}
        save_checkpoint(tmp_path, 1, Checkpoint(model=tensors, optimizer={}, state={}), keep=1)
        path = tmp_path / "checkpoints" / STEP_1 / MODEL
        if path.read_bytes()[0] == 0x80:
            assert load_checkpoint(tmp_path).model.keys() == tensors.keys()
            return
    raise AssertionError("no header began with 0x80")
