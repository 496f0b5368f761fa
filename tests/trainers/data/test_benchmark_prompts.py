"""The published files of prompts are read as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import UserError
from trainers.data.benchmark_prompts import LONGEST_PROMPT, read_prompts

GENEVAL = '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}'
GENEVAL_2 = (
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}],'
    ' "prompt": "a photo of two clocks"}'
)
FILES = {
    "captions.txt": (
        "A loft bed\u2028with a dresser.\r\nTwo giraffes in a room \n\n",
        ["A loft bed\u2028with a dresser.", "Two giraffes in a room "],
    ),
    "geneval.jsonl": (f"{GENEVAL}\n{GENEVAL_2}\n", ["a photo of a bench", "a photo of two clocks"]),
    "dpg.jsonl": (
        '{"id": "0", "prompt": "Eight cabbages"}\n{"id": "whoops9", "prompt": "A truck"}\n',
        ["Eight cabbages", "A truck"],
    ),
    "parti.tsv": (
        'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\na "sign\tArts\tBasic\tone"\n',
        ["bond", 'a "sign'],
    ),
    "compbench.jsonl": ('{"split": "train", "category": "color", "prompt": "a green bench"}', ["a green bench"]),
    "dpg_bench.csv": (
        'item_id,text,keywords\n0,"Eight, or so",a\n0,"Eight, or so",b\n7,Two,c\n',
        ["Eight, or so", "Two"],
    ),
    "drawbench.csv": ("Prompts,Category\nA red car.,Colors\n", ["A red car."]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_published_form_is_read(name: str, tmp_path: Path) -> None:
    content, texts = FILES[name]
    (tmp_path / name).write_bytes(content.encode("utf-8-sig" if name.endswith("csv") else "utf-8"))
    assert [one.text for one in read_prompts(tmp_path / name)] == texts


def test_names_and_lines_are_kept(tmp_path: Path) -> None:
    for name in ("geneval.jsonl", "dpg.jsonl", "dpg_bench.csv"):
        (tmp_path / name).write_text(FILES[name][0])
    assert [one.line for one in read_prompts(tmp_path / "geneval.jsonl")] == [GENEVAL, GENEVAL_2]
    assert [one.name for one in read_prompts(tmp_path / "dpg.jsonl")] == ["0", "whoops9"]
    assert [one.name for one in read_prompts(tmp_path / "dpg_bench.csv")] == ["0", "7"]
    (tmp_path / "prompts").mkdir()
    for name, text in (("256", "A chair\n"), ("COCOval2014000000000042", "A dog"), ("empty", "\n")):
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    found = read_prompts(tmp_path / "prompts")
    assert [(one.name, one.text) for one in found] == [("256", "A chair"), ("COCOval2014000000000042", "A dog")]


def test_what_holds_no_prompts_is_refused(tmp_path: Path) -> None:
    def refusal(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as error:
            read_prompts(tmp_path / name)
        assert "\n" not in str(error.value)
        return str(error.value).replace(str(tmp_path), "HERE")

    assert refusal("a.txt", b"\n \n") == "prompts: 'HERE/a.txt' holds no prompts"
    assert refusal("a.jsonl", b'{"prompt": 3}').startswith("prompts: 'HERE/a.jsonl' holds a line without a prompt or")
    assert refusal("b.jsonl", b"[1]") == "prompts: cannot read 'HERE/b.jsonl': must be an object, got [1]"
    assert refusal("c.jsonl", b"{").startswith("prompts: cannot read 'HERE/c.jsonl': ")
    assert refusal("d.txt", b"\xff\xfe").startswith("prompts: cannot read 'HERE/d.txt': ")
    assert refusal("e.png", b"").startswith("prompts: 'HERE/e.png' must be a folder of .txt, or end in ")
    for name in ("nowhere.txt", "~nobody/x.txt", "a\0b.txt"):
        with pytest.raises(UserError, match=r"^prompts: cannot read '"):
            read_prompts(name)


LINES = {
    "a deep list": (
        b'{"prompt": "a", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "it is no JSON: recursion limit",
    ),
    "half a pair": (b'{"prompt": "a", "x": "\\ud83d"}', "it is no JSON: unexpected end of hex escape"),
    "half a pair in the prompt": (b'{"prompt": "\\ud800"}', "it is no JSON: unexpected end of hex escape"),
    "NaN": (b'{"prompt": "a", "x": NaN}', "key 'x': must be finite, got nan"),
    "a key twice": (b'{"prompt": "a", "prompt": "b"}', "key 'prompt' stands twice"),
    "many lists": (b'{"prompt": "a", "x": [' + b"[]," * 2**19 + b"0]}", "it has more than 524,288 commas and brackets"),
}


@pytest.mark.parametrize("how", LINES)
def test_a_hostile_line_is_refused(how: str, tmp_path: Path) -> None:
    line, message = LINES[how]
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n' + line)
    with pytest.raises(UserError, match=f"^prompts: cannot read '.*a.jsonl': {message}"):
        read_prompts(tmp_path / "a.jsonl")


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    """JSON and tables may hold U+2028, a vertical tab and others at which Python splits lines."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\u2028line\x85"}\n', encoding="utf-8")
    (tmp_path / "a.csv").write_text("prompt,id\none\u2028line\x0b,1\n", encoding="utf-8")
    assert [one.text for one in read_prompts(tmp_path / "a.jsonl")] == ["one\u2028line\x85"]
    assert [one.text for one in read_prompts(tmp_path / "a.csv")] == ["one\u2028line\x0b"]


def test_prompts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a" * (LONGEST_PROMPT + 1))
    with pytest.raises(UserError, match=r"a.txt' holds a prompt of more than 65,536 characters$"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder/hole.txt").open("wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(UserError, match=r"cannot read '.*folder': it has more than 262,144 bytes$"):
        read_prompts(tmp_path / "folder")
    monkeypatch.setattr("trainers.data.benchmark_prompts.MOST_PROMPTS", 3)
    (tmp_path / "a.txt").write_text("a\n" * 3)
    assert len(read_prompts(tmp_path / "a.txt")) == 3
    (tmp_path / "a.txt").write_text("a\n" * 4)
    with pytest.raises(UserError, match=r"a.txt' holds more than 3 prompts$"):
        read_prompts(tmp_path / "a.txt")
