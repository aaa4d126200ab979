"""Checkpoints of whole trainings: weights and classifier arrive, whatever else they hold stays a name."""

from __future__ import annotations

import argparse
import collections
import datetime
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.test_torch_files import HOSTILE
from tests.checkpoints.test_torch_weights import made_up, tiny
from tests.checkpoints.torch_writer import Call, Global, Persistent, Raw, Storages, write_legacy, write_zip
from tf_fashion.checkpoints.imaterialist import load_imaterialist
from tf_fashion.checkpoints.torch_files import Foreign, flatten, read_onnx, read_torch, read_weights
from tf_fashion.checkpoints.torch_weights import fill, load_torchvision, read_torchvision_classifier, trunk_slots
from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, WeightsError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.encoders.torch_resnet import torch_resnet
from tf_fashion.inputs.images import scale_pixels

CHANNELS = 2048


class AttributeDict(dict):
    """As a training framework has for its hyper-parameters."""


def real(value: Any) -> Raw:
    """What Python itself writes for a value."""
    return Raw(pickle.dumps(value, protocol=2)[2:-1])


def classifier(labels: int = 5) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {"fc.weight": random.normal(size=(labels, CHANNELS)).astype("f4"), "fc.bias": random.normal(size=labels).astype("f4")}


def checkpoint(path: Path, arrays: dict[str, np.ndarray], legacy: bool = False, **others: Any) -> Path:
    storages = Storages(legacy)
    value = {
        "epoch": 3,
        "pytorch-lightning_version": "1.0.6",
        "callbacks": {Global("pytorch_lightning.callbacks", "ModelCheckpoint"): {"best": storages.tensor(np.ones(1, np.float32))}},
        "optimizer_states": [{"state": {0: {"exp_avg": storages.tensor(np.zeros((3, 2), np.float32))}}, "param_groups": []}],
        "state_dict": Call(Global("collections", "OrderedDict"), ([],)) if not arrays else storages.tensors(arrays),
        "hparams_name": "kwargs",
        **others,
    }
    return write_legacy(path, value, storages) if legacy else write_zip(path, value, storages)


HYPER_PARAMETERS = AttributeDict(
    n_attributes=228,
    data_root=PurePosixPath("/data"),
    options=argparse.Namespace(batch_size=16, precision=np.float32(32)),
    started=datetime.date(2020, 11, 17),
    seen=collections.Counter("abca"),
)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_lightning(tmp_path: Path, legacy: bool) -> None:
    network = tiny()
    values = {f"predictor.{name}": value for name, value in {**made_up(trunk_slots(network)), **classifier()}.items()}
    path = checkpoint(tmp_path / "epoch=03.ckpt", values, legacy, hyper_parameters=real(HYPER_PARAMETERS))
    found = read_torch(path)
    assert found["epoch"] == 3
    options = found["hyper_parameters"]
    assert options["n_attributes"] == 228 and options["options"]["batch_size"] == 16
    assert options["data_root"] == Foreign("pathlib.PurePosixPath") and options["started"] == Foreign("datetime.date")
    assert list(found["callbacks"]) == ["pytorch_lightning.callbacks.ModelCheckpoint"]

    report = load_torchvision(network, path)
    np.testing.assert_array_equal(network.get_layer("bn1").gamma, values["predictor.bn1.weight"])
    assert report.unused["state_dict.predictor.fc.bias"] == "classifier"
    arrays, kernel, bias = read_torchvision_classifier(path)
    np.testing.assert_array_equal(kernel, values["predictor.fc.weight"].T)
    np.testing.assert_array_equal(bias, values["predictor.fc.bias"])
    other = tiny()
    report = fill(trunk_slots(other), arrays, path, "tiny")
    assert not report.unused and not report.missing
    for ours, theirs in zip(other.variables, network.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_stands_beside_the_weights_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"conv1.weight": np.ones((2, 2), np.float32)}
    beside = checkpoint(tmp_path / "beside.ckpt", arrays, legacy, hyper_parameters={"a": HOSTILE[name]})
    found = read_torch(beside)
    assert found["hyper_parameters"]["a"] == Foreign(name)
    assert sorted(flatten(found["state_dict"])) == ["conv1.weight"]
    within = checkpoint(tmp_path / "within.ckpt", {}, legacy, state_dict={"a": HOSTILE[name]})
    with pytest.raises(DataError, match=f"it asks for {name}, .*Nothing of it was executed"):
        read_torch(within)
    assert {file.name for file in tmp_path.iterdir()} == {"beside.ckpt", "within.ckpt"}


