"""What stands inside one module: sizes, calls, top-level code, signatures, shapes.

The sources are read with ``ast``; nothing of the package is imported. Every rule is a function
over (path, tree) that returns its complaints. ``FAULTS`` plants faults that must be reported,
``SOUND`` look-alikes that must pass.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Check = Callable[[str, ast.Module], list[str]]

SEAMS = {"UnitPool", "Host", "Objective", "Metric"}
KERNELS = ("triton.py",)
# transformers hands fields of its own through its configs and its models.
WITH_KEYWORDS = {("pellucid/models/hf_config.py", "__init__"), ("pellucid/models/hf.py", "forward")}
PURE_CALLS = {"frozenset", "tuple", "dict", "set", "range", "compile", "getLogger"}
SHAPED = {"Float", "Int", "Bool", "Shaped", "Num", "UInt8"}


def sources() -> dict[str, ast.Module]:
    """Every module of the package by its path under src."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return {
        file.relative_to(ROOT / "src").as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in files
    }


def name_of(node: ast.AST) -> str:
    """``Float`` for ``Float``, ``jaxtyping.Float`` and ``Float[...]``."""
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods whose every name is public; nested ones are nobody's interface."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            yield node


def sizes(path: str, tree: ast.Module) -> list[str]:
    """Functions up to 60 lines; files up to 400, kernels exempt."""
    found = [
        f"{path}:{f.lineno}: {f.name} has {length} lines, at most 60"
        for f in functions(tree)
        if (length := (f.end_lineno or 0) - f.lineno + 1) > 60
    ]
    length = max((getattr(node, "end_lineno", None) or 0 for node in ast.walk(tree)), default=0)
    if length > 400 and not path.endswith(KERNELS):
        found.append(f"{path}: {length} lines, at most 400")
    return found


def calls(path: str, tree: ast.Module) -> list[str]:
    """No ``hasattr``; ``print`` only where results leave the program."""
    banned = {"hasattr"} | (set() if path.startswith("pellucid/cli/") else {"print"})
    return [
        f"{path}:{node.lineno}: {node.id} is not used here"
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in banned
    ]


def top_level(path: str, tree: ast.Module) -> list[str]:
    """Docstring, imports, definitions and constants; nothing that runs on import."""
    return [
        f"{path}:{node.lineno}: code at the top level"
        for index, node in enumerate(tree.body)
        if not _is_definition(node, index) and not _registers(path, node)
    ]


def _is_definition(node: ast.stmt, index: int) -> bool:
    if isinstance(node, ast.Expr):
        return index == 0 and isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        inside = node.body + node.orelse
        only_imports = all(isinstance(n, ast.Import | ast.ImportFrom) for n in inside)
        return name_of(node.test) == "TYPE_CHECKING" and only_imports
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        # A constant may be built by a constructor or by a function without effects.
        built = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
        named = [t.elts if isinstance(t, ast.Tuple) else [t] for t in targets]
        return all(isinstance(target, ast.Name) for group in named for target in group) and all(
            name_of(call) in PURE_CALLS or name_of(call)[:1].isupper() for call in built
        )
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return isinstance(node, definitions | ast.Import | ast.ImportFrom)


def _registers(path: str, node: ast.stmt) -> bool:
    """``models/hf.py`` alone makes itself known to transformers when imported."""
    call = node.value if isinstance(node, ast.Expr) else None
    known = isinstance(call, ast.Call) and name_of(call.func) == "register"
    return known and path == "pellucid/models/hf.py"


def keyword_catchalls(path: str, tree: ast.Module) -> list[str]:
    """No ``**kwargs`` in public functions, save where transformers demands it."""
    return [
        f"{path}:{f.lineno}: {f.name} takes **{f.args.kwarg.arg}"
        for f in public_functions(tree.body)
        if f.args.kwarg and (path, f.name) not in WITH_KEYWORDS
    ]


def return_types(path: str, tree: ast.Module) -> list[str]:
    """Every function, nested and private ones too, states its return type."""
    return [
        f"{path}:{f.lineno}: {f.name} has no return type"
        for f in functions(tree)
        if f.returns is None
    ]


def forbidden_names(path: str, tree: ast.Module) -> list[str]:
    """``from __future__ import annotations`` and ``Self`` break the run-time shape checks."""
    found = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        or (isinstance(node, ast.Name | ast.Attribute) and name_of(node) == "Self")
    ]
    return [f"{path}:{line}: Self or a __future__ import" for line in found]


def protocols(path: str, tree: ast.Module) -> list[str]:
    """Protocols stand at the four seams where foreign objects must fit, nowhere else."""
    return [
        f"{path}:{node.lineno}: {node.name} is a Protocol outside the four seams"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and "Protocol" in map(name_of, node.bases)
        and node.name not in SEAMS
    ]


CHECKS: tuple[Check, ...] = (
    sizes,
    calls,
    top_level,
    keyword_catchalls,
    return_types,
    forbidden_names,
    protocols,
)

