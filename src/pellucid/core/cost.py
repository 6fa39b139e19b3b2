"""What a layer or model costs: parameters held and touched, and FLOPs per token.

FLOPs count multiply and add; comparisons, norms and element-wise functions are free. Training
FLOPs are forward plus backward with sparse gradients where the layer has them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Parameters in total and active for one token; FLOPs of one token, forward and training."""

    total: int
    active: int
    forward: int
    training: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            total=self.total + other.total,
            active=self.active + other.active,
            forward=self.forward + other.forward,
            training=self.training + other.training,
        )
