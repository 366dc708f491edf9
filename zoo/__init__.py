"""Whole models. So far: the embedded demo."""
