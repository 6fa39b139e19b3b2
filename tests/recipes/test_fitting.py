"""Fitting dictionaries: paired rows, exact resume, scoring inside the model, refusals."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pellucid.core.errors import AddressError, ConfigError, DataError
from pellucid.core.unit import Site
from pellucid.data.activations import ActivationCache
from pellucid.data.document import DataConfig
from pellucid.recipes import fitting
from pellucid.recipes.dictionary import FitRun, choose_dictionary, plan_fits
from pellucid.recipes.fit_folder import (
    create_fit,
    load_dictionary,
    read_fit,
    read_record,
    write_record,
)
from pellucid.recipes.fitting import fit_dictionaries, prepare_fit
from pellucid.train.checkpoint import list_checkpoints

IN, OUT = "blocks.0.ffn:in", "blocks.0.ffn:out"
STEPS = 6
NAMES = (
    "topk",
    "batchtopk",
    "jumprelu",
    "scale:router.experts=4,router.active=2",
    "expander",
    "pursuit",
    "gated",
    "relu",
    "matryoshka",
)


def config(cache: Path, *texts: str, **more) -> FitRun:
    chosen = [(*choose_dictionary(text, latents=32, k=3), OUT, OUT) for text in texts or NAMES]
    fits = plan_fits(chosen, steps=STEPS, batch=16)
    fields = {
        "source": str(cache),
        "fits": fits,
        "steps": STEPS,
        "batch": 16,
        "settle_rows": 64,
        "evaluate_every": 3,
        "evaluate_rows": 32,
        "splice_windows": 2,
        "checkpoint_every": 2,
        "keep_checkpoints": 9,
        "log_every": 1,
        "device": "cpu",
    }
    return FitRun(**{**fields, **more})


def fit(run: Path, wanted: FitRun) -> bool:
    prepared = prepare_fit(wanted, lambda *_: None)
    if not run.exists():
        create_fit(run, prepared.config, command=[], overwrite=False)
    return fit_dictionaries(run, prepared, say=lambda _: None)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, harvested: Path, cache: Path) -> Path:
    """A finished run over every kind of dictionary. Copy it before you change it."""
    run = tmp_path_factory.mktemp("fits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        assert fit(run, config(harvested))
    return run


def lines(folder: Path) -> list[dict[str, float]]:
    """The metrics without what the clock decides."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "time/tokens_per_second")}
        for line in found
    ]


def test_every_dictionary_has_its_folder_metrics_and_figures(fitted: Path):
    for planned in read_fit(fitted).fits:
        folder = fitted / planned.name
        written = lines(folder)
        assert [line["step"] for line in written] == list(range(1, STEPS + 1))
        assert {line["step"] for line in written if "val/fvu" in line} == {3, 6}
        found = read_record(folder)
        assert found.figures["fvu"] > 0
        assert {"l0", "dead", "silent", "dense_1", "redundancy_90", "ce_clean"} <= set(
            found.figures
        )
        assert found.missing.keys() <= {"ce_recovered"}
        assert ("ce_recovered" in found.figures) != ("ce_recovered" in found.missing)
    assert "load_entropy" in read_record(fitted / "scale").figures
    assert "load_entropy" not in read_record(fitted / "topk").figures


def test_a_fitted_dictionary_is_loaded_as_it_was_scored(fitted: Path, harvested: Path):
    for planned in read_fit(fitted).fits:
        coder = load_dictionary(fitted / planned.name)
        assert not coder.training
        assert int(coder.steps) == STEPS
        cache = ActivationCache.open(harvested)
        rows = torch.cat([part.x[Site.parse(OUT)] for part in cache.validation(16)])
        with torch.no_grad():
            missed = (rows - coder(rows)).double().square().sum()
        spread = (rows - rows.double().mean(0)).square().sum()
        # float32 outputs, summed over another order of batches.
        assert read_record(fitted / planned.name).figures["fvu"] == pytest.approx(
            float(missed / spread), rel=1e-5
        )


