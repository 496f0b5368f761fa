"""The lines with which a run begins: the machine, the network, the data, and the folder of the checkpoints."""

from pathlib import Path

import torch

from trainers.data import Dataset
from trainers.data.buckets import Buckets
from trainers.data.labels import classes_in_words
from trainers.engine.session import Session


def banner(session: Session, folder: Path) -> list[str]:
    """Return two lines about a run that begins or resumes.

    Args:
        session: The run, built.
        folder: The run folder.
    """
    run, accelerator = session.run, session.accelerator
    name, player = next(iter(session.state.players.items()))  # the generator, or the teacher that trains
    total, trained = (sum(one.numel() for one in some) for some in (player.bare.parameters(), player.parameters))
    size = f"{total:,} parameters" + ("" if trained == total else f", of which {trained:,} train")
    device = accelerator.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    processes = accelerator.num_processes
    world = machine if processes == 1 else f"{processes} processes, each on {machine}"
    return [
        f"{run.name}: a {name} of {size} on {world}, in {run.precision}, batch {run.batch_size}",
        f"{run.name}: data {described(session.source)}; checkpoints in '{folder / 'checkpoints'}'",
    ]


def described(data: Dataset) -> str:
    """Return a data set in words: its name, its size, and its classes, by name if they are few."""
    kind = "prompts" if data.prompts is not None and data.read is None else "samples"
    parts = [] if data.read is None and data.prompts is None else [f"{data.count:,} {kind}"]  # else labels alone
    parts += [f"of {'x'.join(map(str, data.shape))}"] if data.shape else []
    parts += [f"in {len(data.parts)} buckets"] if isinstance(data, Buckets) else []
    words = f"{data.name}, {' '.join(parts)}" if parts else data.name
    if data.labels is None:
        return words
    return f"{words} in {classes_in_words(data.labels, data.class_names)}"