LONG_FUNCTION = "def f() -> None:\n" + "    x = 1\n" * 60
FAULTS = (
    (sizes, "pellucid/nn/x.py", LONG_FUNCTION),
    (sizes, "pellucid/nn/x.py", "x = 1\n" * 401),
    (calls, "pellucid/nn/x.py", "def f(x) -> bool:\n    return hasattr(x, 'y')"),
    (calls, "pellucid/cli/x.py", "def f(x) -> bool:\n    return hasattr(x, 'y')"),
    (calls, "pellucid/nn/x.py", "def f(x) -> None:\n    print(x)"),
    (top_level, "pellucid/nn/x.py", "import torch\ntorch.manual_seed(0)"),
    (top_level, "pellucid/nn/x.py", "'docstring'\n'a second string'"),
    (top_level, "pellucid/nn/x.py", "for i in range(3):\n    pass"),
    (top_level, "pellucid/nn/x.py", "try:\n    import a\nexcept ImportError:\n    a = None"),
    (top_level, "pellucid/nn/x.py", "if TYPE_CHECKING:\n    x = 1"),
    (top_level, "pellucid/nn/x.py", "if DEBUG:\n    import pdb"),
    (top_level, "pellucid/nn/x.py", "DATA = open('data').read()"),
    (top_level, "pellucid/nn/x.py", "torch.backends.flag = True"),
    (top_level, "pellucid/models/x.py", "AutoConfig.register('pellucid', Config)"),
    (keyword_catchalls, "pellucid/nn/x.py", "def f(**kwargs) -> None: ..."),
    (keyword_catchalls, "pellucid/nn/x.py", "class A:\n    def __init__(self, **rest): ..."),
    (keyword_catchalls, "pellucid/models/hf.py", "def load(**kwargs) -> None: ..."),
    (return_types, "pellucid/nn/x.py", "def f(): ..."),
    (return_types, "pellucid/nn/x.py", "class A:\n    def __init__(self): ..."),
    (return_types, "pellucid/nn/x.py", "def f() -> None:\n    async def _g(): ..."),
    (forbidden_names, "pellucid/nn/x.py", "from __future__ import annotations"),
    (forbidden_names, "pellucid/nn/x.py", "def f() -> typing.Self: ..."),
    (forbidden_names, "pellucid/nn/x.py", "def f() -> Self: ..."),
    (protocols, "pellucid/nn/x.py", "class Norm(Protocol): ..."),
    (protocols, "pellucid/nn/x.py", "class Norm(typing.Protocol[T]): ..."),
)

SOUND = (
    (sizes, "pellucid/nn/x.py", "x = 1\n" * 400),
    (sizes, "pellucid/ops/a/triton.py", "x = 1\n" * 401),
    (calls, "pellucid/cli/x.py", "def f(x) -> None:\n    print(x)"),
    (top_level, "pellucid/models/hf.py", "AutoConfig.register('pellucid', Config)"),
    (top_level, "pellucid/nn/x.py", "'docstring'\nZERO: Cost = Cost(total=0)\nX, Y = 1, 2"),
    (top_level, "pellucid/nn/x.py", "if TYPE_CHECKING:\n    import torch"),
    (keyword_catchalls, "pellucid/models/hf_config.py", "class A:\n def __init__(self, **k): ..."),
    (keyword_catchalls, "pellucid/nn/x.py", "def _f(**kwargs) -> None: ..."),
    (forbidden_names, "pellucid/nn/x.py", "def f() -> 'Code': ...\nself = 1"),
    (protocols, "pellucid/core/x.py", "class Host(Protocol): ..."),
)


def unshaped(path: str, tree: ast.Module) -> tuple[int, list[str]]:
    """How many public functions handle tensors, and those that leave a tensor without a shape."""
    total, bare = 0, []
    for f in public_functions(tree.body):
        arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        notes = [a.annotation for a in arguments if a.annotation] + (
            [f.returns] if f.returns else []
        )
        mentions = sum(name_of(n) == "Tensor" for note in notes for n in _names(note))
        shaped = sum(
            isinstance(n, ast.Subscript) and name_of(n) in SHAPED
            for note in notes
            for n in ast.walk(note)
        )
        total += bool(mentions or shaped)
        if mentions > shaped:
            bare.append(f"{path}:{f.lineno}: {f.name}")
    return total, bare


def _names(note: ast.expr) -> Iterator[ast.AST]:
    return (n for n in ast.walk(note) if isinstance(n, ast.Name | ast.Attribute))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_module_obeys(check: Check) -> None:
    assert [line for path, tree in sources().items() for line in check(path, tree)] == []


@pytest.mark.parametrize(("check", "path", "source"), FAULTS)
def test_planted_fault_is_reported(check: Check, path: str, source: str) -> None:
    assert check(path, ast.parse(source)) != []


@pytest.mark.parametrize(("check", "path", "source"), SOUND)
def test_sound_code_passes(check: Check, path: str, source: str) -> None:
    assert check(path, ast.parse(source)) == []


def test_public_tensor_functions_state_shapes() -> None:
    found = [unshaped(path, tree) for path, tree in sources().items()]
    bare = [name for _, names in found for name in names]
    assert len(bare) <= 0.1 * sum(total for total, _ in found), bare


@pytest.mark.parametrize(
    ("source", "total", "bare"),
    [
        ("def f(x: Tensor) -> int: ...", 1, 1),
        ("def f(x: Float[Tensor, ' k']) -> torch.Tensor: ...", 1, 1),
        ("def f(x: Float[Tensor, ' k']) -> tuple[Int[Tensor, ' k'], int]: ...", 1, 0),
        ("class A:\n    def g(self, *, x: Tensor | None) -> int: ...", 1, 1),
        ("def f(x: int) -> int: ...\ndef _g(x: Tensor) -> int: ...", 0, 0),
    ],
)
def test_shape_count(source: str, total: int, bare: int) -> None:
    counted, names = unshaped("pellucid/nn/x.py", ast.parse(source))
    assert (counted, len(names)) == (total, bare)
