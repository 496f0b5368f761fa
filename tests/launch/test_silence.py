"""Commands print lines of ours alone, whatever the libraries below have to say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from distill.tiny import write_network, write_pipeline
from tests.tiny import ROOT, recipe

PROGRAM = """
import sys
from launch.main import main
for arguments in ARGUMENTS:
    sys.argv = ["distill", *arguments]
    print("#", arguments[0], file=sys.stderr, flush=True)
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
"""
OURS = r"""# \w+
(text|latents|pairs): \d+ of \d+
\d+ of \d+ pairs
text: 20 of 21 prompts are longer than the 32 tokens that the teacher reads; their ends are left out
left out, and taken from the teacher's kind: objective\.objective\.times: uniform_steps first 20 last 979, .*
tiny: a generator of [\d,]+ parameters on cpu, in float32, batch 4
tiny: data captions\.txt, 21 prompts; checkpoints in 'run/checkpoints'
tiny: done; next `distill report run`, `distill evaluate run`, `distill sample run` or `distill export run`
tiny: 4 of 4 images, \d+ images/s, .*""".splitlines()


def test_nothing_but_our_lines_is_printed(tmp_path: Path) -> None:
    """Of a pipeline whose captions are too long, in a process where no test catches what is printed."""
    write_pipeline("sd15", tmp_path / "sd15")
    write_network("edm", tmp_path / "edm")
    captions = [f"a long caption of {number} " * 40 for number in range(20)]
    (tmp_path / "captions.txt").write_text("\n".join([*captions, "a short one"]) + "\n")
    settings = recipe("sd15", data={"name": "prompts", "path": "captions.txt"}, images=4, batch_size=4, log_every=4)
    settings |= {"objective": {"name": "guided", "teacher_cfg": 2.0, "objective": "sid"}, "cache": "cache"}
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    commands = [
        ["plan", "tiny.yaml", "--gpus", "2"],
        ["cache", "tiny.yaml"],
        ["train", "tiny.yaml", "--folder", "run"],
        ["sample", "run", "--count", "2"],
        ["export", "run"],
        ["pairs", "edm", "pairs", "--count", "2", "--evaluations", "3"],
    ]
    program = PROGRAM.replace("ARGUMENTS", repr(commands))
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_HOME"] = str(tmp_path / "home")
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    lines = run.stderr.splitlines()
    assert run.returncode == 0, run.stderr[-2000:]
    assert [line for line in lines if not any(re.fullmatch(ours, line) for ours in OURS)] == []
    assert sum("are longer than" in line for line in lines) == 1
    assert [line[2:] for line in lines if line.startswith("# ")] == [command[0] for command in commands]
