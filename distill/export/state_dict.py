"""A one-step generator as the state dict of EDM's, EDM2's or the user's own network, and as a teacher folder."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from distill.errors import UserError
from distill.export.card import BATCH, CardFacts, cycle
from distill.export.pipeline import SEED, TOLERANCE, _settings, float32, refuse_foreign, replace, write_check
from distill.generator import Generator
from distill.teachers import EDM2Net, EDMNet, OwnNet, load_denoiser, save_denoiser


def export_state_dict(generator: Generator, folder: Path, card: CardFacts) -> float:
    """Write `generator` to `folder`: `network.safetensors` under the names that its own class has, float32.

    Returns the largest absolute difference between the samples of the folder, read back, and the generator's, over 8
    samples in float32 on the CPU. Raises UserError, leaving `folder` as it was, when it exceeds 1e-4, when the network
    is another's, and when `folder` holds something else than an export, which it would replace.
    """
    folder = Path(folder).resolve()
    refuse_foreign(folder)
    if not isinstance(generator.denoiser.network, EDMNet | EDM2Net | OwnNet):
        kind = type(generator.denoiser.network).__name__
        raise UserError(f"export: --state-dict is for networks that diffusers lacks, got {kind}; leave it out")
    generator = float32(generator)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        staged = Path(work) / folder.name
        save_denoiser(generator.denoiser, staged)
        (staged / "README.md").write_text(_render(generator, card), "utf-8")
        loaded = Generator(load_denoiser(staged), generator.t, generator.scale)
        difference = float((_sample(loaded) - _sample(generator)).abs().max())
        if not difference <= TOLERANCE:  # nor when it is not a number
            raise UserError(f"export: the samples differ from the generator's by {difference:.3g}; nothing was written")
        write_check(staged, difference)
        replace(folder, staged, Path(work) / "old")
    return difference


@torch.no_grad()
def _sample(generator: Generator) -> torch.Tensor:
    network = generator.denoiser.network
    assert isinstance(network, EDMNet | EDM2Net | OwnNet)
    labels = cycle(network.classes)
    z = torch.randn(BATCH, *network.shape, generator=torch.Generator().manual_seed(SEED))
    x: torch.Tensor = generator(z, None if labels is None else torch.tensor(labels))
    return x


def _usage(generator: Generator) -> str:
    network = generator.denoiser.network
    if isinstance(network, OwnNet):
        return _own_usage(generator, network)
    assert isinstance(network, EDMNet | EDM2Net)
    name = "EDMPrecond" if isinstance(network, EDMNet) else "Precond"
    labels = f"torch.eye({network.classes})[labels]" if network.classes else "None"
    arguments = {**network.settings, "sigma_data": generator.denoiser.sigma_data}
    return f"""`network.safetensors` is the state dict of `{name}` of the authors' code, constructed with

```json
{json.dumps(arguments)}
```

and one call of it makes samples of shape {network.shape}:

```python
network.load_state_dict(safetensors.torch.load_file("network.safetensors"))
x = network({generator.scale:g} * torch.randn(8, *{network.shape}), torch.tensor({generator.t:g}), {labels})
```"""


def _own_usage(generator: Generator, network: OwnNet) -> str:
    source, _, name = network.name.partition(":")
    numbers, labels = _settings(generator), cycle(network.classes)
    given = "" if labels is None else f", torch.tensor({labels})"
    return f"""`network.safetensors` is the state dict of `{network.name}`, and one call of it makes samples:

```python
import torch
from safetensors.torch import load_file
from {source} import {name}

network = {name}(**{network.settings}).eval()
network.load_state_dict(load_file("network.safetensors"))
x_t = {numbers["scale"]} * torch.randn({BATCH}, *{network.shape})
with torch.no_grad():
    output = network({numbers["input_scale"]} * x_t, torch.full(({BATCH},), {numbers["timestep"]}){given})
x = {numbers["from_x_t"]} * x_t + {numbers["from_output"]} * output
```"""


def _render(generator: Generator, card: CardFacts) -> str:
    return f"""# {card.name}

A one-step generator. {_usage(generator)}

The folder is also a teacher folder of distill-onestep (`denoiser.json`).

Teacher: `{card.teacher}`, SHA-256 `{card.teacher_sha256}`. Trained on {card.images:,} generated samples with

```yaml
{yaml.safe_dump(dict(card.objective), sort_keys=False).strip()}
```
"""
