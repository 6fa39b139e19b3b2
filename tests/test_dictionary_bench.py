"""The comparison of dictionaries: arms that match, fits that are paired, records that are kept."""

import importlib
import json
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pellucid.core.unit import Site
from pellucid.dictionaries.cost import dictionary_cost

ROOT = Path(__file__).parents[1]
SITE = Site.parse("world:in")


@pytest.fixture(scope="module")
def bench():
    """The modules, which are no part of the package."""
    sys.path.insert(0, str(ROOT))
    try:
        names = ("arms", "fit", "__main__")
        yield [importlib.import_module(f"benchmarks.dictionaries.{name}") for name in names]
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture
def setting(bench, tmp_path: Path):
    return bench[1].Setting(
        model="",
        cache=tmp_path,
        work=tmp_path,
        steps=3,
        batch=64,
        settle_rows=256,
        score_rows=1024,
        windows=1,
    )


def short(arm, latents: int = 64):
    """The arm at a size that is fitted in a moment."""
    return replace(arm, config=replace(arm.config.with_k(4), latents=latents, plan=3, batch=64))


def test_matched_arms_match_what_they_say(bench):
    arms, _, _ = bench
    matched = [
        arm
        for arm in arms.matched_arms("lm", width=128, latents=2048, k=32, gates=True)
        if arm.seed == 0
    ]
    assert {arm.dictionary for arm in matched} == {
        *("topk", "batchtopk", "jumprelu", "matryoshka"),
        *("switch", "multi", "scaling", "scale", "expander"),
    }
    for on, field in (
        ("latents", "latents"),
        ("active", "active"),
        ("encoder_macs", "encoder_macs"),
    ):
        costs = {
            arm.dictionary: getattr(dictionary_cost(arms.build(arm, SITE, 128)), field)
            for arm in matched
            if on in arm.matched
        }
        assert set(costs) >= {"topk", "switch", "multi", "scaling", "scale", "expander"}
        # Latents come in whole experts; the last comparison also pays for the router.
        assert max(costs.values()) <= 1.01 * min(costs.values()), (on, costs)


def test_ablations_of_scale_differ_in_one_thing_each(bench):
    arms, _, _ = bench
    switch, scale = arms.ROUTED["switch"], arms.ROUTED["scale"]
    assert arms.ROUTED["scaling"].router == replace(switch.router, lowpass="learned")
    assert arms.ROUTED["multi"].router == replace(scale.router, lowpass="none")
    assert {replace(config, router=None) for config in arms.ROUTED.values()} == {
        replace(switch, router=None)
    }


def test_storage_controls_keep_the_values_of_the_expander(bench):
    arms, _, _ = bench
    found = [arm for arm in arms.storage_arms("lm", width=128, latents=2048, k=32) if arm.seed == 0]
    for s in arms.NONZEROS:
        tables = {}
        for arm in found:
            sparse = getattr(arm.config.atoms, "nonzeros", None)
            if sparse == s or arm.dictionary == f"small-tied-s{s}":
                decoder = arms.build(arm, SITE, 128).decoder
                tables[arm.dictionary] = decoder.table().numel()
        assert tables == dict.fromkeys(
            ("expander", "clustered", "shared", "pruned", f"small-tied-s{s}"), 2048 * s
        )


def test_every_fit_has_a_name_of_its_own(bench):
    arms, _, _ = bench
    made = [
        *arms.matched_arms("lm", width=128, latents=2048, k=32, gates=True),
        *arms.matched_arms("lm", width=128, latents=2048, k=8, gates=False),
        *arms.balance_arms("lm", latents=2048, k=32),
        *arms.trained_arms("lm", latents=2048, k=32),
        *arms.storage_arms("lm", width=128, latents=2048, k=32),
        *arms.trial_arms("lm", latents=2048, k=32, rates=(1.0, 2.0)),
    ]
    assert len({arm.name for arm in made}) == len(made)


def test_a_fit_gives_one_record_for_every_comparison_and_inference(bench, setting):
    arms, fit, _ = bench
    arm = short(next(arms.storage_arms("flat", width=64, latents=64, k=4)))
    arm = replace(arm, matched=("latents", "active"))
    records = fit.fit_arm(arm, setting)
    assert [(r["inference"], r["matched_on"]) for r in records] == [
        ("encoder", "latents"),
        ("encoder", "active"),
        ("omp", "latents"),
        ("omp", "active"),
    ]
    encoder, omp = records[0], records[2]
    # A solver over all rows costs k times an encoder over them, and fits the same rows better.
    assert omp["encoder_macs"] == 4 * encoder["encoder_macs"]
    assert omp["fvu"] < encoder["fvu"]
    assert encoder["rows"] == 3 * 64
    assert encoder["mcc"] is not None
    assert encoder["ce_recovered"] is None


