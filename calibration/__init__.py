"""Calibration: statistics that stream over sample images, and the thresholds, priors and biases that follow from them."""

from .observers import OBSERVERS as OBSERVERS, Observer as Observer
from .thresholds import ThresholdRule as ThresholdRule, calibrate as calibrate
