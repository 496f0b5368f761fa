"""A condition keeps its samples together: every method treats all of its tensors alike, by value."""

from __future__ import annotations

import pytest
import torch

from distill import Condition

CPU = torch.device("cpu")
LABELS = torch.tensor([3, 1, 2])
TEXT = Condition(prompt=torch.arange(12.0).reshape(3, 2, 2), mask=torch.tensor([[1, 1], [1, 0], [0, 0]]))


def same(ours: Condition, theirs: dict[str, torch.Tensor]) -> bool:
    """Return whether both are conditions of the same names, values and dtypes."""
    equal = all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())
    return isinstance(ours, Condition) and ours.keys() == theirs.keys() and equal


def test_of_takes_every_form() -> None:
    assert same(Condition.of(LABELS), {"labels": LABELS})
    assert same(Condition.of(dict(TEXT)), TEXT)
    assert same(Condition.of(None), {}) and same(Condition.of({}), {})
    assert Condition.of(TEXT) is TEXT


def test_labels() -> None:
    assert Condition.of(LABELS).labels is LABELS
    assert TEXT.labels is None and Condition().labels is None


def test_plain_is_the_form_that_of_takes() -> None:
    assert Condition(labels=LABELS).plain is LABELS
    assert Condition().plain is None
    both = Condition(labels=LABELS, prompt=TEXT["prompt"])
    for cond in (TEXT, both):
        plain = cond.plain
        assert type(plain) is dict and same(Condition.of(plain), cond)
    plain = TEXT.plain
    assert isinstance(plain, dict)
    plain.pop("mask")
    assert set(TEXT) == {"prompt", "mask"}  # a change of the plain form leaves the condition as it is


def test_map() -> None:
    assert same(TEXT.map(lambda value: 2 * value), {"prompt": 2 * TEXT["prompt"], "mask": 2 * TEXT["mask"]})
    assert same(Condition().map(lambda value: 2 * value), {})


def test_to_casts_floating_point_alone() -> None:
    assert same(TEXT.to(CPU, torch.bfloat16), {"prompt": TEXT["prompt"].bfloat16(), "mask": TEXT["mask"]})
    moved = TEXT.to(torch.device("meta"), torch.float64)
    assert moved["prompt"].device.type == moved["mask"].device.type == "meta"
    assert (moved["prompt"].dtype, moved["mask"].dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_rows(index: slice | torch.Tensor) -> None:
    assert same(TEXT.rows(index), {"prompt": TEXT["prompt"][index], "mask": TEXT["mask"][index]})
    assert same(Condition().rows(index), {})


def test_cat_joins_two_batches() -> None:
    first, rest = TEXT.rows(slice(0, 1)), TEXT.rows(slice(1, 3))
    assert same(first.cat(rest), TEXT)
    assert same(rest.cat(first), TEXT.rows(torch.tensor([1, 2, 0])))
    assert same(Condition().cat(Condition()), {})
    with pytest.raises(KeyError):
        TEXT.cat(Condition(prompt=TEXT["prompt"]))


def test_where_chooses_whole_samples() -> None:
    other = TEXT.map(lambda value: -value)
    chosen = torch.tensor([True, False, True])
    mixed = TEXT.where(chosen, other)
    assert same(mixed.rows(chosen), other.rows(chosen)) and same(mixed.rows(~chosen), TEXT.rows(~chosen))
    assert same(TEXT.where(torch.zeros(3, dtype=torch.bool), other), TEXT)
    assert same(
        Condition(labels=LABELS).where(chosen, Condition(labels=LABELS + 5)), {"labels": torch.tensor([8, 1, 7])}
    )


def test_repeat_as_gives_every_sample_the_same() -> None:
    """In the names, the dtypes and the shapes of the other condition."""
    one = Condition(prompt=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), mask=torch.tensor([1, 0]), unused=torch.ones(7))
    many = TEXT.to(CPU, torch.float64)
    assert same(
        one.repeat_as(many), {"prompt": one["prompt"].double().expand(3, 2, 2), "mask": one["mask"].repeat(3, 1)}
    )
    assert same(
        Condition(labels=torch.tensor(10)).repeat_as(Condition(labels=LABELS)), {"labels": torch.tensor([10] * 3)}
    )
    assert same(one.repeat_as(Condition()), {})
    augmented = Condition(labels=LABELS, augment=torch.ones(3, 9))
    null = {"labels": torch.tensor([10] * 3), "augment": torch.ones(3, 9)}
    assert same(Condition(labels=torch.tensor(10)).repeat_as(augmented), null)
    with pytest.raises(KeyError):
        Condition(labels=torch.tensor(10)).repeat_as(TEXT)
