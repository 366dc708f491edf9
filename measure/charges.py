"""What is charged for functions that are no product of weights or signals, by the value: the conventional part of the count."""

from __future__ import annotations

COMPARISONS = {
    "relu", "relu6", "hardtanh", "clamp", "abs", "max", "min", "maximum", "minimum", "amax", "amin", "topk", "sort", "argmax",
    "max_pool1d", "max_pool2d", "adaptive_max_pool2d",
}  # fmt: skip
"""Nonlinear functions that only compare: an accumulate for each value that goes in; of spikes, for each spike (an OR)."""

REDUCTIONS = {"sum", "mean", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d"}
"""Sums. Of spikes, each is an accumulate; sums of real numbers are not counted, as in the ANN."""

FUNCTION_MACS = 5
"""Multiply-accumulates for each value of a softmax, LayerNorm, GELU or other nonlinear function: about the operations of a
softmax (maximum, difference, exponential, sum, quotient)."""

SHIFT_ACCUMULATES = 10
"""Accumulates for each value of `ShiftLayerNorm`, `ShiftSoftmax` or `ShiftGELU`: up to so many additions of shifted values."""
