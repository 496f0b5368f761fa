"""The `distill` command.

Commands import what they need when they are called, so that `distill --help` does not wait for torch.
"""

import os
import platform
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

import typer

from distill import __version__
from distill.errors import UserError
from distill.user_code import trusting
from launch.commands import (
    bench,
    cache,
    classifier,
    demo,
    doctor,
    ema,
    evaluate,
    export,
    floor,
    import_,
    init,
    keys,
    pairs,
    plan,
    probe,
    quickstart,
    recipes,
    reference,
    report,
    sample,
    train,
    try_,
    watch,
)
from launch.memory import keep_freed_memory
from launch.processes import EXIT_STOPPED, EXIT_USER_ERROR, exit_now, follow_launcher
from launch.trust import HELP, remembering, take_consent
from trainers.engine.stopping import STOP, Stopped

app = typer.Typer(
    name="distill",
    help="Distil a diffusion or flow model into a one-step generator.",
    epilog=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
LONGEST = 1_500  # characters of an error that is printed
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {  # the panels of `distill --help`
    "Begin": (
        demo.demo,
        quickstart.quickstart,
        recipes.recipes,
        keys.keys,
        init.init,
        doctor.doctor,
        plan.plan,
        try_.try_,
    ),
    "Teachers and data": (
        train.teacher,
        probe.probe,
        classifier.classifier,
        reference.reference,
        pairs.pairs,
        cache.cache,
    ),
    "Train": (train.train, train.resume),
    "Look at runs": (watch.watch, report.report, report.compare),
    "Use what was trained": (sample.sample, evaluate.evaluate, floor.floor, bench.bench, export.export, ema.ema),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.strip("_"), rich_help_panel=panel)(command)
app.add_typer(import_.import_app, name="import", rich_help_panel="Teachers and data")


def print_versions(wanted: bool) -> None:
    """Print the versions of this package, torch and Python, and exit, if that is wanted. torch is not imported."""
    if wanted:
        typer.echo(f"distill {__version__}, torch {version('torch')}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def options_without_command(
    versions: Annotated[
        bool,
        typer.Option("--version", help="Print the versions and exit.", callback=print_versions, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run a command, and exit with its exit code (docs/exit_codes.md).

    Mistakes of the user are printed to stderr, in one line each. With --debug a traceback comes first.
    """
    # onnxruntime, which diffusers imports where it is installed, otherwise reports file names and hashes to its maker,
    # and writes the id of this machine into the home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for `deterministic`, before the first call of cuBLAS
    keep_freed_memory()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        consent, remember, arguments = take_consent(arguments)
        with STOP.listening(), trusting(consent):
            try:
                with remembering(remember):  # closed before `exit_now`, which closes nothing
                    follow_launcher()
                    app(args=arguments, prog_name="distill")
            except Stopped as stopped:  # inside `listening`, so that a second SIGTERM changes nothing
                if os.environ.get("RANK", "0") == "0":
                    print_error(stopped)
                exit_now(EXIT_STOPPED)
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
        exit_now(1)


def print_error(error: object, more: str = "") -> None:
    """Print an error to stderr, unless the main process prints it. A long line loses its middle."""
    if not getattr(error, "already_printed", False):
        lines = f"{error}{more}".split("\n")  # of a recipe with several mistakes each has a line
        # A value or a path that the user gave may have any length.
        short = [line if len(line) <= LONGEST else f"{line[: LONGEST - 500]} ... {line[-490:]}" for line in lines]
        with suppress(BrokenPipeError):  # whoever read it is gone
            print("distill:", "\n".join(short), file=sys.stderr)


if __name__ == "__main__":
    main()
