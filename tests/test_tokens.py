from __future__ import annotations

import pytest
import torch
from torch import nn

from vit2snn.spiking import IF, Balanced, GridConv2d, SpikingMLP, SpikingNorm, TokenBranch, to_map, to_tokens


def test_maps_of_tokens_are_views_and_go_back() -> None:
    x = torch.randn(2, 5, 3)
    assert to_map(x).shape == (2, 3, 1, 5)
    assert to_map(x).data_ptr() == x.data_ptr()
    assert torch.equal(to_tokens(to_map(x)), x)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_through_batch_normalisation_of_tokens_are_right(training: bool) -> None:
    """On maps of N by 1, torch's CPU kernel mistakes the memory format, and they are not."""
    torch.manual_seed(0)
    branch = TokenBranch(SpikingMLP(6, 8, lambda **constants: nn.Identity()).double())  # type: ignore[arg-type]
    branch.train(training)
    for parameter in branch.parameters():
        parameter.data.normal_()
    assert torch.autograd.gradcheck(branch, (torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True),))


def test_a_grid_convolution_is_one_of_the_patches_and_leaves_other_tokens_alone() -> None:
    torch.manual_seed(0)
    conv = GridConv2d(4, 3, (2, 3), prefix=2, groups=4, bias=True)
    x = torch.randn(5, 4, 1, 8)
    y = conv(x)
    patches = nn.functional.conv2d(x[..., 2:].reshape(5, 4, 2, 3), conv.weight, conv.bias, padding=1, groups=4)
    torch.testing.assert_close(y[..., 2:].reshape(5, 4, 2, 3), patches)
    centre = x[..., :2] * conv.weight[:, :, 1, 1].reshape(1, 4, 1, 1) + conv.bias.reshape(1, 4, 1, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(y[..., :2], centre)
    alone = GridConv2d(4, 3, (2, 3), prefix=0, groups=1)
    assert alone(x[..., 2:]).shape == (5, 4, 1, 6)


def test_a_spiking_norm_normalises_channels_and_fires() -> None:
    torch.manual_seed(0)
    norm = SpikingNorm(nn.BatchNorm2d(3), IF(threshold=1.0)).train()
    x = torch.randn(200, 7, 3) * torch.tensor([1.0, 5.0, 0.1]) + 4
    spikes = norm(x)
    assert spikes.shape == x.shape
    assert torch.equal(spikes, ((x - x.mean((0, 1))) / x.std((0, 1), correction=0) >= 1).float())


def test_a_balanced_neuron_has_a_threshold_for_each_channel() -> None:
    neuron = Balanced(IF(), (3, 1))
    neuron.gain.data = torch.tensor([[1.0], [2.0], [0.5]])
    neuron.offset.data = torch.tensor([[0.0], [0.0], [0.75]])
    assert torch.equal(neuron(torch.full((1, 3, 2), 0.6)).squeeze(0), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))


def test_spiking_branches_know_no_mask() -> None:
    branch = TokenBranch(nn.Identity())
    x = torch.randn(2, 5, 3)
    assert torch.equal(branch(x, attn_mask=None, is_causal=False), x)
    with pytest.raises(ValueError, match="knows no mask"):
        branch(x, is_causal=True)
