"""The config's own checks, and origins told apart by the name of what differs."""

import dataclasses
from collections.abc import Callable

import pytest

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError, DataError
from pellucid.core.unit import Site
from pellucid.data.activations.config import HarvestConfig, Origin, check_same, flat
from pellucid.data.store import Corpus

Config = Callable[..., HarvestConfig]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", 0, "tokens = 0, expected at least 1"),
        ("validation_tokens", 0, "validation_tokens = 0, expected at least 1"),
        ("batch", -1, "batch = -1, expected at least 1"),
        ("shard_rows", 0, "shard_rows = 0, expected at least 1"),
        ("context", 1, "context = 1, expected at least 2"),
        ("seed", -1, "seed = -1, expected 0 or more"),
        ("sites", (), "sites: expected at least one"),
        ("sites", ("a:in", "b:in", "a:in"), "sites: a:in is named twice"),
        ("sites", ("a",), "sites: site 'a': expected MODULE:in or MODULE:out"),
        ("sites", ("a:inside",), "sites: site 'a:inside': expected MODULE:in"),
    ],
)
def test_a_config_that_cannot_be_honoured(
    config: Config, field: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        config(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "float64"), ("first", "skip"), ("nonfinite", "ignore")]
)
def test_a_choice_that_does_not_exist(config: Config, field: str, value: str) -> None:
    record = {**to_dict(config()), field: value}
    with pytest.raises(ConfigError, match=rf"{field}: found '{value}'; (expected one of|did you)"):
        from_dict(HarvestConfig, record)


def test_defaults_are_those_documented() -> None:
    plain = HarvestConfig(sites=("a:in",), tokens=5, context=4)
    assert (plain.validation_tokens, plain.batch, plain.shard_rows) == (65_536, 16, 65_536)
    assert (plain.dtype, plain.first, plain.seed, plain.nonfinite) == (
        "float32",
        "drop",
        0,
        "refuse",
    )


@pytest.fixture
def origin(config: Config) -> Origin:
    return Origin(
        model={"name": "m", "hash": "h"},
        tokenizer="t",
        corpus="c",
        widths=(3, 2),
        config=config(),
    )


def test_an_origin_of_a_host(
    token_host: Callable[[], object], corpus: Corpus, config: Config, sites: tuple[Site, Site]
) -> None:
    found = Origin.of(token_host(), corpus, config(sites=("b:in", "a:out")), {"name": "x"})
    assert found.widths == (2, 3)
    assert (found.model, found.corpus) == ({"name": "x"}, "text")
    assert found.tokenizer == corpus.tokenizer.identity
    assert found.layout.sites == sites[::-1]
    assert found.layout.dtype == "float32"
    assert from_dict(Origin, to_dict(found)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "m", "hash": "g"}}, "model.hash: expected 'h', found 'g'"),
        ({"model": {"name": "m"}}, "model.hash: expected 'h', found None"),
        ({"model": {"name": "m", "hash": "h", "x": "1"}}, "model.x: expected None, found '1'"),
        ({"tokenizer": "u"}, "tokenizer: expected 't', found 'u'"),
        ({"corpus": "d"}, "corpus: expected 'c', found 'd'"),
        ({"widths": (3, 4)}, r"widths: expected \[3, 2\], found \[3, 4\]"),
    ],
)
def test_what_differs_is_named(origin: Origin, change: dict[str, object], message: str) -> None:
    asked = dataclasses.replace(origin, **change)
    with pytest.raises(DataError, match=f"^here: holds another harvest: {message}; ask"):
        check_same("here", origin, asked, dropped=0)
    check_same("here", asked, asked, dropped=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sites", ("a:out", "b:out")),
        ("tokens", 99),
        ("validation_tokens", 1),
        ("context", 9),
        ("batch", 1),
        ("dtype", "bfloat16"),
        ("shard_rows", 5),
        ("first", "keep"),
        ("seed", 1),
    ],
)
def test_every_field_of_the_config_counts(
    origin: Origin, config: Config, field: str, value: object
) -> None:
    asked = dataclasses.replace(origin, config=config(**{field: value}))
    with pytest.raises(DataError, match=f"config.{field}: expected .*, found"):
        check_same("here", origin, asked, dropped=0)


def test_how_to_treat_rows_that_are_not_finite_counts_once_some_were_dropped(
    origin: Origin, config: Config
) -> None:
    drop = dataclasses.replace(origin, config=config(nonfinite="drop"))
    check_same("here", origin, drop, dropped=0)
    check_same("here", drop, origin, dropped=0)
    check_same("here", drop, drop, dropped=3)
    with pytest.raises(DataError, match=r"config.nonfinite: expected 'drop', since 3 rows"):
        check_same("here", drop, origin, dropped=3)


def test_flat_names() -> None:
    assert flat({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}
