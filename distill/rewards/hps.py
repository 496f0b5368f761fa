"""The Human Preference Score (Wu et al., arXiv:2306.09341), versions 2 and 2.1, as a reward."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from distill.annotations import LocalPath
from distill.errors import UserError, require
from distill.quiet import quiet_libraries
from distill.rewards.clip import ClipImages, ClipScore, ClipTexts
from distill.rewards.prepare import CLIP_MEAN, CLIP_STD, fit_inside
from distill.rewards.published_files import find_file, load_tokenizer, model_with, naming_file, read_state
from distill.rewards.text_score import TextReward

# open_clip's names of the parts of a CLIP -> transformers'. The former are those of class CLIP in
# hpsv2/src/open_clip/model.py of github.com/tgxs002/HPSv2. Names of a parameter follow a part's after a point.
_PARTS = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}  # transposed
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an open_clip CLIP under the names of transformers' CLIPModel.

    Args:
        state: The state dict of open_clip's class CLIP.

    Raises:
        UserError: A name is none of open_clip's.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if block := _BLOCK.fullmatch(name):
            found |= _layer(f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}.", block[3], value)
        elif name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = value.T.contiguous()
        elif name in _PARTS:
            found[_PARTS[name]] = value
        elif (part := name.rpartition("."))[0] in _PARTS:
            found[f"{_PARTS[part[0]]}.{part[2]}"] = value
        else:
            raise UserError(f"weights: '{name}' is no weight of an open_clip CLIP")
    return found


def _layer(prefix: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """Return a weight of one layer. That of the three projections of attention becomes three."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{part}_proj.{kind}": weight.contiguous() for part, weight in parts}
    part, _, kind = name.rpartition(".")
    if part not in _LAYER:
        raise UserError(f"weights: '{name}' is no weight of a layer of an open_clip CLIP")
    return {f"{prefix}{_LAYER[part]}.{kind}": value}


@dataclass(frozen=True, kw_only=True)
class HpsReward(TextReward):
    """HPSv2 or HPSv2.1: a CLIP ViT-H/14 that was trained on people's choices, as 100 times the cosine.

    The factor is that of the published tables (hpsv2/evaluation.py of github.com/tgxs002/HPSv2). `hpsv2.score` gives
    the cosine itself. The authors compute in half precision and round to it, and this class computes in float32.
    """

    weights: LocalPath = "xswu/HPSv2"  # the file of the weights, or the folder or hub id that holds HPS_v2.1_compressed
    clip: LocalPath = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the folder or hub id of the config and the tokenizer

    name: ClassVar[str] = "hps"

    def build(self) -> ClipScore:
        file = find_file(self.weights, "HPS_v2.1_compressed.pt", "reward.weights")
        state = read_state(file, "reward.weights")
        with naming_file("reward.clip", self.clip), quiet_libraries():
            from transformers import CLIPConfig, CLIPModel

            settings, _ = CLIPConfig.get_config_dict(self.clip)  # which is empty where there is none
            require(settings.get("model_type") == "clip", "expected the config.json of a CLIP")
            config = CLIPConfig.from_pretrained(self.clip)
        with naming_file("reward.weights", self.weights), quiet_libraries():
            model = model_with(CLIPModel, config, from_open_clip(state))
        images = ClipImages(model, CLIP_MEAN, CLIP_STD, fit_inside)
        return ClipScore(images, ClipTexts(model, load_tokenizer(self.clip, "reward.clip")))
