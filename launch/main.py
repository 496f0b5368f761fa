"""The `distill` command.

Commands import what they need when they are called, so that `distill --help` does not wait for torch.
"""

import os
import sys
import traceback

import typer

from distill.errors import UserError
from launch.commands import (
    cache,
    classifier,
    doctor,
    ema,
    evaluate,
    export,
    import_,
    pairs,
    plan,
    quickstart,
    recipes,
    sample,
    train,
    try_,
)
from launch.processes import EXIT_STOPPED, EXIT_USER_ERROR, follow_launcher, leave
from trainers.engine.stopping import STOP, Stopped

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
app.command()(plan.plan)
app.command()(train.train)
app.command("try")(try_.try_)
app.command()(train.resume)
app.command()(ema.ema)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(doctor.doctor)
app.add_typer(import_.import_app, name="import")


def main() -> None:
    """Run the command and end with its exit code (docs/cluster.md).

    A mistake of the user's is one line on stderr; --debug shows a traceback as well.
    """
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.path.append(os.getcwd())  # a recipe may name the user's own my_module:MyObjective
    try:
        with STOP.listening():
            try:
                follow_launcher()
                app(args=arguments, prog_name="distill")
            except Stopped as stopped:  # within the context, where another signal changes nothing
                if os.environ.get("RANK", "0") == "0":
                    print_error(stopped)
                leave(EXIT_STOPPED)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print_error(error)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:  # a folder that cannot be written, a full disk
        if debug:
            raise
        print_error(error, " (--debug shows where)")
        sys.exit(1)
    except RuntimeError as error:
        from trainers.engine.collectives import LOST_PROCESS, is_lost_process

        if debug or "WORLD_SIZE" not in os.environ or not is_lost_process(error):
            raise
        print_error(f"{LOST_PROCESS}, its output says why; `distill resume` goes on")
        leave(1)


def print_error(error: object, more: str = "") -> None:
    """Print an error in one line, unless another process has printed it."""
    if not getattr(error, "already_printed", False):
        print(f"distill: {error}{more}", file=sys.stderr)


if __name__ == "__main__":
    main()
