"""A user's journey on real text: train, resume, read, edit, list, and on to transformers."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pellucid.recipes.language import recipe_names
from pellucid.recipes.load import load_run

ARCHITECTURES = sorted({name.rpartition("-")[0] for name in recipe_names()})
TRUNK = (
    *("--model.width", "16", "--model.heads", "2", "--model.kv-heads", "1"),
    *("--model.head-dim", "8", "--model.vocab-size", "300", "--model.context", "16"),
    *("--batch", "4", "--evaluate-tokens", "40", "--log-every", "1", "--device", "cpu"),
)
SLOTS = {
    "dense": ("--model.ffn.0.hidden", "24"),
    "swiglu": ("--model.ffn.0.hidden", "16"),
    "topk-mlp": ("--model.ffn.0.hidden", "40", "--model.ffn.0.k", "6"),
    "peer": ("--model.ffn.0.experts", "49", "--model.ffn.0.heads", "2"),
    "monet-hd": ("--model.ffn.0.side", "5", "--model.ffn.0.neurons", "4"),
    "monet-vd": ("--model.ffn.0.side", "5", "--model.ffn.0.neurons", "4"),
    "pools": ("--model.ffn.0.pools", "6", "--model.ffn.0.slots", "8", "--model.ffn.0.k", "5"),
    "pooled-peer": ("--model.ffn.0.pools", "9", "--model.ffn.0.slots", "6", "--model.ffn.0.k", "4"),
}
MORE = {
    "pools": ("--model.ffn.0.open-pools", "3"),
    "pooled-peer": ("--model.ffn.0.heads", "2", "--model.ffn.0.open-pools", "4"),
    "peer": ("--model.ffn.0.k", "4", "--model.ffn.0.key-width", "8"),
    "monet-hd": ("--model.ffn.0.heads", "2", "--model.ffn.0.kept", "2"),
    "monet-vd": ("--model.ffn.0.heads", "2", "--model.ffn.0.kept", "2"),
}

TRANSFORMERS = """
import sys, torch
import pellucid.models.hf
from transformers import AutoModelForCausalLM, AutoTokenizer
run = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(run).eval()
tokenizer = AutoTokenizer.from_pretrained(run)
ids = tokenizer("def wrap(text", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits
written = model.generate(ids, max_new_tokens=5, do_sample=False)
torch.save({"ids": ids, "logits": logits, "written": written}, sys.argv[2])
print(type(model).__name__)
"""


def test_the_journey(cli, python, tmp_path: Path, flags, trained: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = ("--steps", "6", "--checkpoint-every", "3", "--evaluate-every", "3")
    answer = cli("train", "pools-demo", *flags, *plan, "--optim.lr", "0.02", "--run", "runs/a")
    assert (answer.code, answer.out) == (0, "runs/a\n")
    assert "pools-demo: step 6/6 loss " in answer.err

    answer = cli("resume", "runs/a", "--steps", "30")
    assert (answer.code, answer.out) == (0, "runs/a\n")
    assert "the learning-rate schedule is planned again from step 6" in answer.err

    prompt = ("generate", "runs/a", "--prompt", "def wrap(text", "--tokens", "6")
    plain = cli(*prompt)
    assert plain.out.startswith("def wrap(text")
    edited = cli(*prompt, "--ablate", "blocks.1.ffn@pool=3", "--scale", "blocks.0.ffn@17=4")
    assert edited.out.startswith(f"--- unchanged\n{plain.out}\n--- without blocks.1.ffn@pool=3, ")

    [row] = json.loads(cli("runs", "runs", "--json").out)
    assert (row["name"], row["step"], row["steps"]) == ("runs/a", 30, 30)
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert row["bits_per_byte"] == lines[-1]["val/bits_per_byte"]

    # Thirty steps on text: an untrained model pays ln 300 nats a token, this one clearly less.
    assert lines[0]["train/ce"] == pytest.approx(math.log(300), rel=0.05)
    assert lines[-1]["train/ce"] < 0.9 * math.log(300)
    assert lines[-1]["val/bits_per_byte"] < lines[2]["val/bits_per_byte"]
    for line in lines:
        parts = line["train/ce"] + line["train/balance"] + line["train/router_z"]
        assert line["train/loss"] == pytest.approx(parts, rel=1e-9)

    done = python(TRANSFORMERS, Path("runs/a"), Path("theirs.pt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "PellucidForCausalLM\n"
    theirs = torch.load("theirs.pt")
    loaded = load_run(Path("runs/a"))
    assert theirs["ids"][0].tolist() == loaded.tokenizer.encode("def wrap(text")
    with torch.no_grad():
        ours = loaded.model(theirs["ids"])
    # The same modules in another process with another number of threads.
    torch.testing.assert_close(theirs["logits"], ours, rtol=1e-4, atol=1e-5)
    assert theirs["written"].shape[1] <= theirs["ids"].shape[1] + 5


def test_the_run_folder(trained: Path):
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "latest",
        "log.jsonl",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (trained / "latest").read_text() == "step_000000008\n"
    environment = json.loads((trained / "environment.json").read_text())
    assert {"commit", "dirty", "packages", "machine", "device", "seed"} <= environment.keys()
    events = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "stop"]
    record = json.loads((trained / "run.json").read_text())
    assert record["command"][:3] == ["pellucid", "train", "pools-demo"]
    assert (record["schema"], record["kind"], record["recipe"]) == (1, "language", "pools-demo")


def test_every_file_of_tensors_is_safetensors_and_none_a_pickle(trained: Path):
    for path in trained.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:4]
            assert not head.startswith(b"PK\x03\x04")
            assert path.suffix in (".json", ".jsonl", ".safetensors", "")
    exported = load_file(trained / "model.safetensors")
    saved = load_file(trained / "checkpoints" / "step_000000008" / "model.safetensors")
    assert torch.equal(exported["model.embed_tokens.weight"], saved["embed.weight"])
    assert len(exported) == len(saved)


def test_the_metrics_of_a_run(trained: Path):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["tokens"] for line in lines] == [64 * step for step in range(1, 9)]
    evaluated = [line["step"] for line in lines if "val/bits_per_byte" in line]
    assert evaluated == [4, 8]
    last = lines[-1]
    domains = ["code", "manual", "reference"]
    by_domain = [last[f"val/bits_per_byte/{domain}"] for domain in domains]
    assert min(by_domain) <= last["val/bits_per_byte"] <= max(by_domain)
    assert 0 < last["val/live_units"] <= 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_and_writes(cli, tmp_path: Path, corpus: Path, architecture: str):
    run = tmp_path / architecture
    plan = ("--steps", "2", "--checkpoint-every", "2", "--evaluate-every", "2")
    flags = (*TRUNK, *SLOTS[architecture], *MORE.get(architecture, ()), *plan)
    data = ("--data", corpus)
    answer = cli("train", f"{architecture}-demo", *flags, *data, "--run", run)
    assert answer.code == 0, answer.err
    answer = cli(
        "generate", run, "--prompt", "class", "--tokens", "2", "--ablate", "blocks.0.ffn@0"
    )
    assert answer.out.startswith("--- unchanged\nclass")
    assert cli("resume", run, "--steps", "3").code == 0


def test_masked_documents_bf16_and_accumulation(cli, tmp_path: Path, flags):
    more = ("--data.mask-documents", "--precision", "bf16", "--accumulate", "2", "--steps", "2")
    answer = cli("train", "pools-demo", *flags, *more, "--run", tmp_path / "run")
    assert answer.code == 0, answer.err
    [*_, last] = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(last)["tokens"] == 2 * 2 * 4 * 16


def test_distillation_from_a_run(cli, tmp_path: Path, flags, trained: Path):
    more = ("--distil.teacher", trained, "--distil.alpha", "0.5", "--steps", "2")
    answer = cli("train", "dense-demo", "--data", flags[1], *TRUNK, *SLOTS["dense"], *more,
                 "--run", tmp_path / "run")  # fmt: skip
    assert answer.code == 0, answer.err
    [first, _] = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(first)
    assert metrics["train/loss"] == pytest.approx(metrics["train/kl"] + metrics["train/ce"])
    assert metrics["train/kl"] > 0


def test_a_loss_that_explodes_leaves_the_last_good_checkpoint(cli, tmp_path: Path, flags, snapshot):
    run = tmp_path / "run"
    plan = ("--steps", "40", "--checkpoint-every", "1", "--optim.lr", "1e30")
    answer = cli("train", "dense-demo", "--data", flags[1], *TRUNK, *SLOTS["dense"], *plan,
                 "--run", run)  # fmt: skip
    assert answer.code == 1
    assert answer.out == ""
    error = answer.err.splitlines()[-1]
    what = r"(loss part 'ce' is \S+|the (norm of the )?gradient .*is not finite); "
    found = re.match(rf"pellucid: error: step (\d+): {what}the batch held documents ", error)
    assert found is not None, answer.err
    step = int(found[1])
    assert (run / "latest").read_text() == f"step_{step - 1:09d}\n"
    assert load_run(run).step == step - 1


def test_a_run_replaced(cli, tmp_path: Path, flags, snapshot):
    run = tmp_path / "run"
    plan = ("--steps", "2", "--run", run)
    assert cli("train", "pools-demo", *flags, *plan, "--steps", "3").code == 0
    assert cli("train", "pools-demo", *flags, *plan, "--overwrite").code == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000000002"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_two_runs_of_one_config_are_equal(cli, tmp_path: Path, flags, snapshot):
    for name in ("a", "b"):
        assert (
            cli("train", "pools-demo", *flags, "--steps", "3", "--run", tmp_path / name).code == 0
        )
    a, b = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    same = ["model.safetensors", "config.json", "tokenizer.json"]
    assert [a[name] for name in same] == [b[name] for name in same]
    other = ("--seed", "1", "--steps", "3", "--run", tmp_path / "c")
    assert cli("train", "pools-demo", *flags, *other).code == 0
    assert snapshot(tmp_path / "c")["model.safetensors"] != a["model.safetensors"]
