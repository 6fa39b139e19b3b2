"""A Python file as two texts: its code without docstrings, and its docstrings as a reference.

Keeping the two apart lets code and prose be two domains that share no line.
"""

import ast
import textwrap
import warnings
from collections.abc import Iterator

Owner = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def split_docstrings(source: str, module: str) -> tuple[str, str]:
    """(code, documentation) of one file; a file that does not parse is all code.

    Each documented name is headed by its dotted place and signature, its docstring indented below.
    A docstring that is the whole body stays in the code too, which would not parse without it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return source, ""
    lines = source.split("\n")
    entries: list[str] = []
    removed: set[int] = set()
    for owner, name in _owners(tree, module):
        docstring = ast.get_docstring(owner)
        if docstring is None:
            continue
        entries.append(f"{_heading(owner, name)}\n{textwrap.indent(docstring, '    ')}\n\n")
        node = owner.body[0]
        end = node.end_lineno
        if end is not None and len(owner.body) > 1 and owner.body[1].lineno > end:
            removed.update(range(node.lineno, end + 1))
    kept = [line for number, line in enumerate(lines, start=1) if number not in removed]
    return "\n".join(kept), "".join(entries)


def _owners(owner: Owner, name: str) -> Iterator[tuple[Owner, str]]:
    yield owner, name
    for child in owner.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _owners(child, f"{name}.{child.name}")


def _heading(owner: Owner, name: str) -> str:
    if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{name}({ast.unparse(owner.args)})"
    return f"class {name}" if isinstance(owner, ast.ClassDef) else name
