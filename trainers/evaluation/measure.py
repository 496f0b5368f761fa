"""The evaluation of samples under a protocol, divided over the ranks."""

import math
from collections.abc import Callable
from functools import reduce

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.metrics import Protocol, Tally
from distill.random import Random
from trainers.data import Dataset, Prompts
from trainers.data.batches import condition_at, drawn_positions, texts_at, unit_noise
from trainers.data.encode import DatasetEncoder
from trainers.engine.sampler import Sampler
from trainers.engine.stopping import STOP
from trainers.recipe.measures import Evaluation

EVALUATED_AT_ONCE = 500  # samples, or fewer if they are large
PIXELS_AT_ONCE = 2**22


def evaluation_data(dataset: Dataset, settings: Evaluation, teacher: Denoiser, encoder: DatasetEncoder) -> Dataset:
    """Return the data whose conditions the samples of an evaluation have, encoded for the teacher.

    Args:
        dataset: The data as the teacher takes them.
        settings: The prompts of the evaluation, if it has some of its own.
        teacher: The teacher, whose encoder reads them.
        encoder: The cache of embeddings.
    """
    if settings.prompts is None:
        return dataset
    return encoder.encode(Prompts(settings.prompts).load(), teacher, real=False)


def sample_positions(dataset: Dataset, numbers: torch.Tensor, seed: int, in_order: bool = False) -> torch.Tensor:
    """Return the positions in the data of the conditions of samples, int64 [N] on the host.

    Args:
        dataset: The data as the teacher takes them.
        numbers: The numbers of the samples, int64 [N].
        seed: The seed of conditions.
        in_order: Whether sample n has the condition n, and so from the first again. Otherwise they are drawn at random.
    """
    if in_order:
        return numbers % dataset.count
    return drawn_positions(dataset, Random.at(seed, numbers).stream("evaluation"))


def draw_samples(
    sampler: Sampler,
    dataset: Dataset,
    numbers: torch.Tensor,
    seed: int,
    in_order: bool = False,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw samples, with the same noise and conditions for every model.

    Args:
        sampler: The sampler of the model.
        dataset: The data as the teacher takes them, for the shape of the noise and for the conditions.
        numbers: The numbers of the samples, int64 [N] on the host.
        seed: The seed of noise and conditions.
        in_order: Whether the conditions come in the order of the data.
        device: The device of the model. None for the host.

    Returns:
        Samples [N, C, *spatial] on the device, and their labels [N] on the CPU. The labels are None without classes.
    """
    noise = unit_noise(dataset.shape, Random.at(seed, numbers, device).stream("evaluation"))
    cond = condition_at(dataset, sample_positions(dataset, numbers, seed, in_order)).to(noise.device, noise.dtype)
    return sampler(noise, cond).float(), None if cond.labels is None else cond.labels.cpu()


class NotMeasured(UserError):
    """A refusal of the samples by the protocol. All ranks raise it or none, with the same message."""


def evaluate(
    sampler: Sampler,
    dataset: Dataset,
    protocol: Protocol,
    settings: Evaluation,
    seed: int,
    accelerator: Accelerator,
    shape: tuple[int, ...] | None = None,
    tell: Callable[[int], None] = lambda drawn: None,
) -> dict[str, float | int | str]:
    """Evaluate a model, and return the report of the protocol. Collective.

    The ranks divide the samples, and send each other sums: the numbers do not depend on their number but for rounding.

    Args:
        sampler: The sampler of the model, which returns images.
        dataset: The data as the teacher takes them.
        protocol: The protocol of the real images.
        settings: The number of samples, and how many are drawn at once.
        seed: The seed of noise and conditions.
        accelerator: Ranks, device and collectives.
        shape: (C, *spatial) of an image. None if it is that of the noise.
        tell: Is told the number of samples so far, over all ranks, after each batch.

    Raises:
        Stopped: The process was told to stop.
        NotMeasured: The protocol refuses the samples, such as those that are not finite.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    count, share = settings.count, -(-settings.count // world)
    chunk = settings.batch_size or _chunk(shape or dataset.shape)
    tally, refusal, in_order = None, None, settings.prompts is not None
    # Every rank draws as many samples, so that all reach the same polls and the same forwards of sharded networks. The
    # last ranks may draw a few too many, which do not count. A rank that refuses its samples draws on, too.
    for numbers in torch.arange(rank * share, (rank + 1) * share).split(chunk):
        STOP.poll()
        images, labels = draw_samples(sampler, dataset, numbers, seed, in_order, device)
        try:
            texts = texts_at(dataset, sample_positions(dataset, numbers, seed, in_order)) if dataset.prompts else ()
            part = protocol.tally(images, numbers, count, labels, texts)
            tally = part if tally is None else tally.merge(part)
        except UserError as error:
            refusal = refusal or str(error)
        tell(min(count, world * (int(numbers[-1]) + 1 - rank * share)))
    # Collective, so that no rank is left waiting by one that refuses its samples.
    if refusals := [one for one in gather_object([refusal]) if one is not None]:
        raise NotMeasured(refusals[0])
    assert tally is not None
    try:
        return protocol.report(_over_ranks(tally, accelerator))
    except UserError as error:
        raise NotMeasured(str(error)) from error


def _over_ranks(tally: Tally, accelerator: Accelerator) -> Tally:
    """Return the statistics of the samples of all ranks, the same on each. Collective."""
    if accelerator.num_processes == 1:
        return tally
    rows = {
        name: accelerator.gather(value[None].to(accelerator.device)).cpu()
        for name, value in sorted(tally.tensors().items())  # in the same order on every rank
    }
    parts = [{name: values[rank] for name, values in rows.items()} for rank in range(accelerator.num_processes)]
    return reduce(Tally.merge, map(Tally.of_tensors, parts))


def _chunk(shape: tuple[int, ...]) -> int:
    """Return the number of samples of this shape to draw at once."""
    return max(1, min(EVALUATED_AT_ONCE, PIXELS_AT_ONCE // math.prod(shape[1:])))
