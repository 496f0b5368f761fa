"""The papers' recipes: their values, that they build, and their whole path at a tiny size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from distill import UserError
from distill.generator import PRESETS
from launch.commands import train, try_
from launch.commands.recipes import markdown
from tests.launch.conftest import Command
from tests.tiny import ROOT
from trainers.io.jsonl import read
from trainers.recipe.load import build_experiment, resolve
from trainers.recipe.shipped import find_recipe, shipped_recipes
from trainers.recipe.strict_yaml import dump, load_yaml
from trainers.recipe.tiny import MAKERS, materialise
from trainers.runs.first_try import short_form
from trainers.runs.open import open_run

PAPERS = sorted(name for name, file in shipped_recipes().items() if "tiny" in load_yaml(file))
SIZES = {"cifar10": (3, 32, 32), "imagenet64": (3, 64, 64), "ffhq64": (3, 64, 64), "afhq64": (3, 64, 64)}
FLOAT16, MOMENTUM = 1e-6, (0.9, 0.999)

# The authors' scripts: batch, learning rate of both, million images, half-life of the average, SiD's alpha.
EDM: dict[str, tuple[int, float, int, float, float]] = {
    "cifar10_sid": (256, 1e-5, 500, 0.5e6, 1.2),
    "cifar10_cond_sid": (256, 1e-5, 800, 0.5e6, 1.2),
    "imagenet64_sid": (8192, 4e-6, 1000, 2e6, 1.2),
    "ffhq64_sid": (512, 1e-5, 500, 0.5e6, 1.2),
    "afhq64_sid": (512, 5e-6, 500, 0.5e6, 1.0),
    "imagenet512_sid": (2048, 5e-5, 200, 2e6, 1.0),
    "cifar10_sida": (256, 1e-5, 300, 0.5e6, 1.0),
    "cifar10_cond_sida": (256, 1e-5, 300, 0.5e6, 1.0),
    "imagenet64_sida": (8192, 4e-6, 300, 2e6, 1.0),
    "ffhq64_sida": (512, 1e-5, 200, 0.5e6, 1.0),
    "afhq64_sida": (512, 5e-6, 200, 0.5e6, 1.0),
    "imagenet512_sida": (2048, 5e-5, 200, 2e6, 1.0),
}
# Batch, learning rate, generator updates, guidance of teacher, fake and the fake's training, entry.
TEXT: dict[str, tuple[int, float, float, tuple[float, float, float], str]] = {
    "sd15_sid_lsg": (512, 1e-6, 10e6 / 512, (1.5, 1.5, 1.5), "sid_lsg_sd"),
    "sd21_sid_lsg": (512, 1e-6, 10e6 / 512, (1.5, 1.5, 1.5), "sid_lsg_sd"),
    "sd15_dmd2": (2048, 1e-5, 39_000 / 10, (1.75, 1, 1), "dmd2_sd"),
    "sd21_dmd2": (2048, 1e-5, 39_000 / 10, (1.75, 1, 1), "dmd2_sd"),
    "sd15_dmd2_gan": (2048, 5e-7, 2_000 / 10, (1.75, 1, 1), "dmd2_sd"),
    "sdxl_dmd2": (128, 5e-7, 24_000 / 5, (8, 1, 1), "dmd2_sdxl"),
    "sd3_sid_dit": (256, 1e-6, 1e6 / 256, (4.5, 4.5, 4.5), "noise_flow"),
}


def full(name: str) -> Any:
    """The run of a recipe as it is written."""
    settings = load_yaml(find_recipe(name))
    del settings["tiny"]
    return build_experiment(settings, name)


def test_every_recipe_of_the_issue_is_there() -> None:
    assert set(PAPERS) == {*EDM, *TEXT, "sdxl_di_star", "pixart_sim", "sd3_fgm", "sdxl_regression"}


@pytest.mark.parametrize("name", EDM)
def test_the_values_of_sid_and_sida(name: str) -> None:
    run = full(name)
    batch, lr, images, half_life, alpha = EDM[name]
    assert (run.batch_size, run.images, run.ema.half_life) == (batch, images * 1_000_000, half_life)
    assert (run.generator.lr, run.fake.lr, run.objective.alpha, run.fake_updates) == (lr, lr, alpha, 1)
    assert run.generator.betas == (MOMENTUM if name == "ffhq64_sid" else (0, 0.999)) and run.fake.betas == (0, 0.999)
    assert run.generator.dropout == run.fake.dropout == (0.05 if name.startswith("afhq64") else "teacher")
    half = not name.startswith("cifar10")
    assert run.precision == ("bfloat16" if half else "float32")
    assert {run.generator.eps, run.fake.eps} == {FLOAT16 if half else 1e-8}
    assert PRESETS[run.entry.preset].t == 2.5
    u, path = torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64), PRESETS[run.entry.preset].path()
    assert run.objective.times.nsr(u, path).tolist() == pytest.approx([0.002, 24.41], rel=1e-3)
    assert run.objective.uncertainty == (name == "imagenet512_sid")  # of SiDA's sizes, S alone is without
    law = run.objective.fake_times
    assert (law.mean, law.std) == ((-0.4, 1.0) if name.startswith("imagenet512") else (-1.2, 1.2))
    if name.endswith("sida"):
        discriminator = 100 if name.startswith("imagenet512") else 1
        weights = run.objective.scale, run.objective.discriminator, run.objective.adversarial
        assert weights == (100, discriminator, 0.01)
        assert (run.objective.generator_from, run.objective.adversarial_from) == (100_000, 200_000)
        assert run.data.resolution == (512 if discriminator > 1 else SIZES[name.split("_")[0]][1])
        assert (run.data.label_column is None) == (name in ("cifar10_sida", "ffhq64_sida", "afhq64_sida"))
    else:
        classes = {"imagenet64": 1000, "imagenet512": 1000, "cifar10_cond": 10}.get(name.removesuffix("_sid"), 0)
        assert run.data.shape == SIZES.get(name.split("_")[0], (4, 64, 64)) and run.data.classes == classes


@pytest.mark.parametrize("name", TEXT)
def test_the_values_of_text_to_image(name: str) -> None:
    run = full(name)
    batch, lr, updates, cfg, entry = TEXT[name]
    assert (run.batch_size, run.generator.lr, run.fake.lr, run.entry.preset) == (batch, lr, lr, entry)
    assert run.images / run.batch_size == updates
    assert (run.objective.teacher_cfg, run.objective.fake_cfg, run.objective.fake_training_cfg) == cfg
    inner = run.objective.objective
    if "dmd2" in name:
        assert run.fake_updates == (5 if name == "sdxl_dmd2" else 10) and run.reuse_samples
        assert (run.generator.name, run.generator.betas, run.generator.weight_decay) == ("adamw", MOMENTUM, 0.01)
        elements = 4 * (128 if name == "sdxl_dmd2" else 64) ** 2
        assert run.max_grad_norm == 10 * elements and run.ema.half_life == 0
        assert run.generator.warmup == run.fake.warmup == 500 / run.fake_updates * batch
        assert (inner.times.first, inner.times.last, inner.fake_times.first, inner.fake_times.last) == (20, 980, 0, 999)
        if hasattr(inner, "adversarial"):
            assert (inner.adversarial, inner.discriminator) == (5e-3 if name == "sdxl_dmd2" else 1e-3, 1e-2)
    else:
        assert (inner.alpha, run.generator.betas) == (1, (0, 0.999))
        weights = {"sid_lsg_sd": ("l1", 1, 0.1, "eps"), "noise_flow": ("1-t", 100, 0, "velocity")}[entry]
        assert (inner.weight, inner.scale, run.objective.condition_dropout, inner.fake_weight) == weights


def test_the_values_of_the_regression_before_dmd2() -> None:
    """DMD2's script of ODE pretraining: 2,000 iterations of 4 pairs on each of 64 GPUs. Nothing clips the gradient."""
    run, after = full("sdxl_regression"), full("sdxl_dmd2")
    assert (run.batch_size, run.images / run.batch_size, run.generator.lr) == (256, 2_000, 1e-5)
    assert (run.generator.name, run.generator.betas, run.generator.weight_decay) == ("adamw", MOMENTUM, 0.01)
    assert (run.generator.warmup, run.max_grad_norm, run.ema.half_life) == (500 * 256, None, 0)
    assert (run.entry, run.objective.teacher_cfg) == (after.entry, after.objective.teacher_cfg)
    inner = run.objective.objective
    assert not run.objective.trains_fake and not run.objective.uses_samples and inner.perceptual.decoded
    assert (inner.matching, inner.regression, after.start) == (0, 1, "runs/sdxl_regression")


