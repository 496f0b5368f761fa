"""Host memory does not grow with the length of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import launch


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dmd2", "dmd", "cached"])
def test_resident_memory_is_flat_over_2000_updates(case: str, teachers: Path, tmp_path: Path) -> None:
    """Real images, ODE pairs, and the embeddings and latents of SDXL's recipe from their caches."""
    program = str(Path(__file__).with_name("resident.py"))
    folder = tmp_path if case == "cached" else teachers
    job = launch([program, case, "2000", str(folder)], tmp_path / "output.txt", HF_DATASETS_CACHE=str(tmp_path / "ds"))
    assert job.finish(timeout=7200) == 0, job.text
    seen = json.loads(job.text.splitlines()[-1])
    assert len(seen) == 20 and max(seen) < 1.01 * seen[0]
