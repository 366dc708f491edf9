"""Whether a network that was written and read again is still the same, and if not, which module differs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..convert import SpikingModel
from ..errors import ArtifactError
from ..spiking import evaluating

HINT = (
    "make the ANN with timm.create_model(NAME, **arguments) and do not change it afterwards, register your own variant with "
    "timm.models.register_model, or name a function that makes it: save(OUT, builder='package.module:function')"
)


@torch.no_grad()
def check_same(snn: SpikingModel, read: Callable[[], SpikingModel]) -> None:
    """Refuse a network that comes back from disk as another one.

    Args:
        snn: what was written.
        read: reads it.

    Raises:
        ArtifactError: it cannot be read, or its logits, or its ANN's, on a random image differ; the message names the module.
    """
    weight = next(snn.network.parameters())
    try:
        again = read().to(weight.device)
    except ArtifactError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ArtifactError(f"what would be rebuilt is not this model: {reason}", HINT) from error
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *snn.input_size, generator=generator).to(weight)
    with evaluating(snn):
        if not (_close(snn(x), again(x)) and _close(snn.ann(x), again.ann(x))):
            raise ArtifactError(f"what would be rebuilt is not this model: {_first_difference(snn, again, x)}", HINT)


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _first_difference(snn: SpikingModel, again: SpikingModel, x: Tensor) -> str:
    """The module that gives something else first, in words."""
    outputs, others = _outputs(snn, x), _outputs(again, x)
    for (part, name), output in outputs.items():
        other = others.get((part, name))
        if other is None or not _close(output, other):
            kinds = [_told(_parts(model)[part], name) for model in (snn, again)]
            same = f"the forward of {name!r} ({kinds[0]}) computes something else"
            return same if kinds[0] == kinds[1] else f"{name!r} is {kinds[0]}, and would be {kinds[1]}"
    return "some of its neurons differ"


def _parts(snn: SpikingModel) -> list[nn.Module]:
    return [snn.network] if snn.teacher is None else [snn.network, snn.teacher.ann]


def _outputs(snn: SpikingModel, x: Tensor) -> dict[tuple[int, str], Tensor]:
    """What each module gives when it is called for the first time: in the ANN, and then in a timestep of the network."""
    outputs: dict[tuple[int, str], Tensor] = {}

    def keep(part: int, name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.setdefault((part, name), output)

    handles = [
        module.register_forward_hook(partial(keep, part, name))
        for part, network in enumerate(_parts(snn))
        for name, module in network.named_modules()
    ]
    try:
        snn.ann(x)
        snn(x, 1)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _told(network: nn.Module, name: str) -> str:
    found = dict(network.named_modules()).get(name)
    return "missing" if found is None else f"{type(found).__name__}({found.extra_repr()})"
