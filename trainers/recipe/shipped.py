"""The shipped recipes, by name."""

from importlib.resources import files
from pathlib import Path

from distill.errors import UserError, options

RECIPES = Path(str(files("configs")))


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the shipped recipes, by name."""
    return {file.stem: file for file in sorted(RECIPES.rglob("*.yaml"), key=lambda file: file.stem)}


def find_recipe(recipe: str) -> Path:
    """Return the file of a recipe, given its path or the name of a shipped one.

    Raises:
        UserError: There is neither such a file nor such a shipped recipe.
    """
    if Path(recipe).is_file():
        return Path(recipe)
    names = shipped_recipes()
    if recipe not in names:
        shipped = options(names, recipe, "`distill recipes`")
        raise UserError(f"recipe: no file and no shipped recipe '{recipe}'; shipped: {shipped}")
    return names[recipe]
