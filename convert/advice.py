"""What to do about a conversion that is not good enough: findings of an evaluation, the gravest first, each with a remedy."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure import Advice, ModuleError, Point
from .recipe import Recipe
from .spikes import Coded

SATURATED = 0.01  # share of values beyond the largest threshold from which it is worth a word
DEAD = 0.9  # share of dead neurons from which it is
GOOD = 99.0  # agreement (of numbers, correlation) in % from which nothing has to be done


def advise(points: Sequence[Point], drop: float, modules: Sequence[ModuleError], recipe: Recipe) -> list[Advice]:
    """At most five pieces of advice, the gravest first; none where nothing has to be done.

    Args:
        points: the curve.
        drop: what the last point loses against the ANN (see `Evaluation.lost`).
        modules: of `vit2snn.measure.diagnose`, worst first.
        recipe: what the network was converted with.
    """
    last = points[-1]
    alike = 100 * (last.similarity or 0.0) if last.agreement is None else last.agreement
    found: list[tuple[float, Advice]] = []
    if alike < GOOD:
        lost = 100 - alike
        found += _of_time(points, recipe, lost)
        if recipe.structure.replaces:
            found += _of_branches(drop, recipe, lost)
        if not recipe.spike_driven:
            found += _of_neurons(modules, recipe.coded, lost)
    if last.energy > 1:
        saving = "vit2snn convert --recipe frugal, or --budget 0.5" if recipe.takes_budget else "fewer --timesteps"
        finding = f"it needs {100 * last.energy:.0f} % of the ANN's energy at T = {last.timestep}"
        exits = "" if last.similarity is not None else "; or vit2snn evaluate --exit-confidence 0.98"  # only classes have them
        found.append((10 * last.energy, Advice(finding, saving + exits)))
    return [advice for _, advice in sorted(found, key=lambda pair: -pair[0])][:5]


def _of_time(points: Sequence[Point], recipe: Recipe, lost: float) -> list[tuple[float, Advice]]:
    """Whether more timesteps would help."""
    if len(points) < 2:
        return []
    before, last = points[-2:]
    assert before.relative_error is not None and last.relative_error is not None
    fall = last.relative_error / max(before.relative_error, 1e-12)
    if last.timestep > recipe.timesteps:
        finding = f"T = {last.timestep}, and it was calibrated for {recipe.timesteps}: the last thresholds are used again"
        return [(2 * lost, Advice(finding, f"vit2snn convert --timesteps {last.timestep}"))]
    if fall < 0.9:
        finding = f"the error still falls by {100 * (1 - fall):.0f} % from T = {before.timestep} to {last.timestep}"
        return [(lost * (1 - fall), Advice(finding, f"vit2snn convert --timesteps {2 * last.timestep}"))]
    if recipe.structure.replaces:
        return []
    finding = f"the error does not fall any more at T = {last.timestep} ({last.relative_error:.2g}): it is not time that lacks"
    if recipe.weight_bits:
        remedy = "more bits (convert --weights), or vit2snn finetune OUT --data DATA -o OUT2"
        return [(lost, Advice(f"{finding}; its weights have {recipe.weight_bits} bits", remedy))]
    return [(lost / 2, Advice(finding, "more levels (recipe field spikes.levels), or more calibration images (--samples)"))]


def _of_neurons(modules: Sequence[ModuleError], coded: Coded, lost: float) -> list[tuple[float, Advice]]:
    """What coded neurons lack."""
    found = []
    saturated = [module for module in modules if module.saturation and module.saturation[-1] > SATURATED]
    if saturated:
        worst = max(saturated, key=lambda module: module.saturation[-1])
        finding = (
            f"{len(saturated)} of {len(modules)} neurons see values beyond their largest threshold, most of all {worst.name} "
            f"({100 * worst.saturation[-1]:.1f} % at the last timestep)"
        )
        action = f"more calibration images (convert --samples), or recipe field spikes.headroom above {coded.headroom:g}"
        found.append((lost * (1 + worst.saturation[-1]), Advice(finding, action)))
    if coded.levels in (1, 2) and not coded.rotation:
        finding = f"an alphabet of {coded.levels} level{'s' * (coded.levels > 1)} suits values with outliers badly"
        found.append((lost, Advice(finding, "recipe field spikes.rotation = true")))
    dead = [module for module in modules if module.dead > DEAD]
    if dead and coded.granularity == "tensor":
        share = f"over {100 * DEAD:.0f} % of the neurons"
        finding = f"in {len(dead)} of {len(modules)} places {share} never fire, as in {dead[0].name}"
        found.append((lost / 3, Advice(finding, 'recipe field spikes.granularity = "channel"')))
    worst = modules[0]
    typical = sorted(module.relative_error[-1] for module in modules)[len(modules) // 2]
    if worst.relative_error[-1] > 3 * typical:
        finding = f"{worst.name} errs most ({worst.relative_error[-1]:.2g}; the typical neuron {typical:.2g})"
        action = f"a burst (recipe field spikes.spikes_per_step = {coded.spikes_per_step + 1}), or ignore = [{worst.module!r}]"
        found.append((lost / 2, Advice(finding, action)))
    return found


def _of_branches(drop: float, recipe: Recipe, lost: float) -> list[tuple[float, Advice]]:
    """What new branches lack."""
    finding = f"new branches compute something else than the ANN's, and {drop:.1f} points are lost against it"
    found = [(3 * lost, Advice(finding, "vit2snn finetune OUT --data DATA -o OUT2"))]
    if recipe.structure.refit in ("blocks", "network"):
        learned = Advice("what its substitutes have learned depends on their images", "more of them (--samples)")
        found.append((2 * lost, learned))
    else:
        found.append((lost, Advice("its substitutes were not trained", "vit2snn convert --refit blocks")))
    return found
