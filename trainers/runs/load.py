"""The loading of a trained model: the averaged network of a checkpoint, with its teacher."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from distill import lora
from distill.denoiser import Denoiser
from distill.errors import UserError, one_line, options
from distill.generator import Generator
from distill.records import read_record
from distill.teachers import load_denoiser
from trainers.checkpoints import checkpoint
from trainers.checkpoints.content import average_flaw
from trainers.checkpoints.formats import Posthoc, read_best
from trainers.engine.networks import set_precision
from trainers.engine.player import frozen_names
from trainers.engine.world import default_device
from trainers.io.console import plain
from trainers.io.images import denoiser_of
from trainers.io.teacher_hash import is_hash_of, teacher_hash
from trainers.recipe.changes import load_moved_run
from trainers.recipe.measures import Asked
from trainers.recipe.run import Run
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.compare import compare
from trainers.runs.distillation import attach_adapters, teacher_identity
from trainers.runs.draw import draw
from trainers.runs.export import export_trained
from trainers.runs.open import Objects
from trainers.runs.teacher import fresh_denoiser, start_denoiser
from trainers.runs.trained_model import TrainedModel, Weights

POSTHOC = "posthoc.json"  # the description of an average that was made from snapshots, beside its weights


class Trained(TrainedModel):
    """The trained model of a run, which can sample, evaluate and export."""

    def sample(
        self,
        count: int = 60,
        label: int | str | None = None,
        prompts: Sequence[str] = (),
        seed: int = 0,
        teacher: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Draw samples. Student and teacher get the same noise and conditions.

        Args:
            count: The number of samples.
            label: The class of all samples, by number or name. None for the classes, or the recipe's prompts, in turn.
            prompts: Prompts that replace the recipe's. They are taken in turn.
            seed: The seed of the noise.
            teacher: Whether to sample the teacher, by the recipe's `sampler`, and not the student.
            size: Height and width of the images, where the network takes several sizes. None for its own.

        Returns:
            Images [N, C, *spatial], in [-1, 1] but for overshoots.

        Raises:
            UserError: The label, the prompts or the size do not go with the teacher, or the recipe's prompts are
                missing.
        """
        return draw(self, count, label, seed, teacher, prompts, size)

    def evaluate(
        self, samples: int | None = None, student_only: bool = False, **asked: Unpack[Asked]
    ) -> dict[str, Any]:
        """Compare student and teacher with the real images under a named protocol, and write evaluation.json.

        Args:
            samples: The number of samples of each model. None for the recipe's, or the protocol's.
            student_only: Whether to leave out the teacher.
            asked: A `classifier`, a `protocol` such as fid50k, or a `reference` in place of the recipe's.

        Returns:
            The content of evaluation.json: `protocol`, `samples` and `images`. `average` is the kind of the weights,
            and `precision` that of the compute.
            `student` and `teacher` are the numbers of the models, and `ratio` is that of their Frechet distances.
            `halves` is the distance between two halves of the real images, for features that are fitted to them.
            `teacher_evaluations` is the number of the teacher's network evaluations for a sample. `teacher_cfg` is
            there if the teacher is guided, and `teacher_autoguidance` if a weaker teacher guides it: at the scale of
            the sampler, or else of the objective.

        Raises:
            UserError: There are no real images, or they have another shape than the model's, or what the protocol needs
                is missing.
        """
        return compare(self, self.run.evaluation.asked(samples, **asked), student_only)

    def export(
        self,
        folder: str | Path | None = None,
        format: str = "diffusers",
        hub: str | None = None,
        license: str | None = None,
        prompts: Sequence[str] = (),
    ) -> float:
        """Write the averaged generator in a format that other software loads, and compare its samples with ours.

        Args:
            folder: The folder of the export. None for `export`, or `export-FORMAT`, in the run folder.
            format: diffusers, safetensors, lora, onnx or torch-export.
            hub: The id on the Hugging Face hub under which the model card names the model.
            license: The hub's identifier of the licence of the weights, such as apache-2.0. None where it is not known.
            prompts: The prompts of the sample pictures, where the teacher takes prompts. None of them for four of ours.

        Returns:
            The largest difference between samples of the export and ours, relative to the largest value of ours, or to
            1 if that is larger.

        Raises:
            UserError: The run trains a teacher or has not trained, the format cannot hold the generator, the licence is
                none of the hub's, or the teacher takes no prompts.
        """
        return self.context.copy().run(export_trained, self, folder, format, hub, license, prompts)


