"""Published checkpoints are read exactly; whatever else comes as one is refused in one line and runs nothing."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distill import UserError
from distill.encoders.latents import Normalisation
from distill.teachers import load_denoiser, read_published, save_denoiser
from tests.distill.teachers.test_edm import EDM2, FOURIER, LABELS, SONG, T, build, x_t
from tests.published import Record, checkpoint, dump, record, stability, write


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("settings", [FOURIER, EDM2], ids=["edm", "edm2"])
def test_checkpoints_are_read_exactly(settings: dict[str, object], protocol: int, tmp_path: Path) -> None:
    saved = build(settings)
    saved.sigma_data = 0.37
    data = checkpoint(saved.network, sigma_data=0.37, sigma_min=0.0, sigma_max=float("inf"))  # type: ignore[arg-type]
    kind = "edm" if settings is FOURIER else "edm2"
    found = read_published(write(data, tmp_path / "a.pkl", protocol), kind)
    assert (found.denoiser.sigma_data, found.denoiser.prediction, found.denoiser.training) == (0.37, "edm", False)
    assert found.settings == settings
    assert found.parameters == sum(parameter.numel() for parameter in saved.parameters())
    assert torch.equal(found.denoiser(x_t(), T, LABELS), saved(x_t(), T, LABELS))
    assert not {"torch_utils", "dnnlib"} & sys.modules.keys()


def test_half_precision_and_the_encoder_of_edm2(tmp_path: Path) -> None:
    saved = build(EDM2)
    data = checkpoint(saved.network.half())  # type: ignore[arg-type]
    data["encoder"] = Record("StabilityVAEEncoder", raw_mean=np.zeros(4), vae_name="sd", _vae=None)
    found = read_published(write(data, tmp_path / "a.pkl"), "edm2")
    assert (found.encoder, found.denoiser.latents) == ("StabilityVAEEncoder", True)
    assert torch.equal(found.denoiser(x_t(), T, LABELS), saved.float()(x_t(), T, LABELS))
    data["encoder"] = Record("StandardRGBEncoder")
    found = read_published(write(data, tmp_path / "a.pkl"), "edm2")
    assert (found.encoder, found.denoiser.latents) == (None, False)


EDM2_LATENTS: dict[str, object] = {**EDM2, "img_channels": 4}


@pytest.mark.parametrize("protocol", [2, 4])
def test_how_edm2s_encoder_scales_latents(protocol: int, tmp_path: Path) -> None:
    """The numbers of the authors' source to their last digit, kept by the teacher's folder."""
    data = {**checkpoint(build(EDM2_LATENTS).network), "encoder": stability()}  # type: ignore[arg-type]
    found = read_published(write(data, tmp_path / "a.pkl", protocol), "edm2")
    wanted = Normalisation((5.81, 3.25, 0.12, -2.15), (8.34, 9.24, 7.42, 6.56))
    assert found.denoiser.latents == wanted
    save_denoiser(found.denoiser, tmp_path / "teacher")
    assert load_denoiser(tmp_path / "teacher").latents == wanted


@pytest.mark.parametrize(
    ("scale", "bias", "message"),
    [
        (np.ones(4), np.zeros(4, np.float32), "'encoder' holds Object("),
        ([1.0] * 4, np.zeros(4, np.float32), "'encoder' holds [1.0, 1.0, 1.0, 1.0] where numbers were expected"),
        (np.ones((2, 2), np.float32), np.zeros(4, np.float32), "where numbers were expected"),
        (np.ones(2, np.float32), np.zeros(2, np.float32), "scales latents by [1.0, 1.0] and [0.0, 0.0], the network"),
        (np.zeros(4, np.float32), np.zeros(4, np.float32), "the network takes 4 channels"),
        (-np.ones(4, np.float32), np.zeros(4, np.float32), "latents: must have as many finite means as positive stds"),
        (np.full(4, np.nan, np.float32), np.zeros(4, np.float32), "must have as many finite means as positive stds"),
    ],
)
def test_an_encoder_without_sense(scale: Any, bias: Any, message: str, tmp_path: Path) -> None:
    data = {**checkpoint(build(EDM2_LATENTS).network), "encoder": stability(scale, bias)}  # type: ignore[arg-type]
    with pytest.raises(UserError) as error:
        read_published(write(data, tmp_path / "a.pkl"), "edm2")
    text = str(error.value)
    assert text.startswith("import: ") and message in text and "\n" not in text and len(text) < 500, text


def test_the_null_condition_is_that_of_dropped_labels(tmp_path: Path) -> None:
    for dropout, null in ((0, None), (0.1, 3)):
        found = read_published(write(song(label_dropout=dropout), tmp_path / "a.pkl"), "edm")
        assert found.denoiser.network.null_label == null
        save_denoiser(found.denoiser, tmp_path / f"{dropout}")
        assert load_denoiser(tmp_path / f"{dropout}").network.null_label == null


def test_views_of_one_storage(tmp_path: Path) -> None:
    """Tensors may share storage, start anywhere in it and be transposed."""
    saved = build(SONG)
    layer = saved.network.model.map_layer1  # type: ignore[union-attr]
    base = torch.randn(33, 32, generator=torch.Generator().manual_seed(2))
    layer.weight, layer.bias = nn.Parameter(base[1:].T), nn.Parameter(base[0])  # type: ignore[union-attr]
    found = read_published(write(checkpoint(saved.network), tmp_path / "a.pkl"), "edm")  # type: ignore[arg-type]
    assert torch.equal(found.denoiser(x_t(), T, LABELS), saved(x_t(), T, LABELS))


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def legacy(*parts: bytes, tail: bytes = b"") -> Call:
    """A storage in torch's old format: pickles, then bytes."""
    return Call(torch.storage._load_from_bytes, b"".join(parts) + tail)


