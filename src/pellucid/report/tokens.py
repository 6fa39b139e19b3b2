"""Tokens as a reader can see them: spaces and line ends visible, nothing that scrambles a line."""

from dataclasses import dataclass

from pellucid.core.unit import Context

CONTROL_PICTURES = 0x2400  # ␀, the first of Unicode's visible signs for control characters
DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text; ``sign`` is true where it stands for white space or a control character."""

    text: str
    sign: bool


@dataclass(frozen=True, slots=True)
class ShadedToken:
    """One token of a context: what to print, how strongly to shade it, and what it stands for."""

    pieces: tuple[Piece, ...]
    strength: float
    negative: bool
    focus: bool
    value: float


def visible(text: str, *, every_space: bool = False) -> tuple[Piece, ...]:
    """``text`` in pieces whose white space is replaced by signs.

    A single space between words stays a space, unless ``every_space`` asks for a sign.
    """
    pieces: list[Piece] = []
    for i, char in enumerate(text):
        alone = not text.strip(" ") or text[i : i + 2] == "  " or text[max(i - 1, 0) : i] == " "
        sign = _sign(char, spaces=every_space or alone)
        shown = sign or char
        if pieces and pieces[-1].sign == bool(sign):
            pieces[-1] = Piece(pieces[-1].text + shown, bool(sign))
        else:
            pieces.append(Piece(shown, bool(sign)))
    return tuple(pieces)


def shade(context: Context) -> tuple[ShadedToken, ...]:
    """The tokens of a context, shaded by |value| relative to the largest in it."""
    largest = max((abs(value) for value in context.values), default=0.0)
    return tuple(
        ShadedToken(
            pieces=visible(token),
            strength=abs(value) / largest if largest else 0.0,
            negative=value < 0,
            focus=i == context.focus,
            value=value,
        )
        for i, (token, value) in enumerate(zip(context.tokens, context.values))
    )


def _sign(char: str, *, spaces: bool) -> str:
    """What stands for a character that cannot be seen; empty for one that can."""
    if char == " ":
        return "·" if spaces else ""
    if char == "\n":
        return "↵"
    if char == "\t":
        return "⇥"
    if ord(char) < 0x20:
        return chr(CONTROL_PICTURES + ord(char))
    if 0x7F <= ord(char) < 0xA0 or char in DIRECTION_MARKS:
        return f"‹{ord(char):04X}›"
    return ""
