"""Kernels as operators of torch, which compilers and exports put into their graphs, and see the shapes of.

Only graphs call them. The dispatcher adds more than half to the time of a small coded neuron's timestep, and an operator, which
gets tables and numbers, makes what the kernel needs of them anew, where a `coding.CodedStep` keeps it. So neurons that run
without a graph call the kernels directly; `native.compiling` says which way is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operator(schema: str, compute: Callable[..., Any], shapes: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``vit2snn::name``.

    Args:
        schema: ``name(arguments) -> results``, in torch's notation; no result is a part of an argument.
        compute: its function, on all devices.
        shapes: the same with results of any values.
    """
    name = schema.partition("(")[0]
    torch.library.define(f"vit2snn::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"vit2snn::{name}", "default", compute)
    torch.library.register_fake(f"vit2snn::{name}", shapes)
    defined: Callable[..., Any] = getattr(torch.ops.vit2snn, name).default
    return defined
