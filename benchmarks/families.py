"""Q-K attention in families other than the plain ViT: small models of three, trained here, and what is kept of their accuracy.

    python benchmarks/families.py --data DIRECTORY                    # all three
    python benchmarks/families.py --data DIRECTORY --subject swin --keep FOLDER

``DIRECTORY`` has the four files of Fashion-MNIST (Debian's package ``dataset-fashion-mnist``). Each model is trained on the
60,000 training images for ``--epochs``, and scored on all 10,000 test images. Recipes then see ``--calibration`` of the
training images, without labels, and are scored on the first ``--samples`` test images. With ``--keep`` trained weights are kept
there, and taken from there. Each result is added to ``benchmarks/results/families.json`` as it comes; ``--table`` prints what
is there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from torch import Tensor, nn

from vit2snn.convert import RECIPES, to_spiking
from vit2snn.measure import evaluate

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_demo import normalise, read_split, top1, train

RESULTS = Path(__file__).parent / "results" / "families.json"
SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 28, "patch_size": 2, "window_size": 7, "embed_dim": 48, "depths": (2, 2), "num_heads": (2, 4)},
    ),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4}),
    "pvt2": (
        "pvt_v2_b0",
        {"depths": (2, 2), "embed_dims": (48, 96), "num_heads": (2, 4), "sr_ratios": (2, 1), "mlp_ratios": (4, 4)},
    ),
}
TIMESTEPS = 4


def subject(name: str, data: Path, epochs: int, keep: Path | None) -> tuple[nn.Module, float]:
    """The trained model, and its accuracy on all test images."""
    torch.manual_seed(0)
    architecture, arguments = SUBJECTS[name]
    model = timm.create_model(architecture, in_chans=1, num_classes=10, **arguments)
    saved = keep / f"{name}.pt" if keep else None
    if saved and saved.exists():
        model.load_state_dict(torch.load(saved, weights_only=True))
    else:
        images, labels = tensors(data, "train")
        train(model.train(), images, labels, epochs, batch=128, seed=0)
        if saved:
            saved.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), saved)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 28, 28)}
    return model.eval(), top1(model, *tensors(data, "t10k"))


def tensors(data: Path, split: str) -> tuple[Tensor, Tensor]:
    images, labels = read_split(data, split)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| family | parameters | ANN | recipe | SNN at T = 1, 2, 4 | agreement at T = 4 | energy |",
        "| --- |" + " --- |" * 6,
    ]
    for row in rows.values():
        curve = ", ".join(f"{row['top1'][t]:.1f}" for t in ("1", "2", "4"))
        lines.append(
            f"| {row['architecture']} | {row['parameters'] / 1e3:.0f} k | {row['ann_top1']:.1f} | `{row['recipe']}` | "
            f"{curve} | {row['agreement']:.1f} | {100 * row['energy']:.0f} % |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--subject", "subjects", multiple=True, type=click.Choice(list(SUBJECTS)), default=list(SUBJECTS))
@click.option("--recipe", "recipes", multiple=True, default=["qkformer", "hybrid", "faithful"])
@click.option("--epochs", default=4, show_default=True)
@click.option("--calibration", default=512, show_default=True)
@click.option("--samples", default=1000, show_default=True, help="Test images that are scored.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for trained weights.")
@click.option("--table", "only_table", is_flag=True)
def main(
    data: Path | None, subjects: tuple[str, ...], recipes: tuple[str, ...], epochs: int, calibration: int, samples: int,
    keep: Path | None, only_table: bool,
) -> None:  # fmt: skip
    torch.set_flush_denormal(True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in () if only_table else subjects:
        if data is None:
            raise click.UsageError("training needs images: --data DIRECTORY")
        model, accuracy = subject(name, data, epochs, keep)
        shown = normalise(tensors(data, "train")[0][:calibration])
        scored, labels = tensors(data, "t10k")
        few = [(normalise(x), y) for x, y in zip(scored[:samples].split(50), labels[:samples].split(50), strict=True)]
        for recipe in recipes:
            started = time.time()
            snn = to_spiking(model, RECIPES[recipe].changed(timesteps=TIMESTEPS), shown)
            seconds = round(time.time() - started)
            result = evaluate(snn, few)
            points = {str(point.timestep): point for point in result.points}
            rows[f"{name} {recipe}"] = {
                "architecture": SUBJECTS[name][0],
                "parameters": sum(p.numel() for p in model.parameters()),
                "recipe": recipe,
                "calibration": calibration,
                "images": samples,
                "seconds": seconds,
                "ann_top1_all": round(accuracy, 2),
                "ann_top1": round(result.ann_top1, 2),
                "top1": {t: round(point.top1, 2) for t, point in points.items()},
                "agreement": round(points["4"].agreement, 2),
                "energy": float(f"{points['4'].energy:.3g}"),
            }
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            click.echo(json.dumps(rows[f"{name} {recipe}"]))
    click.echo(table(rows))


if __name__ == "__main__":
    main()
