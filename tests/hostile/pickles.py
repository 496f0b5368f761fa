"""Hostile pickles: published checkpoints that would run code, grow, or recurse, each with a canary."""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from random import Random

from tests.hostile.mutate import damaged
from tests.hostile.trial import Call, Place

CALLS = (
    *("os system", "posix system", "subprocess call", "builtins eval", "builtins exec", "builtins __import__"),
    *("builtins getattr", "builtins open", "pty spawn", "runpy run_path", "importlib import_module", "pickle loads"),
    *("torch load", "torch.hub load", "numpy load", "numpy.core.multiarray _reconstruct", "operator attrgetter"),
    *(
        "torch.storage _load_from_bytes",
        "torch._utils _rebuild_tensor_v2",
        "torch.serialization load",
        "_codecs encode",
    ),
    *(
        "torch_utils.persistence _reconstruct_persistent_obj",
        "collections OrderedDict",
        "builtins set",
        "code interact",
    ),
    *(
        "copyreg _reconstructor",
        "functools partial",
        "types CodeType",
        "distill.user_code import_class",
        "x y",
        "os a.b",
    ),
)


def text(value: str) -> bytes:
    """Return the opcode of a string."""
    content = value.encode(errors="surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def called(place: Place, draw: Random) -> bytes:
    """Return the opcodes of a call that writes the canary, by one of the ways in which a pickle calls."""
    module, name = draw.choice(CALLS).split()
    shell = f"echo {module}.{name} > '{place.canary}'"
    python = f"open({str(place.canary)!r}, 'w').write('{module}.{name}')"
    argument = text(python if name in ("eval", "exec") else shell)
    found = f"c{module}\n{name}\n".encode()
    stack = text(module) + text(name) + pickle.STACK_GLOBAL
    ways: dict[str, Callable[[], bytes]] = {
        "REDUCE": lambda: found + b"(" + argument + b"tR",
        "STACK_GLOBAL": lambda: stack + argument + pickle.TUPLE1 + pickle.REDUCE,
        "OBJ": lambda: b"(" + found + argument + b"o",
        "INST": lambda: b"(" + argument + f"i{module}\n{name}\n".encode(),
        "NEWOBJ": lambda: found + argument + pickle.TUPLE1 + pickle.NEWOBJ,
        "NEWOBJ_EX": lambda: found + argument + pickle.TUPLE1 + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
        "BUILD": lambda: found + b")R" + b"}" + text("__setstate__") + found + b"sb",
        "EXT": lambda: draw.choice([pickle.EXT1 + b"\x01", pickle.EXT4 + struct.pack("<i", -1)]),
        "BINPERSID": lambda: argument + pickle.BINPERSID,
        "PERSID": lambda: b"Pos.system\n",
        "twice": lambda: found + b"(" + found + b"(" + argument + b"tRtR",
    }
    return ways[draw.choice(list(ways))]()


def code(place: Place, draw: Random, valid: bytes) -> bytes:
    """Return a pickle that calls: alone, in a dictionary, or before the end of a valid one."""
    call = called(place, draw)
    wrapped = [
        b"\x80\x04" + call + b".",
        b"\x80\x02}" + text("ema") + call + b"s.",
        b"\x80\x04" + call + b"0" + valid[2:],
        valid[:-1] + b"0" + call + b".",
    ]
    return draw.choice(wrapped)


def bomb(place: Place, draw: Random, valid: bytes) -> bytes:
    """Return a pickle that grows or recurses."""
    doubled = b"\x80\x04]q\x00" + b"".join(
        b"](h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)
    )
    bombs = [
        doubled + b".",
        b"\x80\x02}" + text("ema") + doubled[2:] + b"s.",
        b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x04" + b"(" * 500_000 + b"t" * 500_000 + b".",
        b"\x80\x04]q\x00h\x00a.",
        b"\x80\x04}q\x00" + text("ema") + b"h\x00s.",
        b"\x80\x04" + pickle.BINBYTES8 + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**36) + b".",
        b"\x80\x04" + pickle.FRAME + struct.pack("<Q", 2**63 - 1) + b"N.",
        b"\x80\x04" + pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b".",
        b"\x80\x02" + b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x04N" + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1) + b".",
        b"\x80\xff.",
        b"\x80\x04" + b"h\x05.",
        b"\x80\x04" + b"N" * 1_000_000 + b".",
        b"",
        b".",
        b"\x80\x04N.",
        b"(lp0\n" + b"(lp1\n" * 1000 + b".",
    ]
    return draw.choice(bombs)


def opcodes(place: Place, draw: Random, valid: bytes) -> bytes:
    """Return a valid pickle with an opcode replaced, removed or repeated."""
    ops = [position for _, _, position in pickletools.genops(valid) if position is not None]
    at = draw.randrange(len(ops) - 1)
    first, last = ops[at], ops[at + 1]
    other = draw.choice(pickletools.opcodes).code.encode("latin-1")
    return draw.choice(
        [
            valid[:first] + other + valid[first + 1 :],
            valid[:first] + valid[last:],
            valid[:first] + valid[first:last] * draw.choice([2, 1000]) + valid[last:],
            valid[:first] + other + valid[first:],
        ]
    )


def settings(place: Place, draw: Random, valid: bytes) -> bytes:
    """Return a valid pickle with other numbers and strings in its settings."""
    found = [
        (op, argument, at)
        for op, argument, at in pickletools.genops(valid)
        if op.name in ("BININT1", "BININT", "SHORT_BINUNICODE")
    ]
    op, argument, at = draw.choice(found)
    assert at is not None
    size = {"BININT1": 2, "BININT": 5}.get(op.name) or 2 + len(str(argument).encode())
    values = [
        *(
            b"N",
            b"\x88",
            b"]",
            b"}",
            b"K\x00",
            b"J" + struct.pack("<i", -1),
            b"J" + struct.pack("<i", 2**31 - 1),
            text("x"),
        ),
        *(b"G" + struct.pack(">d", value) for value in (float("nan"), float("inf"), 1e308, 0.5)),
        pickle.LONG1 + b"\xc8" + b"\x7f" * 200,
    ]
    return valid[:at] + draw.choice(values) + valid[at + size :]


def archive(place: Place, draw: Random, valid: bytes) -> bytes:
    """Return a file of torch.save, whose pickle calls."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        written.writestr("archive/data.pkl", draw.choice([code, bomb])(place, draw, valid))
        written.writestr("archive/version", "3\n")
        written.writestr("archive/byteorder", "little")
        written.writestr("archive/data/0", bytes(64))
    return stream.getvalue()


KINDS: dict[str, Callable[[Place, Random, bytes], bytes]] = {
    "code": code,
    "bomb": bomb,
    "opcodes": opcodes,
    "settings": settings,
    "archive": archive,
    "damaged": lambda place, draw, valid: damaged(valid, draw)[0],
}


def hostile_pickle(draw: Random, place: Place) -> Call:
    """Prepare a published checkpoint, or the weights of a pipeline as .bin."""
    what = draw.choice(["code", "code", "bomb", "opcodes", "settings", "settings", "archive", "damaged"])
    content = KINDS[what](place, draw, (place.valid / "network.pkl").read_bytes())
    if draw.random() < 0.25:
        place.take("sd")
        part, name = draw.choice(
            [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model"), ("vae", "diffusion_pytorch_model")]
        )
        for file in (place.given / "sd" / part).glob("*.safetensors"):
            file.unlink()
        (place.given / "sd" / part / f"{name}.bin").write_bytes(content)
        command = draw.choice(
            [
                ["import", "diffusers", str(place.given / "sd"), str(place.out / "imported")],
                ["cache", str(place.valid / "sd_images.yaml"), f"teacher={place.given / 'sd'}"],
            ]
        )
        return Call(command, [], f"{what} in {part}")
    file = place.given / "network.pkl"
    file.write_bytes(content)
    return Call(["import", draw.choice(["edm", "edm", "edm2"]), str(file), str(place.out / "imported")], [], what)


READERS = {"pickles": hostile_pickle}
