"""State dictionaries of PyTorch into our networks: every value arrives, everything else is reported, what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.checkpoints.torch_writer import Storages, write_legacy, write_zip
from tf_fashion.checkpoints.torch_weights import Slot, entry_slots, load_fashion_iq_2020, load_torchvision, trunk_slots
from tf_fashion.cli import main
from tf_fashion.composers import COMPOSERS
from tf_fashion.core.errors import UsageError, WeightsError
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.encoders.torch_resnet import ResNetKind, torch_resnet
from tf_fashion.models import ComposedRetriever

Arrays = dict[str, np.ndarray]


def tiny() -> keras.Model:
    return torch_resnet(ResNetKind((1, 1, 1, 1), groups=2, width=4), 32, 32)


def torch_shapes(slot: Slot) -> dict[str, tuple[int, ...]]:
    shape = tuple(slot.variable.shape)
    if slot.names[0].endswith("norm_s"):
        shape = (1,)
    elif len(slot.names) == 2:
        shape = shape[-1:]
    elif len(shape) == 4:
        shape = (shape[3], shape[2], shape[0], shape[1])
    elif "embedding" not in slot.names[0]:
        shape = shape[::-1]
    return dict.fromkeys(slot.names, shape)


def made_up(slots: list[Slot], seed: int = 0) -> Arrays:
    """A state dictionary with what PyTorch saves beside the weights."""
    random = np.random.default_rng(seed)
    values = {name: random.uniform(0.5, 1.5, shape).astype("float32") for slot in slots for name, shape in torch_shapes(slot).items()}
    counters = [name.replace("running_var", "num_batches_tracked") for name in values if name.endswith("running_var")]
    return {**values, **{name: np.array(7, np.int64) for name in counters}}


def with_classifier(values: Arrays, prefix: str = "") -> Arrays:
    return {**values, f"{prefix}fc.weight": np.ones((3, 4), np.float32), f"{prefix}fc.bias": np.ones(3, np.float32)}


def write(path: Path, value: Any, legacy: bool = False) -> Path:
    storages = Storages(legacy)

    def stored(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: stored(entry) for key, entry in item.items()}
        return storages.tensor(item) if isinstance(item, np.ndarray) else item

    value = stored(value)
    return write_legacy(path, value, storages) if legacy else write_zip(path, value, storages)


@pytest.mark.parametrize("wrap", ["plain", "legacy", "module", "backbone"])
def test_a_trunk_arrives_however_it_is_wrapped(tmp_path: Path, wrap: str) -> None:
    network = tiny()
    values = with_classifier(made_up(trunk_slots(network)))
    whole: Any = values
    prefix = ""
    if wrap == "module":
        prefix = "state_dict.module."
        whole = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in values.items()}}
    elif wrap == "backbone":
        prefix = "state_dict.backbone."
        whole = {"score": 0.3, "state_dict": {"backbone": values, "image_encoder": {"0.bias": np.ones(3, np.float32)}}, "texts": ["a"]}
    report = load_torchvision(network, write(tmp_path / "a.pth", whole, legacy=wrap == "legacy"))
    for slot in trunk_slots(network):
        theirs = values[slot.names[0]]
        np.testing.assert_array_equal(slot.variable, theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs)
        assert prefix + slot.names[0] in report.used
    assert not report.missing and len(report.used) == len(trunk_slots(network))
    assert report.unused[f"{prefix}fc.weight"] == "classifier"
    assert report.unused[f"{prefix}bn1.num_batches_tracked"] == "counter of batches"
    if wrap == "backbone":
        assert report.unused["state_dict.image_encoder.0.bias"] == "not part of the network"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.weight": np.ones((64, 3, 5, 5), np.float32)}, r"conv1.weight has shape \(64, 3, 5, 5\) in the file"),
        ({"layer2.0.bn1.bias": None}, "1 of 85 variables do not fit. layer2.0.bn1.bias is not in the file"),
        ({"bn1.weight": np.full(64, np.inf, np.float32)}, "bn1.weight has values that are not finite"),
        ({"bn1.weight": None, "conv1.weight": None}, r"expected the weights of a torchvision ResNet .* found 100 arrays"),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path: Path, change: dict, message: str) -> None:
    network = tiny()
    values = {name: value for name, value in {**made_up(trunk_slots(network)), **change}.items() if value is not None}
    before = [v.numpy() for v in network.variables]
    with pytest.raises(WeightsError, match=message):
        load_torchvision(network, write(tmp_path / "a.pth", values))
    for old, variable in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_two_trunks_in_a_file_are_too_many(tmp_path: Path) -> None:
    network = tiny()
    values = made_up(trunk_slots(network))
    with pytest.raises(WeightsError, match="found 2, below student., teacher."):
        load_torchvision(network, write(tmp_path / "a.pth", {"student": values, "teacher": values}))


def entry(text: str = "lstm_gru", head: str = "dense", **options: Any) -> ComposedRetriever:
    words = TEXT_ENCODERS.get(text)(9, dim=6, embedding_dim=4, layers=2, head=head)
    composer = COMPOSERS.get("tirg_fiq2020")(name="composer")
    return ComposedRetriever(ImageEncoder("torch_resnet18", 32), words, composer, dim=6, **options)


@pytest.mark.parametrize(("text", "head"), [("lstm_gru", "dense"), ("lstm", "bn_dense")])
def test_the_whole_entry(tmp_path: Path, text: str, head: str) -> None:
    model = entry(text, head)
    values = with_classifier(made_up(entry_slots(model)), "backbone.")
    modules: dict[str, Arrays] = {}
    for name, value in values.items():
        module, rest = name.split(".", 1)
        modules.setdefault(module, {})[rest] = value
    assert set(modules) == {
        "backbone",
        "image_encoder",
        "text_encoder",
        "norm",
        "gated_feature_composer",
        "res_info_composer",
    }
    report = load_fashion_iq_2020(model, write(tmp_path / "best_model.pth", {"score": 0.37, "state_dict": modules, "texts": ["a"]}))
    assert set(report.unused.values()) == {"classifier", "counter of batches"}
    assert report.missing == {"w": "the factors stay 1, 10"}
    assert len(report.used) + len(report.unused) == len(values)
    np.testing.assert_array_equal(model.heads[0].out.kernel, values["image_encoder.0.weight"].T)
    np.testing.assert_array_equal(model.scaled.scale, values["norm.norm_s"][0])
    lstm = model.text_encoder.stacks[0].forward_layers[1].cell
    np.testing.assert_array_equal(lstm.kernel, values["text_encoder.lstm.weight_ih_l1"].T)
    both = values["text_encoder.lstm.bias_ih_l1"] + values["text_encoder.lstm.bias_hh_l1"]
    np.testing.assert_array_equal(lstm.bias, both)
    if text == "lstm_gru":
        gru = model.text_encoder.stacks[1].forward_layers[0].cell
        reset, update, new = np.split(values["text_encoder.gru.weight_hh_l0"].T, 3, axis=1)
        np.testing.assert_array_equal(gru.recurrent_kernel, np.concatenate([update, reset, new], axis=1))
    first = model.image_encoder.network.get_layer("layer1_0_conv1").kernel
    np.testing.assert_array_equal(first, values["backbone.layer1.0.conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(("text", "options"), [("lstm", {"feature_norm": True}), ("bilstm", {}), ("swem", {})])
def test_other_models_do_not_take_the_entry(text: str, options: dict) -> None:
    with pytest.raises(UsageError, match=r"a torch_\.\.\. backbone"):
        entry_slots(entry(text, **options))


def test_the_command_converts_what_encoders_take(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = torch_resnet("resnet18", 32, 32)
    values = with_classifier(made_up(trunk_slots(network)))
    source, out = write(tmp_path / "resnet18.pth", values), tmp_path / "r.weights.h5"
    command = ["weights", "convert", str(source), "--to", "torch_resnet18", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "100 variables used" in told and "classifier (2)" in told and "--backbone torch_resnet18" in told
    encoder = ImageEncoder("torch_resnet18", 32, weights=out)
    np.testing.assert_array_equal(encoder.network.get_layer("layer3_0_bn1").moving_variance, values["layer3.0.bn1.running_var"])
    assert main([*command, "--ema"]) == 2
    assert "no moving averages" in capsys.readouterr().err
    assert main(["weights", "convert", str(source), "--to", "torch_resnet50", "--out", str(out)]) == 1
    assert "not weights of resnet50" in capsys.readouterr().err
