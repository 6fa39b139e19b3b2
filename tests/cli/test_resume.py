"""``pellucid resume``: new plans, steps back, damage, and what is refused with nothing lost."""

import json
import resource
import shlex
import shutil
from pathlib import Path

import pytest

from pellucid.train.checkpoint import list_checkpoints

STEP_4, STEP_8 = "step_000000004", "step_000000008"


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    """A finished run of 8 steps, to be changed, in a folder whose name needs quoting."""
    return Path(shutil.copytree(trained, tmp_path / "my run"))


def steps_of(run: Path) -> list[int]:
    return [
        int(json.loads(line)["step"]) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def without_times(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")}
        for line in lines
    ]


def test_a_longer_plan_is_followed_and_said(cli, run: Path):
    answer = cli("resume", run, "--steps", "12")
    assert answer.code == 0
    assert answer.out == f"{run}\n"
    assert answer.err.splitlines()[0] == (
        "pellucid: planned 8 steps, now 12: the learning-rate schedule is planned again from step "
        "8, so the result differs from an uninterrupted run"
    )
    assert steps_of(run) == list(range(1, 13))
    assert json.loads((run / "run.json").read_text())["config"]["steps"] == 12
    assert [path.name for path in list_checkpoints(run)] == [STEP_4, STEP_8, "step_000000012"]
    # The 13th step of a plan of 12 has no rate; the 12th is on the new plan's last stretch.
    rates = [line["lr"] for line in without_times(run)]
    assert rates[-1] < rates[8] < rates[0]


def test_a_finished_run_has_nothing_left_but_its_export(cli, run: Path, snapshot):
    before = snapshot(run)
    (run / "model.safetensors").unlink()
    (run / "config.json").unlink()
    answer = cli("resume", run)
    assert (answer.code, answer.out) == (0, f"{run}\n")
    assert snapshot(run) == before


def test_going_back_repeats_the_steps_bit_by_bit(cli, run: Path, snapshot):
    before, lines = snapshot(run), without_times(run)
    answer = cli("resume", run, "--checkpoint", STEP_4)
    assert answer.code == 0
    after = snapshot(run)
    for name in ("model.safetensors", f"checkpoints/{STEP_8}/model.safetensors"):
        assert after[name] == before[name]
    name = f"checkpoints/{STEP_8}/optimizer.safetensors"
    assert after[name] == before[name]
    assert without_times(run) == lines


def test_going_back_with_another_plan(cli, run: Path):
    answer = cli("resume", run, "--checkpoint", STEP_4, "--steps", "6")
    assert answer.code == 0
    assert "planned again from step 4" in answer.err
    assert steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in list_checkpoints(run)] == [STEP_4, "step_000000006"]


def test_a_run_without_a_checkpoint_starts_again(cli, run: Path, snapshot):
    before, lines = snapshot(run), without_times(run)
    shutil.rmtree(run / "checkpoints")
    (run / "latest").unlink()
    # As a kill in the middle of a line leaves it.
    (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 64}\n{"step": 2, "tok')
    assert cli("resume", run).code == 0
    assert without_times(run) == lines
    assert snapshot(run)["model.safetensors"] == before["model.safetensors"]


def test_a_new_plan_before_the_first_checkpoint_is_kept(cli, run: Path):
    shutil.rmtree(run / "checkpoints")
    assert cli("resume", run, "--steps", "3").code == 0
    assert json.loads((run / "run.json").read_text())["config"]["steps"] == 3
    assert steps_of(run) == [1, 2, 3]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", "7"), "--steps 7: the run is at step 8 already; give a larger number, or go"),
        (("--steps", "3", "--checkpoint", STEP_4), "--steps 3: the run is at step 4 already"),
        (
            ("--steps", "x"),
            "resume: Error parsing --steps: no type matching {None}|INT could be instantiated",
        ),
        (("--checkpoint", "step_5"), f"no such checkpoint; the run has: {STEP_4}, {STEP_8}"),
        (("--step", "9"), "resume: unknown argument --step; did you mean '--steps'?"),
    ],
    ids=str,
)
def test_what_is_refused_changes_nothing(cli, run: Path, snapshot, args, message: str):
    before = snapshot(run)
    assert message in cli("resume", run, *args).only_error
    assert snapshot(run) == before


