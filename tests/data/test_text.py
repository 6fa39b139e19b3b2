"""Surrogates, pieces, hashes, parents and one-line messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.text import (
    PIECE_CHARACTERS,
    cut_pieces,
    mend_surrogates,
    one_line,
    parent_of,
    unit_hash,
)


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    """U+FFFD is three bytes in UTF-8, so 'a?b' counts 1 + 3 + 1 = 5."""
    mended = mend_surrogates("a\ud800b")
    assert mended == "a\ufffdb"
    assert len(mended.encode()) == 5


def test_text_without_surrogates_is_left_alone() -> None:
    text = "naïve \U0001f600 \0 \ufffd"
    assert mend_surrogates(text) is text


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=50))
def test_mended_text_always_encodes_and_keeps_its_length(text: str) -> None:
    """Hypothesis draws surrogates too, since no category is excluded."""
    mended = mend_surrogates(text)
    mended.encode("utf-8")
    assert len(mended) == len(text)
    assert mend_surrogates(mended) == mended


def test_hashes_are_fixed_numbers() -> None:
    """``printf a | b2sum -l 64`` prints 40f89e395b66422f, and 0x40f89e39 / 2³² = .253793610.

    The values decide which documents are held out: a change would reshuffle every split.
    """
    assert unit_hash("a") == pytest.approx(0x40F89E39 / 2**32, abs=2**-32)  # 32 of its 53 bits
    assert unit_hash("a") == unit_hash("a")
    assert unit_hash("a") != unit_hash("b")


def test_hashes_spread_evenly() -> None:
    """Of 10,000 keys a share of 4 % is 400 ± 3 standard deviations of √(10⁴·.04·.96) = 19.6."""
    held_out = sum(unit_hash(f"document {index}") < 0.04 for index in range(10_000))
    assert abs(held_out - 400) <= 59


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=20))
def test_hashes_lie_in_the_unit_interval(key: str) -> None:
    assert 0.0 <= unit_hash(key) < 1.0


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("legal/python/LICENSE.txt#12", "legal/python/LICENSE.txt"),
        ("a#1#2", "a#1"),
        ("line\nend#3", "line\nend"),
        # Of no parent: no number, no name before it, a line of a file of records.
        ("c#", "c#"),
        ("c#x", "c#x"),
        ("#7", "#7"),
        ("a.jsonl:7", "a.jsonl:7"),
        ("", ""),
    ],
)
def test_the_parent_of_a_piece(name: str, parent: str) -> None:
    assert parent_of(name) == parent


def test_short_text_is_one_piece() -> None:
    assert list(cut_pieces(["one\n", "two"], limit=100)) == ["one\ntwo"]


def test_no_text_is_no_piece() -> None:
    assert list(cut_pieces([])) == []
    assert list(cut_pieces([""])) == []


def test_a_cut_falls_between_lines() -> None:
    """Lines of 4 characters under a limit of 10: two fit, the third opens the next piece."""
    assert list(cut_pieces(["aaa\n", "bbb\n", "ccc\n"], limit=10)) == ["aaa\nbbb\n", "ccc\n"]


def test_a_blank_line_in_the_second_half_is_preferred() -> None:
    """The blank line is the fourth of five held lines; what follows it moves on."""
    lines = ["a\n", "b\n", "c\n", "\n", "d\n", "e\n"]
    assert list(cut_pieces(lines, limit=9)) == ["a\nb\nc\n\n", "d\ne\n"]


def test_a_blank_line_in_the_first_half_is_not() -> None:
    lines = ["\n", "b\n", "c\n", "d\n", "e\n"]
    assert list(cut_pieces(lines, limit=8)) == ["\nb\nc\nd\n", "e\n"]


def test_a_line_longer_than_a_piece_is_broken() -> None:
    assert list(cut_pieces(["abcdefgh"], limit=3)) == ["abc", "def", "gh"]


@given(
    st.lists(st.text(alphabet="ab \n", max_size=30), max_size=30),
    st.integers(min_value=1, max_value=40),
)
def test_pieces_lose_nothing_and_keep_their_limit(lines: list[str], limit: int) -> None:
    pieces = list(cut_pieces(lines, limit))
    assert "".join(pieces) == "".join(lines)
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_the_usual_limit_is_eight_thousand() -> None:
    pieces = list(cut_pieces("x" * 79 + "\n" for _ in range(1000)))
    assert [len(piece) for piece in pieces] == [PIECE_CHARACTERS] * 10


def test_an_error_is_named_by_its_first_line_that_says_something() -> None:
    assert one_line(ValueError("\n  first \nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError"
