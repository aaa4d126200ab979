"""Checkpoints of TF-slim: what is read, what is reported, and what is refused."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.checkpoints import CONVERTERS, load_slim, read_checkpoint
from tf_fashion.checkpoints.tf_slim import AVERAGE, keras_variables
from tf_fashion.cli import main
from tf_fashion.core.errors import WeightsError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.slim import mobilenet_v1, resnet_v2_50

LOGITS = "MobilenetV1/Logits/Conv2d_1c_1x1/weights"
FIRST = "MobilenetV1/Conv2d_0/weights"


def narrow() -> keras.Model:
    return mobilenet_v1(32, 32, 0.25)


def made_up(network: keras.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Values for every variable of a network and its classifier."""
    random = np.random.default_rng(seed)
    values = {n: random.uniform(0.5, 1.5, v.shape).astype("float32") for n, v in keras_variables(network).items()}
    prefix = "MobilenetV1/Logits/Conv2d_1c_1x1" if network.name == "mobilenet_v1" else "resnet_v2_50/logits"
    return {**values, f"{prefix}/weights": np.ones((1, 1, 4, 3), "float32"), f"{prefix}/biases": np.ones(3, "float32")}


def extras(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the training of the published network left beside the weights."""
    trained = {name: value for name, value in values.items() if "moving_" not in name}
    found = {name + AVERAGE: 0.5 * value for name, value in trained.items()}
    found |= {name + slot: value for name, value in trained.items() for slot in ("/RMSProp", "/RMSProp_1")}
    return {**found, "global_step": np.int64(12345)}


def write(prefix: Path, values: dict[str, np.ndarray]) -> Path:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(v) for v in values.values()],
    )
    return prefix


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    values = made_up(narrow())
    return write(tmp_path_factory.mktemp("ckpt") / "narrow.ckpt", {**values, **extras(values)}), values


@pytest.mark.parametrize("ema", [False, True])
def test_every_value_arrives_and_everything_else_is_reported(checkpoint: tuple, ema: bool) -> None:
    path, values = checkpoint
    network = narrow()
    report = load_slim(network, path, ema=ema)
    for name, variable in keras_variables(network).items():
        averaged = ema and "moving_" not in name
        np.testing.assert_array_equal(variable, values[name] * (0.5 if averaged else 1))
        assert (name + AVERAGE if averaged else name) in report.used
    assert not report.missing
    assert len(report.used) + len(report.unused) == len(read_checkpoint(path).get_variable_to_shape_map())
    assert report.unused["global_step"] == "step counter"
    assert report.unused[LOGITS] == "classifier"
    assert report.unused[f"{FIRST}/RMSProp_1"] == "state of an optimizer"
    assert report.unused[FIRST if ema else FIRST + AVERAGE].endswith("moving average")
    text = report.format(limit=2)
    assert f"{len(report.used)} variables used" in text and "state of an optimizer" in text and "more" in text
    assert "more" not in report.format(limit=None)


def test_all_spellings_of_the_path_and_the_older_format_are_read(checkpoint: tuple, tmp_path: Path) -> None:
    path, values = checkpoint
    for suffix in ("", ".index", ".meta", ".data-00000-of-00001"):
        assert read_checkpoint(f"{path}{suffix}").has_tensor(FIRST)
    old = tmp_path / "old.ckpt"
    tf.raw_ops.Save(filename=str(old), tensor_names=list(values), data=[tf.constant(v) for v in values.values()])
    network = narrow()
    assert not load_slim(network, old).missing
    np.testing.assert_array_equal(keras_variables(network)[FIRST], values[FIRST])


def test_what_only_val_has_may_be_missing(tmp_path: Path) -> None:
    network = resnet_v2_50(32, 32)
    own = {"resnet_v2_50/block2_postnorm", "resnet_v2_50/block3_postnorm"}
    values = {name: value for name, value in made_up(network).items() if name.rsplit("/", 1)[0] not in own}
    path = write(tmp_path / "resnet.ckpt", {**values, "mean_rgb": np.zeros(3, "float32")})
    report = load_slim(network, path)
    assert {name.rsplit("/", 1)[0] for name in report.missing} == own and len(report.missing) == 8
    assert set(report.unused) == {"mean_rgb", "resnet_v2_50/logits/weights", "resnet_v2_50/logits/biases"}
    for name, variable in keras_variables(network).items():
        start = np.full(variable.shape, name.endswith(("gamma", "variance")), "float32")
        np.testing.assert_array_equal(variable, values.get(name, start))
    with pytest.raises(WeightsError, match="no moving averages"):
        load_slim(network, path, ema=True)


def test_a_variable_without_average_is_reported(tmp_path: Path) -> None:
    values = made_up(narrow())
    both = {**values, **extras(values)}
    del both[FIRST + AVERAGE]
    report = load_slim(narrow(), write(tmp_path / "partly.ckpt", both), ema=True)
    assert report.missing == {FIRST + AVERAGE: "the variable itself was taken"}


def changed(values: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    values = dict(values)
    if kind == "shape":
        values[FIRST] = values[FIRST][..., :3]
    elif kind == "missing":
        del values["MobilenetV1/Conv2d_5_depthwise/depthwise_weights"]
    else:
        values[FIRST] = np.full_like(values[FIRST], np.nan)
    return values


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"Conv2d_0/weights has shape \(3, 3, 3, 3\) in the file, \(3, 3, 3, 8\) in the network"),
        ("missing", "Conv2d_5_depthwise/depthwise_weights is not in the file"),
        ("nan", "not finite"),
    ],
)
def test_what_does_not_fit_changes_nothing(checkpoint: tuple, tmp_path: Path, kind: str, message: str) -> None:
    path = write(tmp_path / "other.ckpt", changed(checkpoint[1], kind))
    network = narrow()
    before = [v.numpy() for v in network.variables]
    with pytest.raises(WeightsError, match=message):
        load_slim(network, path)
    for old, variable in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def copy(path: Path, folder: Path) -> Path:
    for file in path.parent.glob(f"{path.name}.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


def test_damaged_and_foreign_files_are_refused(checkpoint: tuple, tmp_path: Path) -> None:
    path = copy(checkpoint[0], tmp_path)
    data, index = Path(f"{path}.data-00000-of-00001"), Path(f"{path}.index")
    whole = data.read_bytes()
    network = narrow()

    def refused(source: Path, message: str) -> None:
        with pytest.raises(WeightsError, match=message):
            load_slim(network, source)

    data.write_bytes(whole[: len(whole) // 10])
    refused(path, "cannot be read")
    data.write_bytes(bytes([whole[0] ^ 255]) + whole[1:])
    refused(path, "cannot be read")
    data.unlink()
    refused(path, "data-00000-of-00001 is missing")
    data.write_bytes(whole)
    index.write_bytes(index.read_bytes()[:-50])
    refused(path, "damaged")
    index.write_bytes(b"")
    refused(path, "damaged")
    index.unlink()
    refused(data, "no narrow.ckpt.index beside it")
    refused(path, "nothing there")
    copy(checkpoint[0], tmp_path)
    refused(tmp_path, "a folder with the checkpoints narrow.ckpt")
    for name, content in (("a.tgz", b"\x1f\x8b" + bytes(200)), ("empty.ckpt", b""), ("notes.txt", b"weights? " * 30)):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "another kind")
    with pytest.raises(WeightsError, match="not a checkpoint of small: 2 of 2 variables do not fit"):
        layers = [keras.layers.Conv2D(2, 1, name="conv1_conv", use_bias=True)]
        load_slim(keras.Sequential([keras.Input((4, 4, 3)), *layers], name="small"), checkpoint[0])


def test_the_command_converts_what_encoders_take(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = mobilenet_v1(32, 32)
    values = made_up(network)
    path, out = write(tmp_path / "wide.ckpt", {**values, **extras(values)}), tmp_path / "new" / "wide.weights.h5"
    assert main(["weights", "convert", str(path), "--to", "slim_mobilenet_v1", "--out", str(out), "--ema"]) == 0
    told = capsys.readouterr().out
    assert "135 variables used" in told and "classifier (" in told and "--backbone slim_mobilenet_v1" in told
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    encoder = ImageEncoder("slim_mobilenet_v1", 32, ("low", "high"), weights=out)
    found = keras_variables(encoder.network)
    np.testing.assert_array_equal(found[FIRST], 0.5 * values[FIRST])
    moving = "MobilenetV1/Conv2d_13_pointwise/BatchNorm/moving_mean"
    np.testing.assert_array_equal(found[moving], values[moving])


def test_the_command_refuses_with_a_message_and_writes_nothing(
    checkpoint: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, out = str(checkpoint[0]), tmp_path / "there.weights.h5"

    def refused(code: int, message: str, source: str = source, to: str = "slim_mobilenet_v1", target: Path = out) -> None:
        assert main(["weights", "convert", source, "--to", to, "--out", str(target)]) == code
        assert message in capsys.readouterr().err

    out.write_bytes(b"older")
    refused(1, "of 135 variables do not fit")
    refused(1, "nothing there", source=str(tmp_path / "none.ckpt"))
    refused(2, "Known: clip, slim_mobilenet_v1, slim_resnet_v2_50", to="resnet")
    refused(2, "ends in .weights.h5", target=tmp_path / "x.h5")
    (tmp_path / "folder.weights.h5").mkdir()
    refused(2, "found a folder", target=tmp_path / "folder.weights.h5")
    assert out.read_bytes() == b"older"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.weights.h5", "there.weights.h5"]


def test_the_list_of_published_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["weights", "list"]) == 0
    told = capsys.readouterr().out
    for name in CONVERTERS:
        assert name in told
    assert "sha256: not verified" in told and "http://download.tensorflow.org/models/" in told
    (tmp_path / "odd.json").write_text('["a"]')
    assert main(["weights", "list", "--manifest", str(tmp_path / "odd.json")]) == 1
    assert main(["weights", "list", "--manifest", str(tmp_path / "none.json")]) == 1
    assert "no such file" in capsys.readouterr().err
