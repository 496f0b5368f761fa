"""Model cards: the hub's own classes read their metadata, and pictures and numbers stand in them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from distill import EDM, Flow, UserError
from distill.export import CardFacts, CardPicture, check_license, export_generator
from distill.export.card import render
from distill.export.format import Format, Source
from distill.export.shipped.travelling import Travelling
from tests.exports import DDPMPP, FACTS, content, make, make_edm, make_prompted
from tests.hub import serve

METRICS = {
    "protocol": "fid(uoft-cs/cifar10, 50000 real)",
    "samples": 50_000,
    "student": {"frechet": 1.71, "recall": float("nan"), "kid": 0.25},
    "teacher": {"frechet": 1.79, "recall": 0.5},
    "teacher_evaluations": 35,
    "teacher_cfg": 1.5,
    "halves": 0.125,
}
PNG = b"the bytes of a picture"
FULL = dataclasses.replace(
    FACTS,
    license="cc-by-nc-sa-4.0",
    base_model="someone/teacher",
    data="uoft-cs/cifar10",
    metrics=METRICS,
    pictures=[
        CardPicture(name="samples.png", content=PNG),
        CardPicture(name="samples/0.png", content=PNG, prompt="a cat: \"red\" 'n'\nblue"),
        CardPicture(name="samples/1.png", content=PNG, prompt=""),
    ],
)


def card(facts: CardFacts, classes: int = 3, folder: Path | None = None) -> ModelCard:
    """The card of a tiny generator, as the hub's client reads it."""
    generator = make(EDM(), "edm", 2.5, classes=classes)
    if folder is not None:
        export_generator(generator, folder, facts)
        return ModelCard.load(folder / "README.md")
    form = Format(cond=generator.denoiser.network.example(8), write=..., read=..., snippet=str, loading="It loads.")  # type: ignore[arg-type]
    return ModelCard(render(facts, Source("out"), generator, form))


def test_the_card_states_the_facts(tmp_path: Path) -> None:
    read = card(FACTS, folder=tmp_path / "export")
    data = read.data.to_dict()
    results = data.pop("model-index")
    assert data == {
        "license": "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["one-step-generation", "diffusion-distillation", "sid"],
    }
    assert [one["name"] for one in results] == ["Tiny generator"]
    blocks = [yaml.safe_load(block) for block in re.findall(r"`{3,4}yaml\n(.*?)`{3}", read.text, re.DOTALL)]
    objective = {"name": "sid", "alpha": 1.0, "times": {"name": "uniform", "range": [0.1, 0.9]}}
    assert blocks == [objective, yaml.safe_load(FACTS.recipe)]
    for fact in (
        "# Tiny generator",
        "an image of 3 x 8 x 8 (channels, height, width), conditional on 3 classes.",
        f"Teacher: `teachers/tiny`, SHA-256 `{FACTS.teacher_sha256}`",
        "Trained on 60,000 generated images",
        "Protocol: `pca48(digits, 1797 real)`, 4,000 samples.",
        "| metric | this model, 1 evaluation |\n| --- | --- |\n| frechet | 1.23457 |\n| label_agreement | 0.875 |\n",
        "## Licence\n\nNobody has stated a licence for these weights.",
        f"torch {torch.__version__}",
        "One step only: `num_inference_steps=1`",
    ):
        assert fact in read.text


def test_the_hub_reads_all_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    read = card(FULL, folder=folder)
    data = read.data
    assert (data.license, data.base_model, data.base_model_relation) == (
        "cc-by-nc-sa-4.0",
        "someone/teacher",
        "finetune",
    )
    assert (data.datasets, data.library_name, data.model_name) == (["uoft-cs/cifar10"], "diffusers", "Tiny generator")
    assert data.widget == [
        {"text": "a cat: \"red\" 'n'\nblue", "output": {"url": "samples/0.png"}},
        {"text": "", "output": {"url": "samples/1.png"}},
    ]
    assert data.widget == json.loads((folder / "samples/prompts.json").read_text())
    found = [(one.metric_type, one.metric_value, one.metric_name) for one in data.eval_results]
    protocol = METRICS["protocol"]
    of = f", {protocol}, 50,000 samples"
    assert found == [("fid", 1.71, f"frechet{of}"), ("kid", 0.25, f"kid{of}")]
    assert {(one.dataset_type, one.dataset_name, one.task_type) for one in data.eval_results} == {
        ("uoft-cs/cifar10", f"uoft-cs/cifar10: {protocol}", "unconditional-image-generation")
    }
    assert "`cc-by-nc-sa-4.0`, as stated by" in read.text and "Nobody has stated" not in read.text
    assert re.findall(r"!\[.*?\]\((.*?)\)", read.text) == ["samples.png"]
    for picture in FULL.pictures:
        assert (folder / picture.name).read_bytes() == PNG


def test_the_teacher_stands_beside_the_student() -> None:
    table = (
        "| metric | this model, 1 evaluation | teacher, 35 evaluations, guidance 1.5 |\n| --- | --- | --- |\n"
        "| frechet | 1.71 | 1.79 |\n| recall | nan | 0.5 |\n| kid | 0.25 | - |\n\n"
        "Two halves of the real images have a Frechet distance of 0.125.\n"
    )
    assert table in card(FULL).text


@pytest.mark.parametrize(
    ("base", "shown"), [("edm-cifar10-cond", "edm-cifar10-cond"), ("my teacher", None), ("a" * 97, None), (None, None)]
)
def test_a_base_without_an_owner_has_no_relation(base: str | None, shown: str | None) -> None:
    data = card(dataclasses.replace(FULL, base_model=base, data="digits", metrics=None)).data.to_dict()
    assert data.get("base_model") == shown
    assert not {"base_model_relation", "datasets", "model-index", "model_name"} & data.keys()


def test_a_task_is_that_of_the_generator(tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, str]] = {"prompts": (make_prompted(), "text-to-image")}
    cases["classes"] = make_edm(DDPMPP), "unconditional-image-generation"
    for name, (generator, task) in cases.items():
        export_generator(generator, tmp_path / name, FACTS, "torch-export")
        data = ModelCard.load(tmp_path / name / "README.md").data
        assert data.pipeline_tag == task and {one.task_type for one in data.eval_results} == {task}


def test_a_card_without_metrics_says_so() -> None:
    read = card(dataclasses.replace(FACTS, metrics=None))
    assert "## Metrics\n\nNone were measured." in read.text and read.data.eval_results is None


@pytest.mark.parametrize("license", ["Apache-2.0", "apache 2.0", "", "/home/me/LICENSE"])
def test_a_licence_is_an_identifier_of_the_hub(license: str) -> None:
    check_license("openrail++")
    with pytest.raises(UserError, match=f"^--license: must be an identifier of .*, got '{re.escape(license)}'$"):
        check_license(license)


def test_a_copy_has_the_pictures_of_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, and a model on the hub."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    export_generator(make(Flow(), "velocity", 0.9), tmp_path / "export", FULL)
    DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True).save_pretrained(tmp_path / "copy")
    exported, copied = content(tmp_path / "export"), content(tmp_path / "copy")
    kept = {"samples.png", "samples/0.png", "samples/1.png", "samples/prompts.json"}
    assert {name: copied[name] for name in {"README.md", *kept}} == {
        name: exported[name] for name in {"README.md", *kept}
    }
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve() as hub:
        hub.models["me/tiny"] = {"private": False, "files": exported}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        loaded: Any = type("Loaded", (Travelling,), {"name_or_path": "me/tiny"})
        card, pictures = loaded()._card()
    assert card == exported["README.md"].decode() and pictures == {name: exported[name] for name in kept}
