"""The vocabulary of spiking networks in pure torch: time, neurons, codings, and the modules that they drive."""

from .alphabet import Alphabet as Alphabet, Ladder as Ladder
from .balanced import Balanced as Balanced
from .branches import (
    BlockSize as BlockSize,
    Branch as Branch,
    Counts as Counts,
    ExpertMixtureAttention as ExpertMixtureAttention,
    ExpertMixturePerceptron as ExpertMixturePerceptron,
    QKChannelAttention as QKChannelAttention,
    QKMixedAttention as QKMixedAttention,
    QKTokenAttention as QKTokenAttention,
    SpikeDrivenSelfAttention as SpikeDrivenSelfAttention,
    SpikingAttention as SpikingAttention,
    SpikingMLP as SpikingMLP,
    SpikingSelfAttention as SpikingSelfAttention,
    Widths as Widths,
    branch as branch,
)
from .coding import Coding as Coding
from .endings import Ending as Ending, repeating as repeating
from .graphs import Graphed as Graphed, graphed as graphed
from .integers import Integers as Integers, integer_weights as integer_weights, straight_through as straight_through
from .interaction import ByToken as ByToken, TemporalInteraction as TemporalInteraction
from .layers import (
    DotProductAttention as DotProductAttention,
    InTurn as InTurn,
    SpikingConv2d as SpikingConv2d,
    SpikingDotProductAttention as SpikingDotProductAttention,
    SpikingLinear as SpikingLinear,
    driven as driven,
    twin as twin,
)
from .membrane import (
    IF as IF,
    LIF as LIF,
    NEURONS as NEURONS,
    PLIF as PLIF,
    IntegerLIF as IntegerLIF,
    NeuronFactory as NeuronFactory,
    TernaryLIF as TernaryLIF,
    binary_spikes as binary_spikes,
)
from .native import eager as eager
from .network import (
    SpikingNetwork as SpikingNetwork,
    channels_last as channels_last,
    evaluating as evaluating,
    running_mean as running_mean,
)
from .neuron import CodedNeuron as CodedNeuron, Event as Event, analog as analog, probing as probing
from .patches import SPEDS as SPEDS, DeformedShortcut as DeformedShortcut, SpikingPatchSplitting as SpikingPatchSplitting
from .process import prepare_process as prepare_process
from .projection import ConvBN as ConvBN, SpikingProjection as SpikingProjection
from .rotation import Hadamard as Hadamard, RotatedLinear as RotatedLinear, rotate_inputs as rotate_inputs
from .shift import ShiftGELU as ShiftGELU, ShiftLayerNorm as ShiftLayerNorm, ShiftSoftmax as ShiftSoftmax
from .shortcut import MembraneShortcut as MembraneShortcut, SEWShortcut as SEWShortcut
from .surrogate import Surrogate as Surrogate
from .time import (
    FullPrecision as FullPrecision,
    Neuron as Neuron,
    Run as Run,
    neurons as neurons,
    over_time as over_time,
    present_run as present_run,
    running as running,
    simulate as simulate,
    stream as stream,
)
from .tokens import GridConv2d as GridConv2d, to_map as to_map, to_tokens as to_tokens
