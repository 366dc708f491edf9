"""SEMM: expert mixtures in place of attention and perceptron, on the frame of Spikformer, SDT or Spikingformer.

Zhou et al., "Spiking Transformer with Experts Mixture", NeurIPS 2024. The authors published no code: see
`vit2snn.spiking.branches.emsa` for what follows the paper and what a third party's port.
"""

from __future__ import annotations

from ..spiking import ExpertMixtureAttention, ExpertMixturePerceptron, NeuronFactory
from .frames import Frame
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Published, Variant, cifar, dvs, imagenet, register


class SEMM(SpikingTransformer):
    """The patch embedding and the shortcut of another architecture around blocks of EMSA and EMSP.

    Args:
        frame: a name in `vit2snn.zoo.frames.FRAMES`; published are ``spikformer`` (integer stream), ``sdt`` and
            ``spikingformer`` (real-valued streams, binary spikes).
        dim: channels.
        depth: blocks.
        experts: number of experts.
        expert_dim: channels of an expert's query.
        mlp_ratio: hidden channels of EMSP, both halves, to channels.
        pools: which of the four convolutions pool: ``1111`` or ``0011``.
        scale: of the attention.
        small_value: the value has ``expert_dim`` channels instead of ``dim``.
        expert_threshold: of the experts' neurons.
        qkv_bias: biases before the batch normalisation of q, k and v; the port for CIFAR has them.
        timesteps: T.
        num_classes: outputs.
        in_chans: channels of the input.
        neuron: name in `vit2snn.spiking.NEURONS`, or a factory.

    Raises:
        ModelError: an unknown frame or neuron.
    """

    def __init__(
        self,
        frame: str = "spikformer",
        dim: int = 384,
        depth: int = 4,
        experts: int = 4,
        expert_dim: int = 96,
        mlp_ratio: float = 4.0,
        pools: str = "0011",
        scale: float = 0.125,
        small_value: bool = False,
        expert_threshold: float = 1.0,
        qkv_bias: bool = False,
        timesteps: int = 4,
        num_classes: int = 10,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "lif",
    ) -> None:
        around, make = Frame.find(frame), neuron_factory(neuron)
        (embed,) = around.embed(in_chans, [dim], make, pools)
        value_dim = expert_dim if small_value else dim
        blocks = [
            block(
                around.shortcut(
                    ExpertMixtureAttention(dim, make, experts, expert_dim, scale, value_dim, expert_threshold, qkv_bias), make
                ),
                around.shortcut(ExpertMixturePerceptron(dim, int(dim * mlp_ratio), make), make),
            )
            for _ in range(depth)
        ]
        head_neuron = make() if around.head_neuron else None
        super().__init__([Stage(embed, blocks, dim, embed.stride)], num_classes, in_chans, timesteps, head_neuron)


PAPER = ("Spiking Transformer with Experts Mixture", "")
SOURCE = "SEMM paper, as quoted by STEP (NeurIPS 2025)"
PORT = "experts and their width follow a third party's port; the authors published no code"
STEP = Published("CIFAR-10", 94.98, 4, "STEP benchmark, NeurIPS 2025", "independent run; its router mixes tokens up")
IMAGENET = {"dim": 512, "depth": 8, "pools": "1111", "mlp_ratio": 2720 / 512}  # the port's 16 * (512 // 3)
CIFAR = {"dim": 384, "depth": 4, "qkv_bias": True}
DVS = {"dim": 256, "depth": 2, "pools": "1111", "timesteps": 16}

register(
    SEMM,
    PAPER,
    {
        "semm_spikformer_8_512": Variant(IMAGENET, imagenet(), (Published("ImageNet-1k", 75.93, 4, SOURCE, PORT),)),
        "semm_spikformer_4_384_cifar10": Variant(CIFAR, cifar(), (Published("CIFAR-10", 95.78, 4, SOURCE, PORT), STEP)),
        "semm_spikformer_4_384_cifar100": Variant(CIFAR, cifar(100), (Published("CIFAR-100", 79.04, 4, SOURCE, PORT),)),
        "semm_spikformer_2_256_cifar10dvs": Variant(DVS, dvs(), (Published("CIFAR10-DVS", 82.32, 16, SOURCE, PORT),)),
        "semm_sdt_8_512": Variant(IMAGENET | {"frame": "sdt"}, imagenet()),
        "semm_sdt_2_512_cifar10": Variant(CIFAR | {"frame": "sdt", "dim": 512, "depth": 2}, cifar()),
        "semm_spikingformer_8_512": Variant(IMAGENET | {"frame": "spikingformer"}, imagenet()),
        "semm_spikingformer_4_384_cifar10": Variant(CIFAR | {"frame": "spikingformer"}, cifar()),
    },
)
