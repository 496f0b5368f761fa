"""The cheapest changes of a recipe with which a run fits into memory."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from distill.errors import UserError
from distill.lora import Lora
from trainers.plan.trace import Plan, plan, silence
from trainers.recipe.run import PlayerSettings, Run, Sharding

TEACHER_ALONE = Sharding(generator=False, fake=False)


def remedies(run: Run, processes: int) -> Iterator[tuple[str, Run]]:
    """Yield changes of a recipe that save memory, the cheapest first, as (key=value, the changed run).

    The changes and their costs, in this order:

    - Smaller micro-batches cost overhead alone.
    - Sharding costs messages, the fewest if the teacher alone is sharded.
    - bfloat16 is faster, but less exact. The teacher is then stored in it.
    - Back-propagation through one denoiser at a time costs one forward of each denoiser.
    - Recomputed activations cost one forward of every network.
    - Moments of 8 bits are rounded.
    - An offloaded teacher is copied to the GPU for each use.
    - Adapters are another training.
    - Offloading everything leaves the optimizers' steps to the CPU.
    """
    share = run.batch_size // processes
    for count in sorted({n for n in (2 * run.micro_batches, share) if n > run.micro_batches and not share % n}):
        yield from _changed(run, f"micro_batches={count}", micro_batches=count)
    if run.sharding is None and processes > 1:
        yield from _changed(run, "sharding={generator: false, fake: false}", sharding=TEACHER_ALONE)
    if run.sharding in (None, TEACHER_ALONE) and processes > 1:
        yield from _changed(run, "sharding={}", sharding=Sharding())
    if run.precision == "float32":
        yield from _changed(run, "precision=bfloat16", precision="bfloat16")
    if run.backprop == "joint" and run.objective.differentiates_denoisers:
        yield from _changed(run, "backprop=one_by_one", backprop="one_by_one")
    if not run.gradient_checkpointing:
        yield from _changed(run, "gradient_checkpointing=true", gradient_checkpointing=True)
    fake = {"fake": run.fake} if run.objective.trains_fake else {}
    players: dict[str, PlayerSettings] = {**fake, "generator": run.generator}
    for name, player in players.items():
        bits: Any = f"{player.name}8bit"
        if player.name in ("adam", "adamw"):
            yield from _changed(run, f"{name}.name={bits}", **{name: replace(player, name=bits)})
    sharding = run.sharding or Sharding()
    if sharding.offload is None and sharding.teacher:
        yield from _changed(run, "sharding.offload=teacher", sharding=replace(sharding, offload="teacher"))
    for name, player in players.items():
        if player.lora is None:
            yield from _changed(run, f"{name}.lora.rank=64", **{name: replace(player, lora=Lora())})
    if sharding.offload != "all":
        yield from _changed(run, "sharding.offload=all", sharding=replace(sharding, offload="all"))


def _changed(run: Run, change: str, **changes: Any) -> Iterator[tuple[str, Run]]:
    """Yield a run with a change, unless the recipe does not allow the change."""
    with suppress(UserError):
        yield change, replace(run, **changes)


def _say_of(change: str, say: Callable[[str], None], step: str) -> None:
    """Tell a step of the plan of a change."""
    say(f"{change}: {step}")


def cheapest(
    run: Run, processes: int, fits: Callable[[Plan], bool], best: Plan, say: Callable[[str], None] = silence
) -> tuple[list[str], Plan | None]:
    """Return the cheapest changes of a recipe with which the run fits.

    The remedies are tried in their order. A remedy that lowers the peak by 1% or more stays, and the next one is tried
    on top of it.

    Args:
        run: The recipe.
        processes: The number of GPUs.
        fits: (plan) -> whether it fits.
        best: The plan of the recipe as it is.
        say: A function that is told each step.

    Returns:
        The changes as key=value, and the plan with them. The plan is None if all remedies together are not enough.
    """
    applied, tried = list[str](), set[str]()
    while not fits(best):
        untried = [(change, changed) for change, changed in remedies(run, processes) if change not in tried]
        if not untried:
            return applied, None
        change, changed = untried[0]
        tried.add(change)
        with suppress(UserError):  # a remedy that cannot be traced is no remedy
            found = plan(changed, processes, partial(_say_of, change, say))
            if found.peak.bytes < 0.99 * best.peak.bytes:
                run, best = changed, found
                # A later value of a key replaces an earlier one.
                applied = [one for one in applied if one.partition("=")[0] != change.partition("=")[0]] + [change]
    return applied, best
