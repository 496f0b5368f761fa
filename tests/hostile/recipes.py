"""Hostile recipes: YAML with other values and structures, and command lines of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import typer
import yaml
from typer.core import TyperOption

from launch.main import app
from tests.hostile.mutate import DEEP, MARKER, NAN, VALUES, damaged, keys_of, long_numbers, mutated, special
from tests.hostile.trees import LIMIT, PAIRS, evil
from tests.hostile.trial import Call, Place

COSTLY = {"images", "batch_size", "samples", "micro_batches", "fake_updates", "resolution", "shape", "width", "rank"}
TEXTS: dict[str, Callable[[Random], str]] = {
    "aliases of nine": lambda draw: aliases(9, 9),
    "aliases of two": lambda draw: aliases(27, 2),
    "an alias of itself": lambda draw: "name: &a [*a]\n",
    "a merge of itself": lambda draw: "data: &a {<<: *a}\n",
    "many merges": lambda draw: "x: &x {a: 1}\n" + "y: {" + ", ".join(["<<: *x"] * 5000) + "}\n",
    "deep flow": lambda draw: "data: " + "[" * DEEP + "]" * DEEP + "\n",
    "deep mapping": lambda draw: "data: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n",
    "deep block": lambda draw: "".join(" " * level + "a:\n" for level in range(3000)),
    "unclosed": lambda draw: "data: [" * DEEP + "\n",
    "many keys": lambda draw: "".join(f"k{n}: {n}\n" for n in range(50_000)),
    "a key twice": lambda draw: f"{draw.choice(['images', 'data', 'name'])}: 8\n" * 2,
    "a tag": lambda draw: f"seed: !!python/object/apply:os.system ['touch {MARKER}']\n",
    "a tag that does not fit": lambda draw: (
        f"seed: !!{draw.choice(['int', 'float', 'bool', 'timestamp', 'null', 'omap', 'pairs', 'seq', 'map', 'merge'])}"
        f" {draw.choice(['x', '', '_', '-', '1:x', '0x', '[1]', '{a: 1}'])}\n"
    ),
    "another tag": lambda draw: draw.choice(
        ["seed: !!python/name:os.system\n", "seed: !x 1\n", "seed: !!binary x\n", "seed: !!set {a}\n"]
    ),
    "a long number": lambda draw: "seed: " + "9" * draw.choice([400, 5000, 1_000_000]) + "\n",
    "an odd number": lambda draw: (
        f"seed: {draw.choice(['0x' + 'f' * 50_000, '1:1:1', '0o7', '1_0', '.inf', '1e999', '-0', '+1', '0b1'])}\n"
    ),
    "a date": lambda draw: (
        f"seed: {draw.choice(['2001-01-01', '2001-99-99', '0000-00-00', '2001-01-01t00:00:00.0+99:99'])}\n"
    ),
    "several documents": lambda draw: "---\na: 1\n---\nb: 2\n",
    "a directive": lambda draw: draw.choice(["%YAML 9.9\n---\n", "%TAG ! !x\n---\n"]),
    "a key of another type": lambda draw: draw.choice(
        ["1: 2\n", "null: 2\n", "? [1, 2]\n: 3\n", "? {a: 1}\n: 3\n", "1.5: 2\n"]
    ),
    "a control character": lambda draw: (
        'name: "' + draw.choice(["\\0", "\\x07", "\\ud800", "\\U0010FFFF", "\\UFFFFFFFF", "\\U7FFFFFFF", "\\n"]) + '"\n'
    ),
    "tabs": lambda draw: "data:\n\t name: x\n",
    "a long text": lambda draw: "name: " + "x" * draw.choice([300, 5000, 3_000_000]) + "\n",
    "an anchor": lambda draw: "name: *nothing\n",
}


def aliases(levels: int, width: int) -> str:
    """Return YAML whose aliases stand for `width` to the power of `levels` values."""
    lines = [f"x0: &x0 [{', '.join(['1'] * width)}]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def hostile_yaml(content: bytes, draw: Random, canary: Path) -> tuple[bytes, str]:
    """Return a recipe with other values, another structure, or damaged bytes."""
    kind = draw.choice(["value"] * 6 + ["text"] * 3 + ["bytes"])
    if kind == "bytes":
        return damaged(content, draw)
    if kind == "text":
        name = draw.choice(list(TEXTS))
        text = TEXTS[name](draw).replace(MARKER, str(canary)).encode(errors="surrogatepass")
        return draw.choice([content + text, text + content, text]), name
    settings, what = yaml.safe_load(content), ""
    for _ in range(draw.choice([1, 1, 2, 4])):
        before = json.dumps(settings)
        settings, how = mutated(settings, draw)
        if not affordable(settings):
            settings, how = json.loads(before), "nothing"
        what += f"{how}; "
    return yaml_text(settings, draw), what


def affordable(settings: Any) -> bool:
    """Return whether no key asks for a computation of millions, which a program may well do if it is told to."""
    for place in keys_of(settings):
        value: Any = settings
        for step in place:
            value = value[step]
        numbers = value if isinstance(value, list) else [value]
        if COSTLY & set(map(str, place)) and any(isinstance(n, int | float) and 1e5 < n < 2**62 for n in numbers):
            return False
    return True


def yaml_text(settings: Any, draw: Random) -> bytes:
    """Return plain values as YAML, in its own form or in that of JSON."""
    with long_numbers():
        if draw.random() < 0.5:
            with suppress(yaml.YAMLError, UnicodeError):
                return yaml.safe_dump(settings, allow_unicode=True).encode(errors="surrogatepass")
        return json.dumps(settings).replace("NaN", ".nan").replace("Infinity", ".inf").encode()


def recipes(draw: Random, place: Place) -> Call:
    """Prepare a recipe, or the run.yaml of a run folder."""
    folder, limit = ["--folder", str(place.out / "run")], LIMIT
    if draw.random() < 0.3:
        run = place.take(draw.choice(["run", "teacher_run"]))
        content, what = hostile_yaml((run / "run.yaml").read_bytes(), draw, place.canary)
        (run / "run.yaml").write_bytes(content)
        evil(run, place)
        given = str(run)
        command = draw.choice(
            [
                ["sample", given, "--count", "2"],
                ["resume", given, "images=24", *limit],
                ["evaluate", given, "--samples", "8"],
                ["export", given, str(place.out / "export"), "--format", "safetensors"],
                ["ema", given, "--std", "0.12"],
            ]
        )
        return Call(command, [f"in/{run.name}"], f"run.yaml: {what}")
    name = draw.choice(["student", "student", "teacher", "dmd", "sd", "classifier"])
    content, what = hostile_yaml((place.valid / f"{name}.yaml").read_bytes(), draw, place.canary)
    file = place.given / "recipe.yaml"
    file.write_bytes(content)
    command = {"teacher": ["teacher"], "classifier": ["classifier"]}.get(
        name, [draw.choice(["train"] * 4 + ["cache", "cache", "plan"])]
    )
    more = {"train": [*folder, *limit], "teacher": [*folder, *limit], "classifier": folder}.get(command[0], [])
    return Call([*command, str(file), *more], [], f"{name}: {what}")


WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "---",
        "-x",
        "--help",
        "--version",
        "=",
        "a=",
        "=1",
        "a=b=c",
        "a..b=1",
        ".=1",
        "-1",
        "0",
        "1e9",
    ),
    *(
        "nan",
        "inf",
        "x" * 300,
        "x" * 100_000,
        "a\nb",
        "\x1b[31mred",
        "é",
        "\udce9",
        "../x",
        "/",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
    ),
    *(
        "/proc/self/mem",
        "/etc/passwd",
        "~",
        "~nobody/x",
        "$HOME",
        "*",
        "**",
        "[x",
        "%s",
        "{0}",
        "name:x",
        "http://localhost:1/x",
    ),
    *(
        "a/b/c",
        "last",
        "best",
        "posthoc/0.15",
        "posthoc/../..",
        "00000",
        "2147483648",
        "9223372036854775808",
        "9" * 5000,
    ),
]


NUMBERS = [1, 2, 3, 8, 0, -1, 0.5, NAN, 2**63, -(2**70), 1e308, "0x8", "1_000", "\u0661"]
USUAL = {"folder": "run", "teacher": "edm", "file": "network.pkl", "source": "sd"}


def word(draw: Random, place: Place) -> str:
    """Return an argument of any kind: a path, an odd word, or a change of a recipe."""
    kind = draw.choice(["path"] * 3 + ["word"] * 3 + ["change"] * 4 + ["special"])
    if kind == "path":
        copies = ("run", "teacher_run", "edm", "unet", "sd", "pairs", "classifier", "cache", "pictures")
        files = (
            "student.yaml",
            "teacher.yaml",
            "classifier.yaml",
            "dmd.yaml",
            "edm.zip",
            "table.parquet",
            "network.pkl",
            "prompts.txt",
        )
        name = draw.choice([*copies, *files])
        return str(place.given / name if (place.given / name).exists() else place.take(name))
    if kind == "special":
        file = place.given / f"special{draw.randrange(10**6)}"
        file.touch()
        special(file, draw, place.guard)
        return str(file)
    if kind == "change":
        keys = [
            "images",
            "batch_size",
            "data",
            "data.path",
            "objective",
            "objective.alpha",
            "teacher",
            "lr",
            "generator.lr",
            "ema",
            "seed",
        ]
        keys += [
            "precision",
            "name",
            "evaluation.samples",
            "cache",
            "start",
            "pairs",
            "sharding",
            "entry.t",
            "entry",
            "x",
            "generator.lora",
        ]
        value = draw.choice(
            [*VALUES, 8, 16, "digits", "sid", "float32", "{", "[", "*a", "!!python/name:os.system", "&a [*a]"]
        )
        text = value if isinstance(value, str) else "null" if value is None else str(value)[:3000]
        key = draw.choice(keys)
        costly = key in ("images", "batch_size", "evaluation.samples") and value == 2**31
        return f"{key}={8 if costly else text}".replace("\0", "\\0").encode(errors="replace").decode()
    return draw.choice(WORDS).replace("\0", "")


def command_lines(draw: Random, place: Place) -> Call:
    """Prepare a command line of a command, with arguments and options of all commands."""
    group: Any = typer.main.get_command(app)
    name = draw.choice([name for name in group.commands if name not in ("quickstart", "doctor", "try")])
    command, arguments = group.commands[name], [name]
    if name == "import":
        arguments.append(draw.choice(list(command.commands)))
        command = command.commands[arguments[1]]
    usual = {"recipe": f"{name if name in ('teacher', 'classifier') else 'student'}.yaml", **USUAL}
    known = [one.name for one in command.params if not isinstance(one, TyperOption)]
    for one in known[: draw.choice([len(known), len(known), 1])]:
        if draw.random() < 0.6 and one in usual:
            arguments.append(
                str(place.given / usual[one] if (place.given / usual[one]).exists() else place.take(usual[one]))
            )
        else:
            arguments.append(str(place.out / "made") if one == "out" and draw.random() < 0.6 else word(draw, place))
    every = [one for each in group.commands.values() for one in each.params if isinstance(one, TyperOption)]
    own = [one for one in command.params if isinstance(one, TyperOption)]
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        option = draw.choice(own if own and draw.random() < 0.8 else every)
        arguments.append(draw.choice(option.opts))
        if not option.is_flag or draw.random() < 0.1:
            arguments.append(str(draw.choice(NUMBERS)) if draw.random() < 0.5 else word(draw, place))
    arguments += [word(draw, place) for _ in range(draw.choice([0, 0, 1, 2]))]
    arguments += PAIRS if name == "pairs" else LIMIT if name in ("train", "teacher", "resume") else []
    arguments += ["--minutes", "0.1"] if name == "probe" else []
    evil(place.given, place)
    return Call(arguments, ["cwd", "in"], " ".join(arguments)[:300])


READERS = {"recipes": recipes, "command lines": command_lines}
