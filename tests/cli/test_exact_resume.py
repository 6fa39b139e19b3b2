"""A run that is killed and resumed is, bit by bit, the run that was left alone.

Three chains of real processes train the same model on ``.jsonl.zst`` text in bf16 with gradient
accumulation, documents masked, and slots with everything that changes without a gradient (balance
biases, unit balance, a running threshold): ``left alone``; ``killed`` five times by SIGKILL at
random moments, once before the first checkpoint and once inside a checkpoint's write; ``asked`` to
stop by SIGTERM and by SIGINT. The chains share the cores; all cost about six starts of torch.
"""

import contextlib
import io
import json
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pellucid.cli import main
from pellucid.data.document import DataConfig
from pellucid.data.packing import prepare
from pellucid.train.checkpoint import list_checkpoints, load_checkpoint

STEPS, EVERY = 24, 5

# The command line, struck from within: by a signal after a micro-batch's backward pass (named by
# step and micro-batch, both from 0), or by SIGKILL once a file whose name ends so is on the disk.
STRUCK = """
import os, signal, sys
from pellucid.cli import main

kind, _, moment = os.environ["STRIKE"].partition(" ")
if kind == "file":
    from pellucid.data import disk
    from pellucid.train import checkpoint
    sync = disk.sync
    def watched(path):
        sync(path)
        if str(path).endswith(moment):
            os.kill(os.getpid(), signal.SIGKILL)
    disk.sync = checkpoint.sync = watched
elif kind:
    from pellucid.train.loop import Loop
    backward, done = Loop._backward, []
    def watched(self, step, batch, weight):
        values = backward(self, step, batch, weight)
        if f"{step}.{done.count(step)}" == moment:
            os.kill(os.getpid(), signal.Signals[kind])
        done.append(step)
        return values
    Loop._backward = watched
sys.exit(main())
"""

PLAN = (
    *("--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--keep-checkpoints", "2"),
    *("--evaluate-every", "8", "--batch", "2", "--accumulate", "2", "--precision", "bf16"),
    *("--data.mask-documents", "--optim.lr", "0.02"),
)
# What each of the two layers has beyond the recipe's slot.
SLOTS = (
    {"select": "batchtopk", "balance": "bias"},
    {"unit_balance": 0.01, "unit_balance_steps": 15},
)


@dataclass
class Chain:
    """One run folder, the processes that worked on it, and what each left behind."""

    run: Path
    strikes: tuple[str, ...]
    done: list[subprocess.CompletedProcess[str]] = field(default_factory=list)
    reached: list[list[str]] = field(default_factory=list)
    half_written: list[str] = field(default_factory=list)


def moments(seed: int) -> tuple[str, ...]:
    """Five random moments, in windows that make each the first to come in its process."""
    draw = random.Random(seed)

    def during(first: int, last: int) -> str:
        return f"SIGKILL {draw.randint(first, last)}.{draw.randint(0, 1)}"

    before_any = during(1, EVERY - 1)
    after_one = during(EVERY, 2 * EVERY - 1)
    file = draw.choice(("model", "optimizer"))
    writing = f"file .writing_step_{2 * EVERY:09d}/{file}.safetensors"
    return before_any, after_one, writing, during(11, 15), during(16, 23)


def config_of(flags: tuple[str, ...]) -> dict[str, Any]:
    """The config that the command line resolves, with one slot per layer put in."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["train", "pools-demo", *flags, *PLAN, "--dry-run"]) == 0
    config = json.loads(printed.getvalue())
    [slot] = config["model"]["ffn"]
    config["model"]["ffn"] = [{**slot, **more} for more in SLOTS]
    return config


@pytest.fixture(scope="module")
def chains(tmp_path_factory, flags, corpus: Path, cache: Path, environment) -> dict[str, Chain]:
    # Tokenised once beforehand, so that the chains do not do it three times over.
    prepare(DataConfig(source=str(corpus), mask_documents=True), vocab_size=300, cache=cache)
    folder = tmp_path_factory.mktemp("exact")
    source = folder / "config.json"
    source.write_text(json.dumps(config_of(flags)))
    draw = random.Random(7)
    asked = (f"SIGTERM {draw.randint(2, 9)}.0", f"SIGINT {draw.randint(11, 22)}.1", "")
    found = {
        "killed": Chain(folder / "killed", (*moments(seed=5), "")),
        "asked": Chain(folder / "asked to stop", asked),
        "left alone": Chain(folder / "alone", ("",)),
    }
    train = ("train", "pools-demo", "--from", str(source))

    def work(chain: Chain) -> None:
        args: tuple[str, ...] = (*train, "--run", str(chain.run))
        for strike in chain.strikes:
            done = subprocess.run(
                [sys.executable, "-c", STRUCK, *args],
                env={**environment, "STRIKE": strike},
                capture_output=True,
                text=True,
                timeout=300,
            )
            chain.done.append(done)
            chain.reached.append([path.name for path in list_checkpoints(chain.run)])
            chain.half_written += [path.name for path in chain.run.rglob(".writing_*")]
            args = ("resume", str(chain.run))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, found.values()))
    return found


def lines_of(run: Path) -> list[dict[str, float]]:
    """The metrics of a run without what a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "time/")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def name_of(step: int) -> str:
    return f"step_{step:09d}"


