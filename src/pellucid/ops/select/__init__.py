"""Threshold selections with their gradients."""

from pellucid.ops.select.reference import batch_threshold, step

__all__ = ["batch_threshold", "step"]