def test_what_could_not_be_verified_says_so() -> None:
    """Every value of the three without the authors' training code, but for those that the papers state."""
    for name, known in (("sdxl_di_star", 8), ("pixart_sim", 5), ("sd3_fgm", 6)):
        text = shipped_recipes()[name].read_text().partition("\ntiny:")[0]
        assert len(re.findall(r"^[^#\n]+: .*# unverified", text, re.MULTILINE)) >= known, name


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_can_be_read_and_run_as_written(name: str) -> None:
    """The line that fetches the teacher names the recipe's folder; the batch divides over 1, 2, 4 and 8 processes."""
    run, text = full(name), shipped_recipes()[name].read_text()
    assert build_experiment(dump(run), "again") == run
    assert max(map(len, text.splitlines())) <= 120
    assert re.search(rf"^# (Fetch:)? *distill import \w+ \S+ {run.teacher}( |$)", text, re.MULTILINE)
    for processes in (1, 2, 4, 8):
        run.check_world(processes)
    evaluation = run.evaluation
    assert evaluation.every > 0 and (evaluation.protocol or evaluation.scores.named())  # by the paper's measure
    assert run.start is None or Path(run.start).name in PAPERS


@pytest.fixture(scope="session")
def made(shared: Path) -> Path:
    """The tiny teachers and data of all recipes, each made once."""
    return shared / "recipes"


