"""The columns of the monitor's table: the contract between who reads layers, who judges them and who shows them.

Only names and types live here; what each figure is made of is in the modules named beside it.

A row is one forward of one layer at one sampled step: `step` (optimizer steps done when read), `epoch`, `layer` (all
names of a shared module, joined by `+`), `tag`, `call`, `kind`, `type`, `dtype`, `order` (of the first forward),
`numel` (elements of the output), and

* of the `count` values read: `nonfinite_count`; of the finite ones `mean`, `std` (biased), `rms`, `min`, `max`,
  `skewness`, `kurtosis` (3 for a Gaussian), `q15`, `q50`, `q85`, `zero_fraction`, `saturated_fraction` (derivative
  below 5 % of its maximum; NaN for unbounded activations and other layers), and `histogram` (66 counts: below, 64
  bins, above; edges at `hist_center + hist_scale * sinh(t)`, t even from -asinh(1000) to asinh(1000), the same
  through the run);
* `channels`, `dead_channels` (0 in 100 values read in a row) and `constant_channels` (another value, the same at
  every place read); -1 where not known;
* `drift_kl`, `drift_w1`, `drift_mean` against the previous sample of the same layer, tag and call: symmetrised
  Gaussian KL in nats, Wasserstein-1 and gap of the means in units of the previous std (about 0.06 is sampling
  noise); `reference_kl`, `reference_w1`, `reference_mean` the same against the first sample;
* of norms: `running_gap` and `running_var_gap` (median over channels of |batch mean - running mean| / running std
  and of |ln(batch variance / running variance)|), `batch_noise` (noise of the batch mean that batch norm subtracts,
  in std: 1/sqrt of the number of independent values), `gamma_mean`, `gamma_std`, `beta_mean`, `beta_std`;
* of the layer's weight w: `weight_norm`, `update_ratio` (||change of w|| / ||w|| at this step), `effective_lr`
  (lr / ||w||^2, where a norm follows at once, so that only the direction of w matters);
* `grad_rms`, `grad_zero_fraction` of the gradient with respect to the output, unscaled under AMP.
"""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

Table = dict[str, NDArray[Any]]
Key = tuple[str, str, int]  # layer, tag, call

BINS: Final = 64
HISTOGRAM: Final = "histogram"  # uint16 (R, 66): values below the edges, in the 64 bins, above the edges

_FIGURES: Final = (
    # moments: of the values read
    *("mean", "std", "rms", "min", "max", "skewness", "kurtosis", "q15", "q50", "q85"),
    *("zero_fraction", "saturated_fraction"),
    # drift: against the previous sample, then against the first one
    *("drift_kl", "drift_w1", "drift_mean", "reference_kl", "reference_w1", "reference_mean"),
    # norm_state: of norms with running statistics, or that pool the batch
    *("running_gap", "running_var_gap", "batch_noise"),
    # weights
    *("gamma_mean", "gamma_std", "beta_mean", "beta_std", "weight_norm", "update_ratio", "effective_lr"),
    # recorder: of the gradient with respect to the output
    *("grad_rms", "grad_zero_fraction"),
    # histogram: the centre and width of its bins
    *("hist_center", "hist_scale"),
)

# Columns in order, without the step and epoch that the caller adds.
COLUMNS: Final[dict[str, str]] = {
    "layer": "object",
    "tag": "object",
    "call": "int16",
    "kind": "object",
    "type": "object",
    "dtype": "object",
    "order": "int32",
    "numel": "int64",
    "count": "int64",
    "nonfinite_count": "int64",
    "channels": "int32",
    "dead_channels": "int32",
    "constant_channels": "int32",
    **dict.fromkeys(_FIGURES, "float32"),
    HISTOGRAM: "uint16",
}
# Columns that are one number a row, which a logger can take.
STATISTICS: Final = ("numel", "count", "nonfinite_count", "channels", "dead_channels", "constant_channels", *_FIGURES)


def label(layer: str, tag: str = "", call: int = 0) -> str:
    """How a row's layer is called in words and in keys: its first name, its tag, and the call from the second one on.

    Example:
        >>> label("net.act+net.head.act"), label("disc", call=1), label("disc", "fake"), label("disc", "fake", 1)
        ('net.act', 'disc#1', 'disc#fake', 'disc#fake.1')
    """
    first = layer.split("+", maxsplit=1)[0]
    parts = [part for part in (tag, str(call) if call else "") if part]
    return f"{first}#{'.'.join(parts)}" if parts else first
