"""Training with surrogate gradients."""

from .loop import Objective as Objective, Step as Step, classification as classification, train as train
