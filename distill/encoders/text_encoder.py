"""The text encoder of a diffusers pipeline."""

import hashlib
import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.pipeline_folder import INDEX, class_name, file_hash, load_stock_pipeline, meta_text_encoder, read_json
from distill.quiet import quiet_libraries

PARTS = ("text_encoder", "tokenizer")  # the beginnings of the names of the parts that encode prompts
INDEX_KEYS = ("_class_name", "force_zeros_for_empty_prompt")
"""The keys of model_index.json beside the parts that change what `encode_prompt` of a pipeline returns."""


class PromptEncoding(Protocol):
    """The part of a family of pipelines (distill.teachers.families) that a text encoder needs."""

    text: Any

    def encode(self, pipe: Any, prompts: list[str]) -> Mapping[str, Tensor]: ...

    def encode_null(self, pipe: Any) -> Mapping[str, Tensor]: ...


class PipelineTextEncoder:
    """An encoder of prompts to text conditions, by the `encode_prompt` of a diffusers pipeline.

    The tokenizers and text encoders are loaded at the first use, in `precision`, on `device`.

    Args:
        folder: The folder of the pipeline.
        family: The pipeline's family, which calls `encode_prompt`.

    Attributes:
        device: The device of the text encoders, "cpu" at first.
        precision: The dtype of the text encoders, float32 at first.
        longest: The number of tokens of a prompt that are read, at most. It is 0 before the first use.
        cut: The number of prompts so far that are longer, so that no text encoder reads their ends.

    Raises:
        UserError: Pipelines of this family take no prompts.
    """

    def __init__(self, folder: str | Path, family: PromptEncoding) -> None:
        self.folder, self.family = Path(folder), family
        self.device: torch.device | str = "cpu"
        self.precision = torch.float32
        if not family.text:
            raise UserError(f"teacher: '{folder}': a {getattr(family, '__name__', family)} takes no prompts")
        self.longest = self.cut = 0
        self._pipe: Any = None

    @property
    def identity(self) -> str:
        """A SHA-256 of the files of the text encoders and tokenizers, and of what the index says about them."""
        index = read_json(self.folder / INDEX)
        said = {key: value for key, value in index.items() if key.startswith(PARTS) or key in INDEX_KEYS}
        parts = [place for place in sorted(self.folder.iterdir()) if place.name.startswith(PARTS)]
        files = file_hash([file for place in parts for file in sorted(place.rglob("*"))])
        return hashlib.sha256(f"{json.dumps(said, sort_keys=True)} {files}".encode()).hexdigest()

    @property
    @quiet_libraries()
    def parameter_count(self) -> int:
        """The number of parameters of the text encoders, by their configs.

        Raises:
            UserError: A config is missing, or it does not describe a model of transformers.
        """
        index, count = read_json(self.folder / INDEX), 0
        for name in (name for name in index if name.startswith(PARTS[0]) and class_name(index, name)):
            model = meta_text_encoder(self.folder / name, class_name(index, name))
            count += sum(parameter.numel() for parameter in model.parameters())
        return count

    @torch.no_grad()
    @quiet_libraries()
    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the conditions [N, ...] of N prompts, on the CPU."""
        pipe = self._load()
        self.longest, cut = _longest_and_cut(pipe, prompts)
        self.cut += cut
        return {name: value.cpu() for name, value in self.family.encode(pipe, prompts).items()}

    @torch.no_grad()
    @quiet_libraries()
    def encode_null(self) -> dict[str, Tensor]:
        """Return the condition [1, ...] that the pipeline's own guidance uses for no prompt, on the CPU."""
        return {name: value.cpu() for name, value in self.family.encode_null(self._load()).items()}

    def free(self) -> None:
        """Release the text encoders. The next use reads their files again."""
        self._pipe = None

    def _load(self) -> Any:
        """Return the pipeline with its tokenizers and text encoders alone."""
        if self._pipe is None:
            parts = [name for name, entry in read_json(self.folder / INDEX).items() if isinstance(entry, list)]
            unused = {name: None for name in parts if not name.startswith((*PARTS, "scheduler"))}
            self._pipe = load_stock_pipeline(self.folder, **unused, dtype=self.precision).to(self.device)
        return self._pipe


def _longest_and_cut(pipe: Any, prompts: list[str]) -> tuple[int, int]:
    """Return the number of tokens that the text encoders of a pipeline read at most, and the number of longer prompts.

    A CLIP reads as many tokens as it has positions. The others read as many as `encode_prompt` takes by default.
    """
    others = signature(pipe.encode_prompt).parameters.get("max_sequence_length")
    readers = [part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None]
    limits: list[int] = [
        one.model_max_length if others is None or "CLIP" in type(one).__name__ else others.default for one in readers
    ]
    lengths = [[len(tokens) for tokens in one(prompts)["input_ids"]] for one in readers]
    spare = [
        max(limit - length for limit, length in zip(limits, row, strict=True)) for row in zip(*lengths, strict=True)
    ]
    return max(limits), sum(left < 0 for left in spare)
