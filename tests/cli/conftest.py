"""A small corpus of real text, a microscopic model, and the command line inside this process."""

import argparse
import ast
import difflib
import hashlib
import inspect
import json
import os
import pydoc
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from pellucid.cli import main

SOURCES = {
    "code": lambda: inspect.getsource(textwrap) + inspect.getsource(difflib),
    "manual": lambda: pydoc.plain(pydoc.render_doc(argparse)),
    "reference": lambda: pydoc.plain(pydoc.render_doc(ast)),
}
PIECE, PIECES = 400, 24

# 4 sequences of 16 tokens a step through two layers of width 16: milliseconds.
MICROSCOPIC = (
    *("--model.width", "16", "--model.heads", "2", "--model.kv-heads", "1"),
    *("--model.head-dim", "8", "--model.vocab-size", "300", "--model.context", "16"),
    *("--model.ffn.0.pools", "6", "--model.ffn.0.slots", "8"),
    *("--model.ffn.0.open-pools", "3", "--model.ffn.0.k", "5"),
    *("--batch", "4", "--evaluate-tokens", "40", "--log-every", "1", "--device", "cpu"),
)


@dataclass(frozen=True)
class Answer:
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong, without its prefix; exit code 2 comes with it."""
        assert self.code == 2, self
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if line.startswith("pellucid: error: ")]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("pellucid: error: ")

    @property
    def only_error(self) -> str:
        """The same where nothing else was said either."""
        assert self.err.count("\n") == 1, self.err
        return self.error


def records() -> list[dict[str, str]]:
    """Pieces of three texts that come with Python, every sixth held out."""
    rows: list[dict[str, str]] = []
    for domain, text in SOURCES.items():
        whole = text()
        for index in range(PIECES):
            piece = whole[index * PIECE : (index + 1) * PIECE]
            split = "validation" if index % 6 == 5 else "train"
            rows.append(
                {"id": f"{domain}-{index}", "text": piece, "domain": domain, "split": split}
            )
    return rows


def write_corpus(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "text.jsonl.zst").write_bytes(zstandard.compress(lines))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder with one .jsonl.zst file of 72 documents in three domains."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), records())


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def flags(corpus: Path) -> tuple[str, ...]:
    """What every training here is told: the corpus and the microscopic model."""
    return "--data", str(corpus), *MICROSCOPIC


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """For processes of their own: our cache, one thread, no colour."""
    own = {"PELLUCID_CACHE": str(cache), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return {**os.environ, **own}


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("PELLUCID_CACHE", str(cache))
    # ``main`` sets this one for the rest of its process, which here is everybody's.
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def cli(capfd) -> Callable[..., Answer]:
    """``pellucid ARGS`` in this process."""

    def call(*args: object) -> Answer:
        capfd.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:  # after --help
            code = stop.code or 0
        said = capfd.readouterr()
        return Answer(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory, flags, cache: Path) -> Iterator[Path]:
    """A finished run of 8 steps with checkpoints at 4 and 8. Copy it before you change it."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    plan = (
        "--steps",
        "8",
        "--checkpoint-every",
        "4",
        "--evaluate-every",
        "4",
        "--optim.lr",
        "0.05",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        patch.setenv("THP_MEM_ALLOC_ENABLE", "1")
        assert main(["train", "pools-demo", *flags, *plan, "--run", str(run)]) == 0
    before = digest(run)
    yield run
    assert digest(run) == before


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Every file below a folder with its hash."""
    return digest


@pytest.fixture(scope="session")
def make_corpus() -> Callable[[Path, Sequence[dict[str, str]]], Path]:
    return write_corpus


@pytest.fixture(scope="session")
def documents() -> Callable[[], list[dict[str, str]]]:
    return records


@pytest.fixture(scope="session")
def python(environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a piece of Python in a process of its own."""

    def call(code: str, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, args)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return call


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def activations(tmp_path_factory, trained: Path, corpus: Path, cache: Path) -> Path:
    """Rows of one site of the trained run."""
    out = tmp_path_factory.mktemp("activations") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        code = main(
            [
                *("harvest", str(trained), "--site", "blocks.1.ffn:out", "--data", str(corpus)),
                *("--tokens", "300", "--validation-tokens", "50", "--out", str(out)),
            ]
        )
    assert code == 0
    return out


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, activations: Path, cache: Path) -> Path:
    """A run of two dictionaries on those rows. Copy it before you change it."""
    run = tmp_path_factory.mktemp("fits") / "run"
    names = ("--dictionary", "topk", "--dictionary", "expander:atoms.nonzeros=3")
    small = ("--latents", "32", "--k", "3", "--tokens", "96", "--batch", "16", "--device", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        assert main(["fit", str(activations), *names, *small, "--run", str(run)]) == 0
    return run