def test_frozen_halves_stay_as_they_were_drawn(bench, setting):
    arms, fit, _ = bench
    for arm in arms.trained_arms("flat", latents=64, k=4):
        if arm.seed:
            continue
        arm = short(arm)
        fit.fit_arm(arm, setting)
        kept = load_file(setting.work / f"{arm.name}.safetensors")
        drawn = arms.build(arm, SITE, 64).state_dict()
        other = "encoder" if arm.frozen == "decoder" else "decoder"
        moved = {
            part: (kept[f"{part}.weight"] - drawn[f"{part}.weight"]).abs().max().item()
            for part in (arm.frozen, other)
        }
        # Unit rows are normalised after every step, which may turn a last bit.
        assert moved[arm.frozen] < 1e-6 < 1e-4 < moved[other], moved


def test_pruned_rows_begin_as_the_largest_entries_of_the_dense_fit(bench, setting, monkeypatch):
    arms, fit, _ = bench
    found = [a for a in arms.storage_arms("flat", width=64, latents=64, k=4) if a.seed == 0]
    tied = short(next(a for a in found if a.dictionary == "dense-tied"))
    pruned = short(next(a for a in found if a.pruned is not None))
    fit.fit_arm(tied, setting)
    dense = load_file(setting.work / f"{tied.name}.safetensors")["decoder.weight"]
    monkeypatch.setattr(fit, "_train", lambda *_: 0.0)
    fit.fit_arm(replace(pruned, pruned=tied.name), setting)
    kept = load_file(setting.work / f"{pruned.name}.safetensors")
    s = pruned.config.atoms.nonzeros
    whole = torch.zeros_like(dense).scatter(1, kept["decoder.index"].long(), kept["decoder.values"])
    largest = dense.abs().topk(s, dim=1).indices
    assert torch.equal(whole, torch.zeros_like(dense).scatter(1, largest, dense.gather(1, largest)))


def test_the_same_fit_gives_the_same_figures(bench, setting):
    arms, fit, _ = bench
    arm = short(next(arms.matched_arms("flat", width=64, latents=64, k=4, gates=False)))
    timed = ("seconds", "peak_mb", "base_mb")
    first, second = (
        [{k: v for k, v in r.items() if k not in timed} for r in fit.fit_arm(arm, setting)]
        for _ in range(2)
    )
    assert first == second


def test_the_command_goes_on_with_what_has_no_record(bench, tmp_path: Path, monkeypatch):
    _, _, main = bench
    fitted = []

    class InProcess:
        """Stands for the pool of processes; what a process does is tested above."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def submit(self, work, arm, setting):
            future = Future()
            fitted.append(arm)
            future.set_result(
                [
                    {
                        "source": arm.source,
                        "dictionary": arm.dictionary,
                        "rate": arm.rate,
                        "k": 8,
                        # The best rate of all lets too many latents speak.
                        "l0": 20.0 if arm.rate == 4.0 and arm.family == "jumprelu" else 8.0,
                        "fvu": abs(arm.rate - 4.0),
                        "rows": setting.steps * setting.batch,
                        "inference": "encoder",
                        "matched_on": None,
                    }
                ]
            )
            return future

    monkeypatch.setattr(main, "ProcessPoolExecutor", InProcess)
    asked = ["--source", "flat", "--steps", "6", "--batch", "8"]
    asked += ["--results", str(tmp_path), "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["dictionaries", *asked])
    main.main()
    records = json.loads((tmp_path / main.RECORDS).read_text())
    trials = json.loads((tmp_path / main.TRIALS).read_text())
    assert len(fitted) == len(records) + len(trials)
    # Every arm takes the rate at which its family's trial was best, among those of a like L0.
    arms = [arm for arm in fitted if not arm.experiment.startswith("trial")]
    assert {arm.rate for arm in arms if arm.family != "jumprelu"} == {4.0}
    assert {arm.rate for arm in arms if arm.family == "jumprelu"} == {2.0}
    fitted.clear()
    (tmp_path / main.RECORDS).write_text(json.dumps(records[1:]))
    main.main()
    assert [arm.name for arm in fitted] == [records[0]["fit"]]
    assert json.loads((tmp_path / main.RECORDS).read_text()) == records


def test_a_million_latents_in_small(bench, tmp_path: Path, monkeypatch):
    million = importlib.import_module("benchmarks.million_latents")
    out = tmp_path / "record.json"
    asked = ["--latents", "96", "--width", "16", "--k", "4", "--batch", "8", "--steps", "5"]
    monkeypatch.setattr(sys, "argv", ["million_latents", *asked, "--out", str(out)])
    million.main()
    (record,) = json.loads(out.read_text())
    # Values, gradients apart, with two moments each: 96 · 7 float32 thrice, and places of 2 bytes.
    assert record["held_mb"] * 2**20 > 96 * 7 * (3 * 4 + 2)
    assert record["held_mb"] < 3 * record["dense_values_mb"]
    assert 0 < record["fvu"] < 10
    assert record["seconds_per_step"] > 0
