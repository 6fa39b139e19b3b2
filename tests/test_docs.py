"""The docs name what exists and all that exists; no number and no help text in them is stale.

Every rule is a function over a page's text that returns its complaints; ``FAULTS`` plants faults.
"""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from pellucid.cli import VERBS, module_of
from pellucid.cli.parse import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "src/**/*.md")
    for page in ROOT.glob(pattern)
    if ".venv" not in page.parts
)
PATH = re.compile(r"[\w.-]*(?:/[\w.-]+)+/?|[\w-]+\.(?:py|md|toml|txt|json|jsonl|svg|safetensors)")
RECORD_FIELDS = (
    "slot",
    "preset",
    "k",
    "seed",
    "tokens",
    "val_bpb",
    "tokens_per_second",
    "params_total",
    "params_active",
    "train_flops_per_token",
    "l0",
    "dead_fraction",
    "nmi",
    "nmi_null_mean",
    "nmi_null_std",
    "nmi_given_token",
    "nmi_given_token_null_mean",
    "nmi_given_token_null_std",
    "lr",
    "commit",
    "machine",
)


def code_spans(text: str) -> list[str]:
    """What stands between single or double backticks, outside fences."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [found[1].strip() for found in re.finditer(r"``?([^`]+)``?", prose)]


def commands(text: str) -> list[list[str]]:
    """Shell lines of ``sh`` fences, and code spans that begin with a command of ours."""
    fences = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for fence in fences for line in fence.splitlines() if line.strip()]
    lines += [span for span in code_spans(text) if span.split()[0] in ("pellucid", "make")]
    return [shlex.split(line) for line in lines]


def flags_of(verb: str) -> set[str]:
    """The flags in a verb's help, which ``docs/build.py --check`` keeps true."""
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    block = re.search(rf"<!-- help: {verb} -->(.*?)<!-- end -->", page, re.DOTALL)
    return set(re.findall(r"--[a-z0-9][\w.-]*", block[1])) if block else set()


