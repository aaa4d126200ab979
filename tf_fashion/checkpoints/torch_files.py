"""Files of PyTorch, of safetensors and of ONNX, read without PyTorch and without executing what is in them.

A `.pt` or `.pth` file is a pickle, whose instructions name functions to call. The reader knows the few that rebuild tensors, as
inert stand-ins of its own; any other name is refused before anything is called. Storages come from beside the pickle: members
of a zip archive (PyTorch 1.6 and later), or raw bytes after it (earlier, and many published weights). The modules of a TorchScript
archive are read as dictionaries of their attributes; its program is left alone.

A checkpoint of a training (Lightning's `.ckpt`) holds the objects of the program beside the weights: callbacks, hyper-parameters,
states of optimizers. In a dictionary with the entry `state_dict`, and in nothing else, the *other* entries may therefore name
anything. What they name is not looked up: a hollow stand-in takes every call, state and item, and becomes a `Foreign` value, or a
plain dictionary where it was given named values. Within `state_dict` every foreign name is refused as anywhere else.

Where a caller names classes whose attributes it wants (`objects`), NumPy's arrays and numbers are rebuilt too, from their bytes by
this module, objects of these classes are dictionaries of their attributes, and every other name is refused wherever it stands.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tf_fashion.core.errors import DataError, MissingExtraError, WeightsError

_DTYPES = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    # The upper half of a float32; widened when the tensor is read.
    "BFloat16": "<u2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
_SAFE_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
# A view that repeats its elements (stride 0) may be larger than its storage, up to this many elements.
_REPEATED = 1 << 26
# Entries of all dictionaries, lists and tuples of a file together.
_ENTRIES = 1_000_000
_DEPTH = 100
# A pickle without its storages. State dictionaries need some hundred bytes per tensor; lists of captions a few megabytes.
_PICKLE_BYTES = 256 << 20
# Each name costs a class.
_FOREIGN_NAMES = 10_000
_FORBIDDEN_OPCODES = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}


@dataclass(frozen=True)
class Foreign:
    """An object of another program that a checkpoint holds beside its weights: only the name is known.

    Attributes:
        name: The class or function, with its module.
    """

    name: str


class _Refused(Exception):
    """Why a file is not read; becomes a `DataError` with the file's name."""


class _Sealed:
    """What a pickle gets hold of and must not change: it may give a state to any object that it has made."""

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes something that is no parameter")


@dataclass
class _Storage:
    """A flat array that is known before its bytes are read."""

    kind: str
    key: str
    elements: int
    data: np.ndarray | None = None


@dataclass
class _View(_Sealed):
    """A part of a storage, as the persistent ids of the older format have it."""

    storage: _Storage
    offset: int
    elements: int


@dataclass
class _Tensor(_Sealed):
    """A tensor that is known before its storage is read."""

    view: _View
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    array: np.ndarray | None = field(default=None, repr=False)

    def read(self) -> np.ndarray:
        if self.array is None:
            data = self.view.storage.data
            if data is None:
                raise _Refused(f"the bytes of storage {self.view.storage.key} are not in the file")
            part = data[self.view.offset + self.offset :]
            strides = [stride * part.itemsize for stride in self.stride]
            self.array = np.lib.stride_tricks.as_strided(part, self.size, strides, writeable=False)
            if self.view.storage.kind == "BFloat16":
                self.array = _widen(self.array)
        return self.array


