"""Watching a network run: which operation is being made, at which timestep, and what lies behind its operands.

A decoded value keeps what its neuron sent (`vit2snn.tracing.decoded`), whatever views are made of it on the way to its
receiver; a mean of spikes, or spikes of some height, keep their counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..spiking import (
    Balanced,
    CodedNeuron,
    Event,
    Hadamard,
    Neuron,
    Run,
    ShiftGELU,
    ShiftLayerNorm,
    ShiftSoftmax,
    neurons,
    present_run,
    probing,
)
from .calls import changes_first, tensors_in
from .decoded import EXACT, Decoded, Tables, Update, folded, shaped, updates
from .signals import AHEAD, VIEWS, Call, Signals
from .wavefront import start_as

KNOWN = {"decoded", "units", "spikes"}
"""Attributes of tensors: what lies behind a decoded value, the counts behind scaled spikes, and the spikes that values are."""

WHOLE = (Neuron, Hadamard, ShiftGELU, ShiftLayerNorm, ShiftSoftmax)
"""Modules that are metered as a whole: what their own ``forward`` calls is not looked at."""


class Watch(Signals):
    """Within its context, knows of each operation of a network where, when and on what it is made.

    Args:
        network: with neurons, or without.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._coded = {name: neuron for name, neuron in neurons(network) if isinstance(neuron, CodedNeuron) and neuron.alphabet}
        self._tables = {name: Tables.of(neuron) for name, neuron in self._coded.items()}
        self._uses: Counter[str] = Counter()
        self._numbers = [-1]  # operations so far in each of the running modules
        self._unseen: list[Any] = []
        self._updates: dict[str, list[Update]] = {}  # of coded neurons, those of the present timestep
        self._shown = 0
        self._chunk: tuple[Run | None, int] = None, 0  # the run that is going on, and the number of its chunk

    def __enter__(self) -> Watch:
        self._probing = probing(self.network, {name: partial(self._see_event, name) for name in self._coded})
        self._probing.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        while self._unseen:  # after an exception within a neuron
            self._unseen.pop().__exit__(None, None, None)
        super().__exit__(*exception)
        self._probing.__exit__(None, None, None)

    def show(self, images: Tensor, batch: int | None = None) -> Tensor:
        """``images`` from now on known as the signal.

        Args:
            images: ``[B, C, H, W]``, frames ``[T, B, C, H, W]``, or anything else of which the ``batch`` is given.
            batch: B.
        """
        images = images.view_as(images)
        self.mark(images)
        images.still = batch is None and images.ndim < 5  # type: ignore[attr-defined]
        self._shown = batch or (images.shape[1] if images.ndim == 5 else len(images))
        self._begin(None)
        return images

    def forget_changed(self, call: Call) -> None:
        """A tensor that a call has changed in place is no longer what it was known to be."""
        if changes_first(call.name):
            for known in KNOWN & vars(call.operands[0]).keys():
                delattr(call.operands[0], known)

    def sent(self, name: str, event: Event, changes: list[Update]) -> None:
        """A coded neuron has sent something."""

    def done(self, module: nn.Module, output: Tensor) -> None:
        """A module that is counted as a whole, and is no coded neuron, returns."""

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A module is called; what a neuron hands to a module within it is a signal."""
        run = present_run()
        if (run, run.chunks if run else 0) != self._chunk:
            self._begin(run)
        if self.stack and isinstance(self.stack[-1], Neuron):
            self.mark(inputs)
        super().enter(module, inputs)
        self._uses[self.owner()] += 1
        self._numbers.append(-1)
        if isinstance(module, WHOLE) and not any(module.children()):
            self._unseen.append(torch._C.DisableTorchFunction())  # nothing to see, and faster
            self._unseen[-1].__enter__()

    def _begin(self, run: Run | None) -> None:
        """A pass of the network begins: modules are called, and operations made, for the first time again."""
        self._chunk = run, run.chunks if run else 0
        self._uses.clear()
        self._numbers = [-1] * (len(self.stack) + 1)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module returns: a neuron has sent something, or a module is counted as a whole."""
        # Before it leaves the stack, because what is called of torch meanwhile must not be counted.
        if id(module) in self.names and isinstance(module, WHOLE):
            self.mark(output)
            start_as(output, inputs)
            name = self.owner()
            if name in self._updates:
                changes = self._updates.pop(name)
                if (present_run() or Run()).whole:
                    changes = [folded(changes, output.shape)]
                changes = [shaped(update, output.shape) for update in changes]
                output.decoded = Decoded(name, self._tables[name].copies, changes)
            elif not isinstance(module, CodedNeuron):
                self.done(module, output)
        elif isinstance(module, Balanced):
            self.mark(output)
            output.units = (output / module.height).round()
        if isinstance(module, WHOLE) and not any(module.children()):
            self._unseen.pop().__exit__(None, None, None)
        super().leave(module, inputs, output)
        self._numbers.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.stack and isinstance(self.stack[-1], WHOLE):
            return func(*args, **(kwargs or {}))
        self._call = partial(func, *args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _key(self) -> tuple[str, int, int]:
        """What is known of the operation that is being made."""
        return self.owner(), self._use(), self._numbers[-1]

    def _use(self) -> int:
        """The number of the call of the running module in this pass; within a neuron, each is one of a timestep."""
        run = present_run()
        return 0 if run and run.stepping is not None else self._uses[self.owner()]

    def _time(self) -> tuple[int, int]:
        """The first timestep that what is being computed counts for, and how many there are; of a whole run, the last."""
        run = present_run() or Run()
        if run.whole:
            return run.timesteps - 1, 1
        return (run.elapsed, run.timesteps) if run.stepping is None else (run.stepping, 1)

    def _frames(self) -> int:
        """How many timesteps are folded into a call."""
        run = present_run() or Run()
        return run.timesteps if run.stepping is None else 1

    def _is_still(self, operand: Tensor) -> bool:
        """Whether an operand is there once for all timesteps."""
        run = present_run()
        return run is not None and run.still is not None and getattr(operand, "still", False)

    def _by_image(self, x: Tensor, operand: Tensor) -> Tensor:
        """The sums over ``x``, in the shape of ``operand`` or ``[1, ...]``, of each timestep and image, ``[T, B]``."""
        timesteps, frames = self._time()[1], self._frames()
        parts = x.reshape(1 if self._is_still(operand) else frames, self._shown, -1)
        # Sums of up to 2^24 spikes are exact in float32, and faster.
        exact = x.dtype if parts.shape[-1] * 2 < EXACT else torch.float64
        sums = parts.sum(-1, dtype=exact).double()
        return sums.sum(0, keepdim=True) if timesteps < frames else sums.expand(timesteps, -1)

    def _share(self, operand: Tensor) -> int:
        """How many images and timesteps are folded into a call."""
        return self._shown * (1 if self._is_still(operand) else self._frames())

    def _see_event(self, name: str, event: Event) -> None:
        """The probe of a coded neuron."""
        neuron = self._coded[name]
        if neuron.is_analog:
            return
        run = present_run() or Run()
        if run.timesteps != 1 and not run.whole:
            raise RuntimeError(f"coded neurons are metered timestep by timestep, got {run.timesteps}: pass chunk=1")
        changes = list(updates(neuron, self._tables[name], event, partial(self._by_image, operand=event.target)))
        before = self._updates[name] if run.whole and event.t else []
        self._updates[name] = before + changes
        self.sent(name, event, changes)

    def _follow(self, call: Call) -> None:
        """A view of spikes is spikes."""
        operand, made = call.operands[0], tensors_in([call.result])
        decoded: Decoded | None = getattr(operand, "decoded", None)
        if decoded and call.name == AHEAD:
            made[0].decoded = decoded.ahead(*call.args[1:])  # type: ignore[attr-defined]
        elif decoded and len(made) == 1 and call.name in VIEWS and len(call.operands) == 1:
            move = partial(again, self._call)
            made[0].decoded = Decoded(  # type: ignore[attr-defined]
                decoded.neuron, decoded.copies, decoded.updates, (*decoded.moves, lambda x: move([x]))
            )
        units: Tensor | None = getattr(operand, "units", None)
        if units is not None and len(made) == 1 and len(call.operands) == 1:
            made[0].units = again(self._call, [units]) if call.name in VIEWS else units  # type: ignore[attr-defined]


def again(call: partial[Any], tensors: list[Tensor]) -> Any:
    """The call with other tensors in place of its own, in order."""
    leaves, structure = tree_flatten((call.args, call.keywords))
    given = iter(tensors)
    args, kwargs = tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
    return call.func(*args, **kwargs)
