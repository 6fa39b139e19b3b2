"""``pellucid generate``: text, edited text beside it, and what is refused."""

import shutil
from pathlib import Path

import pytest

PROMPT = "def wrap(text"


def test_the_prompt_is_continued(cli, trained: Path):
    answer = cli("generate", trained, "--prompt", PROMPT, "--tokens", "8")
    assert answer.code == 0
    assert answer.out.startswith(PROMPT)
    assert len(answer.out) > len(PROMPT) + 1
    assert answer.err == ""


def test_a_seed_repeats_and_another_differs(cli, trained: Path):
    def write(*more: str) -> str:
        return cli("generate", trained, "--prompt", PROMPT, "--tokens", "8", *more).out

    assert write() == write("--seed", "0")
    assert write() != write("--seed", "1")
    assert write("--temperature", "0") == write("--temperature", "0", "--seed", "1")
    assert write("--top-k", "1") == write("--temperature", "0")


def parts(out: str) -> tuple[str, str, str]:
    """Unchanged text, what was changed, changed text."""
    head, _, rest = out.removeprefix("--- unchanged\n").partition("\n\n--- ")
    named, _, changed = rest.partition("\n")
    return head, named, changed.removesuffix("\n")


def test_an_ablation_stands_beside_the_unchanged_text(cli, trained: Path):
    args = ("generate", trained, "--prompt", PROMPT, "--tokens", "8")
    plain = cli(*args).out.removesuffix("\n")
    answer = cli(*args, "--ablate", "blocks.0.ffn@*", "--ablate", "blocks.1.ffn@pool=3,slot=1")
    unchanged, named, changed = parts(answer.out)
    assert answer.code == 0
    assert unchanged == plain
    assert named == "without blocks.0.ffn@*, without blocks.1.ffn@pool=3,slot=1"
    assert changed.startswith(PROMPT)
    assert changed != plain


def test_a_scale_of_one_changes_nothing_and_of_zero_ablates(cli, trained: Path):
    args = ("generate", trained, "--prompt", PROMPT, "--tokens", "8")
    unchanged, named, changed = parts(cli(*args, "--scale", "blocks.1.ffn@*=1").out)
    assert named == "with blocks.1.ffn@*=1"
    assert changed == unchanged
    _, _, silenced = parts(cli(*args, "--scale", "blocks.1.ffn@*=0").out)
    _, _, ablated = parts(cli(*args, "--ablate", "blocks.1.ffn@*").out)
    assert silenced == ablated
    _, _, louder = parts(cli(*args, "--scale", "blocks.1.ffn@*=-50").out)
    assert louder != unchanged


def test_another_checkpoint(cli, trained: Path):
    # The rate is high: after four more steps the same draws spell another text.
    args = ("generate", trained, "--prompt", PROMPT, "--tokens", "12", "--temperature", "1")
    newest = cli(*args).out
    assert cli(*args, "--checkpoint", "step_000000008").out == newest
    assert cli(*args, "--checkpoint", "step_000000004").out != newest


def test_a_text_beyond_the_context(cli, trained: Path):
    # The context is 16 tokens.
    answer = cli("generate", trained, "--prompt", PROMPT * 20, "--tokens", "2")
    assert answer.code == 0
    assert answer.out.startswith(PROMPT * 20)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--prompt", ""), "--prompt: encodes to no tokens; give some text to continue"),
        (("--tokens", "0"), "--tokens: expected at least 1, found 0"),
        (("--temperature", "-1"), "temperature: expected at least 0, found -1.0"),
        (("--top-k", "0"), "top_k: expected at least 1, found 0"),
        (
            ("--ablate", "blocks.7.ffn@1"),
            "'blocks.7.ffn@1': the model has no pool 'blocks.7.ffn'; ",
        ),
        (("--ablate", "blocks.1.ffn@pool=6"), "blocks.1.ffn@pool=6: no such pool; it goes from 0 "),
        (("--ablate", "blocks.1.ffn@48"), "blocks.1.ffn@48: no such unit; it goes from 0 to 47"),
        (("--ablate", "blocks.1.ffn@pol=3"), "the pool has no axis 'pol'; did you mean 'pool'?"),
        (("--ablate", "blocks.1.ffn@pool=x"), "pool must be a whole number from 0 to 5, found 'x'"),
        (("--ablate", "blocks.1.ffn"), "'blocks.1.ffn': expected NAME@UNITS, for example blocks.1"),
        (("--scale", "blocks.1.ffn@3"), "'blocks.1.ffn@3': expected NAME@UNITS=FACTOR, for exam"),
        (("--scale", "blocks.1.ffn@3=much"), "must be a finite number, found 'much'"),
        (("--scale", "blocks.1.ffn@48=2"), "blocks.1.ffn@48: no such unit; it goes from 0 to 47"),
        (("--checkpoint", "step_7"), "no such checkpoint; the run has: step_000000004, step_0000"),
    ],
    ids=str,
)
def test_what_is_refused(cli, trained: Path, args: tuple[str, ...], message: str):
    answer = cli("generate", trained, "--prompt", PROMPT, "--tokens", "4", *args)
    assert message in answer.only_error


def test_a_folder_that_is_no_run(cli, tmp_path: Path):
    error = cli("generate", tmp_path, "--prompt", "a").only_error
    assert error.startswith(f"{tmp_path}: not a run: it holds no run.json")
    error = cli("generate", tmp_path / "gone", "--prompt", "a").only_error
    assert error.startswith(f"{tmp_path / 'gone'}: not a run: it does not exist")


def test_what_is_missing_is_named(cli, trained: Path):
    assert "--prompt STR" in cli("generate", trained).only_error
    assert "The run folder." in cli("generate").only_error


def test_a_damaged_checkpoint_is_refused_and_the_previous_one_writes(
    cli, tmp_path: Path, trained: Path, snapshot
):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    weights = run / "checkpoints" / "step_000000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = snapshot(run)
    args = ("generate", run, "--prompt", PROMPT, "--tokens", "1")
    error = cli(*args).only_error
    assert error.startswith(f"{weights}: truncated or altered: expected sha256 ")
    assert error.endswith(f"pellucid resume {run} --checkpoint step_000000004")
    answer = cli(*args, "--checkpoint", "step_000000004")
    assert answer.out.startswith(PROMPT)
    assert snapshot(run) == before