def test_all_see_the_same_rows_in_the_same_order(harvested: Path, tmp_path: Path, monkeypatch):
    seen: dict[str, list[float]] = {}
    whole = fitting.fit_loop

    def watch(coder, optimizer, planned, run, batches, device):
        def watched(step):
            rows = batches(step)
            seen.setdefault(planned.name, []).append(float(rows[0].x[Site.parse(OUT)].sum()))
            return rows

        return whole(coder, optimizer, planned, run, watched, device)

    monkeypatch.setattr(fitting, "fit_loop", watch)
    fit(tmp_path / "run", config(harvested, "topk", "expander"))
    assert len(seen["topk"]) == STEPS
    assert seen["topk"] == seen["expander"]
    assert len(set(seen["topk"])) == STEPS


def test_a_dictionary_does_not_depend_on_its_company(fitted: Path, harvested: Path, tmp_path: Path):
    fit(tmp_path / "run", config(harvested, "jumprelu"))
    alone = load_dictionary(tmp_path / "run" / "jumprelu").state_dict()
    for name, tensor in load_dictionary(fitted / "jumprelu").state_dict().items():
        assert torch.equal(alone[name], tensor), name


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_that_was_killed_repeats_itself_bit_by_bit(fitted: Path, tmp_path: Path, step: int):
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    wanted = read_fit(run)
    for planned in wanted.fits:
        folder = run / planned.name
        for checkpoint in list_checkpoints(folder):
            # One dictionary had come further than the others when the process died.
            reached = step + 2 if planned.name == "topk" else step
            if int(checkpoint.name.removeprefix("step_")) > reached:
                shutil.rmtree(checkpoint)
        (folder / "latest").unlink()
    assert fit(run, wanted)
    for planned in wanted.fits:
        one = load_dictionary(fitted / planned.name).state_dict()
        other = load_dictionary(run / planned.name).state_dict()
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (planned.name, name)
        assert lines(run / planned.name) == lines(fitted / planned.name)
        before, after = read_record(fitted / planned.name), read_record(run / planned.name)
        assert before == after


def test_a_signal_stops_all_after_a_checkpoint(harvested: Path, tmp_path: Path, monkeypatch):
    class Asked:
        """Asks for a stop from the third question on."""

        def __init__(self) -> None:
            self.times = 0

        def __enter__(self) -> "Asked":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def asked(self) -> bool:
            self.times += 1
            return self.times > 2

    monkeypatch.setattr(fitting, "StopOnSignal", Asked)
    run, wanted = tmp_path / "run", config(harvested, "topk", "expander")
    assert not fit(run, wanted)
    assert [path.name for path in list_checkpoints(run / "topk")] == ["step_000000002"]
    assert read_record(run / "topk").figures == {}
    monkeypatch.undo()
    assert fit(run, wanted)


def test_a_stream_is_fitted_without_a_cache(trained: Path, source: Path, tmp_path: Path):
    wanted = config(trained, "topk", splice_windows=1).streamed(
        DataConfig(source=str(source)), context=12
    )
    assert fit(tmp_path / "run", wanted)
    found = read_record(tmp_path / "run" / "topk")
    assert found.model["name"] == str(trained)
    assert found.figures["fvu"] > 0


def test_transcoders_read_one_site_and_write_another(harvested: Path, tmp_path: Path):
    chosen = [
        (*choose_dictionary(text, latents=32, k=3), IN, OUT)
        for text in ("topk", "jumprelu:skip=true", "expander")
    ]
    wanted = replace(config(harvested), fits=plan_fits(chosen, steps=STEPS, batch=16))
    assert fit(tmp_path / "run", wanted)
    coder = load_dictionary(tmp_path / "run" / "topk")
    assert (str(coder.spec.reads), str(coder.spec.writes)) == (IN, OUT)
    # Zeroing a site that is nothing yet costs nothing; what matters is that it was measured.
    assert "ce_splice" in read_record(tmp_path / "run" / "topk").figures


def test_without_the_model_the_reason_stands_in_its_place(
    harvested: Path, trained: Path, tmp_path: Path, monkeypatch
):
    said: list[str] = []

    def gone(name: str, *, device: str):
        raise ConfigError(f"{name}: gone")

    monkeypatch.setattr(fitting, "open_host", gone)
    prepared = prepare_fit(config(harvested, "topk"), lambda *_: None)
    create_fit(tmp_path / "run", prepared.config, command=[], overwrite=False)
    assert fit_dictionaries(tmp_path / "run", prepared, say=said.append)
    found = read_record(tmp_path / "run" / "topk")
    assert "ce_recovered" not in found.figures
    assert found.missing["ce_recovered"] == f"the model cannot be opened: {trained}: gone"
    assert said == [f"cross-entropy recovered is not measured: {found.missing['ce_recovered']}"]