def test_foreign_objects_take_everything_and_do_nothing(tmp_path: Path) -> None:
    thing = Global("a.b", "Thing")
    beside = {
        "called twice": Call(Call(thing, (1,)), (2,), {"x": 1}),
        "slots": Call(thing, (), ({"x": 1}, {"y": 2}), new=True),
        "list": Raw(b"ca.b\nThing\n)\x81(K\x01K\x02eK\x03a"),
        "set": Raw(b"\x80\x04ca.b\nThing\n)\x81(K\x01\x90"),
        "named": Raw(b"ca.b\nThing\n)}X\x01\x00\x00\x00aK\x01s\x92"),
        "module": Persistent(("module", thing, "net.py", "import os")),
        "keys": {Call(thing, ()): 1, thing: 2},
    }
    found = read_torch(checkpoint(tmp_path / "a.ckpt", {"w": np.ones(1, np.float32)}, **beside))
    foreign = Foreign("a.b.Thing")
    assert found["called twice"] == {"x": 1} and found["slots"] == {"x": 1, "y": 2}
    assert all(found[name] == foreign for name in ("list", "set", "named", "module"))
    assert list(found["keys"]) == ["a.b.Thing"]


def test_foreign_objects_do_not_come_in_by_a_back_door(tmp_path: Path) -> None:
    # The same dictionary as hyper-parameters and within the weights.
    shared = Raw(b"}q\x07(X\x01\x00\x00\x00ica.b\nThing\nu")
    with pytest.raises(DataError, match=r"asks for a\.b\.Thing"):
        read_torch(checkpoint(tmp_path / "a.ckpt", {}, callbacks=shared, state_dict={"w": Raw(b"h\x07")}))
    for state in (Call(Global("a.b", "Dict"), (), {"w": 1}, new=True), {Global("a.b", "Key"): 1}, [Global("a.b", "Item")]):
        with pytest.raises(DataError, match=r"asks for (a\.b|pytorch)"):
            read_torch(checkpoint(tmp_path / "a.ckpt", {}, state_dict=state))
    names = Raw(b"".join(b"ca\nx%d\n0" % n for n in range(10_002)) + b"N")
    with pytest.raises(DataError, match="more than 10000 foreign"):
        read_torch(checkpoint(tmp_path / "a.ckpt", {"w": np.ones(1, np.float32)}, callbacks=names))
    for code in (b"ca.b\nThing\n}b", b"ca.b\nThing\n(K\x01K\x02u"):
        with pytest.raises(DataError, match="damaged"):
            read_torch(checkpoint(tmp_path / "a.ckpt", {"w": np.ones(1, np.float32)}, callbacks=Raw(code)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, r"without state_dict\.predictor\.fc\.bias"),
        ({"fc.weight": None, "fc.bias": None}, r"without .*\.fc\.weight and .*\.fc\.bias"),
        ({"fc.bias": np.ones(4, np.float32)}, r"a weight of shape \(5, 2048\) and a bias of shape \(4,\)"),
        ({"fc.weight": np.ones((5, 512), np.float32)}, "a classifier .*predictor.fc of 2048 channels"),
        ({"fc.weight": np.full((5, CHANNELS), np.nan, np.float32)}, "not finite"),
        ({"conv1.weight": None}, "expected the weights of a torchvision ResNet"),
    ],
)
def test_classifiers_that_do_not_fit(tmp_path: Path, change: dict, message: str) -> None:
    values = {**made_up(trunk_slots(tiny())), **classifier(), **change}
    path = checkpoint(tmp_path / "a.ckpt", {f"predictor.{name}": value for name, value in values.items() if value is not None})
    with pytest.raises(WeightsError, match=message):
        read_torchvision_classifier(path)


