"""Calibration of one spiking branch on the stream that reaches it, so that it does what the ANN's branch does.

A branch is a spiking norm and what follows it (see `vit2snn.spiking.tokens`). Its parts are settled in the order in which
signals pass them, each on the spikes that the settled parts before it really send: normalisations get the statistics of the
spiking network and the mean and spread of the ANN, neurons are balanced, and with ``ridge`` the weights are regressed too,
those of projections on the ANN's pre-activations and those of the output on what the stream still lacks to the ANN's.

The processes of a group settle a branch together: statistics and regressions are over the images of all of them, and neurons
are balanced on the same sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spiking import (
    Balanced,
    Branch,
    ConvBN,
    Inherited,
    Neuron,
    SpikingNorm,
    SpikingProjection,
    TokenBranch,
    over_time,
    to_tokens,
)
from ..spiking.shards import joined, processes, smallest
from ..tracing import catching
from .balance import Balance, at_rate, least_error
from .regression import Moments, NormalEquations

RIDGE = 0.01  # relative to the mean variance of an input
SAMPLED = 4096  # positions on which neurons are balanced
OPEN = 0.8  # firing rate of the gates that have no counterpart in the ANN: experts are heard before training shuts some out
HALF = 0.5  # firing rate of masks


@dataclass
class Passage:
    """A batch of images at a branch.

    Attributes:
        stream: of the spiking network, ``[T, B, N, C]``.
        before: the ANN's stream, ``[B, N, C]``.
        normed: what the ANN's branch reads, norm(before).
        inner: what the ANN's output projection reads, ``[B, N, hidden]``.
        after: the ANN's stream behind the branch.
    """

    stream: Tensor
    before: Tensor
    normed: Tensor
    inner: Tensor
    after: Tensor


@dataclass
class Settling:
    """How the parts of a branch are settled.

    Args:
        norm: of the branch; None if the stream consists of spikes already.
        branch: behind it.
        inherited: the maps of projections and output, by name within the branch.
        balance: rule of thresholds.
        rate: that the rule ``rate`` aims at.
        ridge: whether weights are regressed.
    """

    norm: SpikingNorm | None
    branch: TokenBranch
    inherited: dict[str, Inherited]
    balance: Balance = "error"
    rate: float = 0.25
    ridge: bool = True

    @torch.no_grad()
    def settle(self, passages: list[Passage]) -> None:
        """Set all weights, statistics and thresholds of the branch."""
        if self.norm is not None:
            self.settle_norm(passages)
        branch = self.branch.branch
        assert isinstance(branch, Branch)
        for name, role in branch.parts():
            part: Any = branch.get_submodule(name)
            if role == "projection":
                self._settle_projection(part, self.inherited[name], passages)
            elif role == "gate":
                self._settle_gate(part, passages)
            elif role == "output":
                self._settle_output(part, self.inherited[name], passages)
            else:
                self._settle_neuron(part, role == "product", passages)

    def spikes(self, passage: Passage) -> Tensor:
        """What the branch reads, ``[T, B, N, C]``."""
        return passage.stream if self.norm is None else self._run(self.norm, passage.stream)

    def run(self, passage: Passage) -> Tensor:
        """What the branch adds to the stream, ``[T, B, N, C]``."""
        return self._run(self.branch, self.spikes(passage))

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        return over_time(module, x)

    def _inputs(self, module: nn.Module, passage: Passage) -> Tensor:
        """What ``module``, deep in the branch, gets: ``[T, B, ...]``."""
        with catching(module) as caught:
            self.run(passage)
        unfolded: Tensor = caught[0].unflatten(0, (len(passage.stream), -1))
        return unfolded

    @torch.no_grad()
    def settle_norm(self, passages: list[Passage]) -> None:
        """The spiking stream's statistics; gain and offset so that spikes tell most of what the ANN's norm gives."""
        norm = self.norm
        assert norm is not None
        if isinstance(norm.norm, nn.BatchNorm2d):
            set_statistics(norm.norm, _moments(passage.stream for passage in passages))
        affine = norm.norm
        assert isinstance(affine.weight, Tensor) and isinstance(affine.bias, Tensor)
        affine.weight.data.fill_(1.0)
        affine.bias.data.fill_(0.0)
        sampled = _sample(passages)
        with catching(norm.neuron) as caught:
            self._run(norm, sampled.stream)
        currents = caught[0].unflatten(0, (len(sampled.stream), -1)).flatten(1, 2)
        mean, std = _mean_and_spread(currents)
        gain, offset = self._balanced(norm.neuron, (currents - mean) / std, sampled.normed.flatten(0, 1))
        affine.weight.data.copy_(gain / std)
        affine.bias.data.copy_(offset - gain * mean / std)

    def _settle_projection(self, projection: SpikingProjection, inherited: Inherited, passages: list[Passage]) -> None:
        """Weights from the ANN, or regressed on its pre-activations; statistics; thresholds."""
        conv, bn = projection.project.conv, projection.project.bn
        if conv.bias is not None:
            conv.bias.data.zero_()
        equations = NormalEquations()
        for passage in passages:
            spikes = self.spikes(passage)
            target = passage.normed @ inherited.weight.T + inherited.bias
            equations.update(spikes.flatten(0, 2), target.expand(len(spikes), *target.shape).flatten(0, 2))
        weight = equations.solve(RIDGE)[0].to(conv.weight) if self.ridge else inherited.weight
        conv.weight.data.copy_(weight[:, :, None, None])
        set_statistics(bn, equations.through(weight))
        sampled = _sample(passages)
        currents = (self.spikes(sampled) @ weight.T).flatten(1, 2)
        standardised = _standardised(bn, currents)
        target = inherited.reads(sampled.normed @ inherited.weight.T + inherited.bias).flatten(0, 1)
        gain, offset = self._balanced(projection.neuron, standardised, target)
        bn.weight.data.copy_(gain)
        bn.bias.data.copy_(offset)

    def _settle_gate(self, gate: SpikingProjection, passages: list[Passage]) -> None:
        """A projection that the ANN does not have: open."""
        conv, bn = gate.project.conv, gate.project.bn

        def currents_of(passage: Passage) -> Tensor:
            currents: Tensor = conv(self._inputs(conv, passage).flatten(0, 1))
            return to_tokens(currents)

        set_statistics(bn, _moments(map(currents_of, passages)))
        sampled = _sample(passages)
        currents = currents_of(sampled)
        standardised = _standardised(bn, currents)
        gain, offset = at_rate(gate.neuron, standardised.unflatten(0, (len(sampled.stream), -1)).flatten(1, 2), OPEN)
        bn.weight.data.copy_(gain)
        bn.bias.data.copy_(offset)

    def _settle_neuron(self, neuron: Balanced, tells: bool, passages: list[Passage]) -> None:
        """The neuron behind a product of spikes: it tells what the ANN's attention puts out, or it is a mask."""
        neuron.gain.data.fill_(1.0)
        neuron.offset.data.fill_(0.0)
        sampled = _sample(passages)
        products = self._inputs(neuron, sampled)  # [T, B, *shape, N or 1]
        shape = neuron.gain.shape
        currents = products.movedim(-1, 2).flatten(3).flatten(1, 2)  # heads and their channels together, last
        mean, std = _mean_and_spread(currents)
        standardised = (currents - mean) / std
        if tells:
            target = sampled.inner.flatten(0, 1)
            experts = neuron.gain.numel() // target.shape[1]
            gain, offset = self._balanced(neuron.neuron, standardised, target.repeat(1, experts))
        else:
            gain, offset = at_rate(neuron.neuron, standardised, HALF)
        neuron.gain.data.copy_((gain / std).reshape(shape))
        neuron.offset.data.copy_((offset - gain * mean / std).reshape(shape))

    def _settle_output(self, out: ConvBN, inherited: Inherited, passages: list[Passage]) -> None:
        """The currents: with the ANN's mean and spread, or regressed on what each timestep's stream lacks to the ANN's."""
        conv, bn = out.conv, out.bn
        if conv.bias is not None:
            conv.bias.data.zero_()
        equations, wanted = NormalEquations(), Moments()
        for passage in passages:
            spikes = to_tokens(self._inputs(conv, passage).flatten(0, 1)).flatten(0, 1)
            added = passage.after - passage.before
            lacking = passage.after - passage.stream if self.norm is not None else added.expand_as(passage.stream)
            equations.update(spikes, lacking.flatten(0, 2))
            wanted.update(added.flatten(0, 1))
        mean, spread = wanted.mean, wanted.variance.sqrt()
        weight, bias = (x.to(conv.weight) for x in equations.solve(RIDGE)) if self.ridge else (inherited.weight, None)
        conv.weight.data.copy_(weight[:, :, None, None])
        moments = equations.through(conv.weight.flatten(1))
        set_statistics(bn, moments)
        if bias is not None:
            mean, spread = moments.mean + bias, moments.variance.sqrt()
        scale = moments.variance.add(bn.eps).sqrt() / moments.variance.sqrt().clamp(min=1e-9)
        bn.weight.data.copy_(spread * scale)
        bn.bias.data.copy_(mean)
        if not isinstance(self.branch.neuron, nn.Identity):
            self._settle_added(out, passages)

    def _settle_added(self, out: ConvBN, passages: list[Passage]) -> None:
        """The neuron of a SEW shortcut: its spikes tell most of what the ANN's branch adds."""
        neuron, sampled = self.branch.neuron, _sample(passages)
        assert isinstance(neuron, Neuron)
        with catching(neuron) as caught:
            self.run(sampled)
        currents = to_tokens(caught[0]).unflatten(0, (len(sampled.stream), -1)).flatten(1, 2)
        mean, std = _mean_and_spread(currents)
        gain, offset = self._balanced(neuron, (currents - mean) / std, (sampled.after - sampled.before).flatten(0, 1))
        out.bn.weight.data.mul_(gain / std)
        out.bn.bias.data.copy_((out.bn.bias - mean) * gain / std + offset)

    def _balanced(self, neuron: Neuron, standardised: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.balance == "rate":
            return at_rate(neuron, standardised, self.rate)
        return least_error(neuron, standardised, target)


def set_statistics(bn: nn.BatchNorm2d, moments: Moments) -> None:
    """Let a batch normalisation divide by the spread that ``moments`` tell."""
    assert bn.running_mean is not None and bn.running_var is not None
    bn.running_mean.copy_(moments.mean)
    bn.running_var.copy_(moments.variance)


def _standardised(bn: nn.BatchNorm2d, currents: Tensor) -> Tensor:
    """Currents ``[..., C]`` without their mean and spread."""
    assert bn.running_mean is not None and bn.running_var is not None
    standardised: Tensor = (currents - bn.running_mean) / torch.sqrt(bn.running_var + bn.eps)
    return standardised


def _moments(streams: Iterable[Tensor]) -> Moments:
    """Of each channel, the last axis."""
    moments = Moments()
    for stream in streams:
        moments.update(stream.flatten(0, -2))
    return moments


def _mean_and_spread(currents: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, the last axis; a channel that never varies has a spread of 1."""
    mean, std = currents.flatten(0, -2).mean(0), currents.flatten(0, -2).std(0)
    return mean, torch.where(std > 1e-6, std, 1.0)


def _sample(passages: list[Passage]) -> Passage:
    """The first images of all processes of the group together, as many as have `SAMPLED` positions."""
    images = max(SAMPLED // passages[0].before.shape[1], 1)
    there = torch.tensor(sum(len(passage.before) for passage in passages))
    own = min(-(-images // processes()), int(smallest(there)))
    taken: list[Passage] = []
    while sum(len(passage.before) for passage in taken) < own:
        taken.append(passages[len(taken)])
    stream = joined(torch.cat([p.stream for p in taken], 1)[:, :own], 1)[:, :images]
    rest = (
        joined(torch.cat([getattr(p, name) for p in taken])[:own])[:images] for name in ("before", "normed", "inner", "after")
    )
    return Passage(stream, *rest)
