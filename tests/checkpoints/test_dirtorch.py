"""Checkpoints of dirtorch and UDMA: what they hold arrives, and nothing else is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.checkpoints.test_torch_files import HOSTILE
from tests.checkpoints.torch_writer import Call, Global, Raw, Storages, write_legacy, write_zip
from tf_fashion.checkpoints.dirtorch import (
    convert_dirtorch,
    dirtorch_network,
    dirtorch_slots,
    load_dirtorch,
    load_network,
    read_dirtorch,
)
from tf_fashion.checkpoints.torch_files import read_torch
from tf_fashion.core.errors import DataError, UsageError, WeightsError
from tf_fashion.encoders.torch_resnet import ResNetKind, torch_resnet
from tf_fashion.models import load_adapter

TINY = ResNetKind((1, 1, 2, 1), planes=(4, 4, 8, 8))
PCA = Global("sklearn.decomposition.pca", "PCA")


def real(value: Any) -> Raw:
    """What Python itself writes for a value, in the protocol that PyTorch uses."""
    return Raw(pickle.dumps(value, protocol=2)[2:-1])


def state_of(kind: ResNetKind | str = TINY, dim: int | None = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights in the file's layout and names."""
    random = np.random.default_rng(seed)
    network = dirtorch_network(kind, dim)
    arrays = {}
    for slot in dirtorch_slots(network, network.get_layer("adpool"), network.get_layer("fc") if dim else None):
        shape = tuple(slot.variable.shape)
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        value = random.normal(size=shape or (1,)) * scale
        positive = slot.names[0].endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "adpool.p", "downsample.1.weight"))
        arrays[slot.names[0]] = (np.abs(value) + 1 if positive else value).astype(np.float32)
    arrays["bn1.num_batches_tracked"] = np.array(3)
    return arrays


def analysis(width: int = 6, count: int = 4, **changes: Any) -> Call:
    random = np.random.default_rng(1)
    values = {
        "mean_": random.normal(size=width).astype(np.float32),
        "components_": np.asfortranarray(random.normal(size=(count, width))),
        "explained_variance_": random.uniform(1, 2, count).astype(">f8"),
        "noise_variance_": np.float64(0.25),
        "whiten": True,
        **changes,
    }
    return Call(PCA, (), {key: real(value) for key, value in values.items()}, new=True)


def write(path: Path, arrays: dict[str, np.ndarray], legacy: bool = True, prefix: str = "module.", **others: Any) -> Path:
    storages = Storages(legacy)
    state = storages.tensors({prefix + name: array for name, array in arrays.items()})
    value = {"state_dict": state, "current_iter": 296, **others}
    return write_legacy(path, value, storages) if legacy else write_zip(path, value, storages)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_checkpoint(tmp_path: Path, legacy: bool) -> None:
    arrays = state_of()
    options = {"arch": "resnet101_rmac", "pooling": "gem", "out_dim": 6, "norm_features": True}
    pca = {"Landmarks_clean": analysis()}
    path = write(tmp_path / "a.pt", arrays, legacy, pca=pca, model_options=options, preprocess={"mean": [0.485, 0.456, 0.406]})
    found = read_dirtorch(path)
    assert list(found.state) == list(arrays) and found.options == options and found.counters == {"current_iter": 296}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.state[name], array)
    entry = found.pca["Landmarks_clean"]
    random = np.random.default_rng(1)
    np.testing.assert_array_equal(entry.mean, random.normal(size=6).astype(np.float32))
    np.testing.assert_array_equal(entry.components, random.normal(size=(4, 6)))
    assert entry.whiten and entry.layer(dim=3)(np.ones((2, 6), np.float32)).shape == (2, 3)
    assert found.kind == TINY
    network, report = load_network(found)
    assert report.unused == {"bn1.num_batches_tracked": "counter of batches"}
    x = np.random.default_rng(2).normal(size=(1, 50, 40, 3)).astype(np.float32)
    out = network(x)
    pooled = out["pooled"].numpy().astype(np.float64)
    wanted = pooled / np.linalg.norm(pooled) @ arrays["fc.weight"].T + arrays["fc.bias"]
    np.testing.assert_allclose(out["projected"], wanted, atol=1e-5)
    assert out["embedding"].shape == (1, 6)
    assert not np.allclose(load_network(found, norm_features=False)[0](x)["projected"], wanted, atol=1e-3)
    with pytest.raises(WeightsError, match=r"\(1, 1, 2, 1\) units and widths \(4, 4, 8, 8\) is none of resnet18"):
        load_dirtorch(path)


def test_a_network_of_a_known_size_becomes_a_model(tmp_path: Path) -> None:
    arrays = state_of("resnet18", 5)
    path = write(tmp_path / "DeepFashion_59_ckpt.t7", arrays, optimizer={"state": {}, "param_groups": [{"lr": 1e-4}]}, epoch=59)
    model, report = load_dirtorch(path, image_size=32)
    assert len(report.used) == len(arrays) - 1 and model.image_encoder.backbone_name == "torch_resnet18"
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    scaled = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    network, _ = load_network(read_dirtorch(path))
    np.testing.assert_allclose(model({"image": images}), network(scaled.astype(np.float32))["embedding"], atol=1e-5)
    convert_dirtorch(path, tmp_path / "model.keras", image_size=32)
    np.testing.assert_allclose(load_adapter(tmp_path / "model.keras")({"image": images}), model({"image": images}), atol=1e-6)
    with pytest.raises(UsageError, match="ends in .keras"):
        convert_dirtorch(path, tmp_path / "model.h5")


