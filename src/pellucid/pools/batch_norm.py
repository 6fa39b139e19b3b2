"""Batch normalisation of router logits, in the precision of the logits.

    y = (x − mean) / √(var + ε),   over the batch in training, by running statistics in evaluation

torch's own module refuses rows that are more precise than its running statistics, as a router's
are in a model of half precision. Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def batch_norm(
    norm: nn.BatchNorm1d, x: Float[Tensor, "T c *n"], *, track: bool
) -> Float[Tensor, "T c *n"]:
    """``norm`` applied to ``x``, in x's type; ``track`` lets running statistics follow the batch.

    Statistics kept in half precision lose what is below their rounding.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    assert norm.momentum is not None
    exact_mean, exact_var = (kept.to(x.dtype, copy=True) for kept in (mean, var))
    y = F.batch_norm(
        x,
        exact_mean,
        exact_var,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )
    if track and norm.training:
        mean.copy_(exact_mean)
        var.copy_(exact_var)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
    return y
