"""Calibration: statistics that stream over sample images, and the thresholds, priors and biases that follow from them."""

from .balance import balance as balance
from .network import Prior as Prior, calibrate as calibrate
from .observers import OBSERVERS as OBSERVERS, Observer as Observer
from .regression import NormalEquations as NormalEquations
from .rule import ThresholdRule as ThresholdRule
