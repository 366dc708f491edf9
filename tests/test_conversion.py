from __future__ import annotations

import copy

import pytest
import torch
from conftest import brief, make_recipe, make_vit
from torch import Tensor, nn

import vit2snn
from vit2snn.convert import RECIPES, Recipe, to_spiking
from vit2snn.convert.registry import _HANDLERS, NeuronFactory
from vit2snn.errors import DataError, ModelError, UnsupportedModuleError
from vit2snn.measure.spending import dense
from vit2snn.spiking import SpikingDotProductAttention, SpikingLinear

FAMILY = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit distilled": ("vit_tiny_patch16_224", {"reg_tokens": 1}),
    "deit3": ("deit3_small_patch16_224", {"init_values": 0.3}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3, "num_classes": 7}),
    "dinov2 giant": ("vit_giant_patch14_reg4_dinov2", {"init_values": 0.3, "mlp_ratio": 4}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "clip": ("vit_base_patch32_clip_224", {}),
    "clip quickgelu": ("vit_base_patch32_clip_quickgelu_224", {}),
    "query-key norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "mean pooling": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
}
SMALL = [
    RECIPES["faithful"].changed(timesteps=5),
    RECIPES["ternary"].changed(timesteps=5),
    RECIPES["binary"].changed(timesteps=5),
    make_recipe(timesteps=3, levels=3, spikes_per_step=2, granularity="channel", observer="max", headroom=1.0),
    make_recipe(attention={"0": "ssa+conv+tim", "1": "experts+qk-token"}, mlp="emsp", norm="static", refit="ridge"),
]
NAMES = ["faithful", "ternary", "binary", "burst", "membrane"]


@pytest.fixture(params=SMALL, ids=NAMES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found: Recipe = request.param
    return found


def double(recipe: Recipe) -> tuple[vit2snn.SpikingModel, Tensor]:
    """In float64, where no value lies within rounding of a threshold, properties hold to rounding."""
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    return to_spiking(make_vit().double(), recipe, images), images


@pytest.mark.parametrize(("name", "arguments"), FAMILY.values(), ids=FAMILY.keys())
def test_with_exact_neurons_the_network_is_the_ann(name: str, arguments: dict[str, object], images: Tensor) -> None:
    model = make_vit(name, **arguments)
    snn = to_spiking(model, "exact", images)
    with torch.no_grad():
        expected = model(images)
        assert torch.allclose(snn(images, timesteps=3), expected.expand(3, -1, -1), atol=1e-4 * float(expected.abs().max()))
    left = {
        name
        for name, module in snn.network.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d, type(model.blocks[0].attn))
    }
    assert left <= {"attn_pool.q"}  # of a latent that is no signal
    assert set(model.state_dict()) <= set(snn.network.state_dict())


@pytest.mark.parametrize(("name", "arguments"), FAMILY.values(), ids=FAMILY.keys())
def test_the_faithful_recipe_approaches_the_ann(name: str, arguments: dict[str, object], images: Tensor) -> None:
    model = make_vit(name, **arguments)
    snn = to_spiking(model, Recipe(timesteps=6), images)
    with torch.no_grad():
        error = (snn(images) - model(images)).norm(dim=(1, 2)) / model(images).norm()
    assert error[-1] < 0.01
    assert error[-1] < error[2] < error[0]


def test_the_ann_inside_is_the_ann(recipe: Recipe, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, recipe, images)
    with torch.no_grad():
        assert torch.allclose(snn.ann(images), vit(images), atol=1e-5)


def test_logits_do_not_depend_on_batch_mates(recipe: Recipe) -> None:
    snn, images = double(recipe)
    with torch.no_grad():
        together = snn(images)
        alone = torch.cat([snn(image.unsqueeze(0)) for image in images], dim=1)
        shuffled = snn(images.flip(0)).flip(1)
    assert torch.allclose(together, alone, atol=1e-9)
    assert torch.allclose(together, shuffled, atol=1e-9)


