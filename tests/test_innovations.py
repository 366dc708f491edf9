"""What observers are shown while a neuron calibrates: all that it has to send, where it bears on the logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vit2snn.calibration.activity import Activity
from vit2snn.calibration.histogram import edges
from vit2snn.calibration.innovations import show
from vit2snn.calibration.observers import PercentileObserver
from vit2snn.spiking import Alphabet, CodedNeuron, Coding, Event, eager
from vit2snn.spiking.native import library

IMAGE = (2, 5, 3)  # heads, tokens, channels
FIRST_TOKEN = torch.tensor([1.0, 0, 0, 0, 0]).reshape(1, 5, 1)
FIRST_TWO = torch.tensor([1.0, 1, 0, 0, 0]).reshape(1, 5, 1)
FIRST_AND_LAST = torch.tensor([1.0, 0, 0, 0, 1]).reshape(1, 5, 1)


def sensed(x: Tensor, sensitivity: Tensor | None) -> Activity:
    seen = Activity("neuron", (-3, -1), None if sensitivity is None else sensitivity.expand(IMAGE))
    seen(Event(0, x, [], x, x))
    seen.join()
    return seen


def counts(neuron: CodedNeuron, seen: Activity, t: int, x: Tensor, before: Tensor | None) -> Tensor:
    observer = PercentileObserver(99.0)
    show(observer, neuron, seen, t, x, before)
    return observer.histogram.counts


def targets() -> Iterator[Tensor]:
    """Values of all magnitudes, also on the edges of bins, lying in memory in several ways."""
    x = torch.randn(7, *IMAGE) * torch.exp2(torch.randint(-30, 20, (7, *IMAGE)).float())
    x.view(-1)[:60] = edges(torch.device("cpu"))[100:160].float()
    yield x
    yield x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    yield x.transpose(1, 2).contiguous().transpose(1, 2)
    yield torch.cat([x, x], 2)[:, :, :5]


@pytest.mark.skipif(library() is None, reason="no C compiler")
@pytest.mark.parametrize("sensitivity", [None, FIRST_TOKEN, FIRST_TWO, FIRST_AND_LAST])
@pytest.mark.parametrize("coding", Coding)
@pytest.mark.parametrize("signed", [True, False])
def test_the_kernel_counts_what_the_reference_counts(signed: bool, coding: Coding, sensitivity: Tensor | None) -> None:
    neuron = CodedNeuron(Alphabet(4, signed=signed), coding)
    for x in targets():
        for prior in (torch.zeros(()), torch.randn(IMAGE), torch.randn(IMAGE[0], 1, IMAGE[2])):
            neuron.prior = prior
            for t, before in ((0, None), (2, x + torch.randn(x.shape))):
                fused = counts(neuron, sensed(x, sensitivity), t, x, before)
                with eager():
                    assert torch.equal(fused, counts(neuron, sensed(x, sensitivity), t, x, before))


@pytest.mark.parametrize(("sensitivity", "tokens"), [(None, 5), (FIRST_TOKEN, 1), (FIRST_TWO, 2), (FIRST_AND_LAST, 2)])
def test_only_what_bears_on_the_logits_is_seen(sensitivity: Tensor | None, tokens: int) -> None:
    x, neuron = torch.randn(7, *IMAGE), CodedNeuron(Alphabet(4))
    neuron.prior = torch.zeros(())
    seen = sensed(x, sensitivity)
    assert int(counts(neuron, seen, 0, x, None).sum()) == 7 * 2 * tokens * 3
    borne = x if sensitivity is None else x[:, :, sensitivity.flatten() > 0]
    assert torch.allclose(seen.channel_means(x), borne.mean((0, 2)).flatten(), atol=1e-6)
    assert torch.allclose(seen.columns(x, (-3, -1)).sort().values, borne.permute(1, 3, 0, 2).reshape(6, -1).sort().values)
    assert seen.samples() == 7 * tokens