def wrong_commands(text: str) -> list[str]:
    """Unknown verbs, flags and make targets."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = []
    for words in commands(text):
        program, rest = words[0].split("/")[-1], words[1:]
        if program == "make":
            found += [f"make {word}" for word in rest if "=" not in word and word not in targets]
        elif program == "pellucid" and rest and rest[0] in VERBS:
            given = {word.split("=")[0] for word in rest if word.startswith("--")}
            found += [f"{rest[0]} {flag}" for flag in given - flags_of(rest[0]) - {"--help"}]
        elif program == "pellucid" and rest and rest[0] not in ("VERB", "--help", "--version"):
            found.append(f"pellucid {rest[0]}")
    return found


def wrong_flags(text: str) -> list[str]:
    """Flags in code spans that no command and no tool of the repository knows."""
    known = set().union(*map(flags_of, VERBS)) | {"--help", "--version", "--check"}
    spans = [span.split()[0].split("=")[0] for span in code_spans(text) if span.startswith("--")]
    return [flag for flag in spans if flag not in known]


def wrong_paths(text: str) -> list[str]:
    """Paths that do not exist; files of a run folder must be named by the sources."""
    links = re.findall(r"\]\(([^)#]+)\)", text)
    named = [span for span in code_spans(text) if PATH.fullmatch(span)] + links
    # A name in capitals stands for one of the reader's.
    local = [
        p
        for p in named
        if not p.startswith(("http", "runs/", "/")) and not re.search("[A-Z]{4}/?", p)
    ]
    local += [p for p in named if p in ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")]
    source = "\n".join(file.read_text("utf-8") for file in (ROOT / "src").rglob("*.py"))
    bases = (ROOT, ROOT / "docs", ROOT / "src" / "pellucid", *(ROOT / "src/pellucid/ops").iterdir())
    return [
        path
        for path in local
        if not any((base / path).exists() for base in bases)
        and not ("/" not in path and f'"{path}"' in source)
    ]


def wrong_modules(text: str) -> list[str]:
    """Dotted names of the package that cannot be imported."""
    names = [span for span in code_spans(text) if re.fullmatch(r"pellucid(\.\w+)+", span)]
    return [name for name in names if not _resolves(name)]


def _resolves(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return attribute in vars(importlib.import_module(module))


Check = Callable[[str], list[str]]
CHECKS: tuple[Check, ...] = (wrong_commands, wrong_flags, wrong_paths, wrong_modules)
FAULTS = (
    (wrong_commands, "```sh\nmake coffee\n```"),
    (wrong_commands, "call `pellucid trian pools-tiny`"),
    (wrong_commands, "```sh\n.venv/bin/pellucid generate runs/a --promt x\n```"),
    (wrong_flags, "see `--ablatee`"),
    (wrong_paths, "in `src/pellucid/pools/dance.py`"),
    (wrong_paths, "in [there](docs/gone.md)"),
    (wrong_paths, "the file `walk.json` of a run"),
    (wrong_modules, "in `pellucid.pools.dance`"),
    (wrong_modules, "in `pellucid.core.unit.Unite`"),
)
SOUND = (
    (wrong_commands, "```sh\nmake test JOBS=4\n.venv/bin/pellucid sizes --json\n```"),
    (wrong_flags, "`--ablate MODULE@UNITS` and `docs/build.py --check`"),
    (wrong_paths, "`docs/log.md`, `run.json`, `runs/a/x.json`, [here](https://semver.org)"),
    (wrong_modules, "`pellucid.pools.dense` and `pellucid.core.unit.Code`"),
)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_the_docs_name_exists(check: Check, page: Path) -> None:
    assert check(page.read_text("utf-8")) == []


@pytest.mark.parametrize(("check", "text"), FAULTS)
def test_planted_fault_is_reported(check: Check, text: str) -> None:
    assert check(text) != []


@pytest.mark.parametrize(("check", "text"), SOUND)
def test_sound_text_passes(check: Check, text: str) -> None:
    assert check(text) == []


def test_generated_blocks_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_verb_has_its_section_and_help() -> None:
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert [verb for verb in VERBS if f"\n## {verb}\n" not in page] == []
    assert [verb for verb in VERBS if not flags_of(verb)] == []


def test_every_config_field_is_named() -> None:
    """Fields of every config class in the sources, reachable from a run or not."""
    docs = "\n".join(page.read_text("utf-8") for page in PAGES)
    missing = [
        f"{node.name}.{item.target.id}"
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and (node.name.endswith("Config") or node.name == "LanguageRun")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if "ClassVar" not in ast.unparse(item.annotation) and f"`{item.target.id}`" not in docs
    ]
    assert missing == []


def test_every_pool_and_preset_is_named() -> None:
    from pellucid.models.presets import ARCHITECTURES, PRESETS

    concepts = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    glossary = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    assert [name for name in ARCHITECTURES if f"**`{name}`**" not in concepts] == []
    assert [name for name in PRESETS if f"`{name}`" not in glossary] == []


@pytest.mark.parametrize("op", sorted(p.name for p in (ROOT / "src/pellucid/ops").glob("*/")))
def test_every_op_has_its_page(op: str) -> None:
    assert op == "__pycache__" or (ROOT / "src/pellucid/ops" / op / "README.md").exists()


def test_extras_named_in_errors_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    source = "\n".join(file.read_text("utf-8") for file in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r'MissingExtra\(\s*[^,]+,\s*"(\w+)"', source))
    assert named
    assert named <= set(extras)


def test_readme_commands_parse(capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands((ROOT / "README.md").read_text("utf-8"))
    ours = [words[1:] for words in lines if words[0] == ".venv/bin/pellucid"]
    assert {verb for verb, *_ in ours} == set(VERBS) - {"demo"}
    for verb, *rest in ours:
        module = importlib.import_module(f"pellucid.cli.{module_of(verb)}")
        if verb == "train":
            assert module.main([*rest, "--dry-run"]) == 0
            assert json.loads(capsys.readouterr().out)["steps"] > 0
        else:
            kind = getattr(module, f"{verb.title()}Flags")
            # These two take their first word before the flags are parsed.
            told = rest[1:] if verb in ("harvest", "fit") else rest
            assert isinstance(parse(kind, told, verb=verb, says=""), kind)


def test_readme_states_no_result_by_hand() -> None:
    """Decimal numbers stand in generated blocks only; versions and code are no results."""
    page = (ROOT / "README.md").read_text("utf-8")
    page = re.sub(r"<!-- table.*?<!-- end -->|```.*?```|Python 3\.11", "", page, flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+|\d+ ?%", page) == []


def test_log_headings() -> None:
    page = (ROOT / "docs" / "log.md").read_text("utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    form = r"(\d{4}-\d{2}-\d{2}) · (?:kept|rejected|negative|open) · \S.*"
    dates = [found[1] for heading in headings if (found := re.fullmatch(form, heading))]
    assert len(dates) == len(headings) > 0
    assert dates == sorted(dates, reverse=True)


def test_glossary_defines_each_term_once_in_order() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    terms = [term.lower() for term in re.findall(r"^\*\*(.+?)\.\*\*", page, re.MULTILINE)]
    assert len(terms) > 30
    assert terms == sorted(set(terms))


def test_the_picture_stands_alone() -> None:
    picture = (ROOT / "docs" / "unit.svg").read_text("utf-8")
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r'(?:href|src)="|url\((?!#)|<script|<style', picture) == []


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("lm-*.json")))
def test_records_are_complete_and_explained(file: Path) -> None:
    explained = (ROOT / "docs" / "results" / "README.md").read_text("utf-8")
    records = json.loads(file.read_text("utf-8"))
    assert [r for r in records if not set(RECORD_FIELDS) <= set(r)] == []
    assert {field for r in records for field in r if f"`{field}`" not in explained} == set()


def test_every_record_field_is_explained() -> None:
    explained = (ROOT / "docs" / "results" / "README.md").read_text("utf-8")
    assert [field for field in RECORD_FIELDS if f"`{field}`" not in explained] == []


def record(**changes: object) -> dict[str, object]:
    """A made-up record of a 2-seed arm."""
    plain = dict.fromkeys(RECORD_FIELDS, 1.0) | {"slot": "pools", "preset": "tiny", "k": 12}
    plain |= {"tokens": 4_000_000, "lr": 0.003, "seed": 0, "val_bpb": 2.0, "precision": "bf16"}
    return plain | changes


def test_table_takes_the_longest_runs_at_the_best_rate(build: ModuleType) -> None:
    """Rate .003 (mean of 2.0 and 2.1: 2.05, half range .05) has more seeds than .001."""
    records = [
        record(),
        record(seed=1, val_bpb=2.1),
        record(lr=0.001, val_bpb=2.04),
        record(tokens=1_000_000, val_bpb=1.0),
        record(slot="dense", k=None, val_bpb=2.2, nmi=0.5, nmi_null_mean=0.125),
    ]
    lines = [line.strip("| ").split(" | ") for line in build.table(records).splitlines()]
    rows = [dict(zip(lines[0], cells)) for cells in lines[2:]]
    assert [(row["architecture"], row["k"]) for row in rows] == [("pools", "12"), ("dense", "–")]
    assert [row["bits per byte"] for row in rows] == ["2.050 ± 0.050", "2.200"]
    assert [row["seeds"] for row in rows] == ["2", "1"]
    assert rows[1]["domain NMI"] == "0.375"


def test_what_was_not_measured_is_a_dash(build: ModuleType) -> None:
    """A dense arm has no pools that could know a domain; a run not timed has no speed."""
    empty = dict.fromkeys(
        ("k", "l0", "dead_fraction", "tokens_per_second", "params_active", "val_bpb", "lr")
    )
    for name in ("nmi", "nmi_given_token"):
        empty |= dict.fromkeys((name, f"{name}_null_mean", f"{name}_null_std"))
    records = [record(slot="dense", **empty), record(slot="dense", seed=1, **empty), record()]
    lines = [line.strip("| ").split(" | ") for line in build.table(records).splitlines()]
    first, second = (dict(zip(lines[0], cells)) for cells in lines[2:])
    # What has no score stands last.
    assert (first["architecture"], second["architecture"]) == ("pools", "dense")
    dashes = {heading for heading, shown in second.items() if shown == "–"}
    assert dashes == {
        *("k", "bits per byte", "L0", "dead", "domain given token", "domain NMI"),
        *("active", "tokens/s", "lr"),
    }
    assert "nan" not in build.table(records)


def test_one_seed_of_two_measured_is_its_own_mean(build: ModuleType) -> None:
    records = [record(val_bpb=2.0, l0=3.0), record(seed=1, val_bpb=None, l0=None)]
    lines = [line.strip("| ").split(" | ") for line in build.table(records).splitlines()]
    row = dict(zip(lines[0], lines[2]))
    assert (row["bits per byte"], row["L0"], row["seeds"]) == ("2.000", "3", "2")


def test_another_precision_is_another_row(build: ModuleType) -> None:
    records = [record(precision="bf16"), record(precision="fp32", val_bpb=1.9)]
    lines = [line.strip("| ").split(" | ") for line in build.table(records).splitlines()]
    rows = [dict(zip(lines[0], cells)) for cells in lines[2:]]
    assert [(row["precision"], row["seeds"]) for row in rows] == [("fp32", "1"), ("bf16", "1")]


def fit(dictionary: str, **changes: object) -> dict[str, object]:
    """A made-up record of a fit in a comparison."""
    plain = {
        "experiment": "routing",
        "source": "lm",
        "dictionary": dictionary,
        "matched_on": "latents",
        "inference": "encoder",
        "latents": 64,
        "active_candidates": 64,
        "k": 8,
        "nonzeros": None,
        "balance": None,
        "seed": 0,
        "fvu": 0.1,
        "mcc": None,
    }
    return plain | changes


def test_fits_are_compared_seed_by_seed(build: ModuleType) -> None:
    """Ratios of 1.1 and 1.2 differ by 15 % on average, ± 12.706 · 5 with one degree of freedom."""
    records = [
        fit("topk"),
        fit("topk", seed=1, fvu=0.2),
        fit("scale", fvu=0.11),
        fit("scale", seed=1, fvu=0.24),
        fit("scale", k=32, fvu=9.0),
        fit("scale", matched_on="active", fvu=9.0),
        fit("scale", experiment="balance", fvu=9.0),
        fit("scale", source="flat", fvu=9.0),
    ]
    lines = [
        line.strip("| ").split(" | ")
        for line in build.fits(records, "routing", "lm", "8").splitlines()
    ]
    rows = [dict(zip(lines[0], cells)) for cells in lines[2:]]
    assert [(row["matched on"], row["dictionary"]) for row in rows] == [
        ("all latents", "topk"),
        ("all latents", "scale"),
        ("evaluated latents", "scale"),
    ]
    assert [row["FVU"] for row in rows] == ["0.150 ± 0.050", "0.175 ± 0.065", "9.000"]
    assert [row["FVU against topk"] for row in rows] == ["–", "+15.0 ± 63.5 %", "–"]
    # What no arm of this table has is no column.
    assert not {"MCC", "s", "codes by", "FVU against switch"} & set(lines[0])
    assert build.fits(records, "routing", "tree") == build.EMPTY


def test_one_record_is_told_field_by_field(build: ModuleType) -> None:
    record = {"latents": 1_000_000, "peak_mb": 784.25, "dirty": False, "machine": "a"}
    assert build.one([record]).splitlines()[2:] == [
        "| latents | 1,000,000 |",
        "| peak mb | 784.250 |",
    ]
    assert build.one([]) == build.EMPTY


def test_no_records_make_no_table(build: ModuleType) -> None:
    assert build.table([]) == "*Nothing has been measured yet.*"
    assert build.read_records(ROOT / "docs" / "results" / "absent.json") == []


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (9_240_000, "9.24 M"), (3.2e12, "3.2 T")]
)
def test_si(build: ModuleType, number: float, text: str) -> None:
    assert build.si(number) == text


def test_filling_is_idempotent_and_keeps_the_prose(build: ModuleType) -> None:
    page = "before\n<!-- table: absent -->\nold\n<!-- end -->\nafter\n"
    once = build.fill(page)
    assert once.startswith("before\n<!-- table: absent -->\n\n*Nothing")
    assert once.endswith("<!-- end -->\nafter\n")
    assert build.fill(once) == once


def test_an_unknown_block_is_an_error(build: ModuleType) -> None:
    with pytest.raises(KeyError):
        build.fill("<!-- tabel: lm-tiny -->\n<!-- end -->")
