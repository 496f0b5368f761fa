"""distill pairs: ODE pairs of a teacher, for objectives that regress on them."""

from pathlib import Path
from typing import Annotated

import typer

from launch.options import SamplerName, cache_folder


def pairs(
    teacher: Annotated[Path, typer.Argument(help="A teacher's run folder, or its teacher/ folder.")],
    out: Annotated[Path, typer.Argument(help="The folder of the pairs. An unfinished or smaller set is continued.")],
    count: Annotated[int, typer.Option(help="The number of pairs.", min=1)],
    evaluations: Annotated[
        int | None, typer.Option(help="The teacher's evaluations for each pair. Default: 35, or the sampler's.", min=1)
    ] = None,
    sampler: SamplerName = None,
    data: Annotated[
        str | None,
        typer.Option(help="The data that say how frequent labels are, as in a recipe: digits. Default: the run's."),
    ] = None,
    teacher_cfg: Annotated[float, typer.Option(help="The guidance scale in D_null + scale (D - D_null).")] = 1.0,
    seed: Annotated[int, typer.Option(help="The seed of noise and labels.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="The number of samples at once.", min=1)] = 250,
) -> None:
    """Compute ODE pairs: noises, each with the teacher's multi-step sample of it.

    A call that was killed can be repeated, and continues to the same bits.
    """
    from rich.progress import track

    from distill.samplers import Heun
    from trainers.engine.world import default_device
    from trainers.io.console import plain
    from trainers.runs.bare_model import SamplerWords
    from trainers.runs.make_pairs import PAIRS_A_SHARD, PairSettings, make_pairs, pair_source

    method = None if sampler is None else SamplerWords(sampler=sampler, evaluations=evaluations).apply(Heun())
    settings = PairSettings(evaluations=evaluations or 35, teacher_cfg=teacher_cfg, seed=seed, sampler=method)
    console = plain(stderr=True)
    folder, dataset = pair_source(teacher, data)
    making = make_pairs(str(folder), dataset, out, count, settings, batch, default_device(), cache_folder())
    done = track(making, "pairs", -(-count // PAIRS_A_SHARD), console=console, disable=not console.is_terminal)
    for number in done:
        if not console.is_terminal:
            console.print(f"{number:,} of {count:,} pairs")
    plain().print(f"{count:,} pairs in {out}")
