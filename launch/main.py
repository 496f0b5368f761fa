"""The `distill` command."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from distill.errors import UserError
from launch import cache, classifier, ema, evaluate, export, import_, pairs, quickstart, recipes, sample, train, try_

EXIT_USER_ERROR = 2

app = typer.Typer(
    name="distill",
    help="Distil a diffusion or flow model into a one-step generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(quickstart.quickstart)
app.command()(recipes.recipes)
app.command()(classifier.classifier)
app.command()(train.teacher)
app.command()(pairs.pairs)
app.command()(cache.cache)
app.command()(train.train)
app.command("try")(try_.try_)
app.command()(train.resume)
app.command()(ema.ema)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.add_typer(import_.app, name="import")


def main() -> None:
    """Run the command; a mistake of the user is one line on stderr and exit code 2, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.path.append(os.getcwd())  # a recipe may name the user's own my_module:MyObjective
    try:
        app(args=arguments, prog_name="distill")
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"distill: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:  # a folder that cannot be written, a full disk
        if debug:
            raise
        print(f"distill: {error} (--debug shows where)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
