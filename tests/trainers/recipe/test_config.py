"""Each mistake has its one line; what is built, dumped and written comes back equal."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from distill.errors import UserError
from trainers.recipe.strict_yaml import build, dump, load_yaml, register_choices, to_yaml


@dataclass(frozen=True)
class Times:
    pass


@dataclass(frozen=True)
class LogNormal(Times):
    mean: float = -1.2
    std: float = 1.2


@dataclass(frozen=True)
class Ramp(Times):
    low: float
    high: float = 80.0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low must be below high,\n  got {self.low} and {self.high}")


@dataclass(frozen=True)
class Mixed(Times):
    first: Times = LogNormal()
    second: Times | None = None


@dataclass(frozen=True)
class Optimizer:
    lr: float
    betas: tuple[float, float] = (0.0, 0.999)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"lr: must be positive, got {self.lr}")


@dataclass(frozen=True)
class Run:
    batch_size: int
    alpha: float = 1.2
    ema: bool = True
    title: str = ""
    precision: Literal["no", "bf16", "FP32"] = "no"
    factor: Literal[1, 2] = 1
    tracking: tuple[str, ...] = ()
    clip: float | None = None
    warmup: float | Literal["auto"] = "auto"
    seeds: int | str | None = None
    bounds: tuple[float | None, int] = (None, 1)
    weights: dict[str, float] = field(default_factory=dict)
    times: Times = LogNormal()
    fake_times: Times | None = None
    fake: Optimizer | None = None
    generator: Optimizer = Optimizer(1e-5)
    derived: int = field(default=7, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")


register_choices(Times, {"lognormal": LogNormal, "ramp": Ramp, "mixed": Mixed})
NAMES = "lognormal, ramp, mixed or your own 'module:Class', alone or as the key 'name'"
ELSEWHERE = "; docs/recipes.md lists the keys"  # of a group with more keys than an error shows
USER_FILE = """
from __future__ import annotations
import sys
HERE = __file__
from dataclasses import dataclass
Times = sys.modules[{module!r}].Times

@dataclass(frozen=True)
class Mine(Times):
    knots: tuple[int, ...] = (1, 2)
    inner: Times | None = None

@dataclass(frozen=True)
class Quiet(Mine):
    slope: float = 1.0

class Undecorated(Mine):
    slope: float = 1.0

@dataclass(frozen=True)
class Named(Times):
    name: str = "x"

@dataclass(frozen=True)
class Stranger:
    slope: float = 1.0
