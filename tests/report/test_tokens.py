"""Tokens stay readable: white space visible, nothing hidden, nothing that reorders a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.unit import Context
from pellucid.report.tokens import Piece, shade, visible


def _text(pieces: tuple[Piece, ...]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("def", "def"),
        (" the", " the"),  # one space before a word stays a space
        ("a b", "a b"),
        ("    ", "····"),  # indentation
        (" ", "·"),
        ("\n  x", "↵··x"),
        ("\t", "⇥"),
        ("\r\n", "␍↵"),
        ("\x00\x1b", "␀␛"),
        ("a\x85b", "a‹0085›b"),
        ("a\u202eb", "a‹202E›b"),  # would print the rest of the line backwards
        ("é漢", "é漢"),
        ("", ""),
    ],
)
def test_visible(token: str, shown: str):
    assert _text(visible(token)) == shown


def test_signs_are_told_from_characters():
    # A middle dot of the text itself is no sign.
    assert visible("·\n") == (Piece("·", False), Piece("↵", True))
    assert visible("x  ") == (Piece("x", False), Piece("··", True))


def test_lists_show_every_space():
    assert visible(" the", every_space=True) == (Piece("·", True), Piece("the", False))


@given(st.text())
def test_nothing_invisible_is_left(token: str):
    shown = _text(visible(token))
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert not set(shown) & set("\u202a\u202d\u202e\u2066\u2069")
    assert len(shown) >= len(token)


def _context(values: tuple[float, ...], focus: int = 0) -> Context:
    tokens = tuple(f"t{i}" for i in range(len(values)))
    return Context(tokens=tokens, values=values, focus=focus, document="d", domain="x")


def test_shading_is_relative_to_the_largest_magnitude():
    shaded = shade(_context((1.0, -4.0, 0.0), focus=1))
    assert [token.strength for token in shaded] == [0.25, 1.0, 0.0]
    assert [token.negative for token in shaded] == [False, True, False]
    assert [token.focus for token in shaded] == [False, True, False]


def test_a_silent_context_is_not_shaded():
    assert [token.strength for token in shade(_context((0.0, 0.0)))] == [0.0, 0.0]
    assert shade(_context(())) == ()
