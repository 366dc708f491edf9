"""Whether one figure ranks things as another does."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import bootstrap, kendalltau


def tau(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Kendall's tau, its p-value, and its bootstrap interval."""

    def statistic(x: np.ndarray, y: np.ndarray) -> float:
        value = kendalltau(x, y).statistic
        return 0.0 if np.isnan(value) else float(value)  # a sample of one thing only

    found = kendalltau(a, b)
    interval = bootstrap(
        (a, b), statistic, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {"tau": float(found.statistic), "p": float(found.pvalue), "low": float(interval.low), "high": float(interval.high)}
