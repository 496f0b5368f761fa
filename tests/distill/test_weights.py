"""Weights of every kind of teacher: other dtypes and numbers that are not finite are refused, with their name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill import UserError
from distill.pipeline_folder import load_stock_pipeline, loaded_files
from distill.teachers import load_denoiser, save_denoiser
from distill.weights import check_finite, check_loaded, fill, fits, is_finite
from tests.tiny import tiny_denoiser

CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nan": (lambda value: value * float("nan"), "holds numbers that are not finite"),
    "one infinity": (
        lambda value: torch.cat([torch.full((1,), float("inf")), value.flatten()[1:]]).view(value.shape),
        "",
    ),
    "int8": (lambda value: value.to(torch.int8), "is of "),
    "bool": (lambda value: value.bool(), "is of "),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "is of "),
    "float64 beyond float32": (lambda value: torch.full(value.shape, 1e300, dtype=torch.float64), "holds numbers that"),
}
ACCEPTED = (torch.float16, torch.bfloat16, torch.float64)


def unet(folder: Path) -> Path:
    save_denoiser(tiny_denoiser(), folder)
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def edm(folder: Path) -> Path:
    from tests.distill.teachers.test_edm import SONG, build

    save_denoiser(build(SONG), folder)
    return folder / "network.safetensors"


def own(folder: Path) -> Path:
    from tests.distill.teachers.test_own import small

    save_denoiser(small(), folder)
    return folder / "network.safetensors"


KINDS = {"unet": unet, "edm": edm, "own": own}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_none_are_refused(kind: str, how: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path / "teacher")
    change, problem = CHANGES[how]
    state = load_file(file)
    name = max(key for key, value in state.items() if value.is_floating_point() and value.ndim > 1)
    save_file({**state, name: change(state[name]).contiguous()}, file)
    with pytest.raises(UserError) as refused:
        load_denoiser(tmp_path / "teacher", trust_code=True)
    line = str(refused.value)
    assert line.startswith("teacher: ") and f"weights: '{name}' {problem}" in line and "\n" not in line


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_other_precision_are_read(kind: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path / "teacher")
    state = load_file(file)
    for dtype in ACCEPTED:
        save_file(
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}, file
        )
        loaded = load_denoiser(tmp_path / "teacher", trust_code=True)
        assert {value.dtype for value in loaded.network.parameters()} == {torch.float32}


def test_parts_of_a_stock_pipeline_are_checked(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipelines("sd15"), tmp_path / "sd"))
    load_stock_pipeline(folder)
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    state = load_file(file)
    name = max(key for key, value in state.items() if value.is_floating_point())
    for value, problem in ((state[name] * float("nan"), "holds numbers"), (state[name].to(torch.int8), "is of I8 in ")):
        save_file({**state, name: value}, file, {"format": "pt"})
        with pytest.raises(UserError, match=f"^teacher: '{folder / 'text_encoder'}': weights: '{name}' {problem}"):
            load_stock_pipeline(folder)


def test_files_that_are_not_loaded_are_not_checked(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipelines("sd15"), tmp_path / "sd"))
    for part in ("text_encoder", "unet"):
        (file,) = (folder / part).glob("*.safetensors")
        state = load_file(file)
        save_file({key: value.to(torch.int8) for key, value in state.items()}, file.with_suffix(".int8.safetensors"))
        for content in (b"[]", b"{{", b'{"a": 1}'):
            (folder / part / f"{len(content)}.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    assert loaded_files(folder / "unet") == [folder / "unet/diffusion_pytorch_model.safetensors"]
    assert loaded_files(folder / "unet", "int8") == [folder / "unet/diffusion_pytorch_model.int8.safetensors"]
    assert loaded_files(folder / "vae", "int8") == list((folder / "vae").glob("*.safetensors"))
    load_stock_pipeline(folder)


@pytest.mark.parametrize("content", [b"[]", b"{{", b'{"a": 1}', b'{"a": {}}', b"\xff", b"7"])
def test_a_header_that_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for text in (len(content).to_bytes(8, "little") + content, b"", content):
        file.write_bytes(text)
        with pytest.raises(UserError, match=r"^weights: a\.safetensors is damaged: its header is no table of tensors$"):
            check_loaded(nn.Module(), [file])


def test_finite_is_finite() -> None:
    assert is_finite(torch.ones(0)) and is_finite(torch.tensor(True)) and is_finite(torch.ones(2, device="meta"))
    assert is_finite(torch.tensor([1e38, -1e38])) and is_finite(torch.tensor(5.0, dtype=torch.bfloat16))
    for wrong in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.tensor([[0.0, wrong], [1.0, 2.0]])) and not is_finite(torch.tensor(wrong))
    with pytest.raises(UserError, match=r"^weights: 'b' holds numbers that are not finite$"):
        check_finite({"a": torch.ones(2), "b": torch.tensor([float("nan")])}, nn.Module())


def test_kinds_of_dtype() -> None:
    assert fits(torch.float16, torch.float32) and fits(torch.int64, torch.int64)
    assert not fits(torch.int64, torch.float32) and not fits(torch.float32, torch.int64)
    assert not fits(torch.bool, torch.int64) and not fits(torch.float8_e5m2, torch.float32)


def test_a_network_is_filled_in_float32() -> None:
    with torch.device("meta"):
        network = nn.BatchNorm1d(2)
    state = {name: value + 1 for name, value in nn.BatchNorm1d(2).half().state_dict().items()}
    fill(network, state)
    found = network.state_dict()
    assert {name: value.dtype for name, value in found.items()}["num_batches_tracked"] == torch.int64
    assert found["weight"].dtype == torch.float32 and found["weight"].tolist() == [2.0, 2.0]