def test_a_model_with_other_weights_is_not_spliced(harvested: Path, tmp_path: Path, monkeypatch):
    opened = fitting.open_host(ActivationCache.open(harvested).origin.model["name"])
    other = replace(opened, identity={**opened.identity, "weights": "0" * 64})
    monkeypatch.setattr(fitting, "open_host", lambda *_, **__: other)
    fit(tmp_path / "run", config(harvested, "topk"))
    missing = read_record(tmp_path / "run" / "topk").missing
    assert "no longer has the weights that were harvested" in missing["ce_recovered"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("topk:gate.k=33", ConfigError, r"^gate\.k: expected at most latents = 32, found 33"),
        ("expander:atoms.nonzeros=17", ConfigError, "nonzeros: expected 1 to the width 16"),
        ("groupmax:gate.k=5", ConfigError, r"gate\.k: expected a divisor of latents = 32"),
    ],
)
def test_what_cannot_be_built_is_told_before_a_folder_is_made(harvested, text, error, message):
    with pytest.raises(error, match=message):
        prepare_fit(config(harvested, text), lambda *_: None)


def test_a_cache_without_the_site_names_those_it_has(harvested: Path):
    chosen = [(*choose_dictionary("topk", latents=8, k=2), IN, "blocks.1.ffn:out")]
    wanted = replace(config(harvested), fits=plan_fits(chosen, steps=1, batch=8))
    with pytest.raises((AddressError, DataError), match=r"blocks\.1\.ffn:out"):
        prepare_fit(wanted, lambda *_: None)


def test_a_damaged_cache_is_found_before_anything_is_fitted(harvested: Path, tmp_path: Path):
    damaged = Path(shutil.copytree(harvested, tmp_path / "cache"))
    shard = sorted(damaged.glob("train.*.site1.bin"))[0]
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=shard.name):
        prepare_fit(config(damaged, "topk"), lambda *_: None)


def test_a_run_does_not_go_on_with_another_models_rows(fitted: Path, tmp_path: Path):
    run = Path(shutil.copytree(fitted, tmp_path / "run"))
    record = read_record(run / "topk")
    write_record(run / "topk", replace(record, model={**record.model, "weights": "0" * 64}))
    before = (run / "topk" / "metrics.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"model\.weights: expected '000"):
        fit(run, read_fit(run))
    assert (run / "topk" / "metrics.jsonl").read_bytes() == before


def test_rows_to_measure_scales_on_are_read_once_for_all(harvested: Path, tmp_path: Path):
    prepared = prepare_fit(config(harvested, "topk", "gated", "relu"), lambda *_: None)
    real, asked = prepared.source.batch, []
    prepared.source.batch = lambda step, *a, **k: asked.append(step) or real(step, *a, **k)
    create_fit(tmp_path / "run", prepared.config, command=[], overwrite=False)
    fit_dictionaries(tmp_path / "run", prepared, say=lambda _: None)
    # 64 rows are four batches of 16, then the six steps of all three.
    assert asked == [*range(4), *range(STEPS)]


ONE_FIT = """
import resource, sys
from pellucid.cli import main
code = main(["fit", *sys.argv[1:]])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_rows_fitted(harvested: Path, tmp_path: Path):
    """Five batches of 4,096 rows of 64 bytes, and 500 of them: 130 MB more, were they held."""

    def peak(steps: int) -> int:
        asked = ["--dictionary", "topk", "--latents", "32", "--k", "3", "--site", OUT]
        asked += ["--tokens", str(4096 * steps), "--batch", "4096", "--device", "cpu"]
        asked += ["--run", str(tmp_path / str(steps)), "--evaluate-every", str(steps)]
        done = subprocess.run(
            [sys.executable, "-c", ONE_FIT, str(harvested), *asked],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    few, many = peak(5), peak(500)
    assert read_record(tmp_path / "500" / "topk").figures["fvu"] > 0
    # An allocator keeps some of what it was given back.
    assert many - few < 30e6
