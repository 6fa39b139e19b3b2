"""How the modules stand to one another: rooms, cycles, packages, inheritance, tests, budgets.

The sources are read with ``ast``; nothing of the package is imported. Every rule over one module
is a function over (path, tree) that returns its complaints. ``FAULTS`` plants faults that must be
reported, ``SOUND`` look-alikes that must pass.
"""

import ast
import graphlib
import statistics
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Check = Callable[[str, ast.Module], list[str]]

LAYER_1 = {"core", "ops", "stats", "report"}
FITTED = {"dictionaries", "interop"}
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "ops": {"core"},
    "stats": {"core"},
    "report": {"core"},
    "nn": LAYER_1,
    "pools": LAYER_1,
    "dictionaries": LAYER_1,
    "models": LAYER_1 | {"nn", "pools"},
    "data": LAYER_1,
    "interop": LAYER_1 | {"pools", "dictionaries"},
    "train": LAYER_1 | {"data"},
    "explore": LAYER_1 | {"data"},
    "recipes": LAYER_1 | FITTED | {"nn", "pools", "models", "data", "train", "explore"},
    "cli": LAYER_1 | FITTED | {"nn", "pools", "models", "data", "train", "explore", "recipes"},
}
WITHOUT_MODULES = ("core", "ops", "stats", "report")

# Modules whose tests stand elsewhere than in tests/<package>/test_<module>.py.
TESTED_IN: dict[str, str] = {}


