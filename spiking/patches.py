"""Patch embeddings: images or frames ``[T * B, channels, H, W]`` to tokens ``[T * B, C, H / stride, W / stride]``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .membrane import NeuronFactory
from .projection import ConvBN, Pool, SpikingProjection, max_pool


class SpikingPatchSplitting(nn.Module):
    """SPS: four 3x3 convolutions of C/8, C/4, C/2 and C channels, each BN(Conv) → N → pooling, then a position embedding.

    Zhou et al., "Spikformer", ICLR 2023. Stride 2 for each pooling. Output: that of ``position``.

    Args:
        in_chans: channels of the image.
        dim: channels C.
        neuron: makes the neurons.
        pools: for each of the four whether it pools, as ``"1111"`` (ImageNet, events) or ``"0011"`` (CIFAR).
        position: the relative position embedding, a module on C channels: the paper's is ``SEWShortcut(ConvBN(C, C, 3))``.
        last_neuron: False leaves the fourth neuron out, so that ``position`` sees currents (Spike-Driven Transformer).
    """

    def __init__(
        self, in_chans: int, dim: int, neuron: NeuronFactory, pools: str, position: nn.Module, last_neuron: bool = True
    ) -> None:
        super().__init__()
        widths = [in_chans, dim // 8, dim // 4, dim // 2, dim]
        layers: list[nn.Module] = []
        for i, pooled in enumerate(pools):
            if i < 3 or last_neuron:
                pool: Pool = "after" if pooled == "1" else "none"
                layers.append(SpikingProjection(widths[i], widths[i + 1], neuron, kernel=3, pool=pool))
            else:
                layers.append(ConvBN(widths[i], widths[i + 1], kernel=3))
                if pooled == "1":
                    layers.append(max_pool())
        self.layers = nn.Sequential(*layers)
        self.position = position
        self.stride = 2 ** pools.count("1")

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, channels, H, W]`` to ``[T * B, C, H / stride, W / stride]``."""
        tokens: Tensor = self.position(self.layers(x))
        return tokens


class DeformedShortcut(nn.Module):
    """main(x) + N(BN(Conv1x1_stride x)): the shortcut changes channels and resolution too.

    Output: the sum of two spikes, **integer**, 0 to 2. Zhou et al., "QKFormer", NeurIPS 2024.

    Args:
        main: maps ``[T * B, inputs, H, W]`` to spikes ``[T * B, outputs, H / stride, W / stride]``.
        inputs: channels in.
        outputs: channels out.
        stride: of ``main``.
        neuron: makes N.
    """

    def __init__(self, main: nn.Module, inputs: int, outputs: int, stride: int, neuron: NeuronFactory) -> None:
        super().__init__()
        self.main = main
        self.shortcut = SpikingProjection(inputs, outputs, neuron, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, inputs, H, W]`` to ``[T * B, outputs, H / stride, W / stride]``."""
        added: Tensor = self.main(x) + self.shortcut(x)
        return added


class SPEDS(nn.Module):
    """Spiking patch embedding with deformed shortcut: 3x3 convolutions BN(Conv) → pooling → N, of which the last lie under one.

    Output integer, 0 to 2. From the QKFormer paper. Pooling is on currents, where SPS pools spikes.

    Args:
        in_chans: channels in.
        widths: channels of each convolution.
        pools: for each whether it pools (stride 2), as ``"110"``.
        stem: how many convolutions come before the deformed shortcut branches off.
        neuron: makes the neurons.
    """

    def __init__(self, in_chans: int, widths: Sequence[int], pools: str, stem: int, neuron: NeuronFactory) -> None:
        super().__init__()
        inputs = [in_chans, *widths]
        layers = [
            SpikingProjection(inputs[i], inputs[i + 1], neuron, kernel=3, pool="before" if pooled == "1" else "none")
            for i, pooled in enumerate(pools)
        ]
        self.stem = nn.Sequential(*layers[:stem])
        self.body = DeformedShortcut(
            nn.Sequential(*layers[stem:]), inputs[stem], inputs[-1], 2 ** pools[stem:].count("1"), neuron
        )
        self.stride = 2 ** pools.count("1")

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, channels, H, W]`` to ``[T * B, C, H / stride, W / stride]``."""
        tokens: Tensor = self.body(self.stem(x))
        return tokens
