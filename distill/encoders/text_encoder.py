"""The text encoder of a diffusers pipeline."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.pipeline_folder import INDEX, file_hash, load_stock_pipeline, read_json
from distill.quiet import quiet_libraries

PARTS = ("text_encoder", "tokenizer")  # the beginnings of the names of the parts that encode prompts
SETTINGS = ("_class_name", "force_zeros_for_empty_prompt")
"""The keys of model_index.json beside the parts that change what `encode_prompt` of a pipeline returns."""


class PromptEncoding(Protocol):
    """The part of a family of pipelines (distill.teachers.families) that a text encoder needs."""

    text: Any

    def encode(self, pipe: Any, prompts: list[str]) -> Mapping[str, Tensor]: ...

    def encode_null(self, pipe: Any) -> Mapping[str, Tensor]: ...


class PipelineTextEncoder:
    """An encoder of prompts to text conditions, by the `encode_prompt` of a diffusers pipeline.

    The tokenizers and text encoders are loaded at the first use, in float32, on the attribute `device`.

    Args:
        folder: The folder of the pipeline.
        family: The pipeline's family, which calls `encode_prompt`.

    Raises:
        UserError: Pipelines of this family take no prompts.
    """

    def __init__(self, folder: str | Path, family: PromptEncoding) -> None:
        self.folder, self.family = Path(folder), family
        self.device: torch.device | str = "cpu"
        if not family.text:
            raise UserError(f"teacher: '{folder}': a {getattr(family, '__name__', family)} takes no prompts")
        self._pipe: Any = None

    @property
    def identity(self) -> str:
        """A SHA-256 of the files of the text encoders and tokenizers, and of what the index says about them."""
        index = read_json(self.folder / INDEX)
        said = {key: value for key, value in index.items() if key.startswith(PARTS) or key in SETTINGS}
        parts = [place for place in sorted(self.folder.iterdir()) if place.name.startswith(PARTS)]
        files = file_hash([file for place in parts for file in sorted(place.rglob("*"))])
        return hashlib.sha256(f"{json.dumps(said, sort_keys=True)} {files}".encode()).hexdigest()

    @torch.no_grad()
    @quiet_libraries()
    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the conditions [N, ...] of N prompts, on the CPU."""
        return {name: value.cpu() for name, value in self.family.encode(self._load(), prompts).items()}

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
            self._pipe = load_stock_pipeline(self.folder, **unused, dtype=torch.float32).to(self.device)
        return self._pipe
