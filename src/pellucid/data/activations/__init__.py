"""Activations of a host's sites: harvested once into a cache, or streamed while they are used."""

from pellucid.data.activations.cache import ActivationCache
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.harvest import harvest
from pellucid.data.activations.heldout import HeldOut
from pellucid.data.activations.manifest import CacheManifest
from pellucid.data.activations.rows import Rows
from pellucid.data.activations.source import ActivationSource
from pellucid.data.activations.stream import ActivationStream

__all__ = [
    "ActivationCache",
    "ActivationSource",
    "ActivationStream",
    "CacheManifest",
    "HarvestConfig",
    "HeldOut",
    "Origin",
    "Rows",
    "harvest",
]
