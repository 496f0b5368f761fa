"""CLIP's text encoder, tiny, with random weights: built and saved without a network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_clip(folder: Path) -> None:
    """Write a tokenizer of bytes and a text model of two layers."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=24)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    CLIPTextModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Clip:
    """The encoder of a folder of `write_clip`: `prompt` [N, 24, 32] is the last hidden state."""

    def __init__(self, folder: Path) -> None:
        files = sorted(file for file in folder.iterdir() if file.is_file())
        self.identity = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self.folder, self.device, self.model = folder, torch.device("cpu"), None

    @property
    def loaded(self) -> bool:
        return self.model is not None

    def encode(self, prompts: list[str], /) -> dict[str, Tensor]:
        from transformers import CLIPTextModel, CLIPTokenizer

        if self.model is None:
            self.model: Any = CLIPTextModel.from_pretrained(self.folder).to(self.device).eval()
        tokens = CLIPTokenizer.from_pretrained(self.folder)(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        )
        return {"prompt": self.model(tokens.input_ids.to(self.device)).last_hidden_state}

    def encode_null(self) -> dict[str, Tensor]:
        return self.encode([""])

    def free(self) -> None:
        self.model = None
