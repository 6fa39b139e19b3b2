"""The reference comparison: equal budgets, trials that are kept, records that can be made again."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.core.errors import TrainingError
from pellucid.models.cost import model_cost

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench():
    """The module, which is no part of the package."""
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("benchmarks.lm_tiny")
    finally:
        sys.path.remove(str(ROOT))


def configs(bench):
    return {arm: bench.arm_config(arm, "embedded", 3, 1e-3, 700) for arm in bench.ARMS}


def test_all_arms_cost_the_same_forward(bench):
    found = {arm: model_cost(config.model).forward for arm, config in configs(bench).items()}
    budget = found["pools-k12"]
    # The sizes are whole numbers; the coarsest step is one side of MONET's square.
    assert {arm: cost for arm, cost in found.items() if abs(cost / budget - 1) > 0.02} == {}


def test_all_arms_differ_in_their_slot_and_precision_alone(bench):
    found = configs(bench)
    base = found["dense"]
    for arm, config in found.items():
        assert config.data == base.data
        assert config.optim == base.optim
        assert config.schedule == base.schedule
        assert (config.steps, config.batch, config.seed) == (base.steps, base.batch, base.seed)
        for name in ("width", "layers", "heads", "head_dim", "vocab_size", "context"):
            assert getattr(config.model, name) == getattr(base.model, name)
        assert config.precision == ("fp32" if arm == "dense-fp32" else "bf16")
    assert found["pools-k32"].model.slot(0).k == 32
    assert found["pools-k12"].model.slot(0).k == 12


WORDS = ("pool", "unit", "gate", "read", "write", "token", "layer", "norm", "rope", "mask", "seed")


@pytest.fixture
def asked(bench, tmp_path: Path, monkeypatch):
    """``main`` with microscopic runs on two domains of eight documents."""
    source = tmp_path / "text.jsonl"
    rows = [
        {
            "id": f"{domain}-{index}",
            "domain": domain,
            "split": "validation" if index % 4 == 3 else "train",
            "text": " ".join(WORDS[(index * shift + place) % 11] for place in range(60)),
        }
        for domain, shift in (("odd", 3), ("even", 5))
        for index in range(8)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "RATES", (1e-3, 2e-3))
    real = bench.arm_config

    def small(*arguments):
        config = real(*arguments)
        model = replace(config.model, layers=2, context=32, vocab_size=400)
        return replace(config, model=model, evaluate_tokens=64, batch=2)

    monkeypatch.setattr(bench, "arm_config", small)

    def call(*more: str) -> None:
        argv = [
            *("lm_tiny", "--data", str(source), "--steps", "2", "--trial", "1"),
            *("--validation", "64", "--units", "64", "--runs", str(tmp_path / "runs")),
            *("--results", str(tmp_path / "results"), *more),
        ]
        monkeypatch.setattr(sys, "argv", argv)
        bench.main()

    return call


def read(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / "results" / name).read_text())


def test_records_are_made_once_and_can_be_measured_again(bench, asked, tmp_path: Path):
    asked("--arm", "pools-k12", "--arm", "dense", "--seed", "0")
    trials, records = read(tmp_path, "trials-tiny.json"), read(tmp_path, "lm-tiny.json")
    assert [(t["arm"], t["lr"]) for t in trials] == [
        (arm, lr) for arm in ("pools-k12", "dense") for lr in (1e-3, 2e-3)
    ]
    assert [r["arm"] for r in records] == ["pools-k12", "dense"]
    best = min(trials[:2], key=lambda t: t["val_bpb"])
    assert records[0]["lr"] == best["lr"]
    assert records[0]["tokens"] == 2 * 2 * 32
    assert records[0]["nmi_given_token_null_mean"] is not None
    assert records[1]["nmi_given_token"] is None
    assert records[0]["tokens_per_second"] is None
    documented = (ROOT / "docs" / "results" / "README.md").read_text()
    assert [name for name in records[0] if f"`{name}`" not in documented] == []
    asked("--arm", "pools-k12", "--arm", "dense", "--seed", "0")
    assert read(tmp_path, "lm-tiny.json") == records
    asked("--speed")
    timed = read(tmp_path, "lm-tiny.json")
    assert all(record["tokens_per_second"] > 0 for record in timed)
    asked("--measure")
    assert read(tmp_path, "lm-tiny.json") == timed


def test_a_rate_that_diverges_is_the_worst(bench, asked, tmp_path: Path, monkeypatch):
    real = bench.train_language

    def diverge(run, prepared, **more):
        if prepared.config.optim.lr == 1e-3:
            raise TrainingError("step 1: loss part 'ce' is nan")
        return real(run, prepared, **more)

    monkeypatch.setattr(bench, "train_language", diverge)
    asked("--arm", "dense", "--seed", "0")
    assert [t["val_bpb"] is None for t in read(tmp_path, "trials-tiny.json")] == [True, False]
    assert read(tmp_path, "lm-tiny.json")[0]["lr"] == 2e-3
