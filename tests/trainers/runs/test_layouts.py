"""Samples in the folders of benchmarks: the same pictures in each, in parts, and after a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.errors import UserError
from launch.main import main
from tests.texts import install, write_text_teacher
from tests.tiny import fit_run, recipe
from tests.trainers.data.test_benchmark_prompts import GENEVAL, GENEVAL_2
from trainers.io.images import grid
from trainers.runs import layouts
from trainers.runs.layouts import write_layout
from trainers.runs.load import Trained, load_trained

PROMPTS = [f"prompt {number}" for number in range(9)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of a teacher of prompts, which the trainers can load while a test runs."""
    folder = tmp_path_factory.mktemp("painter")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        (folder / "p.txt").write_text("one\ntwo\n")
        write_text_teacher(folder / "teacher", folder / "log", shape=[3, 8, 8])
        data = {"name": "prompts", "path": str(folder / "p.txt")}
        changes = {"data": data, "cache": str(folder / "cache"), "images": 8, "samples_every": 8}
        objective = {"name": "guided", "objective": "diff_instruct", "teacher_cfg": 2.0}
        fit_run(recipe(folder / "teacher", objective=objective, **changes), folder / "run")
        yield folder / "run"


@pytest.fixture
def trained(run: Path) -> Trained:
    return load_trained(run)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [json.dumps({"id": f"n{number}", "prompt": text}) for number, text in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path / "prompts.jsonl"


def pixels(file: Path) -> np.ndarray[Any, Any]:
    return np.array(Image.open(file))


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_plain_pictures_are_those_of_sample(trained: Trained, prompts: Path, tmp_path: Path) -> None:
    done = write_layout(trained, prompts, tmp_path / "out", seed=3)
    assert (done.prompts, done.samples, done.made, done.kept) == (9, 1, 9, 0)
    names = [f"{number:06d}.png" for number in range(9)]
    assert sorted(contents(tmp_path / "out")) == [*names, "prompts.jsonl"]
    records = [json.loads(line) for line in (tmp_path / "out/prompts.jsonl").read_text().splitlines()]
    assert records[8] == {"file_name": "000008.png", "id": "n8", "prompt": "prompt 8"}
    images = trained.sample(9, prompts=PROMPTS, seed=3)
    for name, image in zip(names, images, strict=True):
        assert np.abs(pixels(tmp_path / "out" / name) - np.array(grid(image[None], 1, 1, 0)).astype(int)).max() <= 1
    taught = write_layout(trained, prompts, tmp_path / "taught", seed=3, teacher=True)
    assert taught.made == 9 and contents(tmp_path / "taught") != contents(tmp_path / "out")
    assert trained.teacher is not None and trained.teacher.network.null is not None  # without it nothing is guided
    teacher = trained.sample(9, prompts=PROMPTS, seed=3, teacher=True)
    wanted = np.array(grid(teacher[5][None], 1, 1, 0)).astype(int)
    assert np.abs(pixels(tmp_path / "taught/000005.png") - wanted).max() <= 1


def test_a_prompt_does_not_name_its_picture(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1, "file_name": "../../x.png", "prompt": "a cat"}\n')
    write_layout(trained, tmp_path / "a.jsonl", tmp_path / "out")
    record = json.loads((tmp_path / "out/prompts.jsonl").read_text())
    assert record == {"file_name": "000000.png", "x": 1, "prompt": "a cat"}


def test_the_pictures_of_dpg_and_geneval(trained: Trained, prompts: Path, tmp_path: Path) -> None:
    """Four samples: files of their own, or the quarters of one picture, row by row; the same in each layout."""
    write_layout(trained, prompts, tmp_path / "plain", samples=4)
    write_layout(trained, prompts, tmp_path / "dpg", "dpg")
    assert sorted(contents(tmp_path / "dpg")) == [f"n{number}.png" for number in range(9)]
    for number in (0, 7):
        square = pixels(tmp_path / f"dpg/n{number}.png")
        quarters = [square[:8, :8], square[:8, 8:], square[8:, :8], square[8:, 8:]]
        assert square.shape == (16, 16, 3) and len({quarter.tobytes() for quarter in quarters}) == 4
        for k, quarter in enumerate(quarters):
            assert np.array_equal(quarter, pixels(tmp_path / f"plain/{4 * number + k:06d}.png"))
    (tmp_path / "geneval.jsonl").write_text(f"{GENEVAL}\n{GENEVAL_2}\n")
    done = write_layout(trained, tmp_path / "geneval.jsonl", tmp_path / "geneval", "geneval")
    assert (done.samples, done.made) == (4, 8)
    samples = [f"{n:05d}/samples/{k:04d}.png" for n in (0, 1) for k in range(4)]
    found = contents(tmp_path / "geneval")
    assert sorted(found) == sorted(["00000/metadata.jsonl", "00001/metadata.jsonl", *samples])
    assert found["00001/metadata.jsonl"].decode() == GENEVAL_2 + "\n"
    assert all(re.match(r"\d+\.png", Path(name).name) for name in samples)  # as evaluate_images.py looks for them
    write_layout(trained, tmp_path / "geneval.jsonl", tmp_path / "one")
    assert contents(tmp_path / "one")["000001.png"] == found["00001/samples/0000.png"]  # whatever their number


def test_no_two_samples_have_one_noise(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("a cat\n" * 9)
    write_layout(trained, tmp_path / "same.txt", tmp_path / "out", samples=4)
    assert len({pixels(file).tobytes() for file in (tmp_path / "out").glob("*.png")}) == 36


def test_what_is_missing_or_damaged_is_made_again_to_the_bit(
    trained: Trained, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "_TOGETHER", 4)
    write_layout(trained, prompts, tmp_path / "out", samples=2)
    whole, stamps = contents(tmp_path / "out"), {}
    (tmp_path / "out/000005.png").unlink()
    (tmp_path / "out/000010.png").write_bytes(whole["000010.png"][:60])
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.png")}
    drawn: list[range] = []
    plain = layouts._draw

    def watched(*given: Any) -> Any:
        draw = plain(*given)
        return lambda group, *rest: drawn.append(group) or draw(group, *rest)

    monkeypatch.setattr(layouts, "_draw", watched)
    done = write_layout(trained, prompts, tmp_path / "out", samples=2)
    assert (done.made, done.kept) == (2, 16) and drawn == [range(2, 4), range(4, 6)]
    assert contents(tmp_path / "out") == whole
    kept = [file for file, stamp in stamps.items() if file.stat().st_mtime_ns == stamp]
    assert len(kept) == 16  # 17 were there, one of them damaged
    drawn.clear()
    assert write_layout(trained, prompts, tmp_path / "out", samples=2).made == 0 and not drawn


def test_parts_make_the_whole(trained: Trained, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_TOGETHER", 2)
    monkeypatch.setattr(layouts, "_WINDOW", 4)
    write_layout(trained, prompts, tmp_path / "whole")
    made = [write_layout(trained, prompts, tmp_path / "parts", part=(p, 3)).made for p in (2, 0, 1)]
    assert made == [2, 4, 3] and contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_what_cannot_be_written(trained: Trained, prompts: Path, tmp_path: Path, teachers: Path) -> None:
    write_layout(trained, prompts, tmp_path / "out")

    def refusal(*given: Any, **settings: Any) -> str:
        with pytest.raises(UserError) as error:
            write_layout(*given, **settings)
        return str(error.value).replace(str(tmp_path), "HERE")

    other = "out: 'HERE/out' holds pictures of another {}; name another folder, or remove it"
    assert refusal(trained, prompts, tmp_path / "out", seed=1) == other.format("seed")
    assert refusal(trained, prompts, tmp_path / "out", teacher=True) == other.format("model")
    assert refusal(trained, prompts, tmp_path / "out", samples=2) == other.format("samples")
    (tmp_path / "more.txt").write_text("x\n")
    assert refusal(trained, tmp_path / "more.txt", tmp_path / "out") == other.format("prompts")
    assert refusal(trained, prompts, tmp_path) == (
        f"out: 'HERE' is not empty, and no '{tmp_path.name}.json' says what it holds"
    )
    assert refusal(trained, prompts, tmp_path / "new", "coco") == (
        "layout: must be one of plain, geneval, dpg, got 'coco'"
    )
    assert refusal(trained, prompts, tmp_path / "new", "geneval").startswith("layout: geneval reads the tag and")
    assert refusal(trained, tmp_path / "more.txt", tmp_path / "new", "dpg").endswith("of plain names, got ''")
    assert refusal(trained, prompts, tmp_path / "new", "dpg", samples=3) == (
        "layout: dpg takes 1 sample a prompt, or a square of 4, got 3"
    )
    for name in ("../x", "/x", "", "a.b", "a\0b", "a\nb", "\x1b[2J", "x" * 201, "é" * 101):
        (tmp_path / "bad.jsonl").write_text(json.dumps({"id": name, "prompt": "x"}) + "\n")
        line = refusal(trained, tmp_path / "bad.jsonl", tmp_path / "new", "dpg")
        assert line.endswith(f"of plain names, got {name!r:.80}") and "\n" not in line
    (tmp_path / "bad.jsonl").write_text('{"id": "x", "prompt": "x"}\n' * 2)
    assert refusal(trained, tmp_path / "bad.jsonl", tmp_path / "new", "dpg").endswith("and a name comes twice")
    assert not (tmp_path / "new").exists()


def test_the_command(
    run: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def distill(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["distill", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    given = ("sample", run, "--prompts", prompts, "--layout", "dpg", "--seed", 2)
    out = tmp_path / "dpg"
    assert distill(*given, "--out", out, "--part", "2/2")[:2] == (
        0,
        f"9 prompts, 4 samples each: made 4 pictures, 0 were there: {out}\n",
    )
    assert distill(*given, "--out", out)[1].endswith(f"made 5 pictures, 4 were there: {out}\n")
    assert distill(*given)[1].endswith(f": {run}/dpg\n")
    assert contents(run / "dpg") == contents(out)
    assert distill(*given, "--part", "3/2")[2] == "distill: --part: must be like 2/8, got '3/2'\n"
    line = "distill: --prompts: goes without --count, --label, --prompt and --size\n"
    assert distill(*given, "--label", "0")[2] == distill(*given, "--size", "8x8")[2] == line
