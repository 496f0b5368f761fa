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
SECONDS = 600  # the time of one example; each takes at most two minutes on an idle core
NOTEBOOKS = ("toy_2d.ipynb", "digits.ipynb")


def run(name: str, folder: Path) -> list[float]:
    """Run a program in `folder`, and return the distances that it prints."""
    program = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in re.findall(r"(?:distance |evaluations: )([\d.]+)", done.stdout)]


def execute(name: str, folder: Path) -> Any:
    """Return the notebook after its cells have run in a Jupyter kernel, in `folder`."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_own_loop_learns_the_spots(tmp_path: Path) -> None:
    before, after = run("own_loop.py", tmp_path)
    assert before > 0.5 and after < 0.02
    assert not list(tmp_path.iterdir())


def test_the_own_objective_trains(tmp_path: Path) -> None:
    first, *_, last = run("own_objective.py", tmp_path)
    assert last < 0.95 * first < 10


def test_the_own_teacher_is_distilled(tmp_path: Path) -> None:
    first, second, third, teacher = run("own_teacher.py", tmp_path)
    assert teacher < 1 < third < second < first < 4


def test_the_toy_of_all_objectives(tmp_path: Path) -> None:
    """Every objective moves the points from the middle onto all five spots."""
    text = printed(execute("toy_2d.ipynb", tmp_path))
    rows = re.findall(r"^ *([a-z0-9_ ]+?) +([\d.]+) +(\d+)% +(\d+)%$", text, re.MULTILINE)
    numbers = {name: tuple(map(float, row)) for name, *row in rows}
    (before, *_), data = numbers.pop("before"), numbers.pop("the data")
    assert len(numbers) == 11 and before > 0.5 and data == (0, 99, 19)
    for name, (distance, any_spot, rarest) in numbers.items():
        assert distance < 0.05 and any_spot > 70 and rarest > 8, (name, distance, any_spot, rarest)
    lengths = [float(number) for number in re.findall(r"length of the arrows ([\d.]+)", text)]
    assert lengths[1] < lengths[0] / 4
    centres = [float(number) for number in re.findall(r"are ([\d.]+) from the centre", text)]
    assert centres == sorted(centres) and abs(centres[0] - 1.5) < 0.1  # unguided classes are where the data's are
    assert not list(tmp_path.iterdir())


def test_the_notebook_of_the_digits(tmp_path: Path) -> None:
    """It trains, resumes, compares and exports, and Jupyter shows a progress bar."""
    notebook = execute("digits.ipynb", tmp_path)
    text = printed(notebook)
    assert "generator.lr: 0.0002 -> 0.0001: this would change what is trained" in text
    student, teacher = (float(number) for number in re.findall(r"Frechet distance ([\d.]+)", text))
    assert teacher < student < 2
    assert float(re.findall(r"largest difference (\S+)", text)[0]) < 1e-4
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", {})]
    assert "application/vnd.jupyter.widget-view+json" in shown  # the bar
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
