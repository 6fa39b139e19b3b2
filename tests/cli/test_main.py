"""The entry: what is listed, what is refused, which exit code, and what starting costs."""

import json
import re

import pytest

from pellucid import __version__, cli
from pellucid.cli import VERBS, main
from pellucid.core.errors import CheckpointError, TrainingError

VERB_NAMES = [
    *("train", "resume", "generate", "sizes", "runs", "harvest", "fit", "worlds"),
    *("export", "import", "demo"),
]


def test_help_lists_every_verb(cli):
    answer = cli("--help")
    assert answer.code == 0
    assert answer.err == ""
    listed = [line.split()[0] for line in answer.out.splitlines() if re.match(r"  \w", line)]
    assert listed == list(VERBS) == VERB_NAMES
    for says in VERBS.values():
        assert says in answer.out


def test_nothing_asked_is_answered_with_the_help(cli):
    answer, help_ = cli(), cli("-h")
    assert answer.code == 2
    assert answer.out == help_.out


def test_the_version(cli):
    assert cli("--version").out == f"pellucid {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("trian",), "unknown command 'trian'; did you mean 'train'?"),
        (("reusme", "x"), "unknown command 'reusme'; did you mean 'resume'?"),
        (("xyzzy",), "unknown command 'xyzzy'; expected one of: demo, export, fit, generate, "),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(cli, args, message: str):
    assert cli(*args).only_error.startswith(message)


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_every_verb_helps(cli, verb: str):
    answer = cli(verb, "--help")
    assert answer.code == 0
    assert f"usage: pellucid {verb}" in answer.out
    assert answer.err == ""


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_every_verb_refuses_an_unknown_flag_and_offers_the_nearest(cli, verb: str, tmp_path):
    needed = {
        "train": ("train", "pools-tiny"),
        "resume": ("resume", tmp_path),
        "generate": ("generate", tmp_path, "--prompt", "a"),
        "harvest": ("harvest", tmp_path, "--out", tmp_path),
        "fit": ("fit", tmp_path, "--run", tmp_path),
        "export": ("export", tmp_path, "--out", tmp_path),
        "import": ("import", tmp_path, "--run", tmp_path),
    }
    counts_tokens = dict.fromkeys(("generate", "harvest", "fit", "worlds"), "--tokns")
    exchanges = dict.fromkeys(("export", "import"), "--fromat")
    by_verb = {"sizes": "--jsn", "runs": "--jsn", **counts_tokens, **exchanges}
    wrong = by_verb.get(verb, "--stpes")
    right = {
        "--jsn": "--json",
        "--tokns": "--tokens",
        "--stpes": "--steps",
        "--fromat": "--format",
    }[wrong]
    message = cli(*needed.get(verb, (verb,)), wrong, "5").only_error
    assert message == f"{verb}: unknown argument {wrong}; did you mean {right!r}?"


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (CheckpointError("a:\n b"), 2, "pellucid: error: a: b\n"),
        (TrainingError("step 3: gone"), 1, "pellucid: error: step 3: gone\n"),
        (KeyboardInterrupt(), 1, "pellucid: interrupted\n"),
        (
            RuntimeError("out of\n  memory"),
            1,
            "pellucid: failed: RuntimeError: out of memory "
            "(set PELLUCID_LOG=debug for the traceback)\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_faults_and_exit_codes(monkeypatch, capsys, fault: BaseException, code: int, said: str):
    class Verb:
        @staticmethod
        def main(_: list[str]) -> int:
            raise fault

    monkeypatch.setattr(cli.importlib, "import_module", lambda _: Verb)
    assert main(["train"]) == code
    assert capsys.readouterr().err == said


def test_the_traceback_is_there_for_those_who_ask(monkeypatch):
    class Verb:
        @staticmethod
        def main(_: list[str]) -> int:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(cli.importlib, "import_module", lambda _: Verb)
    monkeypatch.setenv("PELLUCID_LOG", "debug")
    with pytest.raises(RuntimeError, match="out of memory"):
        main(["train"])


def test_help_starts_without_torch(python):
    code = (
        "import sys; from pellucid.cli import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'tyro', 'rich', 'tokenizers'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = python(code)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: pellucid")
    assert done.stderr == "[]\n"


def test_threads_of_the_tokenizers_are_left_to_their_guard(python):
    """Set to anything, the variable would keep the guard in ``data.backends`` from acting."""
    code = (
        "import os; os.environ.pop('TOKENIZERS_PARALLELISM', None);"
        "from pellucid.cli import main; main(['--version']);"
        "print(os.environ.get('TOKENIZERS_PARALLELISM'))"
    )
    assert python(code).stdout.splitlines()[-1] == "None"


def test_a_reader_that_leaves_early_is_no_failure(python):
    # stdout is a pipe whose reading end is closed before the first line.
    code = (
        "import os, subprocess, sys\n"
        "r, w = os.pipe()\n"
        "os.close(r)\n"
        "call = 'import sys; from pellucid.cli import main; sys.exit(main())'\n"
        "done = subprocess.run([sys.executable, '-c', call, '--help'], stdout=w,\n"
        "                      stderr=subprocess.PIPE, text=True)\n"
        "import json; print(json.dumps([done.returncode, done.stderr]))"
    )
    assert json.loads(python(code).stdout) == [1, ""]
