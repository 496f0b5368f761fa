"""distill pairs: what the multi-step teacher makes of noise, for objectives that regress on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.progress import track

from distill.errors import UserError
from distill.teachers import DESCRIPTION, Network, load_denoiser
from launch.commands.train import cache_folder
from trainers.data import Data, DataFree, Dataset
from trainers.io.console import plain
from trainers.loop import RUN_FILE, load_run
from trainers.recipe.strict_yaml import build, override
from trainers.runs.make_pairs import SHARD, PairSettings, make_pairs


def pairs(
    teacher: Annotated[Path, typer.Argument(help="a teacher's run folder, or its teacher/ folder")],
    out: Annotated[Path, typer.Argument(help="folder of the pairs; one that is unfinished or smaller goes on")],
    count: Annotated[int, typer.Option(help="pairs", min=1)],
    evaluations: Annotated[int, typer.Option(help="of the teacher for each, an odd number")] = 35,
    data: Annotated[
        str | None, typer.Option(help="whose label frequencies, as in a recipe: digits; those of the run when left out")
    ] = None,
    teacher_cfg: Annotated[float, typer.Option(help="guidance: D_null + scale (D - D_null)")] = 1.0,
    seed: Annotated[int, typer.Option(help="noise and labels", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="samples at once", min=1)] = 250,
) -> None:
    """Precompute ODE pairs: noise and the teacher's sample of it. A killed call goes on to the same bits."""
    folder = teacher if (teacher / DESCRIPTION).exists() else teacher / "teacher"
    if not folder.is_dir():
        raise UserError(f"teacher: '{teacher}' holds no teacher: neither {DESCRIPTION} nor a folder teacher/")
    settings = PairSettings(evaluations=evaluations, teacher_cfg=teacher_cfg, seed=seed)
    dataset = _dataset(folder, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = plain(stderr=True)
    making = make_pairs(str(folder), dataset, out, count, settings, batch, device, cache_folder())
    done = track(making, "pairs", -(-count // SHARD), console=console, disable=not console.is_terminal)
    for number in done:
        if not console.is_terminal:
            console.print(f"{number:,} of {count:,} pairs")
    plain().print(f"{count:,} pairs in {out}")


def _dataset(teacher: Path, data: str | None) -> Dataset:
    if data is not None:
        return build(Data, override({}, [f"data={data}"])["data"], "--data").load()
    run = teacher.resolve().parent
    if (run / RUN_FILE).is_file():
        return load_run(run).data.load()
    network = cast(Network, load_denoiser(teacher).network)
    if network.classes:
        raise UserError(f"--data: '{teacher}' does not say how frequent its classes are; name the data")
    return DataFree(network.shape).load()
