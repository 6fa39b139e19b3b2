"""What converters share: their list, our record in foreign configs, the choice of sites."""

import dataclasses

import pytest

from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import CoderConfig
from pellucid.dictionaries.gates import TopKConfig
from pellucid.interop import CONVERTERS, ReadOptions, WriteOptions
from pellucid.interop.converter import (
    RECORD,
    chosen,
    describe,
    described,
    model_of,
    name_of,
    one,
)

A, B, C = (Site.parse(text) for text in ("m.a:in", "m.b:out", "m.c:out"))


def test_converters_have_names_and_say_what_they_are():
    assert [c.name for c in CONVERTERS] == [
        "saelens",
        "sparsify",
        "dictionary_learning",
        "circuit_tracer",
    ]
    for converter in CONVERTERS:
        assert converter.says
        assert "\n" not in converter.says
        assert converter.write is not None


@pytest.mark.parametrize(
    ("reads", "writes", "options", "expected"),
    [
        (A, A, {}, (A, A)),
        (A, A, {"reads": B}, (B, B)),
        (A, A, {"writes": B}, (A, B)),
        (A, A, {"reads": B, "writes": C}, (B, C)),
        (A, B, {}, (A, B)),
        (A, B, {"reads": C}, (C, B)),
        (A, B, {"writes": C}, (A, C)),
    ],
)
def test_sites_of_the_options_replace_a_files(reads, writes, options, expected):
    assert chosen(reads, writes, ReadOptions(**options)) == expected


def test_our_record_is_plain_and_found_again(make):
    coder = make(CoderConfig(latents=16, gate=TopKConfig(k=4)), d_out=5)
    model = {"kind": "run", "name": "runs/a"}
    record = describe(coder, WriteOptions(model=model))
    assert described({RECORD: record}) == record
    assert record["reads"] == "model.layers.1.mlp:in"
    assert record["writes"] == "model.layers.1.mlp:out"
    assert record["model"] == model
    assert record["config"]["gate"]["k"] == 4
    assert described({}) == {}
    for other in ("another program's", {}, {"reads": "a:in"}, {**record, "model": "m"}):
        assert described({RECORD: other}) == {}


def test_models_by_record_or_name():
    recorded = {"model": {"kind": "run", "name": "runs/a"}}
    assert model_of(recorded, "some/model") == {"kind": "run", "name": "runs/a"}
    assert model_of({}, "some/model") == {"kind": "huggingface", "name": "some/model"}
    assert model_of({}, None) == {}


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (("layers.3.mlp",), "layers.3.mlp"),
        ((None, "", "out"), "out"),
        (("../../home/x", "out"), "-..-home-x"),
        (("a b/c",), "a-b-c"),
        (("..",), "imported"),
        ((None, ""), "imported"),
    ],
)
def test_a_name_from_a_file_is_one_folder(found, name):
    assert name_of(ReadOptions(), *found) == name


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_a_name_asked_for_is_one_folder(name):
    assert name_of(ReadOptions(name="topk-1.b"), "file's") == "topk-1.b"
    with pytest.raises(InteropError, match="name: expected letters"):
        name_of(ReadOptions(name=name), "file's")


def test_a_format_of_one(make):
    coder = make(CoderConfig(latents=16, gate=TopKConfig(k=4)))
    assert one((coder,), "saelens") is coder
    for several in ((), (coder, coder)):
        with pytest.raises(InteropError, match=f"expected one dictionary, found {len(several)}"):
            one(several, "saelens")


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ReadOptions().name = "x"  # pyright: ignore[reportAttributeAccessIssue]
