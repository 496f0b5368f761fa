"""The quickstart, as a newcomer runs it: minutes on two cores, so it is marked slow (`make test-slow`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

USE_IT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("distill", "trainers", "launch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("runs/digits_sid/export")
images = pipe(batch_size=10, class_labels=list(range(10)), num_inference_steps=1).images
assert len(images) == 10 and images[0].size == (8, 8), images
"""


@pytest.mark.slow
def test_the_student_reaches_its_bar(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "launch.main", "quickstart"], cwd=tmp_path, check=True)
    report = json.loads((tmp_path / "runs/digits_sid/evaluation.json").read_text())
    student, teacher, halves = report["student"], report["teacher"], report["halves"]
    assert teacher["frechet"] <= halves  # the teacher itself is at or under the real-against-real floor
    assert student["frechet"] <= max(1.5 * teacher["frechet"], 0.5 * halves), report
    assert abs(student["label_agreement"] - teacher["label_agreement"]) <= 0.02, report
    for name in ("side_by_side.png", "distance.png", "report.html"):
        assert (tmp_path / "runs/digits_sid" / name).stat().st_size > 5_000
    subprocess.run([sys.executable, "-c", USE_IT], cwd=tmp_path, check=True)
