"""Spike-friendly parts in place of attention, perceptron and LayerNorm of a pretrained ViT, from which they inherit."""

from .attention import SubstituteAttention as SubstituteAttention
from .base import (
    INTERACTION as INTERACTION,
    JOIN as JOIN,
    Inherited as Inherited,
    Own as Own,
    Term as Term,
    interacts as interacts,
    is_sum as is_sum,
    summands as summands,
    term as term,
    terms as terms,
)
from .convolution import ValueConvolution as ValueConvolution
from .experts import ExpertHeads as ExpertHeads, RoutedMixers as RoutedMixers
from .gates import (
    QKChannelGate as QKChannelGate,
    QKMixedGate as QKMixedGate,
    QKTokenGate as QKTokenGate,
    SpikeDrivenGate as SpikeDrivenGate,
)
from .linear import LinearAttention as LinearAttention
from .mlp import MLPS as MLPS, ExpertMlp as ExpertMlp, SubstituteMlp as SubstituteMlp, substitute_mlp as substitute_mlp
from .norm import NORMS as NORMS, GatedNorm as GatedNorm, StaticNorm as StaticNorm
from .rectified import RectifiedAttention as RectifiedAttention
from .softmax import RectifiedSoftmax as RectifiedSoftmax
