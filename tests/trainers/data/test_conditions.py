"""Prompts and latents in training: what batches hold, that a run trains, resumes and samples on them, and once each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml

from distill.conditions import Condition
from distill.discriminator import feature_shape
from distill.errors import UserError
from distill.random import Random
from launch.commands.cache import cache
from tests.texts import Halves, Words, embedding, install, load_any, write_text_teacher
from tests.tiny import ROOT, build_session, experiment, fit_run, launch, recipe
from trainers.data import Dataset, Digits
from trainers.data.batches import Batches, BatchSizes, condition_at, inputs
from trainers.data.dataset import UNKNOWN
from trainers.data.encode import DatasetEncoder
from trainers.hooks.samples import preview_inputs
from trainers.runs.draw import draw
from trainers.runs.load import load_trained
from trainers.runs.make_pairs import PairSettings, images_of_pairs, make_pairs

CPU = torch.device("cpu")
EMOJI = ROOT / "tests" / "golden" / "emoji.parquet"
PROMPTS = ["one", "two words", "three", "one", "", "six"]
IMAGES = {"name": "images", "path": str(EMOJI), "resolution": 8, "prompt_column": "text"}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside of tmp_path, nothing is asked of the network; the teachers of prompts are known."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    install(monkeypatch)
    (tmp_path / "p.txt").write_text("\n".join(prompt for prompt in PROMPTS if prompt))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def encoded(log: Path) -> list[str]:
    """The items that encoders got, in order."""
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of a short distillation on prompts; the teacher is written where it is not there."""
    teacher = changes.pop("form", {})
    if not (tmp_path / "teacher").exists():
        write_text_teacher(tmp_path / "teacher", tmp_path / "log", **teacher)
    data = {"name": "prompts", "path": str(tmp_path / "p.txt")}
    common = {"data": data, "cache": str(tmp_path / "cache"), "images": 32, "checkpoint_every": 16}
    return {**recipe(tmp_path / "teacher"), **common, **changes}


def words(prompts: list[str] | None = None) -> Dataset:
    prompts = PROMPTS if prompts is None else prompts
    return Dataset("words", len(prompts), UNKNOWN, None, None, prompts=prompts)


def ready(tmp_path: Path, dataset: Dataset, negative: str | None = None, real: bool = False, **form: Any) -> Any:
    """(prepared data set, teacher)."""
    folder = tmp_path / f"teacher{len(list(tmp_path.glob('teacher*')))}"
    teacher = load_any(write_text_teacher(folder, tmp_path / "log", **form))
    return DatasetEncoder(str(tmp_path / "cache"), CPU, negative).encode(dataset, teacher, real), teacher


# Embeddings


def test_prompts_become_what_the_encoder_gives(tmp_path: Path, log: Path) -> None:
    dataset, teacher = ready(tmp_path, words())
    assert encoded(log) == ["", "one", "two words", "three", "", "six"]  # the null prompt first; each prompt once
    cond = condition_at(dataset, torch.tensor([5, 1, 3, 0, 4]))
    assert torch.equal(cond["prompt"], torch.stack([embedding(PROMPTS[at]) for at in (5, 1, 3, 0, 4)]))
    assert cond["mask"].tolist() == [[True, False, False], [True] * 3, *[[True, False, False]] * 3]
    assert dataset.shape == (1, 8, 8) and not teacher.network.text_encoder.loaded
    null = teacher.network.null
    assert not null["prompt"].any() and null["mask"].all()
    again, _ = ready(tmp_path, words())
    assert torch.equal(condition_at(again, torch.arange(6))["prompt"], condition_at(dataset, torch.arange(6))["prompt"])
    assert len(encoded(log)) == 6


def test_a_negative_prompt_is_the_null_condition(tmp_path: Path, log: Path) -> None:
    ready(tmp_path, words(["one"]))
    _, teacher = ready(tmp_path, words(["one"]), negative="blurry")
    assert encoded(log) == ["", "one", "blurry"]  # the embeddings stay
    cond = {"prompt": torch.zeros(5, 3, 4), "mask": torch.zeros(5, 3, dtype=torch.bool)}
    null = teacher.null(cond)
    assert torch.equal(null["prompt"], embedding("blurry").expand(5, 3, 4))
    assert null["mask"].tolist() == [[True, True, False]] * 5


