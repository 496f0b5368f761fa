"""Teachers whose network is a class of the user's own, named in denoiser.json."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from distill import EDM, Denoiser, DiscreteVP, UserError
from distill.paths import Path as GaussianPath
from distill.teachers import GaussianMixture, OwnNet, save_denoiser
from distill.teachers import load_denoiser as load
from tests.distill.teachers import own_networks
from tests.distill.teachers.own_networks import SHAPE

OWN = "tests.distill.teachers.own_networks"
X, T = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 30.0])
Change = Callable[[dict[str, Any]], Any]


def load_denoiser(folder: Path, weights: bool = True) -> Denoiser:
    """Load a teacher whose class is ours."""
    return load(folder, weights, trust_code=True)


def small(name: str = "Small", classes: int = 3, **changes: Any) -> Denoiser:
    torch.manual_seed(0)
    network = OwnNet(f"{OWN}:{name}", {"width": 4, "classes": 3}, SHAPE, classes, **changes)
    return Denoiser(network, EDM(), "edm", sigma_data=0.37)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_denoiser(small(), tmp_path / "teacher")
    return tmp_path / "teacher"


def test_round_trip_is_bit_equal(folder: Path) -> None:
    saved, loaded = small(), load_denoiser(folder)
    labels = torch.tensor([2, 0, 1])
    assert (loaded.path, loaded.prediction, loaded.sigma_data, loaded.training) == (EDM(), "edm", 0.37, False)
    network = loaded.network
    assert isinstance(network, OwnNet) and isinstance(network.module, own_networks.Small)
    assert (network.shape, network.classes, network.null) == (SHAPE, 3, None)
    assert torch.equal(loaded(X, T, labels), saved(X, T, labels))
    assert torch.equal(loaded(X, T, None), saved(X, T, None)) and not torch.equal(loaded(X, T), loaded(X, T, labels))
    assert network.module.seen.item() == 2**24 + 1 and network.module.plain.item() == 2
    published = read_tensors((folder / "network.safetensors").read_bytes())
    assert published.keys() == own_networks.Small().state_dict().keys()  # the class's own names
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    (folder / "network.safetensors").write_bytes(b"")  # a teacher replaced while a run is using it
    assert torch.equal(loaded(X, T, labels), saved(X, T, labels))


def test_null_condition_and_taps(tmp_path: Path) -> None:
    save_denoiser(small(classes=2, null=2), tmp_path / "teacher")
    loaded = load_denoiser(tmp_path / "teacher")
    assert (loaded.network.null_label, loaded.network.classes) == (2, 2)
    labels = torch.tensor([1, 0, 1])
    assert torch.equal(loaded(X, T, loaded.null(labels)), loaded(X, T, torch.full((3,), 2)))
    assert torch.equal(loaded.features(X, T, labels, "enter")[0], loaded.features(X, T, labels, "module.enter")[0])
    with pytest.raises(
        UserError, match=r"^tap: OwnNet has no submodule 'encoder'; it has enter, leave, classes, module, "
    ):
        loaded.features(X, T, labels, "encoder")


CONVENTIONS: dict[str, tuple[str, GaussianPath, Any]] = {
    "noise by level": ("LevelOfSamples", EDM(), "eps"),
    "velocity by a time that runs to the data": ("TimeOfSamples", EDM(), "x0"),
    "noise by step": ("StepOfSamples", own_networks.halved(DiscreteVP()), "eps"),
}


@pytest.mark.parametrize("how", CONVENTIONS)
def test_another_range_and_time_are_exact(how: str, tmp_path: Path) -> None:
    """A network of pixels in [0, 1] is the exact denoiser of the same data in [-1, 1], whatever its own convention."""
    name, path, prediction = CONVENTIONS[how]
    means, stds = ((torch.arange(12) - 6) / 8).reshape(3, *SHAPE), torch.tensor([0.125, 0.25, 0.5])  # halved exactly
    network = OwnNet(f"{OWN}:{name}", {}, SHAPE, classes=3)
    network.module.load_state_dict({"means": (means + 1) / 2, "stds": stds / 2})
    save_denoiser(Denoiser(network, path, prediction), tmp_path / "teacher")
    loaded = load_denoiser(tmp_path / "teacher")
    assert loaded.path == path
    exact = GaussianMixture(path, means.double(), stds.double())
    nsr = torch.logspace(-1.3, 1.4, 12, dtype=torch.float64)
    t, labels = path.time(nsr), torch.arange(12) % 4  # 3 is the mixture
    noise = torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = path.diffuse(means[labels % 3].double(), t, noise)
    expected = exact(x_t, t, labels)
    assert float((loaded.double()(x_t, t, labels) - expected).abs().max()) < 1e-12
    single = loaded.float()(x_t.float(), t, labels)
    assert single.dtype == torch.float32
    assert float((single - expected).abs().max()) < (1e-6 if prediction == "x0" else 4e-6)  # eps: nsr times rounding


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_denoiser(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


REFUSED: dict[str, tuple[Change, str]] = {
    "module": (
        lambda d: d["network"].update(name="no_such_module:Net"),
        "network: cannot import 'no_such_module:Net': there is no such module on the Python path or in '",
    ),
    "class": (
        lambda d: d["network"].update(name=f"{OWN}:Smal"),
        f"network: cannot import '{OWN}:Smal': '{own_networks.__file__}' defines no Smal",
    ),
    "function": (
        lambda d: d["network"].update(name=f"{OWN}:function"),
        f"network: '{OWN}:function' must be a class derived from Module, got <function",
    ),
    "program": (
        lambda d: d.update(network={"name": "subprocess:Popen", "args": ["touch", "PWNED"]}),
        "network: cannot import 'subprocess:Popen': the standard library has no class of this kind",
    ),
    "setting": (
        lambda d: d["network"].update(depth=3),
        f"network: {OWN}:Small cannot be made of {{'width': 4, 'classes': 3, 'depth': 3}}: TypeError: ",
    ),
    "value": (
        lambda d: d["network"].update(width="wide"),
        f"network: {OWN}:Small cannot be made of {{'width': 'wide', 'classes': 3}}: ",
    ),
    "width": (
        lambda d: d["network"].update(width=5),
        "weights: 'enter.weight' has shape (4, 1, 3, 3), the network (5, 1, 3, 3)",
    ),
    "no shape": (lambda d: d.pop("shape"), "shape: must be positive integers [channels, *spatial], got ()"),
    "more classes": (
        lambda d: d.update(classes=4),
        f"network: {OWN}:Small fails when called with (x, time, labels): IndexError: index out of range",
    ),
    "more channels": (
        lambda d: d.update(shape=[2, 2, 2]),
        f"network: {OWN}:Small fails when called with (x, time, labels): RuntimeError: Given groups=1",
    ),
    "output": (
        lambda d: d["network"].update(name=f"{OWN}:Wide"),
        f"network: {OWN}:Wide gives [2, 2, 2, 2] for x of [2, 1, 2, 2]",
    ),
    "labels": (
        lambda d: d["network"].update(name=f"{OWN}:Unlabelled"),
        f"network: {OWN}:Unlabelled fails when called with (x, time, labels): TypeError: ",
    ),
    "forward": (
        lambda d: d["network"].update(name=f"{OWN}:Broken"),
        f"network: {OWN}:Broken fails when called with (x, time, labels): RuntimeError: one two",
    ),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [1, 2, 0]),
        ("shape", [2]),
        ("shape", [True, 2, 2]),
        ("shape", [1, 2**40]),
        ("shape", 4),
        ("classes", -1),
    ],
)
def test_numbers_out_of_range_are_named(field: str, value: Any, folder: Path) -> None:
    file = folder / "denoiser.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    assert refusal(folder).startswith(f"teacher: '{file}' is damaged: key '{field}")


@pytest.mark.parametrize("how", REFUSED)
def test_descriptions_that_do_not_fit(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    change, message = REFUSED[how]
    description = json.loads((folder / "denoiser.json").read_text())
    change(description)
    (folder / "denoiser.json").write_text(json.dumps(description))
    assert refusal(folder).startswith(f"teacher: '{folder}': {message}")
    assert sorted(file.name for file in folder.iterdir()) == ["denoiser.json", "network.safetensors"]


def test_without_classes_it_is_called_without_labels(tmp_path: Path) -> None:
    save_denoiser(small("Unlabelled", classes=0), tmp_path / "teacher")
    loaded = load_denoiser(tmp_path / "teacher")
    assert loaded.network.classes == 0 and loaded(X, T).shape == X.shape


def test_weights_that_do_not_fit(folder: Path) -> None:
    file = folder / "network.safetensors"
    state = read_tensors(file.read_bytes())
    save_file({key: value for key, value in state.items() if key != "leave.bias"}, file)
    assert refusal(folder) == f"teacher: '{folder}': weights: 'leave.bias' is missing"
    save_file({**state, "frequency": torch.ones(())}, file)
    assert refusal(folder) == f"teacher: '{folder}': weights: 'frequency' is no weight of this network"
    file.unlink()
    assert refusal(folder).startswith(f"teacher: cannot read '{file}': ")


@pytest.mark.parametrize("place", ["installed", "working directory", "teacher's folder", "package"])
def test_code_that_a_folder_names_runs_with_consent_alone(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the file lies, it is named before anything of it runs. Its hash is a consent to this content alone."""
    work = {"installed": tmp_path / "site", "working directory": tmp_path / "work"}.get(place, folder)
    source = f"{tmp_path.name.rstrip('0123456789')}_net" if place != "package" else "teacher.deep.net"
    code = (tmp_path if place == "package" else work) / f"{source.replace('.', '/')}.py"
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom {OWN} import Small\n")
    description = json.loads((folder / "denoiser.json").read_text())
    description["network"]["name"] = f"{source}:Small"
    (folder / "denoiser.json").write_text(json.dumps(description))
    if place == "installed":
        monkeypatch.setattr(sys, "path", [str(work), *sys.path])
    monkeypatch.chdir({"working directory": work, "package": tmp_path}.get(place, tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    sha = hashlib.sha256(code.read_bytes()).hexdigest()
    for trust in (False, ["0" * 64]):
        with pytest.raises(UserError) as refused:
            load(folder, trust_code=trust)
        assert str(refused.value) == (
            f"teacher: '{folder}': network: '{source}:Small' is code in '{code}' (SHA-256 {sha}), which runs only with"
            " --trust-code, in Python trust_code=True; read it first"
        )
        assert not (tmp_path / "ran").exists() and source not in sys.modules
    assert isinstance(load(folder, trust_code=[sha]).network, OwnNet) and (tmp_path / "ran").exists()
    for name in [name for name in sys.modules if name == source or name.startswith("teacher")]:
        sys.modules.pop(name)


def test_tensors_at_the_top_of_a_module_have_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first load is of an outline, whose own tensors are on the meta device."""
    (folder / "tabled.py").write_text(f"import torch\nfrom {OWN} import Small\nTABLE = torch.arange(3.0)\n")
    description = json.loads((folder / "denoiser.json").read_text())
    description["network"]["name"] = "tabled:Small"
    (folder / "denoiser.json").write_text(json.dumps(description))
    monkeypatch.chdir(folder)
    outline = load_denoiser(folder, weights=False)
    assert all(parameter.is_meta for parameter in outline.parameters())
    (module,) = (one for name, one in sys.modules.items() if "tabled" in name)
    assert module.TABLE.tolist() == [0, 1, 2]


def test_what_no_folder_can_hold(tmp_path: Path) -> None:
    bare = Denoiser(own_networks.Small(), EDM(), "edm")
    with pytest.raises(
        UserError, match=r"^teacher: denoiser.json cannot name a Small; a network of your own goes into OwnNet$"
    ):
        save_denoiser(bare, tmp_path / "teacher")
    denoiser = small()
    denoiser.network.settings["width"] = Tensor([4])
    with pytest.raises(UserError, match=re.escape("teacher: settings must be plain values for denoiser.json: ")):
        save_denoiser(denoiser, tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
