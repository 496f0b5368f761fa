"""A reader of pickles that runs nothing in them.

A pickle is a program that may name and call anything. This reader never looks up a name. It follows the opcodes with a
stack of its own, and keeps a name as a `Name` and a call as an `Object`. It gives meaning only to the calls that
published checkpoints need, which make containers and torch's tensors, whose bytes it reads itself. It refuses any other
name.

What a file asks for is bounded by what it holds: the number of opcodes is limited, and the arguments of all calls
together may be a few times as long as the file. A storage that is recalled a thousand times would else be made a
thousand times.
"""

import io
import math
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_OPCODES = 2_000_000  # of a file. The largest published checkpoints have some hundred thousand
_STORAGE_OPCODES = 1_000  # of each of the pickles before the bytes of a storage
_MAX_DIMENSIONS = 8  # of a tensor
# The first two numbers of torch's format before zip files, which a plain pickle uses for the tensors in it.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Name:
    """A global name in the pickle, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class Object:
    """A call of `name` that the reader did not make.

    Attributes:
        name: The name that the pickle calls.
        args: The arguments of the call.
        state: The state that the pickle sets on the result.
    """

    name: Name
    args: tuple[Any, ...]
    state: Any = None


class StateDict(dict[Any, Any]):
    """The mapping that a file of torch.save holds, which may have attributes."""


class Refused(Exception):
    """The pickle holds something that no published checkpoint holds."""


class PickleReader:
    """A stack machine for the opcodes of pickles.

    Args:
        calls: The functions that stand for calls of the names that are allowed.
        room: The length that the arguments of all calls may have together, in bytes and entries.
        opcodes: The number of opcodes that a pickle may have.
        reference: The function that resolves persistent ids. None refuses them.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[..., Any]],
        room: int,
        opcodes: int = MAX_OPCODES,
        reference: Callable[[Any], Any] | None = None,
    ) -> None:
        self.calls, self.room, self.opcodes, self.reference = calls, room, opcodes, reference
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, stream: Any) -> Any:
        """Read the next pickle in `stream` and return its object. The stream then stands after the pickle's end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= self.opcodes:
                raise Refused(f"it has more than {self.opcodes:,} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name not in _OPCODES:
                raise Refused(f"opcode {opcode.name} is not allowed")
            _OPCODES[opcode.name](self, argument)
        raise Refused("it has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise Refused("a mark is missing")
        return self.stack.pop()

    def items(self) -> list[Any]:
        """Pop everything above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple(self, size: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(size)])))

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(map(_key, values))
        else:
            raise Refused(f"{type(target).__name__} is no list")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise Refused(f"{type(target).__name__} is no dict")
        target.update(_pairs(values))

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused(f"nothing is remembered under {index}")
        self.push(self.memo[index])

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("a name is no text")
        found = Name(module, name)
        if str(found) not in self.calls:
            raise Refused(f"the name '{found}' is not allowed")
        self.push(found)

    def call(self) -> None:
        args, called = self.pop(), self.pop()
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise Refused(f"{type(called).__name__} is called, which is no name")
        self.room -= sum(
            len(one) for one in args if isinstance(one, str | bytes | tuple | list | dict | set | frozenset)
        )
        if self.room < 0:
            raise Refused("its calls take more than it holds")
        self.push(self.calls[str(called)](called, *args))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, StateDict):  # its attributes are the versions of modules
            return
        if not isinstance(target, Object) or target.state is not None:
            raise Refused(f"{type(target).__name__} is given a state")
        target.state = state

    def refer(self, identity: Any) -> None:
        if self.reference is None:
            raise Refused("a reference to outside of the pickle is not allowed")
        self.push(self.reference(identity))


