"""What diffusers and transformers say while they work for us is hidden, and shown again afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers.utils import logging as diffusers
from transformers.utils import logging as transformers

from distill.encoders.text_encoder import PipelineTextEncoder
from distill.export import export_generator
from distill.quiet import quiet_libraries
from distill.teachers import load_denoiser
from distill.tiny import write_pipeline
from tests.distill.export.test_family import make
from tests.exports import FACTS


def state() -> list[Any]:
    return [
        f() for library in (diffusers, transformers) for f in (library.get_verbosity, library.is_progress_bar_enabled)
    ]


def test_all_is_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    before = state()
    with pytest.raises(KeyError), quiet_libraries():
        diffusers.get_logger("diffusers.x").warning("advice")
        transformers.get_logger("transformers.x").warning("advice")
        warnings.warn_explicit("old", FutureWarning, "f.py", 1, module="diffusers.loaders")
        raise KeyError
    assert state() == before
    assert "advice" not in "".join(capfd.readouterr())
    with pytest.warns(FutureWarning, match="of ours"), quiet_libraries():
        warnings.warn_explicit("of ours", FutureWarning, "f.py", 1, module="my.code")


@pytest.mark.parametrize(("t", "scale"), [(999, 1.0), (399, 0.7)])
def test_an_export_prints_nothing(
    t: int, scale: float, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    capfd.readouterr()
    write_pipeline("sd15", tmp_path / "sd15")
    load_denoiser(tmp_path / "sd15", weights=False)
    export_generator(make(tmp_path / "sd15", (t, scale)), tmp_path / "out", FACTS, teacher=tmp_path / "sd15")
    encoder = load_denoiser(tmp_path / "sd15").network.text_encoder
    assert encoder is not None
    encoder.encode(["a long caption " * 50] * 3 + ["short"])
    assert capfd.readouterr() == ("", "")
    assert isinstance(encoder, PipelineTextEncoder) and (encoder.longest, encoder.cut) == (32, 3)
