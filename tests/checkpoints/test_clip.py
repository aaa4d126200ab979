"""CLIP's checkpoints: every published layout gives the same weights, what does not fit is refused, nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.torch_writer import Call, Global, Storages, write_zip
from tf_fashion.checkpoints.clip import (
    INITIAL_SCALE,
    build_clip,
    check_clip,
    clip_weights,
    fill_clip,
    infer_config,
    load_clip,
    numpy_forward,
    read_clip,
    read_config,
    resize_image_positions,
    resize_text_positions,
)
from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, UsageError, WeightsError
from tf_fashion.encoders.clip import CLIPConfig, CLIPImageEncoder, CLIPTextEncoder

CONFIG = CLIPConfig(12, 32, 2, 128, 8, 10, 40, 64, 1, 3)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def encoders() -> tuple[CLIPImageEncoder, CLIPTextEncoder]:
    return CLIPImageEncoder(CONFIG), CLIPTextEncoder(CONFIG)


@pytest.fixture(scope="module")
def weights(encoders: tuple[CLIPImageEncoder, CLIPTextEncoder]) -> Arrays:
    """Values that float16 has."""
    found = clip_weights(*encoders, logit_scale=2.75)
    return {name: value.astype(np.float16).astype(np.float32) for name, value in found.items()}


def half(weights: Arrays) -> Arrays:
    return {name: value.astype(np.float16) for name, value in weights.items()}


def tree(value: Any, storages: Storages) -> Any:
    if isinstance(value, dict):
        return {key: tree(entry, storages) for key, entry in value.items()}
    return storages.tensor(value) if isinstance(value, np.ndarray) else value


def saved(path: Path, value: Any, **members: bytes) -> Path:
    storages = Storages()
    return write_zip(path, tree(value, storages), storages, **members)


def state_dict(path: Path, weights: Arrays) -> Path:
    return saved(path, half(weights))


def training_checkpoint(path: Path, weights: Arrays) -> Path:
    state = {f"module.{name}": value for name, value in half(weights).items()}
    moments = {"state": {0: {"exp_avg": np.ones(3, np.float32)}}}
    return saved(path, {"epoch": 7, "name": "x", "state_dict": state, "optimizer": moments})


def torchscript(path: Path, weights: Arrays, evil: Any = None) -> Path:
    storages = Storages()
    nested: dict[str, Any] = {"training": True, "input_resolution": storages.tensor(np.array(32))}
    for name, value in half(weights).items():
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {"training": True})
        place[last] = storages.tensor(value)

    def module(attributes: Any) -> Any:
        if not isinstance(attributes, dict):
            return attributes
        state = {key: module(entry) for key, entry in attributes.items()}
        return Call(Global("__torch__.model", "Module"), (), state, new=True)

    program = {"constants.pkl": b"\x80\x02).", "code____torch____model.py": b"", "code____torch____model.py.debug_pkl": b""}
    root = module({**nested, "evil": evil} if evil is not None else nested)
    return write_zip(path, root, storages, **program)


def custom_text(path: Path, weights: Arrays) -> Path:
    names = {name: name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}" for name in weights}
    state = {names[name]: value for name, value in weights.items()}
    state["text.text_projection.weight"] = state.pop("text.text_projection").T
    return saved(path, {**state, "text.attn_mask": np.zeros((10, 10), np.float32)})


def huggingface(weights: Arrays) -> Arrays:
    """Names and layouts of HuggingFace's `CLIPModel`."""
    found = {
        "logit_scale": weights["logit_scale"],
        "visual_projection.weight": weights["visual.proj"].T,
        "text_projection.weight": weights["text_projection"].T,
        "vision_model.embeddings.class_embedding": weights["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": weights["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": np.arange(17),
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    for theirs, ours in {**norms, "text_model.final_layer_norm": "ln_final"}.items():
        found |= {f"{theirs}.{part}": weights[f"{ours}.{part}"] for part in ("weight", "bias")}
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for tower, prefix, layers in (("vision", "visual.", 2), ("text", "", 3)):
        for layer in range(layers):
            theirs, ours = f"{tower}_model.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
            for part in ("weight", "bias"):
                for one, other in {**parts, "self_attn.out_proj": "attn.out_proj"}.items():
                    found[f"{theirs}.{one}.{part}"] = weights[f"{ours}.{other}.{part}"]
                for letter, third in zip("qkv", np.split(weights[f"{ours}.attn.in_proj_{part}"], 3), strict=True):
                    found[f"{theirs}.self_attn.{letter}_proj.{part}"] = third
    return found


def pytorch_bin(path: Path, weights: Arrays) -> Path:
    return saved(path, huggingface(weights))


LAYOUTS: dict[str, Callable[[Path, Arrays], Path]] = {
    layout.__name__: layout for layout in (state_dict, training_checkpoint, torchscript, custom_text, pytorch_bin)
}


def same(found: Arrays, wanted: Arrays) -> None:
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout: str, weights: Arrays, tmp_path: Path) -> None:
    path = LAYOUTS[layout](tmp_path / "clip.pt", weights)
    same(read_clip(path), weights)
    assert read_config(path) == CONFIG


@pytest.mark.parametrize("names", ["open_clip", "huggingface"])
def test_safetensors(names: str, weights: Arrays, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = weights if names == "open_clip" else huggingface(weights)
    numpy.save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, tmp_path / "model.safetensors")
    same(read_clip(tmp_path / "model.safetensors"), weights)


def test_loading_fills_both_towers_and_reports_all_names(weights: Arrays, tmp_path: Path) -> None:
    path = torchscript(tmp_path / "clip.pt", weights)
    image, text = CLIPImageEncoder(CONFIG), CLIPTextEncoder(CONFIG)
    report, scale = load_clip(path, image, text)
    assert scale == 2.75 and sorted(report.used) == sorted(weights) and not report.missing
    assert report.unused == {"input_resolution": "size of the model"}
    same(clip_weights(image, text, scale), weights)
    assert max(check_clip(weights, image, text)) < 1e-5
    report, _ = load_clip(path, image, None)
    assert "of the other tower" in report.format()
    path = training_checkpoint(tmp_path / "training.pt", {name: value for name, value in weights.items() if name != "logit_scale"})
    report, scale = load_clip(path, image, text)
    assert scale == INITIAL_SCALE and list(report.missing) == ["logit_scale"]
    assert "state of an optimizer" in report.format()


def test_the_numpy_check_finds_a_wrong_weight(encoders: tuple, weights: Arrays) -> None:
    fill_clip(weights, *encoders)
    assert max(check_clip(weights, *encoders)) < 1e-5
    wrong = {**weights, "transformer.resblocks.2.attn.in_proj_bias": weights["transformer.resblocks.2.attn.in_proj_bias"][::-1] + 0.1}
    image, text = check_clip(wrong, *encoders)
    assert image < 1e-5 and text > 1e-4


EVIL = Call(Global("os", "system"), ("touch EXECUTED",))


@pytest.mark.parametrize("layout", ["state_dict", "training_checkpoint", "torchscript", "pytorch_bin"])
def test_hostile_files_are_refused_and_nothing_is_executed(
    layout: str, weights: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storages = Storages()
    if layout == "torchscript":
        path = torchscript(tmp_path / "clip.pt", weights, EVIL)
    elif layout == "training_checkpoint":
        state = {f"module.{name}": storages.tensor(value) for name, value in weights.items()}
        path = write_zip(tmp_path / "clip.pt", {"epoch": EVIL, "state_dict": state}, storages)
    else:
        state = storages.tensors(huggingface(weights) if layout == "pytorch_bin" else weights)
        path = write_zip(tmp_path / "clip.pt", {**state, "evil": EVIL}, storages)
    with pytest.raises(DataError, match="asks for os.system"):
        read_clip(path)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.pt"]


def test_what_is_no_whole_clip_model_is_refused(weights: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"

    def refused(message: str, arrays: Arrays) -> None:
        with pytest.raises(WeightsError, match=message):
            read_clip(saved(path, arrays))

    refused("found 1 arrays .a, ...", {"a": np.ones(2, np.float32)})
    refused("found 0 arrays", {})
    refused("ResNets", {**weights, "visual.attnpool.c_proj.bias": np.ones(2, np.float32)})
    refused("found 2, below 'a.', 'b.'", {f"{p}.{name}": value for p in "ab" for name, value in weights.items()})
    refused("missing or of another rank: ln_final", {name: value for name, value in weights.items() if name != "ln_final.weight"})
    refused("1 of 74 weights.* ln_final.bias", {name: value for name, value in weights.items() if name != "ln_final.bias"})
    encoders = CLIPImageEncoder(CONFIG), CLIPTextEncoder(CONFIG)
    before = clip_weights(*encoders)
    bad = {**weights, "visual.proj": np.full_like(weights["visual.proj"], np.nan)}
    for message, arrays in (("not finite", bad), ("has shape", {**weights, "text_projection": np.ones((64, 13), np.float32)})):
        with pytest.raises(WeightsError, match=message):
            fill_clip(arrays, *encoders)
    with pytest.raises(WeightsError, match="1 weights of a CLIP model are missing"):
        fill_clip({name: value for name, value in weights.items() if name != "visual.proj"}, *encoders)
    same(clip_weights(*encoders), before)
    with pytest.raises(WeightsError, match="nothing there"):
        read_clip(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="missing or of another rank"):
        infer_config({})


def test_positions_are_interpolated_as_open_clip_does(weights: Arrays, tmp_path: Path) -> None:
    # From torch.nn.functional.interpolate: bicubic with antialiasing, linear without; half-pixel centres.
    ramp = np.array([9, 0, 1, 2, 3], np.float32)[:, None]
    wanted = [9, -0.197368, 0.368421, 0.934211, 0.934211, 1.5, 2.06579, 2.06579, 2.631579, 3.197369]
    np.testing.assert_allclose(resize_image_positions(ramp, 3)[:, 0], wanted, atol=1e-5)
    squares = np.array([9, *np.arange(9.0) ** 2], np.float32)[:, None]
    np.testing.assert_allclose(resize_image_positions(squares, 2)[:, 0], [9, 2.871166, 8.197848, 30.284525, 47.044525], rtol=1e-5)
    np.testing.assert_allclose(resize_text_positions(ramp[1:], 3)[:, 0], [1 / 6, 1.5, 17 / 6], rtol=1e-6)
    np.testing.assert_allclose(resize_text_positions(ramp[1:], 6)[:, 0], [0, 0.5, 7 / 6, 11 / 6, 2.5, 3], rtol=1e-6)

    path = state_dict(tmp_path / "clip.pt", weights)
    image, text, _, report = build_clip(path, image_resolution=48, context_length=6)
    assert image.image_size == 48 and text(np.array([[38, 39]])).shape == (1, 12)
    assert "4 x 4 patches were interpolated to 6 x 6" in report.format() and "10 tokens were interpolated to 6" in report.format()
    with pytest.raises(UsageError, match="unknown fields"):
        build_clip(path, colour=1)


def test_a_configuration_beside_the_weights_is_heard(weights: Arrays, tmp_path: Path) -> None:
    path = pytorch_bin(tmp_path / "pytorch_model.bin", weights)

    def write(vision: dict, text: dict) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision, "text_config": text}))

    write({"hidden_act": "gelu", "hidden_size": 128, "num_attention_heads": 2}, {"num_attention_heads": 4})
    config = read_config(path)
    assert (config.activation, config.transformer_heads) == ("gelu", 4)
    image, text, _, _ = build_clip(path)
    assert text.config == config
    pixels, ids = np.random.default_rng(0).normal(size=(2, 3, 32, 32)), np.array([[38, 5, 39]])
    plain = numpy_forward(weights, CONFIG, pixels, ids)[1]
    np.testing.assert_allclose(text(ids), numpy_forward(weights, config, pixels, ids)[1], atol=1e-5)
    assert np.abs(text(ids) - plain).max() > 1e-3
    with pytest.raises(WeightsError, match="says activation 'gelu', the encoder has 'quick_gelu'"):
        load_clip(path, CLIPImageEncoder(CONFIG), None)
    write({"hidden_size": 128, "num_attention_heads": 1}, {})
    with pytest.raises(WeightsError, match="heads of width 128"):
        read_config(path)
    write({"hidden_act": "relu"}, {})
    with pytest.raises(WeightsError, match="expected one of quick_gelu, gelu"):
        read_config(path)
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": {"heads": 2}}}))
    assert (read_config(path).activation, read_config(path).transformer_heads) == ("gelu", 2)


def test_the_command_converts_and_what_it_wrote_is_loaded(weights: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = training_checkpoint(tmp_path / "epoch_7.pt", weights), tmp_path / "out" / "clip.weights.h5"
    assert main(["weights", "convert", str(path), "--to", "clip", "--out", str(out)]) == 0
    assert "check against NumPy on random input" in capsys.readouterr().out
    assert CLIPConfig.of(json.loads((tmp_path / "out" / "clip.json").read_text())) == CONFIG
    same(read_clip(out), weights)
    image, text = CLIPImageEncoder(CONFIG), CLIPTextEncoder(CONFIG)
    _, scale = load_clip(out, image, text)
    same(clip_weights(image, text, scale), weights)
    (tmp_path / "out" / "clip.json").unlink()
    with pytest.raises(WeightsError, match="clip.json beside it"):
        read_clip(out)
    assert main(["weights", "convert", str(path), "--to", "clip", "--out", str(out), "--ema"]) == 2
