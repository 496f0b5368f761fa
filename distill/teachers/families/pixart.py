"""PixArt-alpha and PixArt-Sigma (arXiv:2310.00426, 2403.04692): a transformer of latents with the embeddings of T5."""

from typing import Any, ClassVar

from torch import Tensor

from distill.conditions import Condition
from distill.teachers.families.family import Conditions, LatentFamily


class PixArt(LatentFamily):
    """PixArt, conditioned on the index of the step, and on `prompt` [B, L, D] with the token mask `mask` [B, L].

    At 1024 pixels the size of the image is a condition too. The network predicts noise, and after it variances, which
    are left out.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    network_class = "PixArtTransformer2DModel"

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (120, self.config["caption_channels"]), "mask": (120,)}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        given = self.embeddings(x, cond)
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.config["sample_size"] == 128:  # only the networks for 1024 pixels have embeddings of the size
            height, width = (self.factor * side for side in x.shape[2:])
            size = {"resolution": x.new_tensor((height, width)).expand(x.shape[0], 2)}
            size["aspect_ratio"] = x.new_full((x.shape[0], 1), height / width)
        output = self.evaluate(
            x, given["prompt"], timestep=time, encoder_attention_mask=given["mask"], added_cond_kwargs=size
        )
        return output[:, : x.shape[1]]

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        return cls.encode_by(pipe, prompts)

    @classmethod
    def encode_by(cls, pipe: Any, prompts: list[str], **options: Any) -> Conditions:
        """Return the text conditions of N prompts, as the pipeline makes them with these further options."""
        device = pipe.text_encoder.device
        encoded = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=device, **options)
        return {"prompt": encoded[0], "mask": encoded[1]}

    def call(self) -> dict[str, Any]:
        return super().call() | {"use_resolution_binning": False, "clean_caption": False}
