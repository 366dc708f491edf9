"""A plan as text for a terminal."""

from __future__ import annotations

from itertools import groupby

from ..measure.text import COLUMNS, short, table
from ..tracing import Operation
from .planning import Plan, PlannedModule
from .recipe import Recipe
from .rounding import integer_calls


def plan_table(plan: Plan, recipe: Recipe) -> str:
    """A plan for the terminal: a row for each operation, what drives it, and what they cost together."""
    rows = [row for module in plan.modules for row in _plan_rows(module, plan.absorbed)]
    analog = sum(module.macs for module in plan.modules if module.action != "spiking")
    cost = f"{plan.macs / 1e6:.2f} MMAC for one image and timestep"
    if analog:
        cost += f", {analog / 1e6:.2f} of them not driven by spikes"
    # In a product of decoded values the spikes of both operands add.
    coded = [module for module in plan.modules if module.action == "spiking" and not module.becomes]
    products = sum(call.macs for module in coded for call in module.calls if call.kind == "product")
    most = (plan.macs - analog + products) * recipe.timesteps
    bound = f"{most / 1e6:.1f} M accumulates in {recipe.timesteps} timesteps, if each neuron sent a spike in each"
    found = table(["module", "type", "operation", "neurons on", "MMAC"], rows, COLUMNS)
    return "\n".join([found, cost, bound, *_weights(plan, recipe), *_blocks(plan)])


def _blocks(plan: Plan) -> list[str]:
    """What becomes of the blocks, and what nothing takes the place of; no lines where they stay as they are."""
    runs = [list(run) for _, run in groupby(plan.blocks, lambda block: (block.attention, block.mlp))]
    lines = [f"{run[0].name}{f' to {run[-1].name}' if len(run) > 1 else ''}: {run[0].attention}, {run[0].mlp}" for run in runs]
    return [*lines, f"left as they are: {', '.join(plan.left[:3])}{', ...' * (len(plan.left) > 3)}"] if plan.left else lines


def _weights(plan: Plan, recipe: Recipe) -> list[str]:
    """Which weights become integers, in a line; none where they stay in float."""
    if not recipe.weight_bits:
        return []
    every = [call for module in plan.modules for call in module.calls if call.kind == "weighted"]
    rounded = set(integer_calls(plan, recipe))
    left = [call.module for call in every if call not in rounded]
    said = f"integers of {recipe.weight_bits} bits are the weights of {len(every) - len(left)} of {len(every)} operations"
    return [f"{said}, in float those of {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}" if left else said]


def _plan_rows(module: PlannedModule, absorbed: dict[str, str]) -> list[list[str]]:
    """One row for each synaptic operation that neurons drive, or one for what the module does otherwise."""
    synaptic = [call for call in module.calls if call.macs]
    if module.action == "spiking" and not module.becomes and synaptic:
        cells = [(short(call.function), _operands(call), f"{call.macs / 1e6:.2f}") for call in synaptic]
        return [[module.name, module.type, *row] for row in cells]
    constant = all(call.kind == "scale" for call in module.calls) and not module.becomes
    driven = {
        "spiking": "(is a neuron)",
        "analog": "(constants)" if constant else "(analog)",
        "ignored": "(ignored)",
        "absorbed": f"(goes into {absorbed.get(module.name)})",
    }[module.action]
    operations = "+".join(short(function) for function in dict.fromkeys(module.operations))
    return [[module.name, module.type, module.becomes or operations, driven, f"{module.macs / 1e6:.2f}"]]


def _operands(call: Operation) -> str:
    """What the neurons of an operation see."""
    if call.function == "scaled_dot_product_attention":
        return "q, k, softmax, v"
    if not call.driven:
        return "(spikes already)"
    count = len(call.driven)
    return "input" if call.kind == "weighted" else f"{count} operand{'s' * (count > 1)}"
