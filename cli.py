"""The command line. Results go to stdout, everything else to stderr; torch and timm are imported by the commands.

Exit codes: 0 done; 1 a failure; 2 wrong usage; 3 a quality gate failed; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from vit2snn import __version__
from vit2snn.commands import audit, conversion, evaluation, export, finetuning, planning, report, sharing, training, zoo
from vit2snn.commands.failures import Terminated, tell, terminable
from vit2snn.commands.output import emit
from vit2snn.commands.streams import give_up_streams, prepare_streams


class _Cli(click.Group):
    """A group whose failures become one sentence, a hint and an exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        kwargs["standalone_mode"] = False
        try:
            prepare_streams()
            with terminable():
                code = super().main(args, *rest, **kwargs)
        except (Exception, KeyboardInterrupt, Terminated) as error:
            # click takes the end of a file, which a damaged one comes to too early, for that of the input.
            cause = error.__cause__ if isinstance(error.__cause__, EOFError) else error
            debugged = "--debug" in args or os.environ.get("VIT2SNN_DEBUG")
            if debugged and isinstance(cause, Exception) and not isinstance(cause, (click.ClickException, click.Abort)):
                raise
            give_up_streams()
            code = tell(cause)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VIT2SNN"})
@click.version_option(__version__, prog_name="vit2snn")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.option("--trust", metavar="PACKAGE.MODULE:FUNCTION", help="Builder of an ANN that a folder may name: it is run.")
@click.pass_context
def cli(context: click.Context, debug: bool, trust: str | None) -> None:
    """Convert pretrained Vision Transformers from timm into spiking neural networks."""
    if trust is not None:
        from vit2snn.storage import trusting

        context.with_resource(trusting(trust))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def env(as_json: bool) -> None:
    """Print versions and devices, to paste into an issue."""
    import platform

    import torch

    from vit2snn.spiking import gpu, native
    from vit2snn.storage.versions import versions

    devices = range(torch.cuda.device_count())
    found = versions() | {
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "neurons": "torch" if native.library() is None else "kernels in C",
        "cuda": ", ".join(torch.cuda.get_device_name(i) for i in devices) or "none",
        "neurons on cuda": ", ".join("kernels in Triton" if gpu.is_available(i) else "torch" for i in devices) or "none",
    }
    emit(as_json, found, "\n".join(f"{name}: {value}" for name, value in found.items()))


for command in (
    conversion.convert, evaluation.evaluate, audit.audit, report.report, finetuning.finetune, 
    conversion.inspect, conversion.demo, planning.plan, training.train, export.export, sharing.push, zoo.zoo,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