def sources() -> dict[str, ast.Module]:
    """Every module of the package by its path under src."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return {
        file.relative_to(ROOT / "src").as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in files
    }


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package(path: str) -> str:
    """The room of a module; the package's own ``__init__`` is in none."""
    parts = path.split("/")
    return parts[1] if len(parts) > 2 else ""


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted target of every import, wherever it stands; names follow their module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = path.removesuffix(".py").split("/")[: -node.level]
                base = ".".join([*here, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
            target = node.args[0]
            if isinstance(target, ast.Constant):
                yield node.lineno, str(target.value)


def name_of(node: ast.AST) -> str:
    """``Float`` for ``Float``, ``jaxtyping.Float`` and ``Float[...]``."""
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def layers(path: str, tree: ast.Module) -> list[str]:
    """Only lower rooms are imported; lazy and TYPE_CHECKING imports count."""
    room = package(path)
    if not room:
        return []
    if room not in MAY_IMPORT:
        return [f"{path}: the room {room} is not in the table of layers"]
    allowed = MAY_IMPORT[room] | {room}
    return [
        f"{path}:{line}: {room} may not import {target}"
        for line, target in imports(path, tree)
        if target.split(".")[0] == "pellucid"
        and (target + ".").split(".")[1] not in allowed | {"__version__"}
    ]


def torch_modules(path: str, tree: ast.Module) -> list[str]:
    """The mathematics below the pools holds no modules and no parameters."""
    if package(path) not in WITHOUT_MODULES:
        return []
    return [
        f"{path}:{line}: {package(path)} holds no torch modules, found {target}"
        for line, target in imports(path, tree)
        if target.startswith("torch.nn") and not target.startswith("torch.nn.functional")
    ]


def required_packages() -> set[str]:
    """The import names of pyproject's required dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name.split(">")[0].replace("-", "_") for name in project["dependencies"]}


def optional_packages(path: str, tree: ast.Module) -> list[str]:
    """What an extra brings is imported inside the function that needs it."""
    known = set(sys.stdlib_module_names) | required_packages() | {"pellucid"}
    outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [
        f"{path}:{line}: {target} is optional and imported at module level"
        for node in outside
        for line, target in imports(path, node)
        if target.split(".")[0] not in known
    ]


CHECKS: tuple[Check, ...] = (layers, torch_modules, optional_packages)

FAULTS = (
    (layers, "pellucid/ops/x.py", "from pellucid.pools import POOLS"),
    (layers, "pellucid/core/x.py", "def f() -> None:\n    import pellucid.nn.norm"),
    (layers, "pellucid/data/x.py", "if TYPE_CHECKING:\n    from pellucid.models import hooks"),
    (layers, "pellucid/pools/x.py", "from pellucid import nn"),
    (layers, "pellucid/pools/x.py", "from ..nn import norm"),
    (layers, "pellucid/train/x.py", "import_module('pellucid.pools.peer')"),
    (layers, "pellucid/recipes/x.py", "from pellucid.cli.train import train"),
    (layers, "pellucid/models/x.py", "from pellucid import Host"),
    (layers, "pellucid/attic/x.py", ""),
    (torch_modules, "pellucid/core/x.py", "from torch import nn"),
    (torch_modules, "pellucid/ops/a/x.py", "from torch.nn import Parameter"),
    (torch_modules, "pellucid/stats/x.py", "import torch.nn as nn"),
    (optional_packages, "pellucid/data/x.py", "import pyarrow.parquet as pq"),
    (optional_packages, "pellucid/report/x.py", "from jinja2 import Template"),
)

SOUND = (
    (layers, "pellucid/cli/x.py", "from pellucid.recipes import language"),
    (layers, "pellucid/pools/x.py", "from pellucid.pools.pool import Pool"),
    (layers, "pellucid/__init__.py", "from pellucid.cli import main"),
    (layers, "pellucid/core/x.py", "import pellucidity.pools"),
    (layers, "pellucid/cli/x.py", "from pellucid import __version__"),
    (torch_modules, "pellucid/ops/a/x.py", "import torch.nn.functional as F"),
    (torch_modules, "pellucid/nn/x.py", "from torch import nn"),
    (optional_packages, "pellucid/data/x.py", "def f() -> None:\n    import pyarrow"),
    (optional_packages, "pellucid/data/x.py", "import huggingface_hub, json, pellucid.core"),
)


def import_cycle(modules: dict[str, ast.Module]) -> list[str]:
    """One cycle of modules, or nothing; lazy and TYPE_CHECKING imports count."""
    names = {dotted(path) for path in modules}
    graph: dict[str, set[str]] = {}
    for path, tree in modules.items():
        targets = {target for _, target in imports(path, tree)}
        found = {t if t in names else t.rpartition(".")[0] for t in targets}
        graph[dotted(path)] = (found & names) - {dotted(path)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def inheritance(modules: dict[str, ast.Module]) -> list[str]:
    """Classes are abstract or final, and no concrete method is overridden; errors are a tree."""
    places = {
        node.name: (path, node)
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and path != "pellucid/core/errors.py"
    }
    classes = {name: node for name, (_, node) in places.items()}
    found = []
    for name, (path, node) in places.items():
        parents = _ancestors(node, classes)
        for base in parents:
            if not _open_methods(base, classes) and "ABC" not in map(name_of, base.bases):
                found.append(f"{path}:{node.lineno}: {name} inherits from the final {base.name}")
        concrete = set().union(*(_methods(base, abstract=False) for base in parents))
        overridden = _methods(node, abstract=False) & concrete - {"__init__"}
        found += [f"{path}:{node.lineno}: {name} overrides {method}" for method in overridden]
    return found


def _ancestors(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    bases = [classes[name_of(base)] for base in node.bases if name_of(base) in classes]
    return bases + [above for base in bases for above in _ancestors(base, classes)]


def _methods(node: ast.ClassDef, *, abstract: bool) -> set[str]:
    return {
        f.name
        for f in node.body
        if isinstance(f, ast.FunctionDef)
        and ("abstractmethod" in map(name_of, f.decorator_list)) == abstract
    }


def _open_methods(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The abstract methods that a class still leaves to its subclasses."""
    above = [
        _open_methods(classes[name_of(b)], classes) for b in node.bases if name_of(b) in classes
    ]
    return set().union(*above, _methods(node, abstract=True)) - _methods(node, abstract=False)


def written_lines(folder: Path) -> int:
    """Lines that are not blank, over every Python file below a folder."""
    files = (file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
    return sum(bool(line.strip()) for text in files for line in text.splitlines())


def mirror(path: str) -> str:
    """Where a module's tests stand: one file per module, and one per op."""
    parts = path.removesuffix(".py").split("/")[1:]
    place = parts[:2] if parts[0] == "ops" else parts
    return "/".join(["tests", *place[:-1], f"test_{place[-1]}.py"])


def untested(paths: list[str], existing: set[str]) -> list[str]:
    """Modules without their test file, and entries of ``TESTED_IN`` that are no longer needed."""
    modules = [path for path in paths if not path.endswith("__init__.py")]
    missing = [
        f"{path}: expected {mirror(path)}"
        for path in modules
        if TESTED_IN.get(path, mirror(path)) not in existing
    ]
    stale = [path for path in TESTED_IN if path not in modules or mirror(path) in existing]
    return missing + [f"TESTED_IN: {path} does not need its entry" for path in stale]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_module_obeys(check: Check) -> None:
    assert [line for path, tree in sources().items() for line in check(path, tree)] == []


@pytest.mark.parametrize(("check", "path", "source"), FAULTS)
def test_planted_fault_is_reported(check: Check, path: str, source: str) -> None:
    assert check(path, ast.parse(source)) != []


@pytest.mark.parametrize(("check", "path", "source"), SOUND)
def test_sound_code_passes(check: Check, path: str, source: str) -> None:
    assert check(path, ast.parse(source)) == []


def test_no_import_cycle() -> None:
    assert import_cycle(sources()) == []


def test_planted_cycle_is_reported() -> None:
    """a → b → c → a, through a name imported from the package and a lazy import."""
    texts = {
        "a": "import pellucid.b",
        "b": "from pellucid import c",
        "c": "def f() -> None:\n    from pellucid.a import x",
    }
    modules = {f"pellucid/{name}.py": ast.parse(text) for name, text in texts.items()}
    assert set(import_cycle(modules)) == {"pellucid.a", "pellucid.b", "pellucid.c"}
    assert import_cycle({**modules, "pellucid/c.py": ast.parse("")}) == []


def test_classes_are_abstract_or_final() -> None:
    assert inheritance(sources()) == []


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        ("class A: ...\nclass B(A): ...", 1),
        ("class A(ABC):\n def f(self): ...\nclass B(A):\n def f(self): ...", 1),
        ("class A(ABC):\n @abstractmethod\n def f(self): ...\nclass B(A):\n def f(self): ...", 0),
        ("class A(nn.Module):\n def forward(self): ...", 0),
        ("class A(ABC):\n @abstractmethod\n def f(self): ...\nclass B(A): ...\nclass C(B): ...", 0),
    ],
)
def test_inheritance_bites(source: str, complaints: int) -> None:
    assert len(inheritance({"pellucid/nn/x.py": ast.parse(source)})) == complaints


def test_median_file_is_short() -> None:
    lengths = [len(file.read_text().splitlines()) for file in (ROOT / "src").rglob("*.py")]
    assert statistics.median(lengths) <= 150


def test_tests_are_at_least_as_long_as_the_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n\n\ny = 2\n")
    (tmp_path / "b.txt").write_text("not code\n")
    assert written_lines(tmp_path) == 2
    assert written_lines(ROOT / "tests") >= written_lines(ROOT / "src")


def test_every_module_has_its_test_file() -> None:
    existing = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("test_*.py")}
    assert untested(list(sources()), existing) == []


def test_a_module_without_tests_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED_IN, "pellucid/nn/norm.py", "tests/nn/test_rope.py")
    existing = {"tests/nn/test_rope.py", "tests/ops/test_select.py"}
    present = ["pellucid/nn/norm.py", "pellucid/nn/rope.py", "pellucid/ops/select/fast.py"]
    assert untested(present, existing) == []
    assert untested([*present, "pellucid/nn/attention.py"], existing) != []
    assert untested(present, existing | {"tests/nn/test_norm.py"}) != []
