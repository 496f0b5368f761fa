"""A one-step generator of EDM's or EDM2's network as its state dict, for the authors' code and as a teacher folder."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from distill.errors import UserError
from distill.export.card import BATCH, CardFacts, cycle
from distill.export.pipeline import SEED, TOLERANCE, float32, refuse_foreign, replace, write_check
from distill.generator import Generator
from distill.teachers import EDM2Net, EDMNet, load_denoiser, save_denoiser


def export_state_dict(generator: Generator, folder: Path, card: CardFacts) -> float:
    """Write `generator` to `folder`: `network.safetensors` under the names of the published checkpoints, float32.

    Returns the largest absolute difference between the samples of the folder, read back, and the generator's, over 8
    samples in float32 on the CPU. Raises UserError, leaving `folder` as it was, when it exceeds 1e-4, when the network
    is another's, and when `folder` holds something else than an export, which it would replace.
    """
    folder = Path(folder).resolve()
    refuse_foreign(folder)
    if not isinstance(generator.denoiser.network, EDMNet | EDM2Net):
        kind = type(generator.denoiser.network).__name__
        raise UserError(f"export: --state-dict is for the networks of EDM and EDM2, got {kind}; leave it out")
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
    assert isinstance(network, EDMNet | EDM2Net)
    labels = cycle(network.classes)
    z = torch.randn(BATCH, *network.shape, generator=torch.Generator().manual_seed(SEED))
    x: torch.Tensor = generator(z, None if labels is None else torch.tensor(labels))
    return x


def _render(generator: Generator, card: CardFacts) -> str:
    network = generator.denoiser.network
    assert isinstance(network, EDMNet | EDM2Net)
    name = "EDMPrecond" if isinstance(network, EDMNet) else "Precond"
    labels = f"torch.eye({network.classes})[labels]" if network.classes else "None"
    arguments = {**network.settings, "sigma_data": generator.denoiser.sigma_data}
    return f"""# {card.name}

A one-step generator. `network.safetensors` is the state dict of `{name}` of the authors' code, constructed with

```json
{json.dumps(arguments)}
```

and one call of it makes samples of shape {network.shape}:

```python
network.load_state_dict(safetensors.torch.load_file("network.safetensors"))
x = network({generator.scale:g} * torch.randn(8, *{network.shape}), torch.tensor({generator.t:g}), {labels})
```

The folder is also a teacher folder of distill-onestep (`denoiser.json`).

Teacher: `{card.teacher}`, SHA-256 `{card.teacher_sha256}`. Trained on {card.images:,} generated samples with

```yaml
{yaml.safe_dump(dict(card.objective), sort_keys=False).strip()}
```
"""
