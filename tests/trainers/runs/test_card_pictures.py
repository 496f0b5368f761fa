"""The pictures of samples in an export, and the names of teacher and data in its card: ids of the hub, or no paths."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import trainers
from distill import EDM, UserError
from distill.export.format import float32
from distill.teachers import write_origin
from tests.exports import EDM2, content, make, make_edm, make_prompted
from tests.tiny import fit_run, recipe, shared, teachers
from trainers.data import Data, DataFree, Digits, Images
from trainers.data import Prompts as PromptFile
from trainers.runs.card_pictures import PROMPTS, card_pictures
from trainers.runs.export import base_model, data_name
from trainers.runs.import_teacher import import_pipeline

__all__ = ["shared", "teachers"]


def pixels(picture: bytes | Path) -> np.ndarray:
    return np.array(Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)))


def test_a_grid_shows_the_samples_of_the_classes(teachers: Path, tmp_path: Path) -> None:
    fit_run(recipe(teachers / "edm", images=16, evaluation={"samples": 64}), tmp_path / "run")
    trained = trainers.load(tmp_path / "run")
    report = trained.evaluate(samples=64)
    trained.export(license="mit")
    folder = tmp_path / "run/export"
    drawn = trainers.grid(trained.sample(60, seed=0), 10)
    assert np.array_equal(pixels(folder / "samples.png"), np.array(drawn))
    data = ModelCard.load(folder / "README.md").data
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert found == report["student"] and data.license == "mit" and data.model_name == "tiny"
    assert (data.base_model, data.datasets, data.get("widget")) == ("edm", None, None)
    trained.export(tmp_path / "again/export", license="mit")
    assert content(tmp_path / "again/export") == content(folder)
    with pytest.raises(UserError, match=r"^prompts: the teacher takes no prompts$"):
        trained.export(prompts=["a cat"])


def test_prompts_stand_beside_their_pictures(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a secret\n")
    data = {"name": "prompts", "path": str(tmp_path / "prompts.txt")}
    settings = recipe(pipelines("sd15"), data=data, entry={"preset": "sid_lsg_sd"}, cache=str(tmp_path / "c"), images=8)
    fit_run(settings, tmp_path / "run")
    trained = trainers.load(tmp_path / "run")
    given = ["a red cat", "a house at /home/zaphod/house"]
    for prompts, shown in (((), list(PROMPTS)), (given, ["a red cat", "a house at house"])):
        trained.export(tmp_path / "out", prompts=prompts)
        files = [f"samples/{number}.png" for number in range(len(shown))]
        widget = [{"text": text, "output": {"url": file}} for text, file in zip(shown, files, strict=True)]
        card = ModelCard.load(tmp_path / "out/README.md")
        assert card.data.widget == json.loads((tmp_path / "out/samples/prompts.json").read_text()) == widget
        assert card.data.pipeline_tag == "text-to-image" and "a secret" not in str(card)
        images = trained.sample(len(shown), prompts=list(prompts or PROMPTS), seed=0)
        for file, image in zip(files, images, strict=True):
            alone = trainers.grid(image[None], 1, least=1, border=0)
            assert np.array_equal(pixels(tmp_path / "out" / file), np.array(alone))
        assert np.array_equal(pixels(tmp_path / "out/samples.png"), np.array(trainers.grid(images, len(shown))))
    assert len(list((tmp_path / "out/samples").iterdir())) == 3
    with pytest.raises(UserError, match=r"^prompts: a card has at most 16, got 17$"):
        trained.export(tmp_path / "out", prompts=["a cat"] * 17)


@pytest.mark.parametrize(("side", "classes", "grid"), [(8, 3, (6, 10)), (256, 100, (3, 10)), (512, 0, (2, 4))])
def test_a_grid_is_small_where_samples_are_large(
    side: int, classes: int, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[torch.Tensor] = []

    def draw(self: object, noise: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        labels.extend(cond.values())
        return torch.zeros_like(noise)

    monkeypatch.setattr("distill.generator.Generator.forward", draw)
    generator = make(EDM(), "edm", 2.5, classes=classes, sample_size=side)
    generator.denoiser.network.unseen = (1,) if classes else ()
    (picture,) = card_pictures(generator)
    shown = side + 2 if side >= 64 else 64 + 2
    assert picture.name == "samples.png" and pixels(picture.content).shape == (grid[0] * shown, grid[1] * shown, 3)
    drawn = torch.cat(labels).tolist() if labels else []
    assert len(drawn) == (grid[0] * grid[1] if classes else 0) and 1 not in drawn
    if classes == 3:
        assert drawn == [0, 2] * 30
    if classes == 100:
        assert len(set(drawn)) == 30 and max(drawn) > 90


def test_what_nobody_can_see_has_no_picture() -> None:
    assert card_pictures(make_edm(EDM2, latents=True)) == [] and card_pictures(make_prompted()) == []


def test_pictures_leave_the_generator_as_it_is() -> None:
    generator = make(EDM(), "edm", 2.5).train()
    generator.denoiser.autocast_dtype = torch.bfloat16
    first, again = card_pictures(generator), card_pictures(float32(generator))
    assert first == again and generator.training and generator.denoiser.autocast_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Digits(), "digits"),
        (DataFree(shape=(3, 8, 8)), None),
        (Images("uoft-cs/cifar10"), "uoft-cs/cifar10"),
        (Images("mine/pictures"), "pictures"),
        (Images("datasets/ffhq"), "ffhq"),
        (Images("/home/zaphod/ffhq"), "ffhq"),
        (Images("a/b/ffhq"), "ffhq"),
        (PromptFile("me/prompts.parquet"), "prompts.parquet"),
    ],
)
def test_data_are_those_of_the_hub_or_a_name(
    data: Data, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine/pictures").mkdir(parents=True)
    assert data_name(data) == name


def test_a_base_is_a_model_of_the_hub_or_a_name(tmp_path: Path) -> None:
    teacher = tmp_path / "digits_teacher/teacher"
    teacher.mkdir(parents=True)
    assert base_model(teacher) == "teacher"
    (teacher.parent / "run.yaml").write_text("")
    assert base_model(teacher) == "digits_teacher"
    write_origin(teacher, "someone/sd15")
    assert base_model(teacher) == "someone/sd15"


def test_an_import_keeps_its_origin(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.runs.import_teacher.download", lambda name: pipelines("sd15"))
    import_pipeline("someone/sd15", tmp_path / "sd15")
    import_pipeline(str(tmp_path / "sd15"), tmp_path / "copy")
    import_pipeline(str(pipelines("sd15")), tmp_path / "local")
    assert base_model(tmp_path / "copy") == "someone/sd15" and base_model(tmp_path / "local") == "local"