def test_the_linear_layer_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {"fc.weight": random.normal(size=(4, 7)).astype("f4"), "fc.bias": random.normal(size=4).astype("f4")}
    model, _ = load_dirtorch(write(tmp_path / "a.t7", arrays, prefix="", epoch=44999))
    x = random.normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_allclose(model.project(x), x @ arrays["fc.weight"].T + arrays["fc.bias"], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("numpy")])
@pytest.mark.parametrize("where", ["state", "pca", "beside"])
def test_other_names_are_refused_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
    evil = HOSTILE[name]
    storages = Storages(True)
    value: dict[str, Any] = {"state_dict": storages.tensors(arrays)}
    if where == "state":
        value["state_dict"]["x"] = evil
    elif where == "pca":
        value["pca"] = {"x": evil}
    else:
        value["optimizer"] = evil
    with pytest.raises(DataError, match=f"it asks for {name}.*Nothing of it was executed"):
        read_dirtorch(write_legacy(tmp_path / "a.pt", value, storages))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


BROKEN_ARRAYS = {
    "other class": Call(Global("numpy._core.multiarray", "_reconstruct"), (Global("numpy", "dtype"), (0,), b"b")),
    "no state": Call(Global("numpy._core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b")),
    "objects": real(np.array([None, 1], dtype=object)),
    "records": real(np.zeros(2, dtype=[("a", "f4"), ("b", "f4")])),
    "dates": real(np.array(["2020-01-01"], dtype="M8[D]")),
    "too short": Call(
        Global("numpy._core.multiarray", "_reconstruct"),
        (Global("numpy", "ndarray"), (0,), b"b"),
        (1, (1000, 1000), Call(Global("numpy", "dtype"), ("f4", False, True)), False, b"1234"),
    ),
    "another encoding": Call(Global("_codecs", "encode"), ("abc", "utf-16")),
}


@pytest.mark.parametrize("kind", BROKEN_ARRAYS)
def test_broken_arrays(tmp_path: Path, kind: str) -> None:
    arrays = {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
    path = write(tmp_path / "a.pt", arrays, pca={"x": Call(PCA, (), {"mean_": BROKEN_ARRAYS[kind]}, new=True)})
    with pytest.raises(DataError, match=r"a\.pt"):
        read_dirtorch(path)


def test_broken_checkpoints(tmp_path: Path) -> None:
    good = {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}

    def refused(error: type[Exception], match: str, arrays: dict[str, np.ndarray], **others: Any) -> None:
        with pytest.raises(error, match=match):
            load_dirtorch(write(tmp_path / "x.pt", arrays, **others))

    refused(WeightsError, "fc.weight has values that are not finite", {**good, "fc.weight": np.full((2, 3), np.nan, np.float32)})
    refused(WeightsError, "found none and", {"fc.bias": good["fc.bias"]})
    refused(WeightsError, "expected a network or a linear layer", {**good, "head.weight": np.zeros(3, np.float32)})
    refused(DataError, "fc.bias twice", {**good, "module.fc.bias": good["fc.bias"]}, prefix="")
    refused(DataError, "model_options should be a dictionary, found a list", good, model_options=[1])
    refused(DataError, "components_ missing", good, pca={"a": Call(PCA, (), {"whiten": True}, new=True)})
    refused(DataError, r"explained_variance_ \(3,\)", good, pca={"a": analysis(explained_variance_=np.ones(3))})
    whole = state_of()
    refused(WeightsError, "pooling 'rmac' is not known", whole, model_options={"pooling": "rmac"})
    refused(WeightsError, "center_bias", whole, model_options={"center_bias": 1.0})
    refused(WeightsError, "without_fc", whole, model_options={"without_fc": True})
    refused(WeightsError, "scaled by mean", whole, preprocess={"mean": [0.5, 0.5, 0.5]})
    lacking = {name: array for name, array in whole.items() if name != "layer3.0.conv2.weight"}
    refused(WeightsError, "expected a ResNet", lacking)
    with pytest.raises(WeightsError, match="nothing there"):
        read_dirtorch(tmp_path / "none.pt")


def test_without_named_classes_nothing_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", {"fc.bias": np.zeros(2, np.float32)}, pca={"x": analysis()})
    found = read_torch(path)
    assert "state_dict" in found and not isinstance(found["pca"]["x"], np.ndarray)


def test_widths_of_other_networks() -> None:
    network = torch_resnet(TINY, None, None)
    assert network.output.shape[-1] == 32
    assert network(tf.zeros((1, 33, 40, 3))).shape == (1, 2, 2, 32)
