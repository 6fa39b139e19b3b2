"""Python files taken apart into code and documentation."""

import ast

from pellucid.data.python_text import split_docstrings

SOURCE = '''"""The module.

More.
"""
import os

class Reader:
    """Reads."""

    def read(self, size: int = 1, *, fast=True) -> bytes:
        """Read
        size bytes.
        """
        return b"""not a docstring"""

    async def wait(self):
        "Waits."
        return 1

def bare(x): return x
'''

CODE = '''import os

class Reader:

    def read(self, size: int = 1, *, fast=True) -> bytes:
        return b"""not a docstring"""

    async def wait(self):
        return 1

def bare(x): return x
'''

DOCUMENTATION = """io.reader
    The module.

    More.

class io.reader.Reader
    Reads.

io.reader.Reader.read(self, size: int=1, *, fast=True)
    Read
    size bytes.

io.reader.Reader.wait(self)
    Waits.

"""


def test_code_and_documentation() -> None:
    assert split_docstrings(SOURCE, "io.reader") == (CODE, DOCUMENTATION)


def test_the_code_still_parses() -> None:
    """Less the docstrings, the two trees are the same."""
    original = ast.parse(SOURCE)
    for node in ast.walk(original):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                del node.body[0]
    assert ast.dump(ast.parse(split_docstrings(SOURCE, "m")[0])) == ast.dump(original)


def test_a_docstring_that_is_the_whole_body_stays() -> None:
    source = 'class Error(Exception):\n    """Raised."""\n'
    assert split_docstrings(source, "m") == (source, "class m.Error\n    Raised.\n\n")


def test_a_docstring_that_shares_its_line_stays() -> None:
    source = 'def f(): "Says."; return 1\n'
    code, documentation = split_docstrings(source, "m")
    assert code == source
    assert documentation == "m.f()\n    Says.\n\n"


def test_form_feeds_do_not_shift_lines() -> None:
    """The parser counts lines by newline alone; so must the cut."""
    source = 'x = 1\n\f\ndef f():\n    "Says."\n    return 2\n'
    assert split_docstrings(source, "m")[0] == "x = 1\n\f\ndef f():\n    return 2\n"


def test_what_does_not_parse_is_code() -> None:
    for source in ("def f(:\n", "x = '\0'\n", "print 'old'\n"):
        assert split_docstrings(source, "m") == (source, "")


def test_invalid_escapes_warn_nobody() -> None:
    """Warnings are errors under test, so one would fail here."""
    assert split_docstrings("x = '\\d'\ny = 1 is 1\n", "m")[1] == ""


def test_nothing_documented() -> None:
    assert split_docstrings("x = 1\n", "m") == ("x = 1\n", "")
    assert split_docstrings("", "m") == ("", "")
