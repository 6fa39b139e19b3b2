"""A few documents, a microscopic run config, and a cache of their own."""

import json
from pathlib import Path

import pytest

from pellucid.data.document import DataConfig
from pellucid.models.config import TransformerConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.recipes.folder import create_run
from pellucid.recipes.harvesting import HarvestRequest, harvest_sites
from pellucid.recipes.language import LanguageRun
from pellucid.recipes.prepare import prepare_run
from pellucid.recipes.training import train_language

WORDS = ("pool", "unit", "gate", "read", "write", "token", "layer", "norm", "rope", "mask", "seed")


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """Two domains of eight documents, one in four held out."""
    path = tmp_path_factory.mktemp("source") / "text.jsonl"
    rows = [
        {
            "id": f"{domain}-{index}",
            "domain": domain,
            "split": "validation" if index % 4 == 3 else "train",
            "text": " ".join(WORDS[(index * shift + place) % 11] for place in range(30)),
        }
        for domain, shift in (("odd", 3), ("even", 5))
        for index in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("PELLUCID_CACHE", str(cache))


@pytest.fixture(scope="session")
def config(source: Path) -> LanguageRun:
    """Four steps of a model of two layers, checkpoints at two and four."""
    pool = HierarchyConfig(pools=5, slots=7, open_pools=3, k=4)
    return LanguageRun(
        model=TransformerConfig(
            width=16,
            layers=2,
            heads=2,
            kv_heads=1,
            head_dim=8,
            vocab_size=270,
            context=12,
            ffn=(pool,),
        ),
        data=DataConfig(source=str(source)),
        steps=4,
        batch=2,
        evaluate_every=2,
        evaluate_tokens=20,
        checkpoint_every=2,
        log_every=1,
        device="cpu",
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache: Path, config: LanguageRun) -> Path:
    """A run of four steps of that config. Copy it before you change it."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        prepared = prepare_run(config, lambda *_: None)
        create_run(path, prepared.config, recipe="pools-x", command=[], overwrite=False)
        train_language(path, prepared, name="trained", say=lambda _: None)
    return path


@pytest.fixture(scope="session")
def harvested(tmp_path_factory, cache: Path, source: Path, trained: Path) -> Path:
    """Two sites of that run over the same text: 200 rows, and 60 held out."""
    out = tmp_path_factory.mktemp("activations") / "cache"
    request = HarvestRequest(
        site=("blocks.0.ffn:in", "blocks.0.ffn:out"),
        data=str(source),
        tokens=200,
        validation_tokens=60,
        shard_rows=64,
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(cache))
        harvest_sites(str(trained), request, out, overwrite=False, report=lambda *_: None)
    return out
