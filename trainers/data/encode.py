"""The encoding of a data set for a teacher: prompts become embeddings, images become latents.

A data set is encoded once. Later runs read it from the cache and load no encoder.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.encoders.protocols import Encoder, TextEncoder
from distill.errors import UserError, require
from trainers.data import Dataset
from trainers.data.buckets import Buckets
from trainers.data.cache import Cache, Make
from trainers.data.dataset import values_hash
from trainers.data.in_loop import InLoop
from trainers.data.shards import Table, trim
from trainers.io.console import plain

SHARD_BYTES = 2**27  # about the bytes of a shard, which is what a kill loses
ITEMS_AT_ONCE = 32  # the items of one call of an encoder
FIRST = torch.zeros(1, dtype=torch.int64)


@dataclasses.dataclass(frozen=True)
class DatasetEncoder:
    """The encoders of a data set and their cache.

    Attributes:
        cache: The folder of the cache.
        device: The device of the encoders.
        negative_prompt: The prompt whose embedding is the null condition. None for the encoder's own.
        quiet: Whether to print no progress.
        ahead: Whether prompts are encoded here, into the cache. Otherwise each is encoded where it is asked for.
        precision: The dtype of embeddings in the cache, or that of the text encoder where there is no cache of them.
        text_device: The device of the text encoder. None for `device`.
        trim: Whether embeddings of padding tokens are left out of the cache, where the teacher takes a mask.
    """

    cache: str
    device: torch.device
    negative_prompt: str | None = None
    quiet: bool = False
    ahead: bool = True
    precision: torch.dtype = torch.float32
    text_device: torch.device | None = None
    trim: bool = False

    @classmethod
    def of(cls, run: Any, device: torch.device, quiet: bool = False) -> Self:
        """Return the encoders of the data of a run: an Experiment, with its keys `cache` and `embeddings`."""
        settings = run.embeddings
        place = None if settings.device is None else torch.device(settings.device)
        precision = getattr(torch, settings.precision)
        return cls(run.cache, device, run.negative_prompt, quiet, settings.ahead, precision, place, settings.trim)

    def encode(self, dataset: Dataset, teacher: Denoiser, real: bool) -> Dataset:
        """Return a data set as a teacher takes it: prompts as embeddings, images as latents. Ranks divide the work.

        For a teacher of prompts this sets `teacher.network.null`, the null condition.

        Args:
            dataset: A data set that fits the teacher (`check_fit`).
            teacher: The teacher.
            real: Whether real samples are needed. Otherwise no images are encoded, and the result has none.

        Raises:
            UserError: An encoder is missing, or its latents do not fit the teacher.
        """
        if dataset.prompts is not None:
            dataset = self._embedded(dataset, dataset.prompts, teacher)
        if not isinstance(dataset, Buckets):
            return self._samples(dataset, teacher, real, teacher.network.shape)
        shapes = [teacher.network.shape_at(*part.shape[1:]) for part in dataset.parts]
        parts = [self._samples(part, teacher, real, shape) for part, shape in zip(dataset.parts, shapes, strict=True)]
        return dataclasses.replace(dataset, shape=teacher.network.shape).with_parts(parts)

    def _samples(self, dataset: Dataset, teacher: Denoiser, real: bool, shape: tuple[int, ...]) -> Dataset:
        """Return a data set with the samples that a teacher takes, of this shape."""
        if teacher.latents and dataset.read is not None:
            dataset = self._latents(dataset, teacher, shape) if real else dataclasses.replace(dataset, read=None)
        return dataclasses.replace(dataset, shape=shape)

    def _embedded(self, dataset: Dataset, prompts: Sequence[str], teacher: Denoiser) -> Dataset:
        """Return the data set with the embeddings of its prompts. In a table, equal prompts are encoded once."""
        encoder, negative = teacher.network.text_encoder, self.negative_prompt
        assert encoder is not None, "check_fit comes first"
        encoder.device = self.text_device or self.device
        if not self.ahead:
            return self._in_loop(dataset, prompts, teacher, encoder)
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        distinct, where = list(numbers), torch.tensor([numbers[prompt] for prompt in prompts])

        def encode(first: int, last: int) -> Mapping[str, Tensor]:
            return encoder.encode(distinct[first:last])

        def encode_null(first: int, last: int) -> Mapping[str, Tensor]:
            return encoder.encode_null() if negative is None else encoder.encode([negative])

        try:
            table = self._tables("text", encoder, self.precision)
            null = table(values_hash(["null", negative]), 1, 1, encode_null).rows(FIRST)
            cut = getattr(encoder, "cut", 0)  # an encoder of the user's own need not count
            full = null if self.trim and "mask" in null else None
            embeddings = table(values_hash(distinct), len(distinct), _shard_length(null), encode, full)
            if cut := getattr(encoder, "cut", 0) - cut:
                longer = f"text: {cut:,} of {len(distinct):,} prompts are longer than the {encoder.longest} tokens"  # type: ignore[attr-defined]
                plain(stderr=True, quiet=self.quiet).print(f"{longer} that the teacher reads; their ends are left out")
            embeddings.check_like(null)
        finally:
            encoder.free()
        teacher.network.null = Condition(null).map(lambda value: value[0].to(self.device))
        return dataclasses.replace(dataset, embed=lambda positions: embeddings.rows(where[positions]))

    def _in_loop(self, dataset: Dataset, prompts: Sequence[str], teacher: Denoiser, encoder: TextEncoder) -> Dataset:
        """Return the data set with embeddings that are made when they are asked for. The encoder stays in memory."""
        if self.precision != torch.float32:
            encoder.precision = self.precision  # type: ignore[attr-defined]  # of a pipeline's text encoder
        negative = self.negative_prompt

        @torch.no_grad()
        def encode(texts: list[str]) -> dict[str, Tensor]:
            return {name: _checked("text", name, value.cpu()) for name, value in encoder.encode(texts).items()}

        null = encoder.encode_null() if negative is None else encode([negative])
        forms = [{name: tuple(value.shape[1:]) for name, value in one.items()} for one in (encode([prompts[0]]), null)]
        require(forms[0] == forms[1], f"text: a prompt is encoded as {forms[0]}, and the null condition as {forms[1]}")
        teacher.network.null = Condition(null).map(lambda value: value[0].to(self.device))
        return dataclasses.replace(dataset, embed=InLoop(encode, prompts, torch.device(encoder.device)))

    def _latents(self, dataset: Dataset, teacher: Denoiser, shape: tuple[int, ...]) -> Dataset:
        """Return the data set with latents of this shape in place of pixels."""
        encoder = teacher.network.autoencoder
        if encoder is None:
            raise UserError(f"data: {dataset.name} holds pixels, the teacher's samples are latents and have no encoder")
        content = dataset.pixels_hash()

        def encode(first: int, last: int) -> dict[str, Tensor]:
            mean, std = encoder.encode(dataset.images(torch.arange(first, last)).to(self.device))
            return {"mean": mean, "std": std}

        try:
            table = self._tables("latents", encoder)
            row = table(content, 1, 1, encode).rows(FIRST)  # one image first: its shape is checked before all others
            if (given := tuple(row["mean"].shape[1:])) != shape:
                raise UserError(
                    f"data: images {list(dataset.shape)} of {dataset.name} make latents {list(given)},"
                    f" the teacher's samples are {list(shape)}"
                )
            latents = table(content, dataset.count, _shard_length(row), encode)
            latents.check_like(row)
        finally:
            encoder.free()

        def column(name: str) -> Callable[[Tensor], Tensor]:
            return lambda positions: latents.rows(positions, name)[name].float()

        return dataclasses.replace(dataset, read=column("mean"), spread=column("std"), on_demand=False)

    def _tables(self, what: str, encoder: Encoder, precision: torch.dtype = torch.float32) -> Callable[..., Table]:
        """Return a function that makes a table of: the hash of the items, their count, the length of a shard, a `Make`.

        A fifth argument is one row in full. The rows of the table are then trimmed.
        """
        cache = Cache(Path(self.cache).expanduser(), plain(stderr=True, quiet=self.quiet))
        identity = encoder.identity  # computed here, once, since it hashes all files of the encoder

        def table(
            content: str, count: int, length: int, encode: Make, full: Mapping[str, Tensor] | None = None
        ) -> Table:
            @torch.no_grad()
            def make(first: int, last: int) -> dict[str, Tensor]:
                parts = [encode(at, min(at + ITEMS_AT_ONCE, last)) for at in range(first, last, ITEMS_AT_ONCE)]
                rows = {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}
                rows = {key: _checked(what, key, _stored(value, precision)) for key, value in rows.items()}
                return rows if full is None else trim(rows)

            origin = {"encoder": identity, "content": content, "at_once": ITEMS_AT_ONCE}
            if precision != torch.float32:
                origin["precision"] = str(precision)
            if full is not None:
                origin["trimmed"] = True
            return cache.table(what, origin, count, length, make, full)

        return table


def _stored(value: Tensor, precision: torch.dtype) -> Tensor:
    """Return `value` in the precision of a table if it is float32. Masks stay as they are."""
    return value.to(precision) if value.dtype == torch.float32 else value


def _checked(what: str, name: str, value: Tensor) -> Tensor:
    """Return `value`. Raise UserError if it is not finite: an encoder in half precision may overflow."""
    if value.is_floating_point() and not value.isfinite().all():
        raise UserError(f"{what}: the encoder gives a '{name}' that is not finite in {str(value.dtype)[6:]}")
    return value


def _shard_length(row: Mapping[str, Tensor]) -> int:
    """Return the number of rows of a shard, given one row."""
    return max(1, SHARD_BYTES // sum(value.nbytes for value in row.values()))
