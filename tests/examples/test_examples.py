"""The programs and notebooks of examples/ run from an empty folder, and reach what they promise."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SECONDS = 600  # of a program, or of one cell of a notebook; a whole example takes two minutes on an idle core
NOTEBOOKS = ("toy_2d.ipynb", "digits.ipynb")


def run(name: str, folder: Path) -> str:
    """Run a program in `folder`, and return what it prints."""
    program = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def distances(text: str) -> list[float]:
    """Return the Frechet distances in a text."""
    return [float(number) for number in re.findall(r"Frechet distance ([\d.]+)", text)]


def execute(name: str, folder: Path) -> Any:
    """Return the notebook after its cells have run in a Jupyter kernel, in `folder`."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: Any) -> str:
    """Return what the cells printed, of which nothing is a warning."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_own_loop_learns_the_spots(tmp_path: Path) -> None:
    text = run("own_loop.py", tmp_path)
    before, after = distances(text)
    assert before > 0.5 and after < 0.02
    share, rarest = re.findall(r"(\d+)% on", text)[2:]
    assert int(share) > 60 and int(rarest) > 12  # a ring of the same distance has 36 and 9
    assert not list(tmp_path.iterdir())


def test_the_own_objective_trains(tmp_path: Path) -> None:
    first, _, last = distances(run("own_objective.py", tmp_path))
    assert first < 5 and last < 0.9 * first


def test_the_own_teacher_is_distilled(tmp_path: Path) -> None:
    first, _, last, teacher = distances(run("own_teacher.py", tmp_path))
    assert teacher < 0.8 and teacher < last < 2.2 and last < 0.95 * first


def test_every_objective_finds_the_spots_of_the_plane(tmp_path: Path) -> None:
    """A ring through the five spots would have 60 % of its points on a spot, and 12 % on each."""
    text = printed(execute("toy_2d.ipynb", tmp_path))
    rows = re.findall(r"^ *([a-z0-9_ ]+?) +([\d.]+) +(\d+)% +(\d+)%$", text, re.MULTILINE)
    numbers = {name: tuple(map(float, row)) for name, *row in rows}
    (before, *_), (data, *shares) = numbers.pop("before"), numbers.pop("more data")
    assert len(numbers) == 11 and before > 0.5 and 0 < data < 0.005 and shares[0] == 99
    for name, (distance, any_spot, rarest) in numbers.items():
        assert distance < 0.05 and any_spot > 75 and rarest > 11, (name, distance, any_spot, rarest)
    lengths = [float(number) for number in re.findall(r"length of the gap ([\d.]+)", text)]
    assert lengths[1] < lengths[0] / 4
    one, more, most = (float(number) for number in re.findall(r"are ([\d.]+) from the centre", text))
    assert abs(one - 1.5) < 0.1 and one + 0.2 < more and most > 2.2  # without guidance the classes are the data's
    assert not list(tmp_path.iterdir())


def test_the_digits_are_distilled_in_jupyter(tmp_path: Path) -> None:
    """The notebook trains, resumes, compares and exports, and shows a progress bar."""
    notebook = execute("digits.ipynb", tmp_path)
    text = printed(notebook)
    assert "generator.lr: 0.0002 -> 0.0001: this would change what is trained" in text
    student, teacher = distances(text)
    assert teacher < student < 2 and min(map(float, re.findall(r"agreement ([\d.]+)%", text))) > 80
    lines = (tmp_path / "runs/digits_sid/metrics.jsonl").read_text().splitlines()
    measured = {line["images"]: line["frechet"] for line in map(json.loads, lines)}
    assert max(measured) == 20_480 and measured[20_480] < measured[10_240]
    assert float(re.findall(r"largest difference (\S+)", text)[0]) < 1e-4
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", {})]
    assert "application/vnd.jupyter.widget-view+json" in shown  # the bar
    assert "DiffusionPipeline.from_pretrained" in text
    assert (tmp_path / "runs/digits_sid/export/model_index.json").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_its_pictures_and_no_paths(name: str) -> None:
    """The stored outputs are those of one run from top to bottom, and name no folder of a machine."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert text.count('"image/png"') >= 4
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            shown = json.dumps({kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"})
            assert not re.search(r"/(home|root|tmp|work|usr)/", shown + json.dumps(output.get("text", "")))


def test_a_transformer_made_elsewhere_becomes_a_teacher(tmp_path: Path) -> None:
    """Random weights stand for the published ones. The estimate of x is 2 y - 1, at the noise of half the range."""
    program = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import torch
from safetensors.torch import save_file
from distill.teachers import load_denoiser
import flow_vit
torch.manual_seed(0)
network = flow_vit.FlowViT().eval()
save_file(network.state_dict(), "weights.safetensors")
flow_vit.main("weights.safetensors", "teacher")
teacher = load_denoiser("teacher", trust_code=True)
y, noise, labels = torch.rand(2, 1, 28, 28), torch.randn(2, 1, 28, 28), torch.tensor([3, 10])
sigma, t = 1.5, 1 / 1.75  # of x, and the network's time: y has the noise 0.75
x_t = (2 * y - 1 + sigma * noise) / (1 + sigma)
ours = teacher(x_t, torch.full((2,), sigma / (1 + sigma)), labels)
theirs = 2 * network((1 - t) * noise + t * y, torch.full((2,), t), labels) - 1
print(float((ours - theirs).abs().max()), sum(p.numel() for p in network.parameters()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    difference, parameters = done.stdout.split()
    assert float(difference) < 1e-4 and int(parameters) == 208_705
