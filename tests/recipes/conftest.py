"""A few documents, a microscopic run config, and a cache of their own."""

import json
from pathlib import Path

import pytest

from pellucid.data.document import DataConfig
from pellucid.models.config import TransformerConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.recipes.language import LanguageRun

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
