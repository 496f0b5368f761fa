"""The base class of networks answers for every kind, and a plain module behind it sees plain conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import EDM, Condition, Denoiser, Network, UserError
from distill.conditions import ConditionLike
from distill.networks.network import PlainNetwork, null_label
from tests.texts import TextNet, Words

X, T = torch.ones(2, 3), torch.tensor([0.5, 2.0], dtype=torch.float64)


class Scale(nn.Module):
    """A module without any of a network's attributes; it keeps its last condition."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor, time: Tensor, cond: ConditionLike) -> Tensor:
        self.cond = cond
        output: Tensor = self.inner(x)
        return output


def test_a_plain_module_is_wrapped() -> None:
    module = Scale()
    denoiser = Denoiser(module, EDM(), "x0")
    assert isinstance(denoiser.network, PlainNetwork) and denoiser.network.module is module
    assert set(denoiser.state_dict()) == {"network.module.inner.weight", "network.module.inner.bias"}
    assert torch.equal(denoiser(X, T), module.inner(X))
    assert denoiser.network.display_name == "Scale"
    with pytest.raises(UserError, match=r"^tap: Scale has no submodule 'inner'; it has module, module.inner$"):
        denoiser.features(X, T, None, "inner")
    assert torch.equal(denoiser.features(X, T, None, "module.inner")[0], module.inner(X))


@pytest.mark.parametrize("how", ["labels", "mapping", "both", "none"])
def test_a_plain_module_sees_the_plain_condition(how: str) -> None:
    labels, text = torch.tensor([1, 2]), torch.ones(2, 4)
    given: dict[str, Any] = {
        "labels": labels,
        "mapping": {"text": text},
        "both": {"labels": labels, "text": text},
        "none": None,
    }
    module = Scale()
    denoiser = Denoiser(module, EDM(), "x0")
    for cond in (given[how], Condition.of(given[how])):
        denoiser(X, T, cond)
        if isinstance(given[how], dict):
            assert type(module.cond) is dict and module.cond.keys() == given[how].keys()
            assert all(module.cond[name] is value for name, value in given[how].items())
        else:
            assert module.cond is given[how]


def test_a_network_is_taken_as_it_is_and_sees_a_condition() -> None:
    class Kept(Network):
        def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
            self.cond = cond
            return x

    network = Kept()
    denoiser = Denoiser(network, EDM(), "x0")
    assert denoiser.network is network and network.display_name == "Kept"
    for cond, names in ((None, set()), (torch.tensor([1, 2]), {"labels"}), ({"text": X}, {"text"})):
        denoiser(X, T, cond)
        assert isinstance(network.cond, Condition) and set(network.cond) == names


def test_null_conditions() -> None:
    assert null_label(None) is None
    null = null_label(10)
    assert null is not None and null.labels is not None
    assert (null.labels.shape, null.labels.dtype, int(null.labels)) == ((), torch.int64, 10)
    network = Network()
    assert (network.has_null, network.null_label) == (False, None)
    network.null = null
    assert (network.has_null, network.null_label) == (True, 10)
    network.null = Condition(text=torch.zeros(3))
    assert (network.has_null, network.null_label) == (True, None)


def test_a_text_encoder_can_make_the_null_condition(tmp_path: Path) -> None:
    network = TextNet((1, 8, 8), Words(tmp_path / "log"))
    assert network.null is None and network.has_null and network.null_label is None


def test_examples() -> None:
    network = Network()
    assert network.example(2) == {} and isinstance(network.example(2), Condition)
    network.conditions = {"prompt": (5, 4), "mask": (5,), "pooled": (6,)}
    made, again = network.example(3), network.example(3)
    assert {name: tuple(value.shape) for name, value in made.items()} == {
        "prompt": (3, 5, 4),
        "mask": (3, 5),
        "pooled": (3, 6),
    }
    assert made["mask"].dtype == torch.int64 and bool((made["mask"] == 1).all())
    assert made["prompt"].dtype == torch.float32 and float(made["prompt"].std()) > 0.5
    assert all(torch.equal(made[name], again[name]) for name in made)
    network.classes = 3
    labels = network.example(5).labels
    assert labels is not None and labels.tolist() == [0, 1, 2, 0, 1] and labels.dtype == torch.int64


def test_features_of_a_tuple_are_its_first_entry() -> None:
    network = Network()
    assert network.tapped(X, (2,)) is X and network.tapped((X, T), (2,)) is X


def test_a_network_of_no_named_kind(tmp_path: Path) -> None:
    """No folder, no pipeline and no format of adapters has a place for it."""
    network = Network()
    assert (network.pipeline_export, network.authors_class) == (None, None)
    assert (network.own_class, network.adapter_part) == (None, None)
    line = r"^teacher: denoiser.json cannot name a {}; a network of your own goes into OwnNet$"
    for one, name in ((network, "Network"), (PlainNetwork(Scale()), "Scale")):
        with pytest.raises(UserError, match=line.format(name)):
            one.description()
    for call in (
        lambda: network.save(tmp_path),
        lambda: Network.load(tmp_path, {}),
        lambda: network(X, T, Condition()),
    ):
        with pytest.raises(NotImplementedError):
            call()
