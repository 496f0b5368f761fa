"""distill export: the trained generator in a format that other software loads."""

from pathlib import Path
from typing import Annotated

import typer

from distill.errors import UserError
from launch.options import Moved, Which


def export(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    out: Annotated[
        Path | None, typer.Argument(help="The export's folder. Default: FOLDER/export, or FOLDER/export-FORMAT.")
    ] = None,
    moved: Moved = None,
    format: Annotated[str, typer.Option(help="diffusers, safetensors, lora, onnx or torch-export.")] = "diffusers",
    which: Which = "last",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Upload the export to the Hugging Face hub under this id.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="The licence of the weights, as the hub names it, such as apache-2.0.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt of the sample pictures; give several. Default: four of ours.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the model on the hub private.")] = False,
) -> None:
    """Write the averaged generator in a format that other software loads, and compare its samples with ours."""
    from distill.export import check_format, check_license, check_push, push
    from trainers.io.console import plain
    from trainers.recipe.changes import PLACES
    from trainers.recipe.strict_yaml import override
    from trainers.runs.export import export_folder
    from trainers.runs.load import load_trained

    check_format(format)
    check_license(license)
    if push_to_hub is not None:
        check_push(push_to_hub)
    elif private:
        raise UserError("--private: is about a model on the hub; give --push-to-hub REPO_ID too")
    if out is not None and str(out).partition("=")[0] in PLACES:  # the export's folder was left out
        moved, out = [str(out), *(moved or [])], None
    out = out or export_folder(folder, format)
    trained = load_trained(folder, which, merged=format != "lora", changes=override({}, moved or []))
    difference = trained.export(out, format, push_to_hub, license, prompt or ())
    plain().print(
        f"exported to {out} after {trained.images:,} images; largest difference from our samples: {difference:.1e}"
    )
    if push_to_hub is not None:
        plain().print(f"pushed to {push(out, push_to_hub, private)}")
