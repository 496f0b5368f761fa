"""Pictures of a finished distillation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import UserError
from trainers.data.labels import captions
from trainers.io import jsonl
from trainers.io.images import grid
from trainers.runs.draw import drawn_labels
from trainers.runs.load import Trained

CLASSES, SAMPLES_A_CLASS = 10, 5


def side_by_side(trained: Trained, file: Path) -> None:
    """Draw samples of the teacher (left) and of the student (right), on the same noise and labels.

    Each column has one class. The student takes one evaluation.
    """
    from PIL import Image, ImageDraw

    count = CLASSES * SAMPLES_A_CLASS
    names = captions(drawn_labels(trained, count).labels, trained.denoiser.network.class_names)
    teacher, student = (grid(trained.sample(count, teacher=t), CLASSES, captions=names) for t in (True, False))
    gap, head = 24, 24
    canvas = Image.new("L" if teacher.mode == "L" else "RGB", (2 * teacher.width + gap, teacher.height + head), "white")
    pen = ImageDraw.Draw(canvas)
    for left, picture, title in (
        (0, teacher, f"teacher, {trained.run.sampler.calls} evaluations"),
        (teacher.width + gap, student, f"student, 1 evaluation, after {trained.images:,} images"),
    ):
        canvas.paste(picture, (left, head))
        pen.text((left + 4, 6), title, fill="black")
    canvas.save(file)


def distance_curve(folder: Path, report: dict[str, Any], file: Path) -> None:
    """Plot the student's Frechet distance against the images of training, both on a logarithmic scale.

    Lines show the distance of the teacher, and the distance between two halves of the real images.

    Args:
        folder: The run folder.
        report: The content of evaluation.json.
        file: The picture to write.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws to files alone, without a display
    from matplotlib import pyplot as plt

    points = [(r["images"], r["frechet"]) for r in jsonl.read(folder / "metrics.jsonl")]
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.loglog(*zip(*points, strict=True), "o-", label="student, 1 evaluation")
    axes.axhline(
        report["teacher"]["frechet"], color="C1", label=f"teacher, {report.get('teacher_evaluations', 35)} evaluations"
    )
    if "halves" in report:
        axes.axhline(report["halves"], color="C2", linestyle="--", label="real halves against each other")
    axes.set_xlabel("images of generator training")
    axes.set_ylabel(f"Frechet distance, {report['protocol']}")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def distances(reports: Mapping[str, dict[str, Any]], file: Path) -> None:
    """Plot the Frechet distances of several runs, measured under one protocol, as bars. A line marks each teacher's.

    Args:
        reports: The contents of evaluation.json by the name of the run.
        file: The picture to write.

    Raises:
        UserError: They were measured under different protocols, or of different numbers of samples.
    """
    if len({(report["protocol"], report["samples"]) for report in reports.values()}) > 1:
        raise UserError("--plot: the folders were measured under different protocols, which do not compare")
    import matplotlib

    matplotlib.use("Agg")  # draws to files alone, without a display
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.4 * len(reports)), layout="constrained")
    for row, report in enumerate(reports.values()):
        model = "student" if "student" in report else "teacher"
        bar = axes.barh(row, report[model]["frechet"], color="C0" if model == "student" else "C1")
        axes.bar_label(bar, fmt="%.4g", padding=3)
        if "teacher" in report:
            teacher = report["teacher"]["frechet"]
            axes.plot([teacher, teacher], [row - 0.4, row + 0.4], color="C1", label="its teacher" if row == 0 else None)
    axes.set_yticks(range(len(reports)), list(reports))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    first = next(iter(reports.values()))
    axes.set_xlabel(f"Frechet distance, {first['protocol']}, {first['samples']:,} samples")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
