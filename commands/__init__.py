"""The commands of ``vit2snn``, by subject; `vit2snn.cli` puts them together."""
