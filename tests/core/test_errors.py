"""The tree of errors, and the nearest-name clause."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core import errors
from pellucid.core.errors import MissingExtra, PellucidError, nearest

LEAVES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PellucidError) and cls is not PellucidError
]


@pytest.mark.parametrize("cls", LEAVES)
def test_every_error_is_a_value_error_drawn_in_the_tree(cls):
    assert issubclass(cls, ValueError)
    assert cls.__bases__ == (PellucidError,)
    assert errors.__doc__ is not None
    assert f"── {cls.__name__} " in errors.__doc__


def test_the_tree_draws_nothing_else():
    assert errors.__doc__ is not None
    drawn = [line for line in errors.__doc__.splitlines() if "── " in line]
    assert len(drawn) == len(LEAVES) + 1


def test_a_missing_package_says_what_to_run():
    error = MissingExtra("scipy", "bench", "the sign test")
    assert str(error) == (
        "the sign test needs the package scipy, which is not installed; "
        "run: pip install 'pellucid[bench]'"
    )


def test_the_closest_name_is_offered():
    assert nearest("per", ["peer", "dense", "pools"]) == "did you mean 'peer'?"


def test_names_that_are_far_list_the_options_in_order():
    assert nearest("zzz", ["peer", "dense"]) == "expected one of: dense, peer"


@given(st.text(max_size=20), st.lists(st.text(alphabet="abc", min_size=1), min_size=1))
def test_the_clause_is_one_line_and_names_an_option(name, options):
    clause = nearest(name, options)
    assert "\n" not in clause
    assert any(option in clause for option in options)


@given(st.lists(st.text(alphabet="abcdef", min_size=1), min_size=1), st.data())
def test_a_known_name_is_its_own_nearest(options, data):
    name = data.draw(st.sampled_from(options))
    assert nearest(name, options) == f"did you mean {name!r}?"