def onnx_file(path: Path, arrays: dict[str, np.ndarray]) -> Any:
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = onnx.helper.make_graph([], "net", [], [], tensors)
    model = onnx.helper.make_model(graph)
    path.write_bytes(model.SerializeToString())
    return model


def test_weights_of_an_onnx_file(tmp_path: Path) -> None:
    network = tiny()
    values = {**made_up(trunk_slots(network)), **classifier()}
    path = tmp_path / "net.onnx"
    model = onnx_file(path, {f"predictor.{name}": value for name, value in values.items()})
    report = load_torchvision(network, path)
    assert not report.missing
    np.testing.assert_array_equal(network.get_layer("layer4_0_bn3").moving_variance, values["layer4.0.bn3.running_var"])
    np.testing.assert_array_equal(read_torchvision_classifier(path)[2], values["fc.bias"])
    for content in (path.read_bytes()[:-5], b"no network", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged or no ONNX"):
            read_weights(path)
    model.graph.initializer[0].data_location = 1
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../../secrets"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="kept in another file"):
        read_onnx(path)
    with pytest.raises(WeightsError, match="nothing there"):
        read_onnx(tmp_path / "none.onnx")


def test_numbers_of_an_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx_file(tmp_path / "a.onnx", {"half": np.array([1.5], np.float16), "whole": np.array(3)})
    bits = onnx.helper.make_tensor("bfloat16", onnx.TensorProto.BFLOAT16, (2,), [1.5, -2.0])
    wrong = onnx.helper.make_tensor("wrong", onnx.TensorProto.FLOAT, (1,), [1.0])
    model.graph.initializer.append(bits)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    found = read_onnx(tmp_path / "a.onnx")
    assert found["half"].dtype == np.float16 and found["whole"] == 3 and found["bfloat16"].dtype == np.float32
    np.testing.assert_array_equal(found["bfloat16"], [1.5, -2.0])
    wrong.dims[0] = 7
    model.graph.initializer.append(wrong)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="wrong cannot be read"):
        read_onnx(tmp_path / "a.onnx")


def test_the_published_predictor_becomes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = LabelMap.of_tasks({"color": ["red", "blue", "green"], "style": ["wide", "long"]})
    network = torch_resnet("resnet18", 64, 64)
    random = np.random.default_rng(3)
    values = {f"predictor.{name}": value for name, value in made_up(trunk_slots(network)).items()}
    for name, value in values.items():
        spread = (2.0 / np.prod(value.shape[1:])) ** 0.5 if value.ndim == 4 else 0.1
        drawn = spread * random.normal(size=value.shape)
        values[name] = (drawn if value.ndim == 4 or name.endswith(("bias", "mean")) else 1.0 + drawn).astype("f4")
    values |= {"predictor.fc.weight": random.normal(size=(5, 512)).astype("f4"), "predictor.fc.bias": np.arange(5, dtype="f4")}
    path = checkpoint(tmp_path / "epoch=03.ckpt", values)
    model, report = load_imaterialist(path, labels, backbone="torch_resnet18", image_size=64)
    assert not report.missing and model.exclusive == () and model.image_encoder.scaling == "imaterialist"
    np.testing.assert_array_equal(model.head.kernel, values["predictor.fc.weight"].T)
    load_torchvision(network, path)
    images = random.uniform(0, 255, (2, 64, 64, 3)).astype("f4")
    maps = network(scale_pixels(images, "imaterialist"), training=False)
    top = maps[-1] if isinstance(maps, (list, tuple)) else maps["stage5"] if isinstance(maps, dict) else maps
    expected = np.asarray(top).mean((1, 2)) @ values["predictor.fc.weight"].T + values["predictor.fc.bias"]
    np.testing.assert_allclose(model({"image": images}), expected, rtol=1e-3, atol=1e-3)

    with pytest.raises(WeightsError, match="expected a classifier of 228 labels, .* found 5"):
        load_imaterialist(path, backbone="torch_resnet18")
    assert main(["weights", "convert", str(path), "--to", "imaterialist", "--out", str(tmp_path / "predictor.h5")]) == 2
    assert "ends in .keras" in capsys.readouterr().err
