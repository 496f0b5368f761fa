"""The prompts' texts in training: drawn with the condition, in any partition and after a resume, for who asks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from distill.errors import UserError
from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.guided import Guided
from distill.objectives.rewarded import Rewarded
from distill.random import Random
from distill.rewards import ClipReward, Reward
from tests.distill.rewards.test_clip import write_clip
from tests.texts import embedding, install
from tests.tiny import build_session, experiment, fit_run
from tests.toys import Nearness
from trainers.data.batches import Batches, BatchSizes, texts_at
from trainers.recipe.run import Run
from trainers.runs.distillation import make_batches

from .test_conditions import IMAGES, PROMPTS, ready, settings, words

CPU = torch.device("cpu")

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from distill.rewards import Reward


class Length(nn.Module):
    def forward(self, x, cond, texts):
        with open({log!r}, "a") as stream:
            stream.writelines(text + "\\n" for text in texts)
        return x.flatten(1).mean(1) * x.new_tensor([len(text) for text in texts])


@dataclass(frozen=True, kw_only=True)
class Own(Reward):
    name: ClassVar[str] = "length"
    reads_texts = True

    def load(self):
        return Length()
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    install(monkeypatch)
    (tmp_path / "p.txt").write_text("\n".join(prompt for prompt in PROMPTS if prompt))


def batches(dataset: Any, rank: int = 0, world: int = 1, micro: int = 1, texts: bool = True, real: bool = False) -> Any:
    return Batches(dataset, BatchSizes(24, micro), 3, torch.float32, real, rank, world, CPU, texts=texts)


@pytest.mark.parametrize("stream", ["generator", "fake 0"])
@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 1), (3, 4)])
def test_any_partition_has_the_same_texts(stream: str, world: int, micro: int, tmp_path: Path) -> None:
    """They are those whose embeddings the condition holds."""
    dataset, _ = ready(tmp_path, words())
    whole = batches(dataset).micro(stream, 48, 0)
    parts = [
        batches(dataset, rank, world, micro).micro(stream, 48, index).texts
        for index in range(micro)
        for rank in range(world)
    ]
    assert sum(parts, ()) == whole.texts and len(set(whole.texts)) > 3
    assert torch.equal(whole.cond["prompt"], torch.stack([embedding(text) for text in whole.texts]))
    silent = batches(dataset, texts=False).micro(stream, 48, 0)
    assert silent.texts is None and torch.equal(silent.noise, whole.noise)
    assert all(torch.equal(silent.cond[name], whole.cond[name]) for name in whole.cond)


def test_real_images_come_with_their_captions(tmp_path: Path) -> None:
    source = experiment(settings(tmp_path, data=IMAGES, form={"shape": [3, 8, 8]})).data.load()
    dataset, _ = ready(tmp_path, source, real=True, shape=[3, 8, 8])
    batch = batches(dataset, real=True).micro("generator", 24, 0)
    positions = dataset.order(3, torch.arange(24, 48))
    assert batch.texts == texts_at(source, positions) and torch.equal(batch.real, source.images(positions))
    assert torch.equal(batch.cond["prompt"], torch.stack([embedding(text) for text in batch.texts]))


def test_no_text_is_looked_up_where_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.batches.texts_at", lambda *given: pytest.fail("looked up"))
    session = build_session(settings(tmp_path, objective="diff_instruct"))
    assert session.batches.micro("generator", 0, 0).texts is None
    plain, reading = Nearness(), ClipReward(clip="x")
    assert not Rewarded(objective=DiffInstruct(), reward=plain, reward_scale=1.0).needs
    inner = Rewarded(objective=DiffInstruct(), reward=reading, reward_scale=1.0)
    assert inner.needs == Guided(objective=inner).needs == {"texts"}
    assert issubclass(ClipReward, Reward)


@pytest.mark.usefixtures("trusted_code")
def test_a_reward_of_ones_own_reads_the_texts_and_resumes_on_them(tmp_path: Path) -> None:
    log = tmp_path / "texts"
    (tmp_path / "own.py").write_text(OWN.format(log=str(log)))
    reward = {"name": f"{tmp_path / 'own.py'}:Own"}
    objective = {"name": "rewarded", "objective": "diff_instruct", "reward": reward, "reward_scale": 1.0}
    run = experiment(settings(tmp_path, objective=objective, micro_batches=2))
    assert isinstance(run, Run)
    session = fit_run(run, tmp_path / "run")
    seen = log.read_text().splitlines()
    made = make_batches(run, session.dataset, session.accelerator, None)
    wanted = [made.micro("generator", first, micro).texts for first in (0, 8, 16, 24) for micro in (0, 1)]
    assert seen == [text for part in wanted for text in part or ()] and len(seen) == 32
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert all(record["generator/length"] == -record["health/length"] for record in records)

    shutil.rmtree(tmp_path / "run/checkpoints" / f"{32:012d}")
    log.write_text("")
    resumed = fit_run(run, tmp_path / "run", resume=True)
    assert log.read_text().splitlines() == seen[16:]
    for name, value in session.state.ema.module.state_dict().items():
        assert torch.equal(value, resumed.state.ema.module.state_dict()[name])


def test_clip_score_trains_a_teacher_of_prompts(tmp_path: Path) -> None:
    """The term is that of the batch's texts, and the gradient moves the generator."""
    write_clip(tmp_path / "clip")
    objective: dict[str, Any] = {"name": "rewarded", "objective": "diff_instruct", "reward_scale": 3.0}
    objective["reward"] = {"name": "clip_score", "clip": str(tmp_path / "clip")}
    run = experiment(settings(tmp_path, objective=objective))
    assert isinstance(run, Run)
    session = fit_run(run, tmp_path / "run")
    batch, nets = session.batches.micro("generator", 0, 0), session.nets
    x = Random.at(1, torch.arange(8)).stream("x").normal(1, 8, 8).requires_grad_()
    term = run.objective.generator_loss(nets, x, batch)["clip_score"]  # type: ignore[arg-type]
    score = ClipReward(clip=str(tmp_path / "clip")).load()
    expected: Tensor = -3 * score(x.clamp(-1, 1), None, [str(text) for text in batch.texts or ()])
    assert torch.allclose(term, expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(term.sum(), x)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


@pytest.mark.usefixtures("trusted_code")
def test_data_without_prompts_are_refused(tmp_path: Path, teachers: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.format(log=str(tmp_path / "texts")))
    reward = {"name": f"{tmp_path / 'own.py'}:Own"}
    objective = {"name": "rewarded", "objective": "diff_instruct", "reward": reward, "reward_scale": 1.0}
    with pytest.raises(UserError, match=r"^objective: Rewarded reads prompts, data: digits has none$"):
        build_session({**settings(tmp_path, objective=objective), "teacher": str(teachers / "edm"), "data": "digits"})