def test_a_folder_that_is_no_run(cli, tmp_path: Path):
    for folder, why in ((tmp_path, "it holds no run.json"), (tmp_path / "no", "it does not exist")):
        assert cli("resume", folder).only_error == (
            f"{folder}: not a run: {why}; list the runs with: pellucid runs FOLDER"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema=2), "written in schema 2, this version reads up to 1"),
        (lambda record: record.pop("config"), "expected a run's record with the fields schema, "),
        (lambda record: record["config"].update(speed=3), "unknown key speed; "),
        (lambda record: record["config"].update(steps="8"), "steps: expected int, found '8'"),
    ],
)
def test_a_record_that_cannot_be_followed(cli, run: Path, snapshot, change, message: str):
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))
    before = snapshot(run)
    assert message in cli("resume", run, "--steps", "12").only_error
    assert snapshot(run) == before


def damage(kind: str, folder: Path) -> None:
    weights, optimizer = folder / "model.safetensors", folder / "optimizer.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif kind == "flipped":
        content = bytearray(optimizer.read_bytes())
        content[-5] ^= 4
        optimizer.write_bytes(content)
    elif kind == "newer":
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, "schema": 9}))
    elif kind == "pickle":
        weights.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07pellucid.")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "model.safetensors: truncated or altered: expected sha256 "),
        ("flipped", "optimizer.safetensors: truncated or altered: expected sha256 "),
        (
            "newer",
            "state.json: written in checkpoint format 9, this version reads up to 1; upgrade",
        ),
        (
            "pickle",
            "model.safetensors: expected safetensors, found a pickle, which is never loaded",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_offered_command_works(
    cli, run: Path, snapshot, trained: Path, kind: str, message: str
):
    damage(kind, run / "checkpoints" / STEP_8)
    before = snapshot(run)
    error = cli("resume", run, "--steps", "12").error
    assert f"{run}/checkpoints/{STEP_8}/{message}" in error
    assert snapshot(run) == before
    program, *offered = shlex.split(error.partition("is whole: ")[2])
    assert (program, offered) == ("pellucid", ["resume", str(run), "--checkpoint", STEP_4])
    assert cli(*offered).code == 0
    # The run is what it would have been without the damage.
    assert snapshot(run)["model.safetensors"] == snapshot(trained)["model.safetensors"]


def move_source(run: Path, folder: Path) -> None:
    """Let the record of a run name another folder for its text."""
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"]["source"] = str(folder)
    (run / "run.json").write_text(json.dumps(record))


def test_other_text_under_the_same_name_is_noticed(
    cli, run: Path, tmp_path: Path, snapshot, make_corpus, documents, monkeypatch
):
    rows = documents()
    rows[0]["text"] += "!"
    folder = make_corpus(tmp_path / "corpus", rows)
    move_source(run, folder)
    before = snapshot(run)
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    error = cli("resume", run, "--steps", "12", "--checkpoint", STEP_4).error
    assert f"{run}: the text in {folder} is no longer what this run was trained on" in error
    assert snapshot(run) == before


def test_a_corpus_that_has_gone_is_not_missed_while_its_tokens_are_in_the_cache(
    cli, run: Path, tmp_path: Path, snapshot, monkeypatch
):
    move_source(run, tmp_path / "gone")
    before = snapshot(run)
    with monkeypatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
        error = cli("resume", run, "--steps", "12").error
        assert f"{tmp_path}/gone: no such file or folder; give " in error
        assert snapshot(run) == before
    assert cli("resume", run, "--checkpoint", STEP_4).code == 0
    assert snapshot(run)["model.safetensors"] == before["model.safetensors"]


def test_a_disk_that_is_full_at_the_checkpoint(cli, run: Path, snapshot):
    # The system refuses files above 30 kB: the weights of a checkpoint are larger, the rest is not.
    old = {name: hash_ for name, hash_ in snapshot(run).items() if name.startswith("checkpoints")}
    assert (run / "model.safetensors").stat().st_size > 30_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        answer = cli("resume", run, "--steps", "9")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step_000000009: the checkpoint could not be written (" in answer.error
    assert "the earlier checkpoints are intact: free some space, then run: " in answer.error
    program, *again = shlex.split(answer.error.partition("then run: ")[2])
    now = {name: hash_ for name, hash_ in snapshot(run).items() if name.startswith("checkpoints")}
    assert now == old
    # With space again, the command from the message goes on where the last checkpoint stands.
    assert (program, again) == ("pellucid", ["resume", str(run)])
    assert cli(*again).code == 0
    assert steps_of(run) == list(range(1, 10))
