"""What SAELens does to activations before a dictionary sees them, folded away or refused.

    none
    expected_average_only_in   c·x; c stands beside the weights only in checkpoints
    covariance_whitening       (x − μ) M, likewise
    layer_norm                 (x − mean) / (deviation + 1e-5), per row
    constant_norm_rescale      √d · x / ‖x‖, per row

The first two are linear and fold exactly. The last two depend on the row, which no unit's read
direction can express: such a dictionary is read only for a site whose rows are normalised already.
"""

from dataclasses import replace

from pellucid.core.errors import InteropError
from pellucid.dictionaries.config import GateConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.interop.converter import ReadOptions
from pellucid.interop.files import Fields, read_object, read_tensors
from pellucid.interop.folds import Weights, fold_input_scale, fold_pursuit_scale, fold_whitening

SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
PER_ROW = ("layer_norm", "constant_norm_rescale")
KINDS = ("none", "expected_average_only_in", "covariance_whitening", *PER_ROW)


def unnormalised(
    fields: Fields, weights: Weights, gate: GateConfig, options: ReadOptions
) -> tuple[Weights, GateConfig]:
    """Weights and gate on raw activations.

    Errors: an ``InteropError`` where the folder does not hold what was measured, and for what
    cannot be folded.
    """
    kind = fields.choice("normalize_activations", KINDS, "none")
    where = fields.where("normalize_activations")
    if options.input_scale is not None and kind != "expected_average_only_in":
        raise InteropError(
            f"{where}: expected expected_average_only_in with an input scale, found {kind}; leave "
            "--input-scale out"
        )
    if kind in PER_ROW and not options.row_normalised:
        raise InteropError(
            f"{where}: found {kind}, which depends on each row and folds into no weights; read it "
            "with --row-normalised for a site whose rows are already normalised so"
        )
    if kind == "expected_average_only_in":
        scale = _scale(fields, options, where)
        if isinstance(gate, PursuitConfig):
            weights, residual = fold_pursuit_scale(weights, gate.residual, scale)
            return weights, replace(gate, residual=residual)
        return fold_input_scale(weights, scale), gate
    if kind == "covariance_whitening":
        if isinstance(gate, PursuitConfig) or weights.rows().shape[1] != weights.decoder.shape[1]:
            raise InteropError(f"{where}: {kind} folds into SAEs that have an encoder alone")
        return _unwhitened(fields, weights, options), gate
    return weights, gate


def _scale(fields: Fields, options: ReadOptions, where: str) -> float:
    scale = options.input_scale
    beside = fields.path.with_name(SCALER)
    if scale is None and beside.exists():
        scale = Fields(beside, read_object(beside)).find("scaling_factor", float)
    if scale is None:
        raise InteropError(
            f"{where}: found expected_average_only_in, whose factor no {SCALER} beside it holds; "
            "give it with --input-scale"
        )
    if not scale > 0:
        raise InteropError(f"{where}: expected a factor above 0, found {scale}")
    return scale


def _unwhitened(fields: Fields, weights: Weights, options: ReadOptions) -> Weights:
    d = weights.decoder.shape[1]
    tensors = read_tensors(fields.path.with_name(WHITENING), options.dtype)
    matrix, inverse = tensors.take("matrix", (d, d)), tensors.take("inverse_matrix", (d, d))
    return fold_whitening(weights, tensors.take("mean", (d,)), matrix, inverse)
