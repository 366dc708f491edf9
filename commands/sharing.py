"""Sending what is in a folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from vit2snn.commands.output import emit


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("repository", metavar="REPO")
@click.option("--private", is_flag=True, help="Only for you and who you let, if REPO is not there yet.")
@click.option("--revision", metavar="BRANCH", help="Branch to send to, which is made if it is not there; main unless given.")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def push(out: Path, repository: str, private: bool, revision: str | None, message: str | None, as_json: bool) -> None:
    """Send the converted model in OUT, or the zoo model, to REPO (USER/NAME) on the Hugging Face hub.

    Sent are the files that vit2snn has written, with the model card; those tell the commands that were typed, and the folders
    of images. Log in first: hf auth login, or HF_TOKEN. Everybody then loads it as hf-hub:USER/NAME, in place of OUT.

    \b
    vit2snn push demo-snn me/demo-snn --private
    vit2snn evaluate hf-hub:me/demo-snn
    """
    from vit2snn.storage import hub

    name = hub.push(out, repository, private=private or None, revision=revision, commit_message=message)
    emit(as_json, {"model": name}, f"{name}: load it with vit2snn.load, or give it to a command in place of OUT")
