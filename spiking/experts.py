"""Expert mixtures: spiking experts, each masked by the spikes of a router, and summed. No softmax and no top-k.

Zhou et al., "Spiking Transformer with Experts Mixture" (SEMM), NeurIPS 2024: Y = Σ_i R_i(x) ⊙ E_i(x), where routers R and
experts E send spikes. The authors published no code; what the paper's text leaves open follows the one public port (STEP,
with the router's axes put right): see the docstrings.
"""

from __future__ import annotations

from torch import Tensor, nn

from .attention import attend
from .membrane import NeuronFactory
from .projection import ConvBN, SpikingProjection


class ExpertMixtureAttention(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        q = self.interaction(self.query(x).flatten(2).unflatten(1, (self.experts, -1)))
        k, v = self.key(x).flatten(2).unsqueeze(1), self.value(x).flatten(2).unsqueeze(1)
        experts = self.neuron(attend(q, k, v) * self.scale)  # [T * B, m, value_dim, tokens]
        gates = self.router(x).flatten(2).unsqueeze(2)  # [T * B, m, 1, tokens]
        currents: Tensor = self.out((gates * experts).sum(1).unflatten(2, x.shape[2:]))
        return currents


class ExpertMixturePerceptron(nn.Module):
    """EMSP: one half of the hidden channels, after a depthwise convolution, gates the other half, channel by channel.

    h, h' = N(BN(W1 x)) in two halves;  out = BN(W2 (N(BN(DWConv3x3 h)) ⊙ h')). Input spikes or integers ``[T * B, C, H, W]``;
    the gated half is **binary**; the output are currents, real-valued, for the neuron of a shortcut.

    Args:
        dim: channels C.
        hidden: hidden channels, both halves together.
        neuron: makes all neurons.
    """

    def __init__(self, dim: int, hidden: int, neuron: NeuronFactory) -> None:
        super().__init__()
        half = hidden // 2
        self.expand = SpikingProjection(dim, 2 * half, neuron, bias=True)
        self.router = SpikingProjection(half, half, neuron, kernel=3, groups=half)
        self.reduce = ConvBN(half, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        routed, experts = self.expand(x).chunk(2, 1)
        currents: Tensor = self.reduce(self.router(routed) * experts)
        return currents
