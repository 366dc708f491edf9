"""``python -m vit2snn``: the command line."""

from vit2snn.cli import main

main()
