"""Entropy and mutual information of tables of weights, in nats.

    I(U; D) = H(U) + H(D) − H(U, D),   normalised by min(H(U), H(D))

Rows of a table are units, columns domains; any weights ≥ 0 do, since they are normalised here.
"""

import torch
from jaxtyping import Float
from torch import Tensor

MIN_NORMALISER = 0.01  # nats; below it no choice is left to explain


def entropy(weight: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The entropy in nats of each row of weights ≥ 0, normalised to sum 1; 0 for a row of zeros."""
    weight = weight.double()
    share = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return -torch.special.xlogy(share, share).sum(-1)


def mutual_information(joint: Float[Tensor, "units domains"]) -> float:
    """I(U; D) in nats of a table of weights ≥ 0."""
    parts = entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint.flatten())
    return max(parts.item(), 0.0)


def normalised_mutual_information(joint: Float[Tensor, "units domains"]) -> float:
    """I(U; D) / min(H(U), H(D)) of a table of weights ≥ 0; 0 where nothing is left to explain."""
    most = normaliser(joint)
    return mutual_information(joint) / most if most >= MIN_NORMALISER else 0.0


def normaliser(joint: Float[Tensor, "units domains"]) -> float:
    """min(H(U), H(D)) in nats: the most that either side can tell of the other."""
    return min(entropy(joint.sum(1)).item(), entropy(joint.sum(0)).item())