def test_a_run_is_the_beginning_of_a_longer_one(recipe: Recipe) -> None:
    snn, images = double(recipe)
    with torch.no_grad():
        long = snn(images, timesteps=7)
        assert torch.allclose(snn(images, timesteps=2), long[:2], atol=1e-9)
        assert torch.allclose(snn(images), long[: recipe.timesteps], atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_do_not_change_the_result(recipe: Recipe, chunk: int) -> None:
    snn, images = double(recipe)
    with torch.no_grad():
        assert torch.allclose(snn(images, 5, chunk=chunk), snn(images, 5), atol=1e-9)


def test_calling_twice_gives_the_same(recipe: Recipe, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, recipe, images)
    with torch.no_grad():
        assert torch.equal(snn(images), snn(images))


def test_frames_that_repeat_the_image_give_what_the_image_gives(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(), images)
    with torch.no_grad():
        assert torch.equal(snn(images.expand(4, -1, -1, -1, -1), timesteps=4), snn(images, timesteps=4))


def test_gradients_reach_weights_and_image(recipe: Recipe, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, recipe, images)
    x = images[:2].clone().requires_grad_()
    whole = snn(x, 3)[-1].square().sum()
    whole.backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    gradients = {name: p.grad for name, p in snn.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values()), gradients.keys()


def test_the_gradient_of_a_fine_ladder_is_near_that_of_the_ann(vit: nn.Module, images: Tensor) -> None:
    vit, images = vit.double(), images.double()
    snn = to_spiking(vit, make_recipe(timesteps=6, levels=40, headroom=8.0), images)
    labels = torch.arange(len(images)) % 7
    nn.functional.cross_entropy(vit(images), labels).backward()
    nn.functional.cross_entropy(snn(images)[-1], labels).backward()
    expected, found = vit.blocks[0].mlp.fc1.weight.grad, snn.network.blocks[0].mlp.fc1.weight.grad
    assert torch.cosine_similarity(expected.flatten(), found.flatten(), 0) > 0.98


def test_the_model_handed_in_is_untouched(recipe: Recipe, vit: nn.Module, images: Tensor) -> None:
    before, expected = copy.deepcopy(vit.state_dict()), repr(vit)
    snn = to_spiking(vit, recipe, images)
    with torch.no_grad():
        for parameter in snn.parameters():
            parameter.zero_()
    assert repr(vit) == expected
    assert list(vit.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


@pytest.mark.parametrize("recipe", ["faithful", "qkformer-membrane"])
def test_of_a_frozen_model_all_parameters_can_be_trained(recipe: str, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit.requires_grad_(False), brief(recipe), images)
    assert all(parameter.requires_grad for parameter in snn.network.parameters())
    assert not any(parameter.requires_grad for parameter in vit.parameters())


def test_the_model_handed_in_is_untouched_after_an_exception(vit: nn.Module, images: Tensor) -> None:
    before, expected = copy.deepcopy(vit.state_dict()), repr(vit.train())
    images[0, 0, 0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        to_spiking(vit, "faithful", images)
    assert repr(vit) == expected and vit.training
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


def test_weights_that_are_not_finite_are_named(vit: nn.Module, images: Tensor) -> None:
    vit.blocks[1].mlp.fc1.weight.data[3, 3] = float("nan")
    with pytest.raises(ModelError, match=r"weights of 'blocks.1.mlp.fc1.weight' are not finite"):
        to_spiking(vit, "faithful", images)


@pytest.mark.parametrize("nothing", [None, [], torch.empty(0, 3, 16, 16), iter([torch.zeros(1, 3, 16, 16)])])
def test_calibration_needs_images_that_can_be_read_twice(vit: nn.Module, nothing: object) -> None:
    with pytest.raises(DataError, match="calibration"):
        to_spiking(vit, "faithful", nothing)  # type: ignore[arg-type]


def test_batches_with_labels_are_accepted(vit: nn.Module, images: Tensor) -> None:
    loader = torch.utils.data.DataLoader([(image, 0) for image in images], batch_size=6)
    with_labels, without = to_spiking(vit, "faithful", loader), to_spiking(vit, "faithful", list(images.split(6)))
    with torch.no_grad():
        assert torch.equal(with_labels(images), without(images))


def test_ignored_modules_stay_as_they_are(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(ignore=("head", "blocks.0.attn")), images)
    assert type(snn.network.head) is nn.Linear
    assert type(snn.network.blocks[0].attn) is type(vit.blocks[0].attn)
    assert type(snn.network.blocks[0].attn.qkv) is SpikingLinear


class Gated(nn.Module):
    """A user's own module, with all kinds of products."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor, power: int = 1) -> Tensor:
        mixed = torch.einsum("bij,bjk->bik", self.a(x) @ self.b(x).transpose(-2, -1) / x.shape[-1], x)
        return torch.tanh(mixed * x * self.scale) ** power


def test_a_users_module_is_converted_without_a_rule() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), Gated(), nn.Linear(8, 3)).eval(), torch.randn(16, 5, 8)
    exact, snn = to_spiking(model, "exact", x), to_spiking(model, Recipe(timesteps=10), x)
    assert len(snn.neurons()) == 4 + 6
    assert isinstance(snn.network[1], Gated)
    with torch.no_grad():
        assert torch.allclose(exact(x)[0], model(x), atol=1e-6)
        error = (snn(x) - model(x)).flatten(1).norm(dim=1) / model(x).norm()
    assert error[-1] < 0.01 < error[0]


class Functional(Gated):
    """Its weights meet the signal outside of a module, by position and by name."""

    def forward(self, x: Tensor, power: int = 1) -> Tensor:
        mixed = nn.functional.linear(input=x, weight=self.a.weight) @ self.b.weight
        return mixed + nn.functional.conv1d(x, self.a.weight[:5, :5, None]) + self.b.weight.sum(0) @ self.a.weight


def test_weights_in_the_forward_of_a_module_are_driven() -> None:
    model, x = nn.Sequential(Functional(), nn.Linear(8, 3)).eval(), torch.randn(16, 5, 8)
    exact, snn = to_spiking(model, "exact", x), to_spiking(model, Recipe(timesteps=10), x)
    assert list(snn.neurons()) == ["0.spiking_operand0", "0.spiking_operand0_1", "0.spiking_operand0_2", "1.neuron"]
    assert snn.plan.macs == 5 * (8 * 8 * 2 + 8 * 5 + 8 * 3)
    with torch.no_grad():
        assert torch.allclose(exact(x)[0], model(x), atol=1e-6)
        error = (snn(x) - model(x)).flatten(1).norm(dim=1) / model(x).norm()
    assert error[-1] < 0.01 < error[0]


class Recurrent(nn.Module):
    """Calls a layer, and a module with a product, several times in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mix, self.head = nn.Linear(8, 8), Gated(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + torch.tanh(self.layer(x)) * self.layer.weight.mean()
        return self.head(self.mix(self.mix(x)))


def test_a_module_that_is_called_several_times_has_neurons_for_each_call() -> None:
    model, x = Recurrent().eval(), torch.randn(16, 5, 8)
    exact, snn = to_spiking(model, "exact", x), to_spiking(model, Recipe(timesteps=12), x)
    assert len(snn.neurons()) == 3 + 2 * (6 + 2) + 1
    assert len({id(p) for p in snn.parameters()}) == len(list(model.parameters()))
    assert snn.plan.macs == dense(snn, x).macs
    with torch.no_grad():
        assert torch.allclose(exact(x)[0], model(x), atol=1e-6)
        with pytest.raises(RuntimeError):
            snn(torch.randn(16, 5, 9))  # an interrupted pass does not shift the turns of the next
        expected = snn(x, chunk=1)
        assert torch.allclose(snn(x), expected, atol=1e-6)
        error = (expected - model(x)).flatten(1).norm(dim=1) / model(x).norm()
    assert error[-1] < 0.001 < error[0]


class KernelAttention(nn.Module):
    """Calls an operator of a library, as a user's own kernel is called."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(q, k, v)[0]
        return attended


class UserBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.attention, self.head = nn.Linear(8, 24), KernelAttention(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        logits: Tensor = self.head(self.attention(*qkv).transpose(1, 2).flatten(2).mean(1))
        return logits


def test_a_module_with_a_kernel_of_its_own_needs_a_rule() -> None:
    model, x = UserBlock().eval(), torch.randn(16, 5, 8)
    with pytest.raises(UnsupportedModuleError, match=r"attention \(KernelAttention: aten::_scaled_dot_product_attention_math"):
        to_spiking(model, Recipe(timesteps=10), x)
    try:

        @vit2snn.converts(KernelAttention)
        def kernel_attention(module: nn.Module, neuron: NeuronFactory) -> nn.Module:
            heads = (-3, -1)
            return SpikingDotProductAttention(
                query=neuron(heads), key=neuron(heads), weights=neuron((-3,)), value=neuron(heads)
            )

        snn = to_spiking(model, Recipe(timesteps=10), x)
    finally:
        _HANDLERS.pop(KernelAttention, None)
    assert len(snn.neurons()) == 6
    with torch.no_grad():
        assert torch.allclose(snn.ann(x), model(x), atol=1e-6)
        assert (snn(x)[-1] - model(x)).norm() < 0.01 * model(x).norm()


class Windows(nn.Module):
    """Attention within the halves of an image, which lie along the first axis."""

    def forward(self, x: Tensor) -> Tensor:
        halves = x.reshape(-1, x.shape[1] // 2, x.shape[2])
        return (halves @ halves.transpose(1, 2) @ halves).reshape(x.shape)


def test_each_window_of_an_image_has_its_own_prior() -> None:
    position = torch.arange(4.0).reshape(1, 4, 1)
    x = torch.randn(16, 4, 8) * 0.1 + position
    model = nn.Sequential(nn.Identity(), Windows(), nn.Linear(8, 3)).eval()
    snn = to_spiking(model, Recipe(timesteps=8), x)
    prior = snn.neurons()["1.spiking_operand0"].prior
    assert prior.shape == (2, 2, 8)
    torch.testing.assert_close(prior, x.mean(0).reshape(2, 2, 8))
    snn.double()
    with torch.no_grad():
        torch.testing.assert_close(snn(x.double(), 4)[:, :1], snn(x[:1].double(), 4, chunk=1))


class Moody(nn.Module):
    """Computes something else on the second call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x @ x.transpose(1, 2) if self.calls < 6 else x * x


def test_a_forward_that_makes_other_calls_than_recorded_is_refused() -> None:
    x = torch.randn(4, 5, 5)
    snn = to_spiking(nn.Sequential(nn.Linear(5, 5), Moody()), "exact", x)
    with pytest.raises(ModelError, match="was matmul when recorded, and is mul now"):
        for _ in range(9):
            snn(x)


def test_two_places_of_one_weight_have_two_neurons() -> None:
    shared = nn.Linear(8, 8)
    model, x = nn.Sequential(nn.Sequential(shared), nn.GELU(), shared).eval(), torch.randn(16, 8)
    snn = to_spiking(model, Recipe(timesteps=10), x)
    assert list(snn.neurons()) == ["0.0.neuron", "2.neuron"]
    assert snn.network[0][0].weight is snn.network[2].weight
    with torch.no_grad():
        error = (snn(x) - model(x)).flatten(1).norm(dim=1) / model(x).norm()
    assert error[-1] < 0.01 < error[0]


def test_the_model_moves_and_reloads(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, "faithful", images)
    with torch.no_grad():
        expected = snn(images)
        state = copy.deepcopy(snn.state_dict())
        other = to_spiking(make_vit(), "faithful", torch.randn(4, 3, 16, 16)).double().float().to("cpu")
        other.load_state_dict(state)
        assert torch.equal(other(images), expected)
        assert torch.equal(copy.deepcopy(snn)(images), expected)


class GroupedQuery(nn.Module):
    """Four heads of the query share two of key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        logits: Tensor = self.head(attended.transpose(1, 2).flatten(2).mean(1))
        return logits


@torch.no_grad()
def test_grouped_queries_share_keys_and_values() -> None:
    model, images = GroupedQuery().eval(), torch.randn(20, 8, 3, 3)
    assert torch.allclose(to_spiking(model, "exact", images)(images)[0], model(images), atol=1e-5)
    logits = to_spiking(model, "faithful", images)(images)[-1]
    assert (logits - model(images)).norm() < 0.05 * model(images).norm()


@torch.no_grad()
def test_a_burst_that_is_changed_after_a_run_is_followed(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, make_recipe(timesteps=2, levels=2), images)
    first = snn(images)
    for neuron in snn.neurons().values():
        neuron.spikes_per_step += 2
    assert not torch.equal(snn(images), first)
    for neuron in snn.neurons().values():
        neuron.spikes_per_step -= 2
    assert torch.equal(snn(images), first)


@torch.no_grad()
@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_a_number_comes_out_as_none_and_of_its_own_image_alone(
    preset: str, wrong: float, vit: nn.Module, images: Tensor
) -> None:
    snn = to_spiking(vit, brief(preset), images)
    expected = snn(images[:3], 2)
    given = images[:3].clone()
    given[1, 0, 5, 5] = wrong
    found = snn(given, 2, chunk=1)
    assert found[:, 1].isnan().all()
    assert torch.allclose(found[:, [0, 2]], expected[:, [0, 2]], atol=1e-4)