def test_embeddings_follow_from_prompts_and_encoder(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(tmp_path, words(["a", "b"]))
    ready(tmp_path, words(["b", "a"]))  # another order is another table
    assert encoded(log) == ["", "a", "b", "b", "a"]
    ready(tmp_path, words(["a", "a", "b", "a"]))  # the same prompts
    assert len(encoded(log)) == 5
    monkeypatch.setattr("tests.texts.Words", lambda log, pause: Words(log, pause, "others"))
    ready(tmp_path, words(["a", "b"]))
    assert encoded(log)[5:] == ["", "a", "b"]


def test_an_embedding_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.texts.embedding", lambda prompt: torch.full((3, 4), torch.inf, dtype=torch.float16))
    with pytest.raises(UserError, match=r"^text: the encoder gives a 'prompt' that is not finite in float16$"):
        ready(tmp_path, words())


# Batches


def batches(dataset: Dataset, real: bool = False, rank: int = 0, world: int = 1, **changes: Any) -> Batches:
    run = experiment(recipe("unused", batch_size=24, images=240, **changes))
    sizes = BatchSizes(run.batch_size, run.micro_batches)
    return Batches(dataset, sizes, run.seed, run.dtype, real, rank, world, CPU)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 1), (3, 4)])
def test_any_partition_draws_the_same_prompts(world: int, micro: int, precision: str, tmp_path: Path) -> None:
    dataset, _ = ready(tmp_path, words())
    whole: Any = batches(dataset, precision=precision).micro("fake", 48, 0).cond
    parts: list[Any] = [
        batches(dataset, False, rank, world, micro_batches=micro, precision=precision).micro("fake", 48, index).cond
        for index in range(micro)
        for rank in range(world)
    ]
    assert whole.keys() == {"prompt", "mask"} and len(whole["mask"]) == 24
    for name in whole:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    assert (whole["prompt"].dtype, whole["mask"].dtype) == (getattr(torch, precision), torch.bool)
    assert len(whole["prompt"].flatten(1).unique(dim=0)) > 2


def test_prompts_come_by_their_frequency(tmp_path: Path) -> None:
    dataset, _ = ready(tmp_path, words())
    _, cond = inputs(dataset, Random.at(0, torch.arange(12_000)))
    shares = [float((cond["prompt"] == embedding(prompt)).flatten(1).all(1).double().mean()) for prompt in PROMPTS]
    assert shares == pytest.approx([2 / 6, 1 / 6, 1 / 6, 2 / 6, 1 / 6, 1 / 6], abs=0.012)


def test_real_images_bring_their_own_prompts(tmp_path: Path) -> None:
    names = [f"prompt {number}" for number in range(100)]
    pixels = torch.arange(100.0)[:, None, None, None].expand(-1, 1, 8, 8)
    images = Dataset("numbered", 100, (1, 8, 8), None, lambda at: pixels[at], prompts=names)
    dataset, _ = ready(tmp_path, images)
    batch = batches(dataset, real=True).micro("generator", 24, 0)
    assert batch.real is not None
    positions = batch.real[:, 0, 0, 0].int().tolist()
    assert torch.equal(batch.cond["prompt"], torch.stack([embedding(names[at]) for at in positions]))
    assert len(set(positions)) == 24


