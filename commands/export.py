"""Exporting what is in a folder: for runtimes without PyTorch, for simulators and chips."""

from __future__ import annotations

from pathlib import Path

import click

from vit2snn.commands.bounds import TIMESTEPS
from vit2snn.commands.output import emit, note


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the exported network.")
@click.option("--format", type=click.Choice(["onnx", "pt2", "nir"]), default="onnx", show_default=True, help="See below.")
@click.option("--timesteps", type=TIMESTEPS, help="T of the run; the model's unless given.")
@click.option("--step", is_flag=True, help="One timestep, with the neurons' states as inputs and outputs, instead of a run.")
@click.option("--target", type=click.Choice(["loihi2", "speck", "spinnaker2"]), help="Of nir: list what does not fit a chip.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def export(
    model: Path, out: Path, format: str, timesteps: int | None, step: bool, target: str | None, overwrite: bool, as_json: bool
) -> None:  # fmt: skip
    """Export the converted or zoo model in the folder MODEL to OUT, so that vit2snn is not needed to run it.

    onnx: opset 20, for any number of images. pt2: the same graph for torch.export.load. nir: layers and neurons, for
    neuromorphic simulators and chips. OUT/export.json tells the inputs, outputs and states.

    \b
    vit2snn export demo-snn -o demo-onnx
    vit2snn export demo-snn -o demo-step --step
    """
    from vit2snn.export import export as exported, is_export
    from vit2snn.files import check_output
    from vit2snn.storage import open_network

    if step and timesteps:
        raise click.UsageError("--timesteps is for a whole run; the graph of one timestep serves for any number of them")
    if format == "nir" and (step or timesteps):
        raise click.UsageError("--step and --timesteps are for onnx and pt2; simulators run a neuromorphic graph for any T")
    if target and format != "nir":
        raise click.UsageError("--target is for --format nir")
    check_output(out, overwrite, is_export)
    network = open_network(model)
    if timesteps and 0 < network.timesteps < timesteps:
        note(f"note: the model is made for {network.timesteps} timesteps; later ones reuse the last thresholds")
    document = exported(network, out, format, timesteps=timesteps, step=step, target=target, overwrite=overwrite)
    size = sum(file.stat().st_size for file in out.iterdir())
    told = [f"{out}/model.{format} ({size / 1e6:.1f} MB); its inputs and outputs: {out}/export.json"]
    if target:
        misfits = document["does_not_fit"]
        told += [f"{target}: {len(misfits)} things do not fit", *(f"  {misfit}" for misfit in misfits)]
    emit(as_json, {"out": str(out), **document}, "\n".join(told))