def load_trained(
    folder: str | Path,
    which: str = "last",
    merged: bool = True,
    objects: Objects = Objects(),
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Trained:
    """Load the trained model of a run, for which neither data nor cache are needed.

    Args:
        folder: The run folder.
        which: "last" for the average of the newest valid checkpoint, "best" for that of the smallest Frechet distance,
            or "posthoc/0.1" for an average that `distill ema` has made.
        merged: Whether adapters are merged into the weights.
        objects: The objects that replace names in the recipe.
        changes: Where the teacher and the data lie now, and how samples are drawn
            (`trainers.recipe.changes.load_moved_run`).

    Raises:
        UserError: There is no such average, or it was trained from another teacher.
    """
    trained = find_trained(folder, which, merged, objects, changes)
    _ = trained.weights  # read now, so that errors are raised here
    return trained


def find_trained(
    folder: str | Path,
    which: str = "last",
    merged: bool = True,
    objects: Objects = Objects(),
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Trained:
    """Return the trained model of a run as `load_trained` does, but read its networks when they are first used.

    A process that has just trained still holds the networks in training, and may not need any others.
    """
    folder = Path(folder)
    run, device = load_moved_run(folder, changes), default_device()
    return Trained(folder, run, device, objects, partial(_read_weights, folder, run, which, objects, device), merged)


def _read_weights(
    folder: Path, run: Run | TeacherRun, which: str, objects: Objects, device: torch.device, merged: bool
) -> Weights:
    """Read the networks of a trained run. The arguments are those of `load_trained`."""
    found = _find_weights(folder, which)
    description, teacher, identity = found[1], None, None
    model: Generator | Denoiser
    if isinstance(run, Run):
        if "teacher" in run.objects and objects.teacher is None:
            how = "load it in Python, with trainers.load(folder, teacher=...)"
            raise UserError(f"'{folder}' was trained from a teacher that its caller gave as an object; {how}")
        identity = teacher_identity(run, objects)
        if not is_hash_of(description["teacher"], run.teacher, identity):
            raise UserError(f"'{folder}' was trained from another teacher than is now in '{run.teacher}'")
        teacher = set_precision(objects.copy_teacher() or load_denoiser(run.teacher), run)
        denoiser = copy.deepcopy(teacher)
        attach_adapters(denoiser, run.generator)
        model = Generator(denoiser, *run.entry.at(denoiser.path))
    else:
        model, found = _teacher_model(folder, run, which, found)
    _, description = _take_average(checkpoint.load_average, model, folder, which, *found)
    frozen = frozen_names(model)
    if merged and (run.generator.lora if isinstance(run, Run) else run.lora) is not None:
        lora.merge(model)
    for module in (model, teacher):
        if module is not None:
            module.to(device).requires_grad_(False).eval()
    std = description.get("std")
    average = "ema of the recipe" if std is None else f"power function of relative width {std} (arXiv:2312.02696)"
    state = checkpoint.newest_state(folder / "checkpoints") or {}
    data = state.get("data") or {}
    name_classes(model, data.get("class_names"), data.get("unseen", ()))
    # That of best/ has changes of its own, since it may be of images that a resume has dropped.
    changes = (state if which.startswith("posthoc") else description).get("changes", [])
    before = [change for change in changes if change["images"] < description["images"]]
    return Weights(model, teacher, description["images"], average, frozen, before, identity)


def _teacher_model(
    folder: Path, run: TeacherRun, which: str, found: tuple[Path, dict[str, Any]]
) -> tuple[Denoiser, tuple[Path, dict[str, Any]]]:
    """Return the network of a teacher's training, whose averaged weights are still to load, and their folder.

    The other arguments are those of `load_trained`.
    """
    if run.start is not None:
        if not is_hash_of(found[1]["teacher"], run.start, teacher_hash(run.start)):
            raise UserError(f"'{folder}' fine-tunes another teacher than is now in '{run.start}'")
        return start_denoiser(run), found
    sizes = _shape_and_classes(folder, run)
    with torch.device("meta"):  # the recipe may be a stranger's, and ask for more memory than its weights take
        outline = fresh_denoiser(run, *sizes)
    found = _take_average(checkpoint.check_average, outline, folder, which, *found)
    return fresh_denoiser(run, *sizes), found


def name_classes(model: Generator | Denoiser, names: Sequence[str] | None, unseen: Sequence[int] = ()) -> None:
    """Give the network of a model the names of the classes of its data. It keeps its own if there are not as many.

    Args:
        model: The model.
        names: The names, by number. None where the classes have none.
        unseen: The classes without a sample.
    """
    network = denoiser_of(model).network
    network.unseen = tuple(label for label in unseen if label < network.classes)
    if names and len(names) == network.classes:
        network.class_names = tuple(names)


def _take_average(
    take: Callable[[Path, nn.Module, frozenset[str]], None],
    model: Generator | Denoiser,
    folder: Path,
    which: str,
    source: Path,
    description: dict[str, Any],
) -> tuple[Path, dict[str, Any]]:
    """Check or load the averaged weights of a run, also while it trains and replaces them.

    A checkpoint whose average is of another network is skipped, and the next older one is taken. One whose numbers are
    not finite is refused, since the user must know what has become of the training.

    Args:
        take: `checkpoint.check_average` or `checkpoint.load_average`.
        model: The network of the weights.
        folder: The run folder.
        which: The average, as in `load_trained`.
        source: The folder of the averaged weights.
        description: Their description.

    Returns:
        The folder and the description of the weights that were taken.

    Raises:
        UserError: There is no average that can be the run's.
    """
    frozen = frozen_names(model)
    flaw = partial(average_flaw, model, frozen)
    while True:
        try:
            take(source, model, frozen)
            if which != "best" or _find_weights(folder, which)[1] == description:  # best/ keeps its name
                return source, description
        except (OSError, RuntimeError, UserError) as error:
            replaced = not source.exists() or (which == "best" and _find_weights(folder, which)[1] != description)
            if not replaced and (which != "last" or flaw(source) is None):
                raise UserError(one_line(error)) from error
        source, description = _find_weights(folder, which, flaw)


def _find_weights(
    folder: Path, which: str, flaw: Callable[[Path], str | None] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the averaged weights, and their description.

    Args:
        folder: The run folder.
        which: The average, as in `load_trained`.
        flaw: (checkpoint) -> what is wrong with its content, in words, or None.
    """
    if which == "best":
        try:
            return folder / "best", read_best(folder / "best")
        except FileNotFoundError:
            raise UserError(f"'{folder}' has no best/ yet: set evaluation.every in the recipe") from None
    if which != "last":
        made = {f"posthoc/{file.parent.name}": file for file in sorted(folder.glob(f"posthoc/[0-9]*/{POSTHOC}"))}
        if which not in made:
            allowed = options(["last", "best", *made], which)
            raise UserError(f"which: '{folder}' has no '{which}'; allowed: {allowed}")
        return made[which].parent, read_record(made[which], Posthoc)
    found, skipped = checkpoint.newest(folder / "checkpoints", need=(checkpoint.AVERAGE_STEM,), content_flaw=flaw)
    for line in skipped:
        plain(stderr=True).print(line, style="yellow")
    try:
        return found, checkpoint.read_state(found)
    except FileNotFoundError:
        if found.exists():
            raise
        return _find_weights(folder, which, flaw)  # training has removed it since, and saved a newer one


def _shape_and_classes(folder: Path, run: TeacherRun) -> tuple[tuple[int, ...], int]:
    """Return the shape (C, *spatial) of a teacher's samples, and the number of its classes.

    They are those of a checkpoint. Old checkpoints lack them, and then the data are opened.
    """
    state = checkpoint.newest_state(folder / "checkpoints") or {}
    if "shape" in state and "classes" in state:
        return tuple(state["shape"]), state["classes"]
    dataset = run.data.load()
    return dataset.shape, dataset.classes
