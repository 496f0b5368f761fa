"""Embeddings that are made while a run trains, and embeddings in low precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.conditions import Condition
from distill.errors import UserError
from tests.families import TEACHERS
from tests.families import recipe as family_recipe
from tests.texts import embedding
from tests.tiny import fit_run, once
from tests.trainers.data.test_conditions import PROMPTS, alone, encoded, log, ready, settings, words
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.data.batches import Batches, BatchSizes, condition_at
from trainers.data.encode import DatasetEncoder
from trainers.data.in_loop import InLoop
from trainers.data.read_ahead import Request
from trainers.data.shards import Table, trim
from trainers.engine.session import Session
from trainers.runs.load import load_trained

__all__ = ["alone", "log"]
CPU = torch.device("cpu")
IN_LOOP: dict[str, Any] = {"embeddings": {"ahead": False}}


def weights(session: Session) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in session.state.players["generator"].bare.parameters()]


@pytest.mark.parametrize("changes", [{}, {"micro_batches": 2}, {"reuse_samples": True}, {"fake_updates": 2}])
def test_a_run_is_the_same_to_the_bit(changes: dict[str, Any], tmp_path: Path, log: Path) -> None:
    ahead = fit_run(settings(tmp_path, **changes), tmp_path / "ahead")
    calls = len(encoded(log))
    there = fit_run(settings(tmp_path, **changes, **IN_LOOP, cache=str(tmp_path / "no cache")), tmp_path / "in loop")
    assert all(map(torch.equal, weights(ahead), weights(there)))
    assert not (tmp_path / "no cache" / "text").exists() and len(encoded(log)) > calls


def test_it_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = settings(tmp_path, **IN_LOOP)
    fit(recipe, tmp_path / "straight")
    interrupted(recipe, tmp_path / "resumed", 16, monkeypatch)
    fit(recipe, tmp_path / "resumed", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "resumed")


def test_a_trained_run_is_sampled_without_encoding_its_data(tmp_path: Path, log: Path) -> None:
    many = [f"prompt {number}" for number in range(5_000)]
    (tmp_path / "p.txt").write_text("\n".join(many))
    fit_run(settings(tmp_path, **IN_LOOP), tmp_path / "run")
    calls = len(encoded(log))
    samples = load_trained(tmp_path / "run").sample(4)
    assert samples.shape == (4, 1, 8, 8) and len(encoded(log)) - calls < 100


def test_the_next_prompts_are_encoded_before_they_are_asked_for() -> None:
    asked: list[list[str]] = []

    def encode(prompts: list[str]) -> dict[str, torch.Tensor]:
        asked.append(prompts)
        return {"prompt": torch.tensor([[float(len(prompt))] for prompt in prompts])}

    encoder = InLoop(encode, ["a", "bb", "ccc"], CPU)
    encoder.prepare(torch.tensor([1, 2]))
    assert encoder(torch.tensor([1, 2]))["prompt"].tolist() == [[2.0], [3.0]] and asked == [["bb", "ccc"]]
    encoder.prepare(torch.tensor([0]))  # another request, as that of an evaluation, comes in its place
    assert encoder(torch.tensor([2, 0]))["prompt"].tolist() == [[3.0], [1.0]]
    assert asked[-1] == ["ccc", "a"] and encoder(torch.tensor([0]))["prompt"].tolist() == [[1.0]]


def test_batches_prepare_the_request_that_follows(tmp_path: Path) -> None:
    dataset, _ = in_loop(tmp_path)
    order = [Request("fake", 0, 0), Request("generator", 0, 0), Request("fake", 4, 0)]
    made = Batches(dataset, BatchSizes(4), 0, torch.float32, False, 0, 1, CPU, upcoming=lambda: iter(order))
    for request, following in zip(order, [*order[1:], None], strict=True):
        made.micro(*request)
        encoder = dataset.embed
        wanted = None if following is None else made._positions(following).tolist()
        assert (None if encoder.prepared is None else encoder.prepared[0]) == wanted


def in_loop(tmp_path: Path) -> Any:
    """(data set with embeddings in the loop, teacher)."""
    _, teacher = ready(tmp_path, words())
    return DatasetEncoder(str(tmp_path / "cache"), CPU, ahead=False).encode(words(), teacher, False), teacher


def test_embeddings_in_the_loop_are_those_of_the_table(tmp_path: Path) -> None:
    table, _ = ready(tmp_path, words())
    loop, teacher = in_loop(tmp_path)
    positions = torch.tensor([5, 1, 3, 0, 4])
    ours, theirs = condition_at(loop, positions), condition_at(table, positions)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not teacher.network.null["prompt"].any()


def test_prompts_of_another_form_than_the_null_condition_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, teacher = ready(tmp_path, words())
    null = teacher.network.text_encoder.encode_null()
    shorter = {name: value[:, :1] if name == "prompt" else value for name, value in null.items()}
    monkeypatch.setattr(teacher.network.text_encoder, "encode_null", lambda: shorter)
    with pytest.raises(UserError, match=r"^text: a prompt is encoded as \{'prompt': .*, and the null condition as \{"):
        DatasetEncoder(str(tmp_path / "cache"), CPU, ahead=False).encode(words(), teacher, False)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_cache_of_low_precision_is_rounded_and_half_as_large(precision: str, tmp_path: Path) -> None:
    dtype = getattr(torch, precision)
    _, teacher = ready(tmp_path, words())
    encoder = DatasetEncoder(str(tmp_path / "low"), CPU, precision=dtype)
    found = condition_at(encoder.encode(words(), teacher, False), torch.arange(6))
    assert found["prompt"].dtype == dtype and found["mask"].dtype == torch.bool
    expected = torch.stack([embedding(prompt) for prompt in PROMPTS]).to(dtype)
    assert torch.equal(found["prompt"], expected)


def test_low_precision_is_another_table(tmp_path: Path, log: Path) -> None:
    fit_run(settings(tmp_path), tmp_path / "one")
    calls = len(encoded(log))
    fit_run(settings(tmp_path, embeddings={"precision": "bfloat16"}), tmp_path / "two")
    assert len(encoded(log)) == 2 * calls
    assert len(list((tmp_path / "cache" / "text").iterdir())) == 4  # of prompts and of the null prompt, twice


def test_a_device_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device: must be a device of torch, such as cuda:1, got 'x'$"):
        fit_run(settings(tmp_path, embeddings={"device": "x"}), tmp_path / "run")


TRIMMED = Condition(
    prompt=torch.arange(24.0).reshape(2, 3, 4),
    mask=torch.tensor([[1, 0, 0], [1, 1, 0]]),
    pooled=torch.tensor([[1.0], [2.0]]),
)


def test_trimmed_rows_come_back_with_zeros() -> None:
    table = Table(2, (trim(TRIMMED),), Path("t"), TRIMMED.rows(slice(0, 1)))
    assert torch.equal(
        table.shards[0]["prompt/tokens"], torch.cat([TRIMMED["prompt"][0, :1], TRIMMED["prompt"][1, :2]])
    )
    found = table.rows(torch.tensor([1, 0]))
    assert found["mask"].tolist() == [[1, 1, 0], [1, 0, 0]] and found["pooled"].tolist() == [[2.0], [1.0]]
    expected = TRIMMED["prompt"] * TRIMMED["mask"][:, :, None]
    assert torch.equal(found["prompt"], expected.flip(0))


HOSTILE: dict[str, dict[str, torch.Tensor]] = {
    "a length below zero": {"lengths": torch.tensor([-1, 4])},
    "a length of more than there is": {"lengths": torch.tensor([3, 3])},
    "a row that is longer than any": {"lengths": torch.tensor([4, 0]), "prompt/tokens": torch.zeros(4, 4)},
    "lengths that are no integers": {"lengths": torch.tensor([1.0, 2.0])},
    "lengths of two dimensions": {"lengths": torch.tensor([[1], [2]])},
    "no lengths": {"lengths": torch.zeros(0)},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_trimmed_shards_that_say_something_else_are_refused(case: str) -> None:
    with pytest.raises(UserError, match=r"^'t': "):
        Table(2, ({**trim(TRIMMED), **HOSTILE[case]},), Path("t"), TRIMMED.rows(slice(0, 1)))


def test_padding_before_tokens_is_not_trimmed() -> None:
    with pytest.raises(UserError, match=r"^embeddings.trim: the text encoder has padding before tokens"):
        trim({**TRIMMED, "mask": torch.tensor([[0, 1, 1], [1, 0, 1]])})


def test_a_run_on_a_trimmed_cache_is_the_same_to_the_bit(shared: Path, tmp_path: Path) -> None:
    """PixArt's network reads no embedding of padding."""
    teacher = once(shared, "teacher_pixart_alpha", TEACHERS["pixart_alpha"])
    found, size = [], []
    for trimmed in (False, True):
        cache = tmp_path / f"cache {trimmed}"
        recipe = family_recipe("pixart_alpha", "diff_instruct", teacher, tmp_path, embeddings={"trim": trimmed})
        session = fit_run({**recipe, "cache": str(cache)}, tmp_path / f"run {trimmed}")
        found.append(weights(session))
        size.append(sum(file.stat().st_size for file in cache.rglob("*.safetensors")))
    assert all(map(torch.equal, *found)) and size[1] < size[0]
