"""distill classifier: a classifier for evaluations and rewards."""

from launch.options import Folder, Overrides, Recipe


def classifier(recipe: Recipe, overrides: Overrides = None, folder: Folder = None) -> None:
    """Train a small classifier of labelled images. The key `evaluation.classifier` of a recipe names its folder."""
    from trainers.io.console import plain
    from trainers.runs.classifier import resolve_classifier, write_classifier

    run, console = resolve_classifier(recipe, overrides or []), plain(stderr=True)

    def report(images: int, accuracy: float) -> None:
        console.print(f"{run.name}: {images:,} of {run.images:,} images, {accuracy:.2%} right of those held out")

    trained, written = write_classifier(run, folder, report)
    console.print(f"classifier-{trained.hash}, {trained.accuracy:.2%} right of those held out: {written}")