def _widen(array: np.ndarray) -> np.ndarray:
    """bfloat16, as its bits in uint16, to float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def _integers(values: Any, what: str) -> tuple[int, ...]:
    # Nothing of the values is printed: a few shared lists inside each other would fill the memory.
    if not isinstance(values, tuple) or not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in values):
        raise _Refused(f"a tensor's {what} is not made of sensible numbers")
    return values


# Stand-ins for the names that a pickle may mention.


@dataclass
class _StorageKind(_Sealed):
    """Stands for a class like `torch.FloatStorage`."""

    kind: str


class _RebuildTensor(_Sealed):
    """Stands for `torch._utils._rebuild_tensor_v2` and the older `_rebuild_tensor`."""

    def __call__(self, storage: Any = None, offset: Any = None, size: Any = None, stride: Any = None, *rest: Any) -> _Tensor:
        if not isinstance(storage, _View):
            raise _Refused("a tensor has no storage")
        size, stride = _integers(size, "size"), _integers(stride, "stride")
        (offset,) = _integers((offset,), "offset")
        if len(size) != len(stride) or len(size) > 32:
            raise _Refused(f"a tensor has {len(size)} sizes and {len(stride)} strides")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset - 1
        if last >= storage.elements or offset > storage.elements:
            raise _Refused(f"a tensor of size {size} reaches beyond its storage of {storage.elements} elements")
        if count > max(storage.elements, _REPEATED):
            raise _Refused(f"a tensor of size {size} repeats a storage of only {storage.elements} elements")
        return _Tensor(storage, offset, size, stride)


class _RebuildParameter(_Sealed):
    """Stands for `torch._utils._rebuild_parameter`."""

    def __call__(self, data: Any = None, *rest: Any) -> _Tensor:
        if not isinstance(data, _Tensor):
            raise _Refused("a parameter is no tensor")
        return data


class _Parameter:
    """Stands for `torch.nn.parameter.Parameter`, which the first releases of PyTorch pickled as an object with a state."""

    data: Any

    def __new__(cls, data: Any = None) -> _Parameter:
        made = super().__new__(cls)
        made.data = data
        return made

    def __setstate__(self, state: Any) -> None:
        # Of the two states that there were, the longer one begins with the tensor.
        if isinstance(state, tuple) and len(state) == 5:
            self.data = state[0]


class _Module:
    """Stands for any class of a TorchScript archive, all of which live below `__torch__`: a holder of attributes."""

    attributes: dict

    def __new__(cls) -> _Module:
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _Refused("a module of its program has no attributes")
        self.attributes = state


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch.nn.parameter", "Parameter"): _Parameter,
    **{("torch", f"{kind}Storage"): _StorageKind(kind) for kind in _DTYPES},
}


class _DType(_Sealed):
    """Stands for the type of a NumPy array: plain numbers of a known size."""

    def __init__(self, name: Any = None, *rest: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[fiu][1248]|b1|\?|bool", name) or name == "f1":
            raise _Refused("an array's numbers are of no plain type")
        self.dtype = np.dtype(name).newbyteorder("<")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 8 or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None,) * 3:
            raise _Refused("an array's numbers are of no plain type")
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _ArrayType(_Sealed):
    """Stands for `numpy.ndarray`, which is only mentioned."""


class _Array:
    """Stands for an array between its making and its state."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise _Refused("an array has no bytes")
        _, shape, kind, by_columns, content = state
        shape, content = _integers(shape, "shape"), _bytes(content)
        if len(shape) > 32 or math.prod(shape) * kind.dtype.itemsize != len(content):
            raise _Refused(f"an array has {len(content)} bytes, which its shape does not fit")
        self.value = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if by_columns is True else "C")


class _RebuildArray(_Sealed):
    """Stands for `numpy.core.multiarray._reconstruct`."""

    def __call__(self, kind: Any = None, *rest: Any) -> _Array:
        if not isinstance(kind, _ArrayType):
            raise _Refused("an array is of no known class")
        return _Array()


class _RebuildNumber(_Sealed):
    """Stands for `numpy.core.multiarray.scalar`."""

    def __call__(self, kind: Any = None, content: Any = None) -> bool | int | float:
        content = _bytes(content)
        if not isinstance(kind, _DType) or len(content) != kind.dtype.itemsize:
            raise _Refused("a number is not made of its bytes")
        return np.frombuffer(content, kind.dtype)[0].item()


class _Encode(_Sealed):
    """Stands for `_codecs.encode`, which older protocols write bytes with."""

    def __call__(self, text: Any = None, encoding: Any = None) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _Refused("bytes are not written as latin-1")
        return text.encode("latin-1")


def _bytes(content: Any) -> bytes:
    # Python 2 wrote them as strings.
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    if not isinstance(content, bytes):
        raise _Refused("an array's content is no row of bytes")
    return content


