"""What the modules of a network read, for each of some images: a network as far as one of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .fit_branches import CHUNK


class _Reached(Exception):
    """A run has come as far as it has to."""


class Seen:
    """What the first call of a module reads, for each of some images.

    Args:
        arguments: positional ones and those by name. What depends on the images has all of them along its first axis.
        varies: whether it depends on them, of each leaf of ``arguments``.
        count: of the images.
    """

    def __init__(self, arguments: tuple[tuple[Any, ...], dict[str, Any]], varies: Sequence[bool], count: int) -> None:
        self.given, self.structure = tree_flatten(arguments)
        self.varies, self.count = varies, count

    @classmethod
    def by_network(cls, images: Tensor) -> Seen:
        """What a network reads, which is the images ``[B, C, H, W]``."""
        return cls(((images,), {}), [True], len(images))

    def of(self, index: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for some of the images."""
        some = [
            images_of(value, index, self.count) if varies else value
            for value, varies in zip(self.given, self.varies, strict=True)
        ]
        found: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(some, self.structure)
        return found

    def first(self, count: int) -> Seen:
        """The same of the first images only."""
        index = torch.arange(min(count, self.count))
        return Seen(self.of(index), self.varies, len(index))

    def chunks(self) -> list[Tensor]:
        """The indices of images that are computed at once."""
        return list(torch.arange(self.count).split(CHUNK))

    def within(self, module: nn.Module, name: str, known: Tensor | None = None) -> Seen:
        """What a submodule reads, given by name, if ``module`` reads this.

        Where it is ``known`` what depends on the images, and this is a single tensor, only few of them are computed.
        """
        if not name:
            return self
        (one, structure), (two, _) = (self._read(module, name, torch.zeros(count, dtype=torch.long)) for count in (1, 2))
        varies = [isinstance(a, Tensor) and a.shape != b.shape for a, b in zip(one, two, strict=True)]
        if known is not None and sum(varies) == 1:
            given = [known if depends else one[at] for at, depends in enumerate(varies)]
            return Seen(tree_unflatten(given, structure), varies, self.count)
        parts = [self._read(module, name, chunk)[0] for chunk in self.chunks()]
        given = [torch.cat([part[at] for part in parts]) if depends else parts[0][at] for at, depends in enumerate(varies)]
        return Seen(tree_unflatten(given, structure), varies, self.count)

    @torch.no_grad()
    def given_by(self, module: nn.Module) -> list[Tensor]:
        """The tensors that a module gives, if it reads this."""
        found: list[list[Tensor]] = []
        for chunk in self.chunks():
            args, kwargs = self.of(chunk)
            found.append(tensors_of(module(*args, **kwargs)))
        return [torch.cat(each) for each in zip(*found, strict=True)]

    @torch.no_grad()
    def _read(self, module: nn.Module, name: str, index: Tensor) -> tuple[list[Any], TreeSpec]:
        caught: list[Any] = []

        def catch(submodule: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append((args, kwargs))
            raise _Reached

        handle = module.get_submodule(name).register_forward_pre_hook(catch, with_kwargs=True)
        args, kwargs = self.of(index)
        try:
            with suppress(_Reached):
                module(*args, **kwargs)
        finally:
            handle.remove()
        return tree_flatten(caught[0])


def images_of(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Of a tensor with all images along its first axis, perhaps several parts of each, those of some."""
    some: Tensor = x.unflatten(0, (count, -1))[index.to(x.device)].flatten(0, 1)
    return some


def tensors_of(output: Any) -> list[Tensor]:
    """Those in what a module gives."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


@torch.no_grad()
def chained(network: nn.Module, names: Sequence[str], image: Tensor) -> set[str]:
    """The modules, of some in order of execution, that read the very tensor which the one before gives.

    It is not one of them if that tensor is changed in between.
    """
    given: dict[str, tuple[list[Tensor], int]] = {}
    read: dict[str, list[tuple[Tensor, int]]] = {}

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.setdefault(name, [(x, x._version) for x in tensors_of((args, kwargs))])

    def after(name: str, output: Any) -> None:
        found = tensors_of(output)
        given.setdefault(name, (found, found[0]._version if found else 0))

    handles = []
    for name in names:
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda _, a, k, name=name: before(name, a, k), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _, a, output, name=name: after(name, output)))
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    found = set()
    for first, second in pairwise(names):
        outputs, version = given[first]
        if len(outputs) == 1 and any(x is outputs[0] and now == version for x, now in read[second]):
            found.add(second)
    return found