def _key(value: Any) -> str | int:
    """Return a key of a dict or set, which must be text or an integer."""
    if not isinstance(value, str | int):  # hashing another type may recurse without end
        raise Refused(f"{type(value).__name__} is a key")
    return value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    """Return the dict of alternating keys and values."""
    return {_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


_CONSTANTS = """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE
BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"""
_STEPS: dict[str, Callable[[PickleReader, Any], None]] = {
    _CONSTANTS: lambda r, value: r.push(value),
    "PROTO FRAME": lambda r, _: None,
    "NONE": lambda r, _: r.push(None),
    "NEWTRUE": lambda r, _: r.push(True),
    "NEWFALSE": lambda r, _: r.push(False),
    "MARK": lambda r, _: r.marks.append(len(r.stack)),
    "POP": lambda r, _: r.pop() and None,
    "POP_MARK": lambda r, _: r.items().clear(),
    "DUP": lambda r, _: r.push(r.stack[-1]),
    "EMPTY_LIST": lambda r, _: r.push([]),
    "EMPTY_DICT": lambda r, _: r.push({}),
    "EMPTY_SET": lambda r, _: r.push(set()),
    "EMPTY_TUPLE": lambda r, _: r.push(()),
    "LIST": lambda r, _: r.push(r.items()),
    "TUPLE": lambda r, _: r.push(tuple(r.items())),
    "TUPLE1": lambda r, _: r.tuple(1),
    "TUPLE2": lambda r, _: r.tuple(2),
    "TUPLE3": lambda r, _: r.tuple(3),
    "DICT": lambda r, _: r.push(_pairs(r.items())),
    "FROZENSET": lambda r, _: r.push(frozenset(map(_key, r.items()))),
    "APPEND": lambda r, _: r.extend([r.pop()]),
    "APPENDS ADDITEMS": lambda r, _: r.extend(r.items()),
    "SETITEM": lambda r, _: r.set_items([r.pop(), r.pop()][::-1]),
    "SETITEMS": lambda r, _: r.set_items(r.items()),
    "PUT BINPUT LONG_BINPUT": lambda r, index: r.memo.update({index: r.stack[-1]}),
    "MEMOIZE": lambda r, _: r.memo.update({len(r.memo): r.stack[-1]}),
    "GET BINGET LONG_BINGET": lambda r, index: r.recall(index),
    "GLOBAL": lambda r, names: r.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda r, _: r.name(*[r.pop(), r.pop()][::-1]),
    "REDUCE NEWOBJ": lambda r, _: r.call(),
    "BUILD": lambda r, _: r.build(),
    "PERSID": lambda r, identity: r.refer(identity),
    "BINPERSID": lambda r, _: r.refer(r.pop()),
}
_OPCODES = {name: step for names, step in _STEPS.items() for name in names.split()}


def _storage(called: Name, content: Any) -> Tensor:
    """Stand for torch.storage._load_from_bytes: return a storage of torch's old format as a tensor [n]."""
    if not isinstance(content, bytes):
        raise Refused(f"a storage is {type(content).__name__}")
    found = read_old(io.BytesIO(content), len(content), {}, _STORAGE_OPCODES)
    if not isinstance(found, Tensor):
        raise Refused(f"a storage is {type(found).__name__}")
    return found


def read_old(stream: Any, size: int, calls: Mapping[str, Callable[..., Any]], opcodes: int = MAX_OPCODES) -> Any:
    """Return the object in torch's format before zip files: pickles, and then the numbers of the storages.

    Args:
        stream: The content.
        size: Its bytes.
        calls: The functions that stand for calls, beside the names of storages.
        opcodes: The number of opcodes that each of its pickles may have.
    """
    storages, room = dict[str, Tensor](), size

    def claim(identity: Any) -> Tensor:
        nonlocal room
        kind, storage, key, _, count, view = identity
        if kind != "storage" or view is not None:
            raise Refused(f"a storage is {reprlib.repr(identity)}")
        if key not in storages:
            storages[key] = empty_storage(storage, key, count, room)
            room -= storages[key].nbytes
        return storages[key]

    def part(reference: Callable[[Any], Any] | None = None) -> Any:
        return PickleReader({**STORAGE_NAMES, **calls}, 4 * size, opcodes, reference).read(stream)

    head = part(), part(), part()  # the magic number, the protocol, and facts of the machine that wrote it
    if head[:2] != (_MAGIC, _PROTOCOL) or not isinstance(head[2], dict) or head[2].get("little_endian") is not True:
        raise Refused("a storage is not in torch's format")
    content, keys = part(claim), part()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Refused(f"it holds {len(storages)} storages under other keys")
    for key in keys:
        written, storage = int.from_bytes(stream.read(8), "little"), storages[key]
        fill_storage(storage, stream.read(min(written, size) * storage.itemsize))
    return content


def empty_storage(storage: Any, key: Any, count: Any, room: int) -> Tensor:
    """Return memory for a storage.

    Args:
        storage: The name of its type.
        key: Its key.
        count: Its length, as the file claims it.
        room: The bytes that the file can still have.
    """
    if not isinstance(storage, Name) or not isinstance(key, str) or type(count) is not int:
        raise Refused(f"a storage is {reprlib.repr((storage, key, count))}")
    dtype = STORAGES[storage.name]
    if not 0 <= count * dtype.itemsize <= room:
        raise Refused(f"a storage claims {count} numbers of {dtype.itemsize} bytes, and the file is smaller")
    return torch.empty(count, dtype=dtype)


def fill_storage(storage: Tensor, content: bytes) -> None:
    """Give a storage its numbers, as a file holds them."""
    if len(content) != storage.nbytes:
        count, size = len(storage), storage.itemsize
        raise Refused(f"a storage claims {count} numbers of {size} bytes and has {len(content)} bytes")
    if content:
        storage.copy_(torch.frombuffer(bytearray(content), dtype=storage.dtype))


def _tensor(
    called: Name, storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None, bits: Any = ()
) -> Tensor:
    """Stand for torch._utils._rebuild_tensor_v2. `bits` say whether the numbers are negative or conjugate."""
    if not isinstance(storage, Tensor) or len(size) != len(stride) or len(size) > _MAX_DIMENSIONS or bits:
        raise Refused("a tensor is not in torch's format")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise Refused("a tensor is not in torch's format")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(storage) or (0 not in size and last >= len(storage)):
        raise Refused(f"a tensor claims shape {tuple(size)} of {len(storage)} numbers")
    return storage.as_strided(size, stride, offset)


def _parameter(called: Name, data: Any, *_: Any) -> Tensor:
    """Stand for torch._utils._rebuild_parameter."""
    if not isinstance(data, Tensor):
        raise Refused(f"a parameter is {type(data).__name__}")
    return data


def _mapping(called: Name, items: Any = ()) -> dict[Any, Any]:
    """Stand for the classes of mappings."""
    return {_key(key): value for key, value in items}


def _set(called: Name, items: Any = ()) -> set[Any]:
    """Stand for set."""
    return set(map(_key, items))


def _encode(called: Name, text: str, encoding: str) -> bytes:
    """Stand for _codecs.encode, with which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise Refused(f"bytes are encoded as {reprlib.repr(encoding)}")
    return text.encode(encoding)


def _record_call(called: Name, *args: Any) -> Object:
    """Record a call without making it."""
    return Object(called, args)


def _instance(called: Name, cls: Any, *_: Any) -> Object:
    """Stand for copyreg._reconstructor, which makes an instance that a state fills later."""
    if not isinstance(cls, Name):
        raise Refused(f"an instance of {type(cls).__name__}")
    return Object(cls, ())


PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_RECORDED = (
    PERSISTENT,
    *("builtins.object", "__builtin__.object", "torch.Size", "torch.device", "numpy.ndarray", "numpy.dtype"),
    *(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential")),
    *(f"{base}.multiarray.{name}" for base in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *(f"torch.{dtype}" for dtype in ("float16", "float32", "float64", "bfloat16", "int64", "uint8", "bool")),
)
STORAGE_NAMES: dict[str, Callable[..., Any]] = {f"torch.{name}": _record_call for name in STORAGES}
STATE_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": lambda called, items=(): StateDict(_mapping(called, items)),
}
"""The calls that a file of `torch.save` needs for tensors by name."""
CALLS: dict[str, Callable[..., Any]] = {
    **STATE_CALLS,
    **dict.fromkeys(_RECORDED, _record_call),
    "torch.storage._load_from_bytes": _storage,
    "_codecs.encode": _encode,
    **dict.fromkeys(("collections.OrderedDict", "dnnlib.util.EasyDict"), _mapping),
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _set),
    **dict.fromkeys(("copyreg._reconstructor", "copy_reg._reconstructor"), _instance),
}
