"""The weights of a generator as safetensors, with everything that this package needs to load it again.

The folder is a teacher's folder (distill/teachers/folder.py) with one more file, `generator.json`, which holds the time
and the input scale of the generator. The weights of EDM's and EDM2's networks have their published names, so that the
authors' own classes load them.
"""

import json
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import cast

from pydantic import with_config
from typing_extensions import TypedDict

from distill.conditions import Condition
from distill.errors import UserError
from distill.export.format import BATCH, Format, Reader, Source, constants
from distill.export.snippets import call, conditions, finish, noise
from distill.generator import Generator
from distill.quiet import quiet_libraries
from distill.records import STRICT, Positive, read_record
from distill.teachers import denoiser_files, load_denoiser, save_denoiser
from distill.teachers.edm import PublishedNetwork
from distill.teachers.families import LatentFamily
from distill.teachers.own import OwnNet
from distill.user_code import naming

GENERATOR_FILE = "generator.json"


@with_config(STRICT)
class GeneratorRecord(TypedDict):
    """The content of generator.json: the time and the input scale."""

    t: float
    scale: Positive


def safetensors_format(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """Return the format of a folder for load_generator.

    Args:
        generator: A generator whose denoiser can be saved.
        cond: Conditions [8, ...] to compare samples under.
        teacher: The teacher's folder, from which the configs of a pipeline are copied. The file of the network's class
            may lie in it.
    """
    network = generator.denoiser.network

    def write(folder: Path) -> None:
        if isinstance(network, LatentFamily):
            _save_family(network, teacher, folder)
        else:
            save_denoiser(generator.denoiser, folder)
        settings = {"t": generator.t, "scale": generator.scale}
        (folder / GENERATOR_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    def snippet(source: Source) -> str:
        if network.own_class is not None:
            return _own_snippet(generator, cond, source)
        load = f"import torch\nfrom distill import load_generator\n{source.folder}generator = load_generator(folder)\n"
        return load + call(generator, cond)

    own = "torch, safetensors and the file of the network's class"
    needs = "the package `distill-onestep`" if network.own_class is None else own
    loading = f"It needs {needs}. For distill-onestep the folder is a teacher too.{_authors(generator)}"
    return Format(cond=cond, write=write, read=partial(_read, teacher), snippet=snippet, loading=loading)


def load_generator(folder: str | Path, trust_code: bool | Collection[str] = False) -> Generator:
    """Load a generator that `distill export --format safetensors` wrote.

    Args:
        folder: The exported folder.
        trust_code: Whether the code that the folder names may run, or the SHA-256 of the files that may.

    Returns:
        The generator, in float32 and eval mode.

    Raises:
        UserError: The folder is missing or damaged, it holds no generator, or it names code that may not run.
    """
    denoiser = load_denoiser(folder, trust_code=trust_code)
    try:
        settings = read_record(Path(folder) / GENERATOR_FILE, GeneratorRecord)
    except FileNotFoundError as error:
        raise UserError(f"'{folder}' is no generator's: it has no {GENERATOR_FILE}") from error
    return Generator(denoiser, settings["t"], settings["scale"]).eval()


@quiet_libraries()
def _save_family(network: LatentFamily, teacher: Path | None, folder: Path) -> None:
    """Write the network and the configs that load_pipeline reads, without text encoders and the autoencoder."""
    if teacher is None:
        raise UserError(f"export: a {type(network).__name__} needs its teacher's folder for its configs")
    files = [*denoiser_files(teacher), teacher / "vae" / "config.json"]
    for file in (file for file in files if file.suffix == ".json"):
        copy = folder / file.relative_to(teacher)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    network.model.save_pretrained(folder / network.part)


def _read(teacher: Path | None, folder: Path) -> Reader:
    """Return a reader that loads the folder with load_generator."""
    with naming(None, folder if teacher is None else teacher):  # no export holds the file of the user's own class
        generator = load_generator(folder)
    return lambda given: generator(given.noise, given.cond)


def _own_snippet(generator: Generator, cond: Condition, place: Source) -> str:
    """Return the Python lines that construct the user's own class, load its weights, and make samples."""
    network = cast(OwnNet, generator.denoiser.network)
    source, _, name = network.name.rpartition(":")
    imported, kind = f"from {source} import {name}", name
    if source.endswith(".py"):
        imported, kind = "from runpy import run_path", f'run_path("{Path(source).name}")["{name}"]'
    c, labels = constants(generator), ", labels" if cond else ""
    return (
        f"import torch\nfrom safetensors.torch import load_file\n{imported}\n{place.folder}"
        f"network = {kind}(**{network.settings}).eval()\n"
        f'network.load_state_dict(load_file(f"{{folder}}/network.safetensors"))\n'
        f"{noise(generator, 'torch')}{''.join(f'{k} = {v}' for k, v in conditions(generator, cond, 'torch').items())}\n"
        f"x_t, time = {c['scale']} * noise, torch.full(({BATCH},), {c['timestep']})\n"
        f"with torch.no_grad():\n    output = network({c['input_scale']} * x_t, time{labels})\n"
        f"samples = {c['from_x_t']} * x_t + {c['from_output']} * output\n{finish(generator, 'clamp')}"
    )


def _authors(generator: Generator) -> str:
    """Return the card's paragraph on loading the weights with the authors' own code, if there is any."""
    network = generator.denoiser.network
    if network.authors_class is None:
        return ""
    labels = f"torch.eye({network.classes})[labels]" if network.classes else "None"
    arguments = json.dumps({**cast(PublishedNetwork, network).settings, "sigma_data": generator.denoiser.sigma_data})
    return f"""

`network.safetensors` is also the state dict of `{network.authors_class}` of the authors' code, constructed with

```json
{arguments}
```

and one call of it makes samples:

```py
network.load_state_dict(safetensors.torch.load_file("network.safetensors"))
x = network({generator.scale:g} * torch.randn(8, *{network.shape}), torch.tensor({generator.t:g}), {labels})
```
"""
