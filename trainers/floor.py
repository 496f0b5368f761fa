"""The floor of one step: what the network of a run can do in one evaluation, without the run's objective.

Two other ways of training tell it, each from the same start, for as many images and at the same rates: regression on
the teacher's own ODE pairs (Luhman and Luhman, arXiv:2101.02388), and a discriminator alone. It discriminates from the
real data, or from the samples of the pairs where the teacher is guided: a guided student approaches the guided law, and
not the data. The better way is an upper bound of the smallest distance that the network can reach. A student that is
far above it has not failed for its size.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import UserError
from distill.guidance import GuidedDenoiser
from distill.objectives import DMD2, HiPA, Objective
from distill.objectives.wrapper import Wrapper
from distill.samplers import Heun
from distill.times import Times
from trainers.api import resume, train
from trainers.data import Dataset
from trainers.engine.world import default_device
from trainers.io.atomic import atomic_file
from trainers.recipe.load import RUN_FILE, load_run
from trainers.recipe.run import OdePairs, Run
from trainers.runs.load import load_trained
from trainers.runs.make_pairs import PairSettings, images_of_pairs, make_pairs
from trainers.runs.open import Objects
from trainers.runs.trained_model import TrainedModel

FOLDER, REPORT = "floor", "floor.json"
IMAGES_A_PAIR = 4
"""The images of the run for each pair. Its 35 evaluations then take about half of the time of such a run."""
SAMPLED_AT_ONCE = 250


def measure_floor(
    folder: Path,
    samples: int | None = None,
    pairs: int | None = None,
    say: Callable[[str], None] = print,
    here: Callable[[Any], Any] = lambda run: run,
) -> dict[str, Any]:
    """Train the network of a run in two other ways, and write floor.json. A call that was killed can be repeated.

    Args:
        folder: The run folder. The two runs and the pairs lie in floor/ in it.
        samples: The number of samples of each evaluation. None for the recipe's.
        pairs: The number of ODE pairs. None for a quarter of the images of the run.
        say: Is told the next step.
        here: (recipe) -> the recipe with the places of this machine, such as its cache.

    Returns:
        The content of floor.json: the `protocol`, `samples`, `images`, and the distances `teacher`, `student`, those of
        the two ways, and `floor`, the smaller of them.

    Raises:
        UserError: The run is none of a distillation, has not trained, or has no real images to be compared with.
    """
    run = here(load_run(folder))
    if not isinstance(run, Run):
        raise UserError(f"'{folder}' trains a teacher: a floor is that of a distillation")
    student = load_trained(folder)
    student.run = run
    report = student.evaluate(samples)
    found: dict[str, Any] = {key: report[key] for key in ("protocol", "samples", "images")}
    found |= {name: report[name]["frechet"] for name in ("teacher", "student")}
    ways = {}
    for way in ways_of(run, student, folder / FOLDER, pairs or max(1, run.images // IMAGES_A_PAIR), say):
        say(f"{way.name}: {run.images:,} images")
        place = folder / FOLDER / way.name
        objects: dict[str, Any] = {} if way.data is None else {"data": way.data}
        if (place / RUN_FILE).is_file():
            resume(place, **objects)
        else:
            train(way.run, place, **objects)
        trained = load_trained(place, objects=Objects(data=student.source))  # compared with the data of the run
        trained.run = here(trained.run)
        ways[way.name] = trained.evaluate(samples)["student"]["frechet"]
    found |= {**ways, "floor": min(ways.values())}
    with atomic_file(folder / REPORT) as staging:
        staging.write_text(json.dumps(found, indent=2) + "\n")
    return found


class Way(NamedTuple):
    """Another way of training.

    Attributes:
        name: The name of the way.
        run: The recipe.
        data: The images from which the discriminator tells the student's. None for the data of the recipe.
    """

    name: str
    run: Run
    data: Dataset | None = None


def ways_of(run: Run, student: TrainedModel, folder: Path, pairs: int, say: Callable[[str], None]) -> Iterator[Way]:
    """Make the ODE pairs, and yield each way that the data and the teacher allow.

    Args:
        run: The recipe of the run.
        student: Its trained model.
        folder: The folder of the pairs.
        pairs: The number of ODE pairs.
        say: Is told the next step.
    """
    objective = run.objective
    alone = replace(run, pairs=None, fake_updates=1, fake_warmup=0, reuse_samples=False, backprop="joint")
    settings = PairSettings(sampler=None if run.sampler == Heun() else run.sampler)
    target = student.target
    if run.sampler.guidance is None and student.guides:
        target = student.teacher  # no pairs are guided by a weak teacher that an objective names
    if run.sampler.guidance is None and isinstance(target, GuidedDenoiser):
        settings = replace(settings, teacher_cfg=target.scale)  # as the evaluation guides it
    made = make_pairs(
        run.teacher, student.source, folder / "pairs", pairs, settings, SAMPLED_AT_ONCE, default_device(), run.cache
    )
    for done in made:
        say(f"pairs: {done:,} of {pairs:,}")
    regression = HiPA(high_frequency=0.0)
    yield Way("regression", replace(alone, objective=regression, pairs=OdePairs(folder=str(folder / "pairs"))))
    adversarial = replace(alone, objective=discriminating(objective), fake_updates=2)
    if student.teacher is not None and target is not student.teacher:
        # Evaluations on the way would compare with the samples of the teacher, and not with the data.
        unseen = replace(adversarial, evaluation=replace(run.evaluation, every=0))
        yield Way("adversarial", unseen, images_of_pairs(folder / "pairs", student.source, student.teacher))
    elif student.source.read is not None:
        yield Way("adversarial", adversarial)


def discriminating(objective: Objective) -> DMD2:
    """Return DMD2 without DMD's term, with the laws, the weight and the tap of an objective where it has them."""
    inner = objective
    while isinstance(inner, Wrapper):
        inner = inner.objective
    laws: dict[str, Any] = {"fake_times": inner.fake_times, "fake_weight": inner.fake_weight}
    if isinstance(times := getattr(inner, "times", None), Times):
        laws["times"] = times
    taps = {one.name: getattr(inner, one.name) for one in fields(inner) if one.name == "tap"}
    return DMD2(matching=0.0, adversarial=1.0, **laws, **taps)
