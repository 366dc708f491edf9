"""The kinds of spiking branches, each in a file of its own, and their registry."""

from .attention import SpikingAttention as SpikingAttention
from .base import (
    BlockSize as BlockSize,
    Branch as Branch,
    Widths as Widths,
)
from .count import Counts as Counts
from .emsa import ExpertMixtureAttention as ExpertMixtureAttention
from .emsp import ExpertMixturePerceptron as ExpertMixturePerceptron
from .mlp import SpikingMLP as SpikingMLP
from .qk_channel import QKChannelAttention as QKChannelAttention
from .qk_mixed import QKMixedAttention as QKMixedAttention
from .qk_token import QKTokenAttention as QKTokenAttention
from .registry import branch as branch, find as find, kinds as kinds
from .sdsa import SpikeDrivenSelfAttention as SpikeDrivenSelfAttention
from .ssa import SpikingSelfAttention as SpikingSelfAttention
