"""Factored mixing of MONET's n² experts, horizontal and vertical."""

from pellucid.ops.monet_mix.fast import mix_horizontal, mix_vertical

__all__ = ["mix_horizontal", "mix_vertical"]
