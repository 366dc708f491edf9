"""A head on a frozen converted backbone: what each patch of an image shows, by features of the spiking network and of the ANN.

    python examples/patch_head.py

The embedded ViT is converted without its classifier, so that all tokens are its output. A linear head says of each patch if it
is background, or which garment it is a part of. It is fitted by least squares on the features of the ANN, and then reads those
of the spiking network at each timestep. Prints the share of foreground patches that are named rightly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vit2snn import to_spiking
from vit2snn.convert import load_model
from vit2snn.data import array_source, prepared
from vit2snn.zoo.demo import demo_images

TIMESTEPS, CLASSES, RIDGE = 4, 10, 1.0
INK = 0.1  # share of the brightest pixel that a patch of the foreground exceeds in the mean


def images(model: torch.nn.Module, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``[B, 1, H, W]``, the class of each patch ``[B, N]`` (that of background last), and which are foreground."""
    samples = list(prepared(model, array_source(*demo_images(split))))
    x = torch.stack([sample.image for sample in samples])
    side = model.patch_embed.patch_size[0]
    brightness = (x - x.min()) / (x.max() - x.min())
    foreground = torch.nn.functional.avg_pool2d(brightness, side).flatten(1) > INK
    labels = torch.tensor([sample.label for sample in samples])[:, None].expand(foreground.shape)
    return x, torch.where(foreground, labels, CLASSES), foreground


def fitted(features: Tensor, classes: Tensor) -> Tensor:
    """A linear head ``[C + 1, classes]`` for features ``[B, N, C]``."""
    x = with_one(features).flatten(0, 1).double()
    y = torch.nn.functional.one_hot(classes.flatten(), CLASSES + 1).double()
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y).float()


def with_one(features: Tensor) -> Tensor:
    """Another feature that is always 1."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


@torch.no_grad()
def main() -> None:
    """Fit and compare."""
    model = load_model("demo").eval()
    model.reset_classifier(0, global_pool="")
    x, classes, _ = images(model, "train")
    snn = to_spiking(model, "faithful", images=x[:128])
    skip = model.num_prefix_tokens
    head = fitted(model.forward_features(x)[:, skip:], classes)
    x, classes, foreground = images(model, "val")

    def right(features: Tensor) -> float:
        named = (with_one(features[:, skip:]) @ head)[..., :CLASSES].argmax(-1)
        return 100 * float((named == classes)[foreground].float().mean())

    print(f"ANN          {right(model.forward_features(x)):.1f} % of {int(foreground.sum())} patches of {len(x)} images")
    for t, features in enumerate(snn.forward_features(x, TIMESTEPS, chunk=1), start=1):
        print(f"SNN, T = {t}   {right(features):.1f} %")


if __name__ == "__main__":
    main()
