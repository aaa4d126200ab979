"""Writes files as PyTorch does, without it: a small assembler of pickles, and the two containers."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"<f4": "Float", "<f8": "Double", "<f2": "Half", "<i8": "Long", "<i4": "Int", "<i2": "Short", "|i1": "Char", "|u1": "Byte"}
KINDS["|b1"] = "Bool"


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """`function(*arguments)`, with a state given to the result if there is one; `new`: by the instruction for new objects."""

    function: Any
    arguments: tuple = ()
    state: Any = None
    new: bool = False


@dataclass
class Persistent:
    identity: Any


@dataclass
class Raw:
    """Instructions as they are."""

    code: bytes


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
HOOKS = Call(Global("collections", "OrderedDict"))


@dataclass
class Storages:
    """The storages of a file, in their order; `view`: as the older format describes them."""

    legacy: bool = False
    found: dict[str, bytes] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)

    def add(self, data: np.ndarray, kind: str | None = None, view: tuple | None = None) -> Persistent:
        key = str(len(self.found)) if not self.legacy else str(94_000_000 + len(self.found))
        self.found[key], self.elements[key] = data.tobytes(), data.size
        return self.refer(key, kind or KINDS[data.dtype.str], view)

    def refer(self, key: str, kind: str, view: tuple | None = None) -> Persistent:
        identity = ("storage", Global("torch", f"{kind}Storage"), key, "cpu", self.elements[key])
        return Persistent((*identity, view) if self.legacy else identity)

    def tensor(self, array: np.ndarray, rebuild: Any = REBUILD, kind: str | None = None) -> Call:
        array = np.asarray(array, order="C")
        stride = tuple(step // array.itemsize for step in array.strides)
        return as_tensor(self.add(array.reshape(-1), kind), 0, array.shape, stride, rebuild)

    def tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, Call]:
        return {name: self.tensor(array) for name, array in arrays.items()}


def as_tensor(storage: Any, offset: Any, size: Any, stride: Any, rebuild: Any = REBUILD) -> Call:
    rest = (False, HOOKS) if rebuild.name.endswith("_v2") else ()
    return Call(rebuild, (storage, offset, size, stride, *rest))


def assemble(value: Any) -> bytes:
    """The instructions that put a value onto the stack."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Persistent):
        return assemble(value.identity) + b"Q"
    if isinstance(value, Call):
        made = assemble(value.function) + assemble(value.arguments) + (b"\x81" if value.new else b"R")
        return made + (b"" if value.state is None else assemble(value.state) + b"b")
    if isinstance(value, tuple):
        return b"(" + b"".join(map(assemble, value)) + b"t"
    if isinstance(value, list):
        return b"(" + b"".join(map(assemble, value)) + b"l"
    if isinstance(value, dict):
        return b"(" + b"".join(assemble(key) + assemble(entry) for key, entry in value.items()) + b"d"
    if isinstance(value, str):
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    # Plain numbers and None: without protocol and end.
    return pickle.dumps(value, protocol=2)[2:-1]


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + assemble(value) + b"."


def write_zip(path: Path, value: Any, storages: Storages | None = None, root: str = "archive", **members: bytes) -> Path:
    """The format since PyTorch 1.6; `members` replace or add files, `/` in their names written as `__`."""
    files = {"data.pkl": pickled(value), "byteorder": b"little", "version": b"3\n"}
    files |= {f"data/{key}": data for key, data in (storages.found if storages else {}).items()}
    files |= {name.replace("__", "/"): data for name, data in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def write_legacy(path: Path, value: Any, storages: Storages, machine: dict | None = None, version: Any = 1001) -> Path:
    """The format before: five pickles, then each storage after its number of elements."""
    out = io.BytesIO()
    machine = machine or {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for part in (0x1950A86A20F9469CFC6C, version, machine, value, list(storages.found)):
        out.write(pickled(part))
    for key, data in storages.found.items():
        out.write(struct.pack("<q", storages.elements[key]) + data)
    path.write_bytes(out.getvalue())
    return path
