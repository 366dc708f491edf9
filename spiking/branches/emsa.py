"""EMSA: the expert-mixture attention of SEMM. Spiking experts, each masked by the spikes of a router, and summed.

Zhou et al., "Spiking Transformer with Experts Mixture" (SEMM), NeurIPS 2024: Y = Σ_i R_i(x) ⊙ E_i(x), where routers R and
experts E send spikes: no softmax and no top-k. The authors published no code; what the paper's text leaves open follows the
one public port (STEP, with the router's axes put right): see the docstrings.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..membrane import NeuronFactory
from ..projection import ConvBN, SpikingProjection
from .attention import attend
from .base import BlockSize, Branch, Widths
from .count import Counts, convolution, neurons, products, projection, together
from .registry import branch


@branch("attention", "emsa")
class ExpertMixtureAttention(Branch):
    """EMSA: each expert is a head with its own query; key and value are shared; a router bit gates each expert and token.

    E_i = N(Q_i Kᵀ V · scale);  Y = Σ_i R_i ⊙ E_i;  out = BN(W_o Y). Input spikes or integers ``[T * B, C, H, W]``; the mixture
    Y is **integer**, 0 to ``experts``; the output are currents, real-valued, for the neuron of a shortcut.

    Args:
        dim: channels C.
        neuron: makes all neurons.
        experts: number of experts m.
        expert_dim: channels of queries and keys, d_e.
        scale: of the product.
        value_dim: channels of the value; C unless given (the port's mode "base"; d_e is its mode "small").
        expert_threshold: of the experts' neurons: 1 in the port, where SSA has 0.5.
        bias: whether the layers of q, k and v have a bias (batch normalisation makes it redundant).
        interaction: acts on the queries ``[T * B, m, d_e, tokens]``, such as `TemporalInteraction`.
    """

    def __init__(
        self, dim: int, neuron: NeuronFactory, experts: int = 4, expert_dim: int = 96, scale: float = 0.125,
        value_dim: int | None = None, expert_threshold: float = 1.0, bias: bool = False, interaction: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        value_dim = value_dim or dim
        self.experts = experts
        self.scale = scale
        self.query = SpikingProjection(dim, experts * expert_dim, neuron, bias=bias)  # those of all experts, one after another
        self.key = SpikingProjection(dim, expert_dim, neuron, bias=bias)
        self.value = SpikingProjection(dim, value_dim, neuron, bias=bias)
        self.router = SpikingProjection(dim, experts, neuron, bias=True)
        self.interaction = interaction or nn.Identity()
        self.neuron = neuron(threshold=expert_threshold)
        self.out = ConvBN(value_dim, dim, bias=True)

    @classmethod
    def for_maps(cls, widths: Widths, neuron: NeuronFactory, **options: Any) -> ExpertMixtureAttention:
        """As many experts as other kinds have heads, and queries as wide as a head."""
        return cls(widths.channels, neuron, widths.heads, widths.channels // widths.heads, **options)

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """What each expert sends, for each channel and token."""
        return {"neuron": (size.heads, size.channels, size.tokens)}

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """Queries of all experts, a key, a value, the router, and what the experts send."""
        dim, experts, width, tokens = size.channels, size.heads, size.channels // size.heads, size.tokens
        inputs = [projection(dim, outputs, tokens, bias=True) for outputs in (experts * width, width, dim, experts)]
        written, linear = experts * (width + dim) * tokens**2, (1 + experts) * dim * width * tokens
        behind = neurons(experts * dim * tokens)
        return together([*inputs, products(written, linear, tokens > width), behind, convolution(dim, dim, tokens, bias=True)])

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        q = self.interaction(self.query(x).flatten(2).unflatten(1, (self.experts, -1)))
        k, v = self.key(x).flatten(2).unsqueeze(1), self.value(x).flatten(2).unsqueeze(1)
        experts = self.neuron(attend(q, k, v) * self.scale)  # [T * B, m, value_dim, tokens]
        gates = self.router(x).flatten(2).unsqueeze(2)  # [T * B, m, 1, tokens]
        currents: Tensor = self.out((gates * experts).sum(1).unflatten(2, x.shape[2:]))
        return currents