@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_builds_at_a_tiny_size(name: str, made: Path) -> None:
    run: Any = resolve(name, tiny=made)
    open_run(run, 1, weights=False)
    assert (run.name, run.images, run.batch_size) == (f"{name}_tiny", 16, 4)
    assert Path(run.teacher).parent == Path(run.cache).parent == (made / "tiny").resolve()
    kept = ("precision", "max_grad_norm", "fake_updates", "reuse_samples", "gradient_checkpointing", "ema", "entry")
    assert all(getattr(run, one) == getattr(full(name), one) for one in kept)


def steps(out: str) -> list[str]:
    return [line[:36].strip() for line in out.splitlines()]


STEPS = ["make teacher and data", "load and check", "cache and train", "sample", "export"]


def test_try_leaves_nothing_and_ends_in_a_process_without_us(distill: Command) -> None:
    """SiDA on EDM's DDPM++, with real images."""
    tried = distill("try", "cifar10_cond_sida")
    assert tried.code == 0, tried.err
    assert steps(tried.out) == [*STEPS, "use the export without this package"]
    assert tried.out.splitlines()[-1].endswith("8 samples") and "4 updates" in tried.out
    assert float(re.findall(r"differs by (\S+) from", tried.out)[0]) < 1e-4
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("name", ["imagenet512_sida", "sdxl_di_star"])
def test_try_of_latents(name: str, distill: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """EDM2 with its autoencoder and images; SDXL with prompts and a reward."""
    monkeypatch.setattr(try_, "use_export", lambda folder: len(list(folder.iterdir())))
    tried = distill("try", name, "--folder", tmp_path / "run")
    assert tried.code == 0, tried.err
    log = read(tmp_path / "run/log.jsonl")
    assert [record["images"] for record in log] == [4, 8, 12, 16]
    moved = [record["generator/grad_norm"] > 0 for record in log if "generator/grad_norm" in record]
    assert moved == [True] * (3 if name == "imagenet512_sida" else 4)  # SiDA's fake begins alone
    assert ("generator/adversarial" in log[-1]) == (name == "imagenet512_sida")
    assert ("generator/image_reward" in log[-1]) == (name == "sdxl_di_star")
    assert Image.open(tmp_path / "run/sample.png").size[0] > 4 * 16
    assert (tmp_path / "run/export/README.md").is_file()
    again = distill("try", name, "--folder", tmp_path / "run")
    assert (again.code, again.out) == (2, "") and "holds a run already" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_the_whole_path_of_every_recipe(name: str, distill: Command) -> None:
    tried = distill("try", name)
    assert tried.code == 0, tried.err
    assert steps(tried.out) == [*STEPS, "use the export without this package"]
    assert sum(float(line[36:42]) for line in tried.out.splitlines()) < 120


def test_train_tiny_is_a_run_like_any_other(distill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = distill("train", "ffhq64_sid", "--tiny", "generator.lr=2e-3", "images=8")
    assert trained.code == 0, trained.err
    folder = Path("runs/ffhq64_sid_tiny")
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    assert (settings["generator"]["lr"], settings["images"], settings["data"]["shape"]) == (2e-3, 8, [3, 8, 8])
    assert settings["teacher"] == str(folder.resolve() / "tiny/edm")
    assert distill("resume", folder).code == distill("export", folder).code == 0
    relaunched: list[Any] = []
    monkeypatch.setattr(train, "start_workers", lambda *given: relaunched.append(given) or exit(0))
    distill("train", "ffhq64_sid", "--tiny", "--processes", 2, "--oversubscribe", "--folder", "other")
    assert relaunched == [(2, ["train", "ffhq64_sid", "--tiny", "--folder", "other", "--processes", "2"])]


def test_what_is_made_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that says tiny: becomes a path, inside mappings too; another stays."""
    calls: list[Path] = []
    monkeypatch.setitem(MAKERS, "edm", calls.append)
    given = {"a": "tiny:edm", "b": {"c": "tiny:edm/x.txt", "d": 3}, "e": "edm"}
    edm = str(tmp_path.resolve() / "edm")
    expected = {"a": edm, "b": {"c": f"{edm}/x.txt", "d": 3}, "e": "edm"}
    assert materialise(given, tmp_path) == materialise(given, tmp_path) == expected and len(calls) == 1
    with pytest.raises(
        UserError, match=r"^--tiny: 'tiny:sd9' is none of tiny:sd3, tiny:sdxl, tiny:sd21, \.\.\. \(15 in all\)$"
    ):
        materialise("tiny:sd9", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "--tiny: mine.yaml must say what to change, as in tiny: {teacher: tiny:sd15}, got None"),
        (
            "name: x\ntiny: [1]\n",
            "--tiny: mine.yaml must say what to change, as in tiny: {teacher: tiny:sd15}, got [1]",
        ),
        ("name: x\ntiny: {teacher: tiny:sd9}\n", "--tiny: 'tiny:sd9' is none of tiny:sd3, "),
        ("name: x\ntiny: {images.x: 3}\n", "mine.yaml: tiny: images.x: 'images' is 16, it has no keys"),
        (
            "name: x\nteacher: a\nobjective: sid\ntiny: {imges: 3}\n",
            "mine.yaml: unknown key 'imges' (did you mean 'images'?)",
        ),
    ],
)
def test_mistakes_in_what_tiny_changes(text: str, message: str, distill: Command) -> None:
    Path("mine.yaml").write_text(text)
    refused = distill("train", "mine.yaml", "--tiny")
    assert refused.code == 2 and refused.err.count("\n") == 1 and message in refused.err


TRIES = sorted(set(shipped_recipes()) - set(PAPERS))


@pytest.mark.parametrize("name", TRIES)
def test_every_first_try_opens_in_its_short_form(name: str, tmp_path: Path) -> None:
    """With what it needs made in the run folder: nothing is trained or downloaded first. Overrides hold above it."""
    if load_yaml(find_recipe(name)).get("trains") == "classifier":
        return
    run: Any = short_form(name, ["images=8"], tmp_path)
    open_run(run, 1, weights=False)
    assert (run.name, run.images, run.batch_size, run.evaluation.every) == (f"{name}_tiny", 8, 4, 0)
    places = [run.data.path] if name.startswith("fashion") else []
    if run.trains == "generator":
        places += [run.teacher, *([run.pairs.folder] if run.pairs else []), *run.objective.further_teachers().values()]
        assert len(places) == 1 + name.startswith("fashion") + (
            name in ("digits_dmd", "digits_hipa", "digits_autoguided")
        )
    assert all(Path(place).parent == (tmp_path / "tiny").resolve() for place in places)


@pytest.mark.parametrize("name", ["digits_hipa", "digits_rewarded", "fashion_sida"])
def test_try_of_a_first_try(name: str, distill: Command) -> None:
    tried = distill("try", name)
    assert tried.code == 0, tried.err
    assert steps(tried.out) == [*STEPS, "use the export without this package"]
    assert "4 updates" in tried.out and not list(Path.cwd().iterdir())


def test_try_of_a_teacher_and_of_a_classifier(distill: Command, tmp_path: Path) -> None:
    tried = distill("try", "fashion_flow_teacher", "--folder", tmp_path / "teacher")
    assert tried.code == 0, tried.err
    assert steps(tried.out) == STEPS[:4] and (tmp_path / "teacher/teacher/denoiser.json").is_file()
    tried = distill("try", "digits_classifier", "--folder", tmp_path / "classifier")
    assert tried.code == 0, tried.err
    assert steps(tried.out) == [STEPS[0], STEPS[2]] and "4 updates, " in tried.out


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIES)
def test_the_whole_path_of_every_first_try(name: str, distill: Command) -> None:
    assert distill("try", name).code == 0


def test_an_export_that_others_cannot_use_is_told(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("```python\nimport distill\n```\n")
    with pytest.raises(UserError, match=r"fails: ModuleNotFoundError: import of distill halted"):
        try_.use_export(tmp_path)


def test_the_table_of_the_docs_is_of_these_files() -> None:
    """`distill recipes --table` prints it."""
    table = markdown()
    assert f"\n\n{table}\n\n" in (ROOT / "docs/recipes.md").read_text()
    assert all(f"[`{name}`](../configs/" in table for name in PAPERS)
    for place in re.findall(r"\]\((\.\./configs/[^)]+)\)", table):
        assert (ROOT / "docs" / place).is_file()
