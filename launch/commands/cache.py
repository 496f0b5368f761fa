"""distill cache: the embeddings and latents of a run, computed in advance."""

from launch.options import Overrides, Recipe, resolve_recipe


def cache(recipe: Recipe, overrides: Overrides = None) -> None:
    """Compute the embeddings and latents of a recipe, which `train` would do otherwise.

    Several calls at the same time divide the work.
    """
    from dataclasses import replace

    from trainers.io.console import plain
    from trainers.recipe.measures import Evaluation
    from trainers.runs.open import encode_data, open_run

    run = replace(resolve_recipe(recipe, overrides), evaluation=Evaluation())  # what it needs may come later
    opened = open_run(run, 1)
    ready = encode_data(opened)
    prompts = len(set(opened.source.prompts or ()))
    latents = ready.count if ready.read and opened.teacher is not None and opened.teacher.latents else 0
    plain().print(f"{prompts:,} prompts and {latents:,} latents in {run.cache}")
