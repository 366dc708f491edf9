from __future__ import annotations

import pytest
import torch
from torch import nn

from vit2snn.spiking import IF, Balanced, GridConv2d, SpikingMLP, to_map, to_tokens


def test_maps_of_tokens_are_views_and_go_back() -> None:
    x = torch.randn(2, 5, 3)
    assert to_map(x).shape == (2, 3, 1, 5)
    assert to_map(x).data_ptr() == x.data_ptr()
    assert torch.equal(to_tokens(to_map(x)), x)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_through_batch_normalisation_of_tokens_are_right(training: bool) -> None:
    """On maps of N by 1, torch's CPU kernel mistakes the memory format, and they are not."""
    torch.manual_seed(0)
    branch = SpikingMLP(6, 8, lambda **constants: nn.Identity()).double()  # type: ignore[arg-type]
    branch.train(training)
    for parameter in branch.parameters():
        parameter.data.normal_()
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: to_tokens(branch(to_map(x))), (x,))


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


def test_a_balanced_neuron_has_a_threshold_for_each_channel_and_one_height() -> None:
    neuron = Balanced(IF())
    neuron.log_threshold.data = torch.tensor([[1.0, 0.5, 2.0]]).log()
    neuron.offset.data = torch.tensor([[0.0, 0.0, 0.75]])
    neuron.height.data = torch.tensor(-3.0)
    assert neuron(torch.full((1, 2, 3), 0.6)).squeeze(0).tolist() == [[0.0, -3.0, -3.0]] * 2


def test_channels_are_the_last_axis_of_tokens_and_the_first_of_heads_and_maps() -> None:
    neuron = Balanced(IF())
    assert neuron.channels(torch.zeros(2, 5, 3)) == (-1,)
    assert neuron.channels(torch.zeros(2, 4, 5, 3)) == (-3,)
    assert Balanced(IF(), (-3, -1)).channels(torch.zeros(2, 4, 5, 3)) == (-3, -1)


def test_tables_of_any_shape_come_from_a_file() -> None:
    neuron, again = Balanced(IF()), Balanced(IF())
    neuron.log_threshold.data, neuron.offset.data = torch.randn(3, 1, 1), torch.randn(3, 1, 1)
    again.load_state_dict(neuron.state_dict())
    assert torch.equal(again.log_threshold, neuron.log_threshold) and again.log_threshold.requires_grad
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(again(x), neuron(x))
