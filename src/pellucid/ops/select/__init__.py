"""Batch-wide and threshold selections with their gradients."""

from pellucid.ops.select.reference import batch_threshold, batch_topk, jump_relu, step

__all__ = ["batch_threshold", "batch_topk", "jump_relu", "step"]
