"""Calibration: statistics that stream over sample images, and the thresholds, priors and biases that follow from them."""

from .balance import Balance as Balance
from .branch import Passage as Passage, Settling as Settling
from .network import Prior as Prior, calibrate as calibrate
from .observers import OBSERVERS as OBSERVERS, Observer as Observer
from .reconstruction import reconstruct as reconstruct
from .regression import Moments as Moments, NormalEquations as NormalEquations
from .rule import ThresholdRule as ThresholdRule