HEAD = (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2))


def claim(count: int, kind: str = "FloatStorage") -> bytes:
    """The pickle of a reference to a storage of `count` numbers."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.persistent_id = lambda obj: obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None  # type: ignore[method-assign]
    pickler.dump(("storage", getattr(torch, kind), "0", "cpu", count, None))
    return stream.getvalue()


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Call:
    """A tensor of four stored numbers."""
    four = legacy(*HEAD, claim(4), pickle.dumps(["0"], 2), tail=struct.pack("<q4f", 4, 1, 2, 3, 4))
    return Call(torch._utils._rebuild_tensor_v2, four, offset, size, stride, False, collections.OrderedDict())


def song(**arguments: Any) -> dict[str, Any]:
    return checkpoint(build(SONG).network, **arguments)  # type: ignore[arg-type]


def changed(change: Callable[[Record], Any], inner: bool = False) -> Any:
    """A checkpoint after `change` of its network, or of the network inside."""
    data = song()
    change(data["ema"].state["_modules"]["model"] if inner else data["ema"])
    return data


def weight(value: Any, name: str = "weight") -> Any:
    return changed(lambda r: r.state["_modules"]["map_layer0"].state["_parameters"].update({name: value}), inner=True)


def nested(depth: int, opcodes: bytes) -> bytes:
    return b"\x80\x04" + opcodes * depth


def loop() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def itself() -> Any:
    data = song()
    data["ema"].state["_modules"]["model"].state["_modules"]["again"] = data["ema"]
    return data


TOUCH = "touch ran"  # in the working directory of the test
DEEP = 100_000
HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    # code
    "os.system": (lambda: {"ema": Call(os.system, TOUCH)}, "the name 'posix.system' is not allowed"),
    "eval": (lambda: {"ema": Call(eval, f"__import__('os').system('{TOUCH}')")}, "'builtins.eval' is not allowed"),
    "exec": (lambda: {"ema": Call(exec, "open('ran', 'w')")}, "'builtins.exec' is not allowed"),
    "getattr": (lambda: {"ema": Call(getattr, Call(__import__, "os"), "system")}, "'builtins.getattr' is not allowed"),
    "open": (lambda: {"ema": Call(builtins.open, "ran", "w")}, "is not allowed"),
    "Popen": (lambda: [Call(subprocess.Popen, ["touch", "ran"])], "'subprocess.Popen' is not allowed"),
    "torch.load": (lambda: Call(torch.load, "ran"), "'torch.serialization.load' is not allowed"),
    "nested pickle": (lambda: Call(pickle.loads, pickle.dumps(Call(os.system, TOUCH))), "'_pickle.loads' is not"),
    "nested reduce": (
        lambda: Call(collections.OrderedDict, [("a", Call(collections.OrderedDict, [("b", Call(os.system, TOUCH))]))]),
        "'posix.system' is not allowed",
    ),
    "in a storage": (lambda: legacy(*HEAD, pickle.dumps(Call(os.system, TOUCH))), "'posix.system' is not allowed"),
    "in the head of a storage": (lambda: legacy(pickle.dumps(Call(os.system, TOUCH))), "'posix.system' is not allowed"),
    "storage in a storage": (lambda: legacy(*HEAD, pickle.dumps(legacy(b""))), "_load_from_bytes' is not allowed"),
    "in an argument": (lambda: song(dropout=Call(os.system, TOUCH)), "'posix.system' is not allowed"),
    "beside the network": (lambda: {**song(), "loss_fn": Call(os.system, TOUCH)}, "'posix.system' is not allowed"),
    "dotted name": (
        lambda: b"\x80\x04\x8c\x17torch_utils.persistence\x8c\x0aos.system\n\x93.",
        "the name 'torch_utils.persistence.os.system ' is not allowed",
    ),
    "INST": (lambda: b"(S'touch ran'\nios\nsystem\n.", "opcode INST is not allowed"),
    "OBJ": (lambda: b"(cos\nsystem\nS'touch ran'\no.", "the name 'os.system' is not allowed"),
    "called text": (lambda: b"\x80\x04\x8c\x02os\x8c\x01a\x85R.", "str is called, which is no name"),
    "called result": (lambda: b"\x80\x04ccollections\nOrderedDict\n)R)R.", "dict is called, which is no name"),
    "state of a name": (lambda: b"\x80\x04ccollections\nOrderedDict\n}b.", "Name is given a state"),
    "state of a dict": (lambda: b"\x80\x04}}b.", "dict is given a state"),
    # references to outside
    "persistent id": (lambda: b"Pstorage\n.", "a reference to outside of the pickle is not allowed"),
    "binary persistent id": (lambda: b"\x80\x04\x8c\x01aQ.", "a reference to outside of the pickle is not allowed"),
    "persistent id for a tensor": (lambda: claim(4), "the name 'torch.FloatStorage' is not allowed"),
    "extension": (lambda: b"\x80\x04\x82\x01.", "opcode EXT1 is not allowed"),
    "buffer": (lambda: b"\x80\x05\x97.", "opcode NEXT_BUFFER is not allowed"),
    # damage
    "empty": (lambda: b"", "cannot mmap an empty file"),
    "text": (lambda: b"<!DOCTYPE html><html>not found</html>", ""),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), "it is a zip file, as torch.save writes"),
    "cut": (lambda: dump(song())[:-3000], ""),
    "only a head": (lambda: b"\x80\x04", ""),
    "nothing on the stack": (lambda: b"\x80\x04.", "pop from empty list"),
    "no mark": (lambda: b"\x80\x04t.", ""),
    "across a mark": (lambda: b"\x80\x04]K\x01(a.", "a mark is missing"),
    "nothing remembered": (lambda: b"\x80\x04h\x07.", "nothing is remembered under 7"),
    "append to a dict": (lambda: b"\x80\x04}K\x01a.", "dict is no list"),
    "items of a list": (lambda: b"\x80\x04]K\x01K\x02s.", "list is no dict"),
    # claims
    "bytes without end": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"a.", "expected 46116860184273"),
    "memory index": (lambda: b"\x80\x04]r\xff\xff\xff\xff.", "must hold a dict with the network under 'ema', got list"),
    "storage claims more": (
        lambda: legacy(*HEAD, claim(1 << 40), pickle.dumps(["0"]), tail=struct.pack("<qf", 1 << 40, 1)),
        "a storage claims 1099511627776 numbers of 4 bytes, and the file is smaller",
    ),
    "storage has another size": (
        lambda: legacy(*HEAD, claim(2), pickle.dumps(["0"]), tail=struct.pack("<qf", 1, 1)),
        "a storage claims 2 numbers of 4 bytes and has 4 bytes",
    ),
    "storage without its numbers": (
        lambda: legacy(*HEAD, claim(1)[:-1] + b"0" + claim(1)[2:], pickle.dumps(["0"])),
        "a storage claims 1 numbers of 4 bytes and has 0 bytes",
    ),
    "storage under another key": (
        lambda: legacy(*HEAD, claim(1), pickle.dumps(["1"]), tail=struct.pack("<qf", 1, 1)),
        "it holds 1 storages under other keys",
    ),
    "no storage": (lambda: legacy(*HEAD, pickle.dumps(7), pickle.dumps([])), "a storage is int"),
    "storage in no format": (lambda: legacy(*HEAD[::-1]), "a storage is not in torch's format"),
    "big endian": (
        lambda: legacy(*HEAD[:2], pickle.dumps({"little_endian": False})),
        "a storage is not in torch's format",
    ),
    "tensor expanded": (lambda: tensor((1 << 20, 1 << 20), (0, 0)), "a tensor claims shape (1048576, 1048576) of 4"),
    "tensor beyond": (lambda: tensor((2, 2), (2, 1), offset=1), "a tensor claims shape (2, 2) of 4 numbers"),
    "tensor before": (lambda: tensor((2, 2), (2, 1), offset=-1), "a tensor is not in torch's format"),
    "wide network": (lambda: song(model_channels=1 << 15), "weights: 'model."),
    "endless network": (lambda: song(num_blocks=1 << 15), "num_blocks: must be at most 64, got 32768"),
    "huge number": (lambda: song(num_blocks=1 << 999_999), "Exceeds the limit (4300 digits)"),
    # recursion
    "list in itself": (lambda: {"ema": loop()}, "'ema' is no record of a module, but list"),
    "argument in itself": (lambda: song(channel_mult=loop()), "channel_mult: must be something like (1, 2, 2, 2)"),
    "network in itself": (itself, "is in its network twice"),
    "deep list": (lambda: nested(DEEP, b"]") + b"a" * (DEEP - 1) + b".", "must hold a dict"),
    "deep key": (lambda: nested(1, b"})") + b"\x85" * DEEP + b"K\x01s.", "tuple is a key"),
    # another network
    "no ema": (lambda: {"net": 1, "G": 2}, "must hold a dict with the network under 'ema', got ['net', 'G']"),
    "no dict": (lambda: [1], "must hold a dict with the network under 'ema', got list"),
    "no network": (lambda: {"ema": Record("EDMPrecond")}, "a module has no _modules"),
    "no record": (lambda: {"ema": {"model": 1}}, "'ema' is no record of a module, but dict"),
    "no class": (
        lambda: changed(lambda r: r.meta.update(type="function")),
        "'ema' is no record of a module, but torch",
    ),
    "other class": (
        lambda: {"ema": record(build(SONG).network, "VPPrecond")},
        "'ema' must be of class EDMPrecond with a SongUNet or DhariwalUNet, got 'VPPrecond'",
    ),
    "other network inside": (
        lambda: changed(lambda r: setattr(r, "class_name", "TinyUNet"), inner=True),
        "'ema' must be of class EDMPrecond with a SongUNet or DhariwalUNet, got 'EDMPrecond with a TinyUNet'",
    ),
    "positional": (lambda: changed(lambda r: r.state.update(_init_args=(32,))), "constructed with keyword arguments"),
    "no arguments": (lambda: changed(lambda r: r.state.pop("_init_kwargs")), "constructed with keyword arguments"),
    "numbered": (lambda: changed(lambda r: r.state["_init_kwargs"].update({7: 1})), "constructed with keyword argum"),
    "missing argument": (
        lambda: changed(lambda r: r.state["_init_kwargs"].pop("img_channels")),
        "img_channels: is miss",
    ),
    "unknown argument": (
        lambda: song(attention="flash"),
        "attention: is no setting of SongUNet, whose are attn_resolutions, ... (16 in all)",
    ),
    "sigma_data": (lambda: song(sigma_data=float("nan")), "sigma_data: must be positive, got nan"),
    # other weights
    "missing weight": (
        lambda: changed(lambda r: r.state["_modules"]["map_layer0"].state["_parameters"].pop("bias"), inner=True),
        "weights: 'model.map_layer0.bias' is missing",
    ),
    "more weights": (lambda: weight(torch.ones(2), "scale"), "weights: 'model.map_layer0.scale' is no weight of this"),
    "shape": (
        lambda: weight(torch.ones(4, 4)),
        "weights: 'model.map_layer0.weight' has shape (4, 4), the network (32, 8)",
    ),
    "not a number": (
        lambda: weight(torch.full((32, 8), torch.nan)),
        "weights: 'model.map_layer0.weight' holds numbers that are not finite",
    ),
    "whole numbers": (lambda: weight(torch.ones(32, 8, dtype=torch.int64)), "is no tensor of floating-point numbers"),
    "text for numbers": (lambda: weight("none"), "'model.map_layer0.weight' is no tensor of floating-point numbers"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_is_refused(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = HOSTILE[how]
    file = write(make(), tmp_path / "a.pkl")
    before = set(sys.modules)
    with pytest.raises(UserError) as error:
        read_published(file, "edm")
    text = str(error.value)
    assert text.startswith("import: ") and str(file) in text and message in text, text
    assert "\n" not in text and len(text) < 500
    assert os.listdir(tmp_path) == ["a.pkl"] and set(sys.modules) == before


def test_the_hostile_files_do_run_in_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentinel that the test above looks for is real."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(dump(HOSTILE["os.system"][0]()))
    assert os.listdir(tmp_path) == ["ran"]


def test_another_kind_of_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be of class Precond with a UNet, got 'EDMPrecond'$"):
        read_published(write(song(), tmp_path / "a.pkl"), "edm2")
    with pytest.raises(UserError, match=r"^import: no file '/no/such\.pkl'$"):
        read_published("/no/such.pkl", "edm")