class _Attributes:
    """Stands for a class whose objects are wanted as dictionaries of their attributes."""

    attributes: dict

    def __new__(cls, *arguments: Any) -> _Attributes:
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _Refused("an object has no named attributes")
        self.attributes = state


_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Encode(),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RebuildArray() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _RebuildNumber() for core in ("core", "_core")},
}


class _Hollow:
    """Stands for whatever a name outside of `_ALLOWED` means: takes everything, does nothing, keeps named values."""

    foreign_name: str
    values: dict

    def __new__(cls, *arguments: Any, **named: Any) -> _Hollow:
        made = super().__new__(cls)
        made.values = {}
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> _Hollow:
        return type(self)()

    def __setstate__(self, state: Any) -> None:
        # Objects with slots have a pair.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.values.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.values[key] = value

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _ForeignName(_Refused):
    """A pickle asks for what is neither a tensor nor a plain value."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}, which is neither a tensor nor a plain value. Nothing of it was executed")


class _Unpickler(pickle.Unpickler):
    """Rebuilds dictionaries, lists, numbers, strings and tensors; `storages` collects what has to be read besides.

    With `script`, the file being a TorchScript archive, also its modules. With `hollow` other names get stand-ins. `objects` are
    names of classes whose attributes are wanted.
    """

    def __init__(
        self, file: BinaryIO, storages: dict[str, _Storage], script: bool, hollow: bool, objects: frozenset[tuple[str, str]]
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.storages = storages
        self.script = script
        self.hollow = hollow
        self.objects = objects
        self.stand_ins: dict[str, type[_Hollow]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if self.script and (module == "__torch__" or module.startswith("__torch__.")):
            return _Module
        if self.objects and (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if (module, name) in self.objects:
            return _Attributes
        try:
            return _ALLOWED[module, name]
        except KeyError:
            if self.hollow:
                return self._stand_in(f"{module}.{name}")
            raise _ForeignName(f"{module}.{name}") from None

    def _stand_in(self, name: str) -> type[_Hollow]:
        if name not in self.stand_ins:
            if len(self.stand_ins) == _FOREIGN_NAMES:
                raise _Refused(f"it names more than {_FOREIGN_NAMES} foreign classes and functions")
            self.stand_ins[name] = type("_Hollow", (_Hollow,), {"foreign_name": name})
        return self.stand_ins[name]

    def persistent_load(self, identity: Any) -> Any:
        if self.hollow and isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            # The older format writes the source of a network's class beside its name.
            return identity[1]
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise _Refused("it refers to something that is no storage")
        _, kind, key, _, elements = identity[:5]
        if not isinstance(kind, _StorageKind) or not isinstance(key, (str, int)):
            raise _Refused("a storage has no type or no name")
        (elements,) = _integers((elements,), "number of elements")
        view = identity[5] if len(identity) == 6 else None
        if view is not None and (not isinstance(view, tuple) or len(view) != 3):
            raise _Refused("a view of a storage has no place")
        offset, length = (0, elements) if view is None else _integers(view[1:], "view")
        if offset + length > elements:
            raise _Refused(f"a view reaches beyond its storage of {elements} elements")
        storage = self.storages.setdefault(f"{key}/{kind.kind}", _Storage(kind.kind, str(key), elements))
        if storage.elements != elements:
            raise _Refused(f"storage {key} has two lengths")
        return _View(storage, offset, length)


def _unpickle(
    file: BinaryIO,
    storages: dict[str, _Storage],
    script: bool = False,
    objects: frozenset[tuple[str, str]] = frozenset(),
    strict: bool = True,
) -> Any:
    """One pickle of a stream, which is left behind its end; unless `strict`, a checkpoint may name other things beside its
    `state_dict`."""
    start, opcodes, largest = file.tell(), 0, 0
    for opcode, argument, _ in pickletools.genops(file):
        opcodes += 1
        if opcode.name in _FORBIDDEN_OPCODES:
            raise _Refused(f"its pickle has the instruction {opcode.name}, which PyTorch never writes")
        if "PUT" in opcode.name:
            # The reader's table is as long as the largest index.
            largest = max(largest, int(argument or 0))
    if largest > opcodes:
        raise _Refused(f"its pickle numbers {largest} objects in {opcodes} instructions")
    end = file.tell()
    if end - start > _PICKLE_BYTES:
        raise _Refused(f"its pickle is {(end - start) >> 20} MiB long")
    file.seek(start)
    content = file.read(end - start)
    file.seek(end)
    known = dict(storages)
    try:
        return _Unpickler(io.BytesIO(content), storages, script, hollow=False, objects=objects).load()
    except _ForeignName:
        if script or objects or strict:
            raise
        storages.clear()
        storages.update(known)
        value = _Unpickler(io.BytesIO(content), storages, script, hollow=True, objects=objects).load()
        if not isinstance(value, dict) or not isinstance(value.get("state_dict"), dict):
            raise
        return value


def _finish(value: Any) -> Any:
    """The unpickled value with arrays in place of tensors; what refers to the same object twice does so afterwards too.

    Hollow stand-ins pass in a dictionary with a `state_dict`, outside of it.
    """
    done: dict[int, Any] = {}
    within: set[int] = set()
    entries = 0
    hollow = False

    def walk(item: Any) -> Any:
        nonlocal entries
        if isinstance(item, type) and issubclass(item, _Hollow):
            if not hollow:
                raise _ForeignName(item.foreign_name)
            return Foreign(item.foreign_name)
        if isinstance(item, _Hollow):
            if not hollow:
                raise _ForeignName(item.foreign_name)
            if not item.values:
                return Foreign(item.foreign_name)
            item = item.values
        if item is None or isinstance(item, (bool, int, float, complex, str, bytes)):
            return item
        if isinstance(item, _Parameter):
            item = item.data
        if isinstance(item, _Tensor):
            return item.read()
        if isinstance(item, _Array):
            if item.value is None:
                raise _Refused("an array has no bytes")
            return item.value
        if isinstance(item, (_Module, _Attributes)):
            item = item.attributes
        if id(item) in done:
            return done[id(item)]
        if not isinstance(item, (dict, list, tuple, set, frozenset)):
            raise _Refused(f"it has a value of type {type(item).__name__.strip('_')}, which is neither a tensor nor plain")
        if id(item) in within or len(within) > _DEPTH:
            raise _Refused(f"its values contain themselves or are nested more than {_DEPTH} deep")
        entries += len(item)
        if entries > _ENTRIES:
            raise _Refused(f"it has more than {_ENTRIES} entries")
        within.add(id(item))
        result: Any
        if isinstance(item, dict):
            result = {name(key): walk(entry) for key, entry in dict.items(item)}
        else:
            result = type(item)(walk(entry) for entry in item)
        within.remove(id(item))
        done[id(item)] = result
        return result

    def name(key: Any) -> Any:
        if isinstance(key, (str, int, float, bool, type(None))):
            return key
        kind = key if isinstance(key, type) else type(key)
        if not issubclass(kind, _Hollow):
            raise _Refused(f"a dictionary has a key of type {type(key).__name__}")
        if not hollow:
            raise _ForeignName(kind.foreign_name)
        return kind.foreign_name

    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        # First, so that nothing of it is known from a part that may be hollow.
        walk(value["state_dict"])
        hollow = True
    return walk(value)


def _fill_from_bytes(storage: _Storage, data: Any) -> None:
    kind = np.dtype(_DTYPES[storage.kind])
    if len(data) != storage.elements * kind.itemsize:
        raise _Refused(
            f"storage {storage.key} has {len(data)} bytes, but {storage.elements} elements of {kind.itemsize} bytes are announced"
        )
    storage.data = np.frombuffer(data, kind)


def _read_zip(file: BinaryIO, objects: frozenset[tuple[str, str]], strict: bool) -> Any:
    size = _left(file)
    with zipfile.ZipFile(file) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            parts = re.split(r"[/\\]", member.filename)
            if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in parts[0] or "\0" in member.filename:
                raise _Refused(f"its member {member.filename!r} leaves the archive")
            if member.filename in members:
                raise _Refused(f"its member {member.filename!r} is there twice")
            members[member.filename] = member
        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise _Refused("it is a zip archive, but not one of PyTorch's (a folder with data.pkl)")
        (root,) = roots

        read = 0

        def content(name: str) -> bytes:
            nonlocal read
            member = members.get(root + name)
            if member is None:
                raise _Refused(f"its member {root}{name} is missing")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _Refused(f"its member {member.filename} is compressed, which PyTorch never does")
            read += member.file_size
            if read > size:
                raise _Refused("its members are longer together than the file")
            return archive.read(member)

        script = f"{root}constants.pkl" in members and any(name.startswith(f"{root}code/") for name in members)
        if f"{root}byteorder" in members and content("byteorder").strip() != b"little":
            raise _Refused("its numbers are big-endian")
        storages: dict[str, _Storage] = {}
        value = _unpickle(io.BytesIO(content("data.pkl")), storages, script, objects, strict)
        for storage in storages.values():
            if not re.fullmatch(r"[0-9A-Za-z_]+", storage.key):
                raise _Refused(f"a storage is called {storage.key[:60]!r}")
            _fill_from_bytes(storage, content(f"data/{storage.key}"))
    return _finish(value)


def _read_legacy(file: BinaryIO, objects: frozenset[tuple[str, str]], strict: bool) -> Any:
    """The format before PyTorch 1.6: magic number, version, machine, value, names of storages (a pickle each), storages."""
    nothing: dict[str, _Storage] = {}
    if _unpickle(file, nothing) != _LEGACY_MAGIC:
        raise _Refused("it is a pickle, but none that PyTorch wrote")
    version, machine = _unpickle(file, nothing), _unpickle(file, nothing)
    if version != _LEGACY_VERSION:
        found = version if isinstance(version, int) else type(version).__name__
        raise _Refused(f"its format has version {found}; known is {_LEGACY_VERSION}")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Refused("its numbers are not little-endian")
    storages: dict[str, _Storage] = {}
    value, keys = _unpickle(file, storages, objects=objects, strict=strict), _unpickle(file, storages)
    by_key = {storage.key: storage for storage in storages.values()}
    named = isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys)
    if not named or sorted(map(str, keys)) != sorted(by_key) or len(by_key) != len(storages):
        raise _Refused("its list of storages does not fit its tensors")
    for key in keys:
        storage = by_key[str(key)]
        announced = int.from_bytes(file.read(8), "little")
        if announced != storage.elements:
            raise _Refused(f"storage {key} has {announced} elements, but {storage.elements} are announced")
        size = announced * np.dtype(_DTYPES[storage.kind]).itemsize
        if size > _left(file):
            raise _Refused(f"it ends within storage {key}")
        _fill_from_bytes(storage, file.read(size))
    return _finish(value)


def _left(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _no_file(path: Path) -> WeightsError:
    found = "a folder" if path.is_dir() else "nothing there"
    expected = "a file of PyTorch (.pth, .pt, .ckpt), safetensors or ONNX"
    return WeightsError(f"{path}: expected {expected}, found {found}. Give the path of the file.")


def read_torch(path: str | Path, objects: Iterable[str] = (), strict: bool = False) -> Any:
    """Reads what `torch.save` wrote, in the zip format or the one before PyTorch 1.6, or what `torch.jit.save` wrote.

    Args:
        path: The file. State dictionaries and dictionaries, lists and tuples of them are read, with numbers and strings among them;
            of a TorchScript archive its modules, each as a dictionary of its attributes, without the program.
        objects: Classes, with their modules (`sklearn.decomposition.pca.PCA`), whose objects are wanted as dictionaries of their
            attributes. NumPy's arrays and numbers are then read too, and nothing is `Foreign`: other names are refused.

        strict: Refuses names of other programs wherever they stand, also beside a `state_dict`.

    Returns:
        The saved value with a NumPy array (read-only) in place of each tensor; bfloat16 becomes float32, everything else keeps its
        type. Storages that are shared by several tensors are read once. Beside a `state_dict` objects of other programs are
        `Foreign`, or dictionaries of the values that they were given, without class (Lightning's hyper-parameters).

    Raises:
        WeightsError: there is no such file.
        DataError: the file is damaged or of another kind, or its pickle asks for anything but tensors (in a checkpoint: within its
            `state_dict`); nothing of it is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise _no_file(path)
    known = frozenset((module, name) for module, _, name in (full.rpartition(".") for full in objects))
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _read_zip(file, known, strict)
            if start[:1] != b"\x80":
                raise _Refused("it begins neither as a zip archive nor as a pickle")
            return _read_legacy(file, known, strict)
    except _Refused as error:
        raise DataError(f"{path} is not read: {error}. Expected weights as torch.save writes them.") from None
    except OSError:
        raise
    # A pickle can fail in as many ways as it has instructions.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{path} is damaged or no file of PyTorch ({reason[:120]}). Fetch it again.") from None


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of the safetensors format: name -> array; bfloat16 becomes float32.

    Raises:
        MissingExtraError: the package `safetensors` is not installed.
        WeightsError: there is no such file.
        DataError: the file is damaged, or has a type of numbers that NumPy does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise _no_file(path)
    try:
        import safetensors
    except ImportError:
        raise MissingExtraError("safetensors", "weights", "Reading .safetensors") from None
    try:
        found = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is damaged or no safetensors file ({error}). Fetch it again.") from None
    arrays = {}
    for name, tensor in found.items():
        if tensor["dtype"] not in _SAFE_DTYPES:
            raise DataError(f"{path}: {name} has numbers of type {tensor['dtype']}; known are {', '.join(_SAFE_DTYPES)}.")
        array = np.frombuffer(tensor["data"], _SAFE_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        arrays[name] = _widen(array) if tensor["dtype"] == "BF16" else array
    return arrays


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def read_onnx(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the initialisers of an ONNX file, which are a network's weights: name -> array; bfloat16 becomes float32.

    Raises:
        MissingExtraError: the package `onnx` is not installed.
        WeightsError: there is no such file.
        DataError: the file is damaged, or keeps its weights in other files.
    """
    path = Path(path)
    if not path.is_file():
        raise _no_file(path)
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError:
        raise MissingExtraError("onnx", "onnx", "Reading .onnx") from None
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise DataError(f"{path} is damaged or no ONNX file. Fetch it again.") from None
    arrays = {}
    for tensor in model.graph.initializer:
        # Such a file names paths, which could lead anywhere.
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise DataError(f"{path}: {tensor.name} is kept in another file. Save the network with all its weights in one file.")
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged: {tensor.name} cannot be read ({str(error)[:80]}). Fetch it again.") from None
        arrays[tensor.name] = array.astype(np.float32) if tensor.data_type == onnx.TensorProto.BFLOAT16 else array
    if not arrays:
        raise DataError(f"{path} is damaged or no ONNX file: it has no weights. Fetch it again.")
    return arrays


def read_weights(path: str | Path, strict: bool = False) -> Any:
    """Reads weights in any format of this module: ONNX is known by the ending `.onnx`, the others by the file's beginning.

    See `read_torch` (for `strict`, too), `read_safetensors` and `read_onnx`.
    """
    path = Path(path)
    if not path.is_file():
        raise _no_file(path)
    if path.suffix.lower() == ".onnx":
        return read_onnx(path)
    return read_safetensors(path) if _is_safetensors(path) else read_torch(path, strict=strict)


def flatten(value: Any) -> dict[str, np.ndarray]:
    """All arrays of a nested value under their path (`state_dict.backbone.conv1.weight`); numbers and strings are left out."""

    visited = 0

    def walk(item: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
        nonlocal visited
        visited += 1
        # The same list at many places is small in the file and large here.
        if visited > _ENTRIES:
            raise DataError(f"The file names more than {_ENTRIES} values. Expected a dictionary of weights.")
        if isinstance(item, np.ndarray):
            yield path, item
        elif isinstance(item, dict):
            for key, entry in item.items():
                yield from walk(entry, f"{path}.{key}" if path else str(key))
        elif isinstance(item, (list, tuple)):
            for number, entry in enumerate(item):
                yield from walk(entry, f"{path}.{number}" if path else str(number))

    return dict(walk(value, ""))
