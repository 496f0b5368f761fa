"""Embeddings of prompts that are made while a run trains, in place of a table of all of them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class InLoop:
    """A function (positions [B]) -> the embeddings of their prompts, by name, which a text encoder makes then.

    The encoder works in a thread of its own, and on a GPU in a stream of its own, so that it encodes the prompts of the
    next batch (`prepare`) beside the training of this one. What is returned depends on the positions alone.

    Args:
        encode: (prompts) -> their embeddings [B, ...] by name, on the host.
        prompts: The prompt of each sample.
        device: The device of the encoder.
    """

    def __init__(
        self, encode: Callable[[list[str]], Mapping[str, Tensor]], prompts: Sequence[str], device: torch.device
    ) -> None:
        self.encode, self.prompts = encode, prompts
        self.thread = ThreadPoolExecutor(1, "text encoder")  # which also keeps evaluations out of its way
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.prepared: tuple[list[int], Future[Mapping[str, Tensor]]] | None = None

    def __call__(self, positions: Tensor) -> Mapping[str, Tensor]:
        """Return the embeddings [B, ...] of the prompts at `positions` [B], on the host."""
        self.prepare(positions)
        assert self.prepared is not None, "prepare sets it"
        try:
            return self.prepared[1].result()
        finally:
            self.prepared = None

    def prepare(self, positions: Tensor) -> None:
        """Begin to encode the prompts at `positions` [B], unless that has begun already."""
        wanted = positions.tolist()
        if self.prepared is None or self.prepared[0] != wanted:
            self.prepared = wanted, self.thread.submit(self._encode, wanted)

    def _encode(self, positions: list[int]) -> Mapping[str, Tensor]:
        with torch.cuda.stream(self.stream):  # None is the stream of the device, which there is not on a CPU
            return self.encode([self.prompts[position] for position in positions])