"""


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, holding a user's file and one that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "laws").mkdir()
    (tmp_path / "laws" / "mine.py").write_text(USER_FILE.format(module=__name__))
    (tmp_path / f"module_{tmp_path.name}.py").write_text(USER_FILE.format(module=__name__))
    (tmp_path / "broken.py").write_text("import json\nraise RuntimeError('two\\nlines')\nclass Mine: pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("alpha", 1, 1.0),
        ("alpha", "1e-4", 0.0001),
        ("alpha", 1e300, 1e300),
        ("batch_size", "1_000_000", 1_000_000),
        ("batch_size", 1e6, 1_000_000),
        ("batch_size", "1e6", 1_000_000),
        ("batch_size", "9007199254740993", 2**53 + 1),
        ("batch_size", 2**80, 2**80),
        ("ema", False, False),
        ("title", "yes", "yes"),
        ("precision", "bf16", "bf16"),
        ("factor", 2, 2),
        ("tracking", ["wandb", "tensorboard"], ("wandb", "tensorboard")),
        ("clip", None, None),
        ("clip", "1e-2", 0.01),
        ("warmup", "auto", "auto"),
        ("warmup", "5e5", 500_000.0),
        ("seeds", "3", 3),
        ("seeds", "3a", "3a"),
        ("bounds", [None, 2.0], (None, 2)),
        ("bounds", ["1e-3", "2"], (0.001, 2)),
        ("weights", {"a": "1e-3", "b": 2}, {"a": 0.001, "b": 2.0}),
        ("times", "lognormal", LogNormal()),
        ("times", {"name": "lognormal", "mean": -0.4}, LogNormal(mean=-0.4)),
        ("times", {"name": "mixed", "second": {"name": "ramp", "low": 1}}, Mixed(LogNormal(), Ramp(1.0))),
        ("fake_times", None, None),
        ("fake_times", "mixed", Mixed()),
        ("fake", None, None),
        ("fake", {"lr": "2e-5", "betas": [0, 0.99]}, Optimizer(2e-5, (0.0, 0.99))),
    ],
)
def test_a_value_is_taken_at_its_exact_worth(key: str, given: Any, value: Any) -> None:
    built = getattr(build(Run, {"batch_size": 1, key: given}), key)
    assert built == value
    assert type(built) is type(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"batch_size": "many"}, "key 'batch_size' must be an integer, got 'many'"),
        ({"batch_size": 1.5}, "key 'batch_size' must be an integer, got 1.5"),
        ({"alpha": math.inf}, "key 'alpha' must be a number, got inf"),
        ({"batch_size": math.inf}, "key 'batch_size' must be an integer, got inf"),
        ({"batch_size": True}, "key 'batch_size' must be an integer, got True"),
        ({"batch_size": None}, "key 'batch_size' must be an integer, got None"),
        ({"alpha": True}, "key 'alpha' must be a number, got True"),
        ({"alpha": "1e-4x"}, "key 'alpha' must be a number, got '1e-4x'"),
        ({"alpha": 10**400}, "key 'alpha' must be a number, got 100000000000000000...0000000000000000000"),
        ({"ema": 1}, "key 'ema' must be true or false, got 1"),
        ({"ema": "yes"}, "key 'ema' must be true or false, got 'yes'"),
        ({"title": 3}, "key 'title' must be a string, got 3"),
        (
            {"precision": "BF-16"},
            "key 'precision' must be one of 'no', 'bf16', 'FP32', got 'BF-16' (did you mean 'bf16'?)",
        ),
        (
            {"precision": "fp32"},
            "key 'precision' must be one of 'no', 'bf16', 'FP32', got 'fp32' (did you mean 'FP32'?)",
        ),
        ({"precision": False}, "key 'precision' must be one of 'no', 'bf16', 'FP32', got False"),
        ({"factor": True}, "key 'factor' must be one of 1, 2, got True"),
        ({"tracking": "wandb"}, "key 'tracking' must be a list [a string, ...], got 'wandb'"),
        ({"tracking": ["wandb", 1]}, "key 'tracking' must be a list [a string, ...], got ['wandb', 1]"),
        ({"clip": "none"}, "key 'clip' must be a number or null, got 'none'"),
        ({"warmup": "automatic"}, "key 'warmup' must be a number or 'auto', got 'automatic'"),
        ({"bounds": [1, 2, 3]}, "key 'bounds' must be a list [a number or null, an integer], got [1, 2, 3]"),
        ({"bounds": [True, 2]}, "key 'bounds' must be a list [a number or null, an integer], got [True, 2]"),
        ({"weights": {"a": True}}, "key 'weights' must be a mapping, got {'a': True}"),
        ({"fake": 3}, "key 'fake' must be a mapping, got 3"),
        ({"generator": None}, "key 'generator' must be a mapping, got None"),
        ({"fake": {}}, "missing key 'fake.lr': it must be a number"),
        (
            {"fake": {"lr": 1, "Betas": 2}},
            "unknown key 'fake.Betas' (did you mean 'fake.betas'?); allowed: lr, betas, extra",
        ),
        ({"fake": {"lr": -1, "betas": [0, 1]}}, "key 'fake': lr: must be positive, got -1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batchsize": 1}, "unknown key 'batchsize' (did you mean 'batch_size'?)"),
        ({"derived": 1}, f"unknown key 'derived'{ELSEWHERE}"),
        ({True: 1}, f"unknown key 'True'{ELSEWHERE}"),
        ({"times": "log-normal"}, f"key 'times' must be one of {NAMES}, got 'log-normal' (did you mean 'lognormal'?)"),
        ({"times": {"name": "rampp"}}, f"key 'times' must be one of {NAMES}, got 'rampp' (did you mean 'ramp'?)"),
        (
            {"fake_times": {"name": "RAMP"}},
            f"key 'fake_times' must be one of {NAMES}, got 'RAMP' (did you mean 'ramp'?)",
        ),
        ({"times": {"low": 1}}, f"key 'times' must be one of {NAMES}, got {{'low': 1}}"),
        ({"times": {"name": None}}, f"key 'times' must be one of {NAMES}, got None"),
        ({"times": None}, f"key 'times' must be one of {NAMES}, got None"),
        ({"times": 3}, f"key 'times' must be one of {NAMES}, got 3"),
        ({"times": "ramp"}, "missing key 'times.low': it must be a number"),
        (
            {"times": {"name": "ramp", "low": 1, "hihg": 2}},
            "unknown key 'times.hihg' (did you mean 'times.high'?); allowed: low, high",
        ),
        ({"times": {"name": "ramp", "low": 90}}, "key 'times': low must be below high, got 90.0 and 80.0"),
        (
            {"times": {"name": "mixed", "first": {"name": "ramp", "low": "x"}}},
            "key 'times.first.low' must be a number, got 'x'",
        ),
        (
            {"times": "no_such_package.laws:Law"},
            "key 'times': cannot import 'no_such_package.laws:Law': there is no such module on the Python path or in "
            f"'{Path.cwd()}'",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(data: dict[str, Any], message: str) -> None:
    data = {"batch_size": 1} | data if "batchsize" not in data else data
    assert refusal(build, Run, data, "digits.yaml") == f"digits.yaml: {message}"
    assert refusal(build, Run, data) == message


def test_the_root_must_be_a_mapping_with_the_required_keys() -> None:
    assert refusal(build, Run, {}, "digits.yaml") == "digits.yaml: missing key 'batch_size': it must be an integer"
    assert refusal(build, Run, [1], "digits.yaml") == "digits.yaml: must be a mapping, got [1]"
    assert refusal(build, Run, [1]) == "must be a mapping, got [1]"


def test_a_member_of_a_family_can_be_built_by_its_base() -> None:
    assert build(Times, {"name": "ramp", "low": 2}) == Ramp(2.0)


def test_a_class_without_fields_allows_no_key() -> None:
    @dataclass(frozen=True)
    class Empty:
        pass

    assert refusal(build, Empty, {"a": 1}) == "unknown key 'a'; allowed: none"


@pytest.mark.parametrize("hint", [tuple[Optimizer, ...], Optimizer | Times | None, dict[str, Times]])
def test_dataclasses_inside_other_types_are_refused_to_the_developer(hint: Any) -> None:
    wrong = make_dataclass("Wrong", [("several", hint)])
    with pytest.raises(TypeError, match="at most one dataclass may be in a union, and none inside other types"):
        build(wrong, {"several": {"lr": 1}})


def test_a_registered_class_is_dumped_by_its_name_before_any_file_names_it() -> None:
    base = make_dataclass("Base", [], frozen=True)
    member = make_dataclass("Member", [("x", int, 1)], bases=(base,), frozen=True)
    holder = make_dataclass("Holder", [("law", base), ("more", base | None, None)], frozen=True)
    register_choices(base, {"member": member})
    assert dump(holder(member(), member(2))) == {"law": {"name": "member", "x": 1}, "more": {"name": "member", "x": 2}}


def test_dump_is_fully_resolved_and_plain() -> None:
    data = {"batch_size": 2, "times": {"name": "mixed", "second": {"name": "ramp", "low": 1}}, "tracking": ["wandb"]}
    assert dump(build(Run, data)) == {
        "batch_size": 2,
        "alpha": 1.2,
        "ema": True,
        "title": "",
        "precision": "no",
        "factor": 1,
        "tracking": ["wandb"],
        "clip": None,
        "warmup": "auto",
        "seeds": None,
        "bounds": [None, 1],
        "weights": {},
        "times": {
            "name": "mixed",
            "first": {"name": "lognormal", "mean": -1.2, "std": 1.2},
            "second": {"name": "ramp", "low": 1.0, "high": 80.0},
        },
        "fake_times": None,
        "fake": None,
        "generator": {"lr": 1e-05, "betas": [0.0, 0.999], "extra": {}},
    }


@pytest.mark.parametrize("place", ["laws/mine.py", "module"])
def test_a_users_class_keeps_its_name(folder: Path, trusted_code: None, place: str) -> None:
    source = f"module_{folder.name}" if place == "module" else place
    data = {"batch_size": 1, "times": {"name": f"{source}:Mine", "knots": [3], "inner": f"{source}:Mine"}}
    run = build(Run, data)
    mine: Any = run.times
    assert (type(mine).__name__, mine.knots, mine.inner.knots) == ("Mine", (3,), (1, 2))
    inner = {"name": f"{source}:Mine", "knots": [1, 2], "inner": None}
    assert dump(run)["times"] == {"name": f"{source}:Mine", "knots": [3], "inner": inner}
    assert build(Run, dump(run)) == run
    unknown = {"name": f"{source}:Mine", "knot": 1}
    message = "unknown key 'times.knot' (did you mean 'times.knots'?); allowed: knots, inner"
    assert refusal(build, Run, {"batch_size": 1, "times": unknown}) == message


def test_a_users_class_that_no_configuration_named_is_dumped_by_its_module(folder: Path, trusted_code: None) -> None:
    mine = type(build(Times, {"name": "laws/mine.py:Mine"}))
    run = Run(1, times=sys.modules[mine.__module__].Quiet(slope=2.0))
    expected = {"name": f"{folder}/laws/mine.py:Quiet", "knots": [1, 2], "inner": None, "slope": 2.0}
    assert dump(run)["times"] == expected
    assert build(Run, dump(run)) == run


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("laws/none.py:Mine", "cannot import {!r}: there is no such file in '{here}'"),
        ("laws/mine.py:Mein", "cannot import {!r}: '{}' defines no Mein"),
        ("broken.py:Mine", "cannot import {!r}: RuntimeError: two lines"),
        ("broken:Mine", "cannot import {!r}: RuntimeError: two lines"),
        (":Mine", "cannot import {!r}: '' is no name of a module"),
        ("laws/mine.py:Stranger", "{!r} must be a class derived from Times, got <class "),
        ("laws/mine.py:Undecorated", "{!r} must be a dataclass without a field 'name'"),
        ("laws/mine.py:Named", "{!r} must be a dataclass without a field 'name'"),
        ("laws/mine.py:HERE", "{!r} must be a class derived from Times, got "),
        ("laws/mine.py:dataclass", "{!r} must be a class derived from Times, got <function dataclass"),
    ],
)
def test_a_users_class_that_cannot_serve_is_refused(folder: Path, trusted_code: None, name: str, problem: str) -> None:
    expected = f"a.yaml: key 'times': {problem.format(name, folder / name.partition(':')[0], here=folder)}"
    for _ in range(2):  # a failed import leaves nothing half loaded behind
        assert refusal(build, Run, {"batch_size": 1, "times": name}, "a.yaml").startswith(expected)


def draw_number(rng: random.Random) -> float:
    return rng.choice([rng.uniform(0, 1), 10.0 ** rng.randint(-300, 300), float(rng.randint(1, 9)), 5e-324, 1e-4, 1e22])


def draw_text(rng: random.Random) -> str:
    return rng.choice(
        ["", "1e5", "1e-4", "12e4567", ".5e3", "1.0", "no", "null", "~", "a: b", "#x", "é\n", " x ", "1_0"]
    )


def draw_times(rng: random.Random, depth: int = 0) -> Times:
    kind = rng.randrange(3 if depth < 3 else 2)
    if kind == 2:
        return Mixed(draw_times(rng, depth + 1), rng.choice([None, draw_times(rng, depth + 1)]))
    low = draw_number(rng)
    return LogNormal(-low, draw_number(rng)) if kind else Ramp(low, 1e300)


def draw_run(rng: random.Random) -> Run:
    extra = {"eps": draw_number(rng), "flags": [draw_text(rng), True, {"deep": [draw_number(rng), None]}]}
    return Run(
        batch_size=rng.randint(1, 2**70),
        alpha=draw_number(rng),
        ema=rng.random() < 0.5,
        title=draw_text(rng),
        precision=rng.choice(["no", "bf16", "FP32"]),
        tracking=tuple(draw_text(rng) for _ in range(rng.randrange(3))),
        clip=rng.choice([None, draw_number(rng)]),
        warmup=rng.choice(["auto", draw_number(rng)]),
        bounds=(rng.choice([None, draw_number(rng)]), rng.randint(-5, 5)),
        weights={draw_text(rng): draw_number(rng) for _ in range(3)},
        times=draw_times(rng),
        fake_times=rng.choice([None, draw_times(rng)]),
        fake=rng.choice([None, Optimizer(draw_number(rng), (draw_number(rng), 1.0), extra)]),
    )


def test_any_run_comes_back_equal_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for seed in range(60):
        run = draw_run(random.Random(seed))
        file.write_text(to_yaml(dump(run)), encoding="utf-8")
        assert build(Run, dump(run)) == run
        assert load_yaml(file) == dump(run)
        assert build(Run, load_yaml(file)) == run
        assert dump(build(Run, load_yaml(file))) == dump(run)
    file.write_text("batch_size: 1e6\nalpha: 1e-4\nfake: {lr: 5e-05, extra: {eps: 1e-8}}\n")
    run = build(Run, load_yaml(file))
    assert (run.batch_size, run.alpha, run.fake) == (1_000_000, 0.0001, Optimizer(0.00005, extra={"eps": 1e-8}))
