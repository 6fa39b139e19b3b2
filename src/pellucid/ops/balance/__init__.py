"""Balance of load over pools, by loss or by bias."""

from pellucid.ops.balance.reference import balance_loss, bias_step, z_loss

__all__ = ["balance_loss", "bias_step", "z_loss"]
