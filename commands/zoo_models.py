"""One model of the zoo: what is known about it, and whether it does what its paper says."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.output import emit
from vit2snn.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

EVENTS = 2  # channels of an event camera's frames: one for each polarity


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(name: str, as_json: bool) -> None:
    """Show what the model NAME costs and what was published about it.

    NAME is a name of `vit2snn zoo list`, or a folder that `vit2snn train` or `vit2snn zoo import` wrote, or hf-hub:USER/NAME of
    one: then the spikes that `vit2snn evaluate` counted are shown too.
    """
    from vit2snn.measure.text import table
    from vit2snn.zoo import VARIANTS, statistics

    model, folder = _opened(name)
    cfg = model.pretrained_cfg
    found = statistics(model, cfg["input_size"][1:])
    published = [] if folder else [asdict(entry) for entry in VARIANTS[name].published]
    measured = _measured(folder)
    lines = [
        f"{name}: {cfg.get('paper_name', '')}" + (f" ({cfg['paper_ids']})" if "paper_ids" in cfg else ""),
        f"input {'x'.join(map(str, cfg['input_size']))}, {model.num_classes} classes, T = {model.timesteps or 'of the frames'}",
        f"{found.parameters / 1e6:.3f} M parameters",
        f"for an image and a timestep: {found.layer_macs / 1e9:.3f} GMAC in layers, {found.product_macs / 1e9:.3f} GMAC in "
        f"products of spikes, {found.neurons / 1e6:.3f} M neurons",
        f"spikes: {measured['text']}" if measured else _bound(found.neurons, model.timesteps),
    ]
    if published:
        rows = [
            [p["dataset"], f"{p['top1']:.2f}", str(p["timesteps"]), f"{p['energy'] or '-'}", p["source"], p["caveat"]]
            for p in published
        ]
        lines += ["published, not measured here:", table(["data", "top-1 %", "T", "energy mJ", "source", "caveat"], rows)]
    document = {"name": name, "statistics": asdict(found), "published": published, "measured": measured}
    emit(as_json, document, "\n".join(lines))


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def audit(name: str, as_json: bool) -> None:
    """Check the model NAME on three random images: do they leak into each other, are spikes binary, what multiplies?

    NAME is as for `vit2snn zoo show`. One of `vit2snn zoo list` has random weights; its normalisations are then set so that
    neurons fire: each of their channels has deviation 2 over the images. The energy of such weights is that of their firing
    rates, and not of trained ones.

    \b
    vit2snn zoo audit sdt_8_384
    """
    from vit2snn.zoo.enlivening import enliven

    model, folder = _opened(name)
    images = _random_images(model)
    if folder is None:
        enliven(model, images)
    checked, text = _checked(model, images)
    document = {"name": name, "weights": "own" if folder else "random"} | checked
    emit(as_json, document, f"{name}: {'its own' if folder else 'random'} weights, three random images\n{text}")


def _checked(model: Any, images: Tensor) -> tuple[dict[str, Any], str]:
    """What an audit of a model of the zoo finds on three images, as a document and for reading."""
    import torch

    from vit2snn.measure import Audit, Costs, Dense, Meter
    from vit2snn.measure.leaks import leak
    from vit2snn.measure.text import kinds_line, leak_table, operations_table

    leaked = leak(model, images)
    with torch.no_grad(), Meter(model, observing=True) as meter:
        model.readout(meter.show(images), chunk=1)
    costs = Costs.of(meter, Dense.of(meter.tallies))
    audited = Audit.of(costs, meter.images)
    multiplying = [row for row in audited.rows if row.multiplies and row.module != model.first_conv]
    sent = {neuron.neuron: neuron.kind or "silent" for neuron in costs.neurons}
    synaptic = [o for o in costs.operations if o.kind in ("weighted", "product") and o.module != model.first_conv]
    read = [operand.kind or "silent" for operation in synaptic for operand in operation.operands]
    counted, convention = (pico / 1e9 for pico in (float(costs.energy()[-1]), costs.convention))
    lines = [
        leak_table(leaked),
        f"neurons send: {kinds_line(sent.values())}",
        *(f"  {kind}: {neuron}" for neuron, kind in sent.items() if kind != "binary"),
        f"layers and products behind the first layer read: {kinds_line(read)}",
        "multiplications behind the first layer:" + ("" if multiplying else " none"),
        *([operations_table(audited, multiplying)] if multiplying else []),
        f"energy for an image: {counted:.3g} mJ counted here, {convention:.3g} mJ by the convention of the papers",
    ]
    document = {
        "leak": leaked.to_json(),
        "neurons": sent,
        "read": Counter(read),
        "multiplying": [asdict(row) for row in multiplying],
        "audit": audited.to_json(),
        "energy_mj": {"counted": counted, "convention": convention},
    }
    return document, "\n".join(lines)


def _opened(name: str) -> tuple[Any, Path | None]:
    """The model of a name, with random weights that are always the same; or that of a folder, and the folder.

    Raises:
        ModelError: the zoo has no such model, and no folder is called so.
    """
    import torch

    from vit2snn.convert import load_model
    from vit2snn.convert.inputs import seeded
    from vit2snn.storage import is_model_folder, open_network
    from vit2snn.storage.artifact import is_artifact
    from vit2snn.storage.hub import find
    from vit2snn.zoo import VARIANTS

    folder = find(name).folder
    if is_model_folder(folder):
        return open_network(folder), folder
    if is_artifact(folder):
        raise ModelError(
            f"{name!r} is a converted model, and none of the zoo", f"vit2snn inspect {name}, or vit2snn audit {name}"
        )
    if name not in VARIANTS:
        import difflib

        near = difflib.get_close_matches(name, VARIANTS, n=3)
        raise ModelError(f"the zoo has no model {name!r}", f"did you mean {', '.join(near)}?" if near else "vit2snn zoo list")
    with seeded(0, torch.device("cpu")):
        return load_model(name, pretrained=False), None


def _random_images(model: Any) -> Tensor:
    """Three images of a normal distribution, as normalised ones have it; or frames of events, on average one at a pixel."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (3, model.in_chans, *model.pretrained_cfg["input_size"][1:])
    if model.in_chans != EVENTS:
        return torch.randn(size, generator=generator)
    return torch.poisson(torch.ones(model.timesteps or 4, *size), generator)


def _bound(neurons: int, timesteps: int) -> str:
    most = (
        f"at most {neurons * timesteps / 1e6:.1f} M for an image" if timesteps else "at most one of each neuron in a timestep"
    )
    return f"spikes: {most}; how many depends on the weights, and vit2snn evaluate OUT counts them"


def _measured(folder: Path | None) -> dict[str, Any] | None:
    """The last row of the evaluation in a folder, if there is one."""
    from vit2snn.storage.documents import last_point

    last = last_point(folder) if folder else None
    if last is None:
        return None
    text = f"{last['spikes_per_neuron']:.3f} for a neuron in {last['timestep']} timesteps, at {last['top1']:.1f} % top-1"
    return {**last, "text": text}
