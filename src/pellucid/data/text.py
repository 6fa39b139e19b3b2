"""Small pure functions on text and ids: mend, cut, hash, name a parent and an error."""

import hashlib
import re
from collections.abc import Iterable, Iterator

PIECE_CHARACTERS = 8000  # long enough for any context, short enough for many held-out documents
PIECE = re.compile(r"(.+)#\d+", re.DOTALL)


def mend_surrogates(text: str) -> str:
    """The text with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def unit_hash(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone and spreads evenly over keys."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def parent_of(name: str) -> str:
    """What a document is a piece of: PARENT for the id PARENT#NUMBER, else the document itself."""
    found = PIECE.fullmatch(name)
    return found[1] if found else name


def cut_pieces(lines: Iterable[str], limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut lines (with their ends) into pieces of at most ``limit`` characters, losing nothing.

    A cut falls on a blank line in the second half of a piece where there is one, else between
    lines; only a line longer than ``limit`` is broken.
    """
    held: list[str] = []
    size = 0
    for line in lines:
        for start in range(0, len(line), limit):
            part = line[start : start + limit]
            while held and size + len(part) > limit:
                cut = _cut(held)
                yield "".join(held[:cut])
                held = held[cut:]
                size = sum(len(kept) for kept in held)
            held.append(part)
            size += len(part)
    if held:
        yield "".join(held)


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or the error's kind."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__


def _cut(held: list[str]) -> int:
    for index in range(len(held) - 1, len(held) // 2, -1):
        if not held[index].strip():
            return index + 1
    return len(held)
