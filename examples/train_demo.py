"""Train the model behind ``vit2snn demo`` and write it, with a sample of its images, into a folder.

The data set is Fashion-MNIST (Zalando Research, MIT licence), read from its four original ``*-ubyte.gz`` files; Debian's
package ``dataset-fashion-mnist`` installs them. The result is an ordinary timm ``local-dir:`` model folder::

    python examples/train_demo.py --data DIRECTORY -o zoo/demo
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path

import click
import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from tqdm import tqdm

from vit2snn.data import balanced_order

CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
MEAN, STD = 0.2860, 0.3530
ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = dict(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4)
CALIBRATION, SCORED = 256, 1000


def read_idx(path: Path) -> np.ndarray:
    """One file of the IDX format: two zero bytes, the element type, the number of axes, their sizes, the data."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", count=axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def read_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    return read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"), read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")


def normalise(images: Tensor) -> Tensor:
    """Bytes ``[B, 28, 28]`` to the model's input ``[B, 1, 28, 28]``."""
    return (images.unsqueeze(1).float() / 255 - MEAN) / STD


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of a batch and shift the whole batch by up to one pixel."""
    flip = torch.rand(len(images), 1, 1, generator=generator) < 0.5
    images = torch.where(flip, images.flip(-1), images)
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    return nn.functional.pad(images, (1, 1, 1, 1))[:, down : down + 28, right : right + 28]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    steps = len(images) // batch
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs * steps, warmup_t=steps, warmup_lr_init=1e-5, lr_min=1e-5)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        progress = tqdm(range(steps), desc=f"epoch {epoch + 1}/{epochs}", file=sys.stderr, mininterval=5)
        for step in progress:
            scheduler.step_update(epoch * steps + step)
            scheduler.step(epoch * steps + step)
            index = order[step * batch : (step + 1) * batch]
            logits = model(normalise(augment(images[index], generator)))
            loss = nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy in per cent."""
    correct = sum(
        int((model(normalise(x)).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * correct / len(images)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(data: Path, out: Path, epochs: int, batch: int, seed: int) -> None:
    """Train, score on all 10,000 test images, and write weights (float16), images and the model card."""
    torch.manual_seed(seed)
    (train_x, train_y), (test_x, test_y) = read_split(data, "train"), read_split(data, "t10k")
    model = timm.create_model(ARCHITECTURE, **ARGUMENTS)
    parameters = sum(p.numel() for p in model.parameters())
    started = time.time()
    train(model.train(), torch.from_numpy(train_x.copy()), torch.from_numpy(train_y.astype(np.int64)), epochs, batch, seed)
    minutes = (time.time() - started) / 60

    # The shipped weights are float16; the accuracy on the card is that of the shipped weights.
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    accuracy = top1(model.eval(), torch.from_numpy(test_x.copy()), torch.from_numpy(test_y.astype(np.int64)))

    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.pretrained_cfg.update(input_size=(1, 28, 28), mean=(MEAN,), std=(STD,), crop_pct=1.0, interpolation="bilinear")
    model.pretrained_cfg.update(tag="fashion_mnist", license="mit", label_names=CLASSES)
    save_config_for_hf(model, out / "config.json")
    chosen = balanced_order(train_y.tolist(), seed)[:CALIBRATION]
    scored = balanced_order(test_y.tolist(), seed)[:SCORED]
    np.savez_compressed(
        out / "images.npz",
        train_images=train_x[chosen],
        train_labels=train_y[chosen],
        val_images=test_x[scored],
        val_labels=test_y[scored],
    )
    (out / "README.md").write_text(CARD.format(accuracy=accuracy, parameters=parameters, epochs=epochs, minutes=minutes))
    click.echo(json.dumps({"top1": accuracy, "parameters": parameters, "minutes": round(minutes, 1)}))


CARD = """# The model behind `vit2snn demo`

A timm `VisionTransformer` for Fashion-MNIST: 28x28 grey images, patches of 4x4 (49 tokens and a class token), width 64,
4 blocks of 4 heads, {parameters:,} parameters, stored as float16.

* **Accuracy: {accuracy:.2f} %** top-1 on all 10,000 test images (of the stored weights).
* Trained for {epochs} epochs with mirrored and shifted images and AdamW, in {minutes:.0f} minutes on a CPU:

      python examples/train_demo.py --data DIRECTORY -o zoo/demo

  where `DIRECTORY` holds the four files of Fashion-MNIST (Debian's package `dataset-fashion-mnist`).
* `images.npz`: 256 class-balanced images of the training set for calibration, 1000 class-balanced images of the test set
  for scoring.

Fashion-MNIST is the work of Zalando Research (Xiao, Rasul, Vollgraf, 2017), published under the MIT licence.
"""

if __name__ == "__main__":
    main()