def test_positions_and_lookups_stay_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device nothing is read back: meta tensors, which hold no values, are enough to lead through a batch."""
    dataset, _ = ready(tmp_path, words())
    labelled = Digits().load()
    for each in (dataset, labelled):
        for real in (False, each.read is not None):
            meta = torch.device("meta")
            batch = Batches(each, BatchSizes(4), 0, torch.float32, real, 0, 1, meta).micro("fake", 0, 0)
            values = [batch.noise, *batch.cond.values()]
            assert batch.cond and all(value.device.type == "meta" and len(value) == 4 for value in values)


def test_conditions_are_placed_and_joined() -> None:
    half = Condition(prompt=torch.ones(2, 3, dtype=torch.bfloat16), mask=torch.ones(2, 3, dtype=torch.bool))
    there = half.to(CPU, torch.float64)
    assert {name: value.dtype for name, value in there.items()} == {"prompt": torch.float64, "mask": torch.bool}
    assert Condition().to(CPU, torch.float32) == {}
    both = there.cat(there.map(lambda value: 2 * value))
    assert both["prompt"].tolist() == [[1] * 3] * 2 + [[2] * 3] * 2
    assert Condition().cat(Condition()) == {}
    labels = Condition.of(torch.tensor([1])).cat(Condition.of(torch.tensor([2]))).labels
    assert labels is not None and labels.tolist() == [1, 2]


# Runs

OBJECTIVES: dict[str, Any] = {
    "graph": "sid",
    "guided": {"name": "guided", "objective": "sid", "teacher_cfg": 2.0},
    "no graph": "diff_instruct",
    "real": {"name": "dmd2", "tap": "middle"},
}


@pytest.mark.parametrize(
    ("objective", "precision"),
    [("graph", "float32"), ("guided", "bfloat16"), ("no graph", "float64"), ("real", "float32")],
)
def test_a_run_trains_resumes_and_samples(objective: str, precision: str, tmp_path: Path, log: Path) -> None:
    changes: dict[str, Any] = {"objective": OBJECTIVES[objective], "precision": precision}
    if objective == "real":
        changes |= {"data": IMAGES, "form": {"shape": [3, 8, 8]}}
    run = experiment(settings(tmp_path, **changes))
    session = fit_run(run, tmp_path / "run")
    once = encoded(log)
    assert len(once) == len(set(once[1:])) + 1
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert records and all(torch.tensor(r["generator/grad_norm"]).isfinite() for r in records)
    noise, cond = preview_inputs(session)
    first = torch.stack([embedding(str(session.dataset.prompts[at])) for at in range(2)])  # type: ignore[index]
    assert torch.equal(cond["prompt"][:2], first) and torch.equal(cond["prompt"][10:12], first)
    samples, others = (
        session.sampler(noise, cond),
        session.sampler(noise, Condition({**cond, "prompt": -cond["prompt"]})),
    )
    assert samples.isfinite().all() and not torch.equal(samples, others)
    product = load_trained(tmp_path / "run")
    assert torch.equal(product.sampler(noise, cond), samples) and draw(product, 3).isfinite().all()
    assert product.teacher_sampler is not None and product.teacher_sampler(noise, cond).isfinite().all()
    shutil.rmtree(tmp_path / "run/checkpoints" / f"{32:012d}")
    resumed = fit_run(run, tmp_path / "run", resume=True)
    for name, value in session.state.ema.module.state_dict().items():
        assert torch.equal(value, resumed.state.ema.module.state_dict()[name])
    assert encoded(log) == once


def test_null_and_shape_of_features_for_a_critic(tmp_path: Path) -> None:
    _, teacher = ready(tmp_path, words())
    assert feature_shape(teacher, "middle") == (8, 8, 8)


def test_data_and_teacher_that_do_not_fit(tmp_path: Path, teachers: Path) -> None:
    def refusal(**changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            build_session(settings(tmp_path, **changes))
        return str(caught.value)

    text, digits = tmp_path / "teacher", teachers / "edm"
    assert refusal(data="digits") == f"data: digits has no prompts, the teacher '{text}' takes them"
    needs = refusal(objective="dmd2")
    assert needs == "objective: DMD2 needs real images, data: p.txt has none"
    assert refusal(data={**IMAGES, "resolution": 4}) == (
        f"data: emoji.parquet has shape (3, 4, 4), the teacher '{text}' shape (1, 8, 8)"
    )
    assert refusal(teacher=str(digits), data="digits", negative_prompt="x") == (
        "negative_prompt: digits has no prompts; leave it out"
    )
    with pytest.raises(UserError, match=r"takes none$"):
        build_session({**settings(tmp_path), "teacher": str(digits)})
    assert encoded(tmp_path / "log") == [] and not (tmp_path / "cache").exists()


def test_pairs_carry_their_embeddings(tmp_path: Path) -> None:
    data = experiment(settings(tmp_path)).data.load()
    making = make_pairs(
        str(tmp_path / "teacher"),
        data,
        tmp_path / "pairs",
        16,
        PairSettings(evaluations=3, teacher_cfg=2.0),
        5,
        CPU,
        cache=str(tmp_path / "cache"),
    )
    assert list(making) == [16]
    guided = {"name": "guided", "objective": "dmd", "teacher_cfg": 2.0}
    session = build_session(settings(tmp_path, objective=guided, pairs={"folder": str(tmp_path / "pairs")}))
    batch: Any = session.batches.micro("generator", 0, 0)
    known = torch.stack([embedding(prompt) for prompt in PROMPTS])
    assert batch.pairs.cond.keys() == {"prompt", "mask"}
    assert all((known == one).flatten(1).all(1).any() for one in batch.pairs.cond["prompt"])
    session.update_players(session)
    assert session.state.players["generator"].counters()["skipped"] == 0
    rows, every = session.batches.pairs.rows(torch.arange(16)), torch.arange(16)
    images = images_of_pairs(tmp_path / "pairs", data, load_any(str(tmp_path / "teacher")))
    assert torch.equal(images.images(every), rows["target"]) and images.prompts is not None
    assert torch.equal(torch.stack([embedding(prompt) for prompt in images.prompts]), rows["cond.prompt"])


# Latents


def numbered(shape: tuple[int, int, int] = (3, 8, 8)) -> Dataset:
    pixels = torch.linspace(-1, 1, 50)[:, None, None, None].expand(-1, *shape)
    return Dataset("numbered", 50, shape, None, lambda at: pixels[at], prompts=[f"p {n}" for n in range(50)])


@pytest.mark.parametrize("std", [0.0, 0.1])
def test_images_become_latents(std: float, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.texts.Halves", lambda log: Halves(log, std))
    dataset, teacher = ready(tmp_path, numbered(), real=True, latents=True, shape=[2, 4, 4])
    assert encoded(log).count("image") == 51 and not teacher.network.autoencoder.loaded  # the first tells their shape
    at = torch.tensor([7, 0, 49])
    assert dataset.shape == (2, 4, 4) and dataset.images(at).shape == (3, 2, 4, 4)
    assert torch.allclose(dataset.images(at)[:, 0, 0, 0], torch.linspace(-1, 1, 50)[at])
    visits: list[Any] = [batches(dataset, real=True).micro("generator", 48, 0).real for _ in range(2)]
    assert torch.equal(*visits)
    means = dataset.images(dataset.order(0, torch.arange(48, 72)))
    if std == 0:
        assert torch.equal(visits[0], means)
    else:
        noise = (visits[0] - means) / 0.1
        assert abs(float(noise.std()) - 1) < 0.1 and abs(float(noise.mean())) < 0.15
        parts: list[Any] = [batches(dataset, True, rank, 3).micro("generator", 48, 0).real for rank in range(3)]
        assert torch.equal(torch.cat(parts), visits[0])
        visited = dataset.order(0, torch.arange(240))
        drawn: list[Any] = [batches(dataset, real=True).micro("generator", 24 * n, 0).real for n in range(10)]
        of_one = torch.cat(drawn)[visited == 7]  # in each epoch another draw
        assert len(of_one) >= 4 and float(of_one.std(0).mean()) == pytest.approx(0.1, rel=0.4)
    ready(tmp_path, numbered(), real=True, latents=True, shape=[2, 4, 4])
    assert encoded(log).count("image") == 51


def test_latents_are_made_where_they_are_needed_alone(tmp_path: Path, log: Path) -> None:
    dataset, _ = ready(tmp_path, numbered(), real=False, latents=True, shape=[2, 4, 4])
    assert dataset.read is None and dataset.shape == (2, 4, 4) and "image" not in encoded(log)


def test_latents_that_do_not_fit_are_refused_at_the_first(tmp_path: Path, log: Path) -> None:
    with pytest.raises(UserError) as caught:
        ready(tmp_path, numbered(), real=True, latents=True, shape=[2, 8, 8])
    assert str(caught.value) == (
        "data: images [3, 8, 8] of numbered make latents [2, 4, 4], the teacher's samples are [2, 8, 8]"
    )
    assert encoded(log).count("image") == 1
    teacher = load_any(tmp_path / "teacher0")
    teacher.network.autoencoder = None  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^data: numbered holds pixels, the teacher's samples are latents and have no"):
        DatasetEncoder(str(tmp_path / "cache"), CPU).encode(numbered(), teacher, real=True)


def test_a_run_on_latents(tmp_path: Path, log: Path) -> None:
    form = {"latents": True, "shape": [2, 4, 4]}
    changes = {"data": IMAGES, "objective": OBJECTIVES["real"], "form": form, "samples_every": 10**6}
    session = build_session(settings(tmp_path, **changes))
    session.update_players(session)
    assert session.state.players["generator"].counters()["skipped"] == 0
    assert encoded(log).count("image") == 13


# Two processes


def test_two_processes_of_a_command_encode_once(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`distill train` in two processes fills what DISTILL_CACHE says; `distill cache` finds it filled."""
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {number}" for number in range(24)))
    file, here = tmp_path / "recipe.yaml", tmp_path / "here"
    file.write_text(yaml.safe_dump(settings(tmp_path, form={"pause": 0.02}, images=16, cache="~/.cache/distill")))
    folders = {"DISTILL_CACHE": str(here), "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    command = ["-m", "tests.texts", "train", str(file), "--folder", str(tmp_path / "run")]
    job = launch(command, tmp_path / "output", 2, **folders)
    assert job.finish() == 0, job.text
    assert sorted(encoded(log)) == sorted(["", *(f"prompt {number}" for number in range(24))])
    assert (here / "text").is_dir() and not list((tmp_path / "run").rglob("*text*"))
    log.unlink()
    monkeypatch.setenv("DISTILL_CACHE", str(here))
    cache(str(file))
    assert capsys.readouterr().out == f"24 prompts and 0 latents in {here}\n" and not log.exists()
