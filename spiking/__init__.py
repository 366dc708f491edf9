"""The vocabulary of spiking networks in pure torch: time, spike alphabets, codings, neurons and the modules they drive."""

from .alphabet import Alphabet as Alphabet
from .coding import Coding as Coding
from .layers import (
    SpikingConv2d as SpikingConv2d,
    SpikingDotProductAttention as SpikingDotProductAttention,
    SpikingLinear as SpikingLinear,
    driven as driven,
)
from .neuron import CodedNeuron as CodedNeuron, Event as Event, analog as analog, probing as probing
from .time import Clock as Clock, Neuron as Neuron, neurons as neurons, simulate as simulate
