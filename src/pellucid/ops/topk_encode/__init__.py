"""The k latents with the largest scores, found without keeping all scores."""

from pellucid.ops.topk_encode.fast import topk_encode
from pellucid.ops.topk_encode.stream import Sign, stream_topk

__all__ = ["Sign", "stream_topk", "topk_encode"]
