"""Seeing the torch calls of a run: recorded on shapes alone, driven by neurons, and watched while values flow."""

from .calls import SYNAPTIC as SYNAPTIC, Calls as Calls
from .depth import depth as depth
from .driving import DrivenCall as DrivenCall, drive as drive
from .footprint import Peak as Peak, footprint as footprint
from .graph import Graph as Graph, Node as Node, graph as graph
from .hooks import catching as catching, outputs_of as outputs_of
from .record import Operation as Operation, record as record, untied as untied
from .replacing import replace as replace
from .signals import Call as Call, Signals as Signals
from .watch import Watch as Watch