def test_the_run_that_is_left_alone(chains):
    chain = chains["left alone"]
    assert chain.done[0].returncode == 0, chain.done[0].stderr
    assert [line["step"] for line in lines_of(chain.run)] == list(range(1, STEPS + 1))
    assert chain.reached == [[name_of(20), name_of(STEPS)]]
    # Something was learned, so that equal weights mean something: from ln 300 = 5.70 nats.
    assert lines_of(chain.run)[-1]["train/ce"] < 5.2


def test_the_kills_fell_where_they_should(chains):
    chain = chains["killed"]
    codes = [done.returncode for done in chain.done]
    assert codes == [-signal.SIGKILL] * 5 + [0], chain.done[-1].stderr
    # Before any checkpoint; after the first; inside the second's write, which leaves the first;
    # after the second; after the third or the fourth.
    assert chain.reached[:4] == [[], [name_of(5)], [name_of(5)], [name_of(5), name_of(10)]]
    assert chain.reached[4] in ([name_of(10), name_of(15)], [name_of(15), name_of(20)])
    assert chain.reached[5] == [name_of(20), name_of(STEPS)]
    assert name_of(10) in chain.half_written[0]


def test_a_stop_that_is_asked_for_is_a_checkpoint_and_a_command(chains):
    chain = chains["asked"]
    for strike, done, reached in zip(chain.strikes, chain.done, chain.reached):
        assert done.returncode == 0, done.stderr
        if strike:
            # The step that was under way is finished first.
            step = int(strike.split()[1].partition(".")[0]) + 1
            assert reached[-1] == name_of(step)
            assert f"stopped at step {step} of {STEPS} after a checkpoint" in done.stderr
            assert shlex.split(done.stdout) == ["pellucid", "resume", str(chain.run)]
        else:
            assert done.stdout == f"{chain.run}\n"


@pytest.mark.parametrize("name", ["killed", "asked"])
def test_weights_and_moments_are_bit_identical(chains, name: str):
    alone, other = (load_checkpoint(chains[chain].run) for chain in ("left alone", name))
    for file in ("model", "optimizer"):
        expected, found = getattr(alone, file), getattr(other, file)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            # Bytes, so that not even the sign of a zero may differ.
            assert found[key].numpy().tobytes() == tensor.numpy().tobytes(), key


@pytest.mark.parametrize("name", ["killed", "asked"])
def test_what_transformers_loads_is_identical_too(chains, name: str):
    expected, found = (
        load_file(chains[chain].run / "model.safetensors") for chain in ("left alone", name)
    )
    assert found.keys() == expected.keys()
    assert all(found[key].equal(tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["killed", "asked"])
def test_metrics_are_identical_line_by_line(chains, name: str):
    assert lines_of(chains[name].run) == lines_of(chains["left alone"].run)


@pytest.mark.parametrize("name", ["killed", "asked", "left alone"])
def test_nothing_half_written_is_left(chains, name: str):
    assert list(chains[name].run.rglob(".*")) == []


def test_the_comparison_can_fail(chains, cli: Callable[..., object], tmp_path: Path):
    # Another seed is told apart after one step.
    source = chains["left alone"].run / "run.json"
    other = ("--seed", "1", "--steps", "1", "--run", tmp_path / "r")
    cli("train", "pools-demo", "--from", source, *other)
    alone = load_checkpoint(chains["left alone"].run).model
    other = load_checkpoint(tmp_path / "r").model
    assert other.keys() == alone.keys()
    assert not other["embed.weight"].equal(alone["embed.weight"])
    assert lines_of(tmp_path / "r")[0] != lines_of(chains["left alone"].run)[0]
