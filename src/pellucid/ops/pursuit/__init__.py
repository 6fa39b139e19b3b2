"""Codes found by pursuit: least squares on a greedily grown support, and matching pursuit."""

from pellucid.ops.pursuit.matching import matching_pursuit
from pellucid.ops.pursuit.solve import gomp, omp, oneshot, refit

__all__ = ["gomp", "matching_pursuit", "omp", "oneshot", "refit"]
