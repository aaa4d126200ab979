"""Files of PyTorch: every kind of tensor arrives, and nothing else gets in or is executed."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.torch_writer import (
    KINDS,
    REBUILD,
    Call,
    Global,
    Persistent,
    Raw,
    Storages,
    as_tensor,
    write_legacy,
    write_zip,
)
from tf_fashion.checkpoints.torch_files import flatten, read_safetensors, read_torch, read_weights
from tf_fashion.core.errors import DataError, WeightsError


def every_kind() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {kind: (random.normal(size=(2, 3)) * 9).astype(np.dtype(code)) for code, kind in KINDS.items()}
    return {**arrays, "scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32)}


def write(path: Path, legacy: bool, value: Any, storages: Storages) -> Path:
    return write_legacy(path, value, storages) if legacy else write_zip(path, value, storages)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_type_and_every_plain_value(tmp_path: Path, legacy: bool) -> None:
    storages = Storages(legacy)
    arrays = every_kind()
    plain = {"epoch": 3, "score": 0.25, "texts": ["ä", None, True, (1, 2)], 7: -(2**40)}
    state = Call(Global("collections", "OrderedDict"), (), None)
    path = write(tmp_path / "a.pth", legacy, {"state": storages.tensors(arrays), **plain, "hooks": state}, storages)
    found = read_torch(path)
    assert {key: found[key] for key in plain} == plain and found["hooks"] == {}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found["state"][name], array)
        assert found["state"][name].dtype == array.dtype and found["state"][name].shape == array.shape
    assert sorted(flatten(found)) == sorted(f"state.{name}" for name in arrays)
    assert read_weights(path)["epoch"] == 3


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_one_storage_and_bfloat16(tmp_path: Path, legacy: bool) -> None:
    storages = Storages(legacy)
    whole = np.arange(24, dtype=np.float32)
    shared = storages.add(whole)
    wide = np.array([1.5, -2.0, 0.15625], np.float32)
    value = {
        "transposed": as_tensor(shared, 0, (6, 4), (1, 6)),
        "part": as_tensor(shared, 7, (2, 2), (6, 2)),
        "repeated": as_tensor(shared, 5, (3, 2), (0, 1)),
        "bfloat16": storages.tensor((wide.view(np.uint32) >> 16).astype(np.uint16), kind="BFloat16"),
        "parameter": Call(Global("torch._utils", "_rebuild_parameter"), (storages.tensor(wide), True, {})),
    }
    if legacy:
        view = storages.refer(next(iter(storages.found)), "Float", ("other", 10, 8))
        value["view"] = as_tensor(view, 2, (2,), (1,))
    found = read_torch(write(tmp_path / "a.pt", legacy, value, storages))
    matrix = whole.reshape(4, 6)
    np.testing.assert_array_equal(found["transposed"], matrix.T)
    np.testing.assert_array_equal(found["part"], [[7, 9], [13, 15]])
    np.testing.assert_array_equal(found["repeated"], [[5, 6]] * 3)
    np.testing.assert_array_equal(found["bfloat16"], wide)
    assert found["bfloat16"].dtype == np.float32
    np.testing.assert_array_equal(found["parameter"], wide)
    if legacy:
        np.testing.assert_array_equal(found["view"], [12, 13])


def test_parameters_of_the_first_releases(tmp_path: Path) -> None:
    storages = Storages(legacy=True)
    old, parameter = Global("torch._utils", "_rebuild_tensor"), Global("torch.nn.parameter", "Parameter")
    arrays = [np.full(3, n, np.float32) for n in range(3)]
    first, second, third = (storages.tensor(array, old) for array in arrays)
    value = {
        "a": Call(parameter, (first,), (True, False, {})),
        "b": Call(parameter, (), (second, None, {}, True, False), new=True),
        "c": third,
    }
    found = read_torch(write_legacy(tmp_path / "old.pth", value, storages))
    for name, array in zip("abc", arrays, strict=True):
        np.testing.assert_array_equal(found[name], array)


HOSTILE = {
    "os.system": Call(Global("os", "system"), ("touch EXECUTED",)),
    "posix.system": Call(Global("posix", "system"), ("touch EXECUTED",)),
    "builtins.eval": Call(Global("builtins", "eval"), ("open('EXECUTED', 'w')",)),
    "builtins.getattr": Call(Global("builtins", "getattr"), (REBUILD, "__globals__")),
    "collections.OrderedDict.fromkeys": Call(Raw(b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93"), (["a"],)),
    "torch.load": Call(Global("torch", "load"), ("EXECUTED",)),
    "torch.storage._load_from_bytes": Call(Global("torch.storage", "_load_from_bytes"), (b"",)),
    "numpy.core.multiarray._reconstruct": Global("numpy.core.multiarray", "_reconstruct"),
    "torch._utils._rebuild_tensor_v3": Global("torch._utils", "_rebuild_tensor_v3"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_other_names_are_refused_by_name_and_nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    value = {"fine": 1, "evil": HOSTILE[name]}
    path = write(tmp_path / "evil.pth", legacy, value, Storages(legacy))
    with pytest.raises(DataError, match=f"it asks for {name}, .*Nothing of it was executed") as told:
        read_torch(path)
    assert str(path) in str(told.value)
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pth"]


def script(path: Path, value: Any, storages: Storages | None = None) -> Path:
    return write_zip(path, value, storages, **{"constants.pkl": b"\x80\x02).", "code____torch____net.py": b"import os"})


def module(name: str, **attributes: Any) -> Call:
    return Call(Global(f"__torch__.{name}", "Net"), (), attributes, new=True)


def test_modules_of_a_torchscript_archive_are_dictionaries(tmp_path: Path) -> None:
    storages = Storages()
    weight = np.arange(6, dtype=np.float16).reshape(2, 3)
    inner = module("net.___torch_mangle_0", weight=storages.tensor(weight), training=False, hook=None)
    value = module("net", **{"0": inner, "scale": storages.tensor(np.float32(2.5)), "training": True})
    found = read_torch(script(tmp_path / "net.pt", value, storages))
    assert found["training"] is True and found["0"]["hook"] is None
    np.testing.assert_array_equal(flatten(found)["0.weight"], weight)
    assert sorted(flatten(found)) == ["0.weight", "scale"] and flatten(found)["scale"] == 2.5


@pytest.mark.parametrize("name", HOSTILE)
def test_a_torchscript_archive_may_name_its_own_modules_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = script(tmp_path / "evil.pt", module("net", fine=1, evil=HOSTILE[name]))
    with pytest.raises(DataError, match=f"it asks for {name}, .*Nothing of it was executed"):
        read_torch(path)
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pt"]


def test_modules_that_lie_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="asks for __torch__.net.Net"):
        read_torch(write_zip(tmp_path / "a.pt", module("net")))
    for message, value in (
        ("asks for __torch__evil.Net", Call(Global("__torch__evil", "Net"), ())),
        ("has no attributes", Call(Global("__torch__.net", "Net"), (), "state", new=True)),
        ("damaged", Call(Global("__torch__.os", "system"), ("touch EXECUTED",))),
        ("damaged", Raw(b"c__torch__.net\nNet\n}b")),
        ("contain themselves", Raw(b"c__torch__.net\nNet\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub")),
        ("neither a tensor nor plain", Global("__torch__.net", "Net")),
    ):
        with pytest.raises(DataError, match=message):
            read_torch(script(tmp_path / "a.pt", value))


def test_an_ordinary_hostile_pickle_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "EXECUTED",)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(DataError, match="asks for"):
        read_torch(tmp_path / "evil.pkl")
    assert not (tmp_path / "EXECUTED").exists()


def numbers(storages: Storages) -> Persistent:
    return storages.add(np.arange(6, dtype=np.float32))


BAD_TENSORS = {
    "beyond its storage": lambda s: as_tensor(numbers(s), 0, (7,), (1,)),
    "beyond its storage of": lambda s: as_tensor(numbers(s), 5, (2,), (1,)),
    "reaches beyond": lambda s: as_tensor(numbers(s), 0, (2, 2), (5, 1)),
    "sensible numbers": lambda s: as_tensor(numbers(s), -1, (2,), (1,)),
    "size is not": lambda s: as_tensor(numbers(s), 0, (2**60,), (0,)),
    "stride is not": lambda s: as_tensor(numbers(s), 0, (2,), (-1,)),
    "repeats": lambda s: as_tensor(numbers(s), 0, (2**40, 2), (0, 1)),
    "1 sizes and 2 strides": lambda s: as_tensor(numbers(s), 0, (2,), (1, 1)),
    "no storage": lambda s: as_tensor("x", 0, (2,), (1,)),
    "no type or no name": lambda s: as_tensor(Persistent(("storage", "Float", "0", "cpu", 6)), 0, (2,), (1,)),
    "is no storage": lambda s: Persistent(("module", "a")),
    "no parameter": lambda s: Call(REBUILD, (numbers(s), 0, (2,), (1,), False, {}), {"size": (2**40,)}),
    "changes something": lambda s: Raw(b"ctorch\nFloatStorage\n}b"),
    "type StorageKind": lambda s: Global("torch", "FloatStorage"),
    "neither a tensor nor plain": lambda s: numbers(s),
    "key of type tuple": lambda s: {(1, 2): 3},
    "contain themselves": lambda s: Raw(b"]q\x00h\x00a"),
    "nested more than": lambda s: Raw(b"]" * 200 + b"a" * 199),
    "numbers 4294967295 objects": lambda s: Raw(b"]r\xff\xff\xff\xff"),
    "instruction EXT1": lambda s: Raw(b"\x82\x01"),
    "damaged": lambda s: Raw(b"R"),
}


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_tensors_that_lie_are_refused(tmp_path: Path, message: str) -> None:
    for legacy in (False, True):
        storages = Storages(legacy)
        value = {"a": BAD_TENSORS[message](storages)}
        with pytest.raises(DataError, match=message):
            read_torch(write(tmp_path / "a.pth", legacy, value, storages))


def test_shared_lists_do_not_fill_the_memory(tmp_path: Path) -> None:
    # Forty lists, each with the one before it twice: a million million entries, forty in the file.
    code = b"]q\x00" + b"".join(b"0(h%ch%clq%c" % (n, n, n + 1) for n in range(40))
    found = read_torch(write_zip(tmp_path / "a.pth", {"a": Raw(code)}))
    assert len(found["a"]) == 2
    with pytest.raises(DataError, match="names more than"):
        flatten(found)
    with pytest.raises(DataError, match="size is not"):
        read_torch(write_zip(tmp_path / "a.pth", {"a": as_tensor(numbers(Storages()), 0, Raw(code), (1,))}))


def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    storages = Storages()
    value = {"a": storages.tensor(np.arange(4, dtype=np.float32))}

    def refused(message: str, path: Path) -> None:
        with pytest.raises(DataError, match=message):
            read_torch(path)

    def changed(**members: bytes) -> Path:
        return write_zip(tmp_path / "a.pth", value, storages, **members)

    refused("has 3 bytes, but 4 elements", changed(data__0=b"abc"))
    refused("big-endian", changed(byteorder=b"big"))
    refused("leaves the archive", changed(**{"..__..__etc__passwd": b""}))
    refused("leaves the archive", write_zip(tmp_path / "a.pth", value, storages, root="/absolute"))
    good = write_zip(tmp_path / "good.pth", value, storages)
    whole = good.read_bytes()
    with zipfile.ZipFile(good, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", bytes(16))
    refused("is there twice", good)
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000))
    refused("is compressed", good)
    with zipfile.ZipFile(good, "w") as archive:
        archive.writestr("archive/weights.txt", "no")
    refused("not one of PyTorch's", good)
    for end in (len(whole) // 2, 30, 4):
        good.write_bytes(whole[:end])
        refused("damaged", good)
    # A changed byte within the numbers: the archive's checksum finds it.
    at = whole.index(np.arange(4, dtype=np.float32).tobytes())
    good.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    refused("damaged", good)
    lonely = Storages()
    lonely.elements["0"] = 2
    refused("data/0 is missing", write_zip(tmp_path / "a.pth", {"a": as_tensor(lonely.refer("0", "Float"), 0, (2,), (1,))}, lonely))


def test_legacy_files_that_lie_are_refused(tmp_path: Path) -> None:
    storages = Storages(legacy=True)
    value = {"a": storages.tensor(np.arange(4, dtype=np.float32))}

    def refused(message: str, path: Path) -> None:
        with pytest.raises(DataError, match=message):
            read_torch(path)

    good = write_legacy(tmp_path / "a.pth", value, storages)
    whole = good.read_bytes()
    good.write_bytes(whole[:-1])
    refused("ends within storage", good)
    good.write_bytes(whole[:-24] + struct.pack("<q", 2**50) + whole[-16:])
    refused("1125899906842624 elements, but 4", good)
    for end in (len(whole) // 2, 20, 2):
        good.write_bytes(whole[:end])
        refused("damaged", good)
    refused("little-endian", write_legacy(tmp_path / "a.pth", value, storages, machine={"little_endian": False}))
    refused("version 7", write_legacy(tmp_path / "a.pth", value, storages, version=7))
    good.write_bytes(pickle.dumps({"a": 1}))
    refused("none that PyTorch wrote", good)
    del storages.found[next(iter(storages.found))]
    refused("list of storages", write_legacy(tmp_path / "a.pth", value, storages))


def test_what_is_no_such_file(tmp_path: Path) -> None:
    for reader in (read_torch, read_weights, read_safetensors):
        with pytest.raises(WeightsError, match="nothing there"):
            reader(tmp_path / "none.pth")
        with pytest.raises(WeightsError, match="a folder"):
            reader(tmp_path)
    (tmp_path / "a.pth").write_text("weights?")
    with pytest.raises(DataError, match="neither as a zip archive nor as a pickle"):
        read_weights(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(DataError, match="neither as"):
        read_weights(tmp_path / "a.pth")


def test_safetensors(tmp_path: Path) -> None:
    numpy_api = pytest.importorskip("safetensors.numpy")
    arrays = every_kind()
    numpy_api.save_file(arrays, tmp_path / "a.safetensors")
    (tmp_path / "b.bin").write_bytes((tmp_path / "a.safetensors").read_bytes())
    for path in (tmp_path / "a.safetensors", tmp_path / "b.bin"):
        found = read_weights(path)
        assert sorted(found) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
    # One bfloat16 number, written by hand.
    header = b'{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\xc0\x3f")
    np.testing.assert_array_equal(read_weights(tmp_path / "c.safetensors")["x"], [1.5])
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        read_weights(tmp_path / "a.safetensors")
