"""VAL's backbones, the checkpoints that their weights come from, its list of variables, and its treatment of photos."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.parity.checks.val_model import (
    attention_weights,
    build_text,
    gradient_of,
    scheme,
    split_maps,
    text_weights,
    variables_of,
)
from tests.parity.checks.val_recipe import recipe
from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.tf_slim import AVERAGE, keras_variables, load_slim, read_checkpoint
from tf_fashion.composers import COMPOSERS
from tf_fashion.encoders import slim
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.images import ImageSpec, decode_image, preprocess, resize_and_crop, scale_pixels
from tf_fashion.models import ComposedRetriever

LEVELS = {"low_level": "low", "mid_level": "mid", "global_pool": "high"}
LAST_DEPTH = "MobilenetV1/Conv2d_13_pointwise/weights"
WEIGHT_DECAY = 4e-5


def _seeds(folder: Path) -> list[int]:
    """Seeds that the recordings of a folder name, then the usual two."""
    found: list[int] = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as archive:
            found += [int(archive[key]) for key in ("weight_seed", "recipe_seed") if key in archive.files]
    return list(dict.fromkeys([*found, 101, 202]))


def _shapes(fixture: Fixture) -> dict[str, tuple[int, ...]]:
    names, shapes = fixture.input("var_names"), fixture.input("var_shapes")
    return {str(n): tuple(int(x) for x in re.findall(r"\d+", str(s))) for n, s in zip(names, shapes, strict=True)}


def _penalty(values: dict[str, np.ndarray]) -> float:
    return 0.5 * WEIGHT_DECAY * sum(float(np.sum(np.square(v, dtype=np.float64))) for v in values.values())


def _network(fixture: Fixture, shapes: dict[str, tuple[int, ...]], height: int, width: int) -> keras.Model:
    momentum = scheme(fixture.name)[1]
    if "mobilenet" in fixture.name:
        return slim.mobilenet_v1(height, width, shapes[LAST_DEPTH][-1] / 1024, momentum=momentum)
    return slim.resnet_v2_50(height, width, momentum=momentum)


def _described(fixture: Fixture, network: keras.Model, shapes: dict[str, tuple[int, ...]]) -> None:
    """Names and shapes of the variables, but for the classifier that the original never uses."""
    ours = {name: tuple(variable.shape) for name, variable in keras_variables(network).items()}
    fixture.equal("var_names", sorted(ours), sorted(name for name in shapes if "ogits" not in name))
    fixture.equal("var_shapes", ours, {name: shape for name, shape in shapes.items() if "ogits" not in name})


def _penalties(fixture: Fixture, network: keras.Model, classifier: np.ndarray) -> None:
    kernels = {n: v.numpy() for n, v in keras_variables(network).items() if n.endswith("/weights")}
    fixture.compare("regularization_sum_without_logits", _penalty(kernels), rtol=1e-5)
    fixture.compare("regularization_sum_all", _penalty({**kernels, "classifier": classifier}), rtol=1e-5)
    fixture.exact("regularized_count", len(kernels) + 1)


def _tap_layers(network: keras.Model, keys: list[str]) -> dict[str, str]:
    """What a recording calls a map -> our layer."""
    taps = slim.MOBILENET_TAPS if network.name == "mobilenet_v1" else slim.RESNET_TAPS
    layers = {name: taps[level] for name, level in LEVELS.items()}
    for key in keys:
        block = re.fullmatch(r"(block\d+)_mean_over_space", key)
        if block:
            layers[key] = [layer.name for layer in network.layers if re.fullmatch(rf"{block[1]}_unit_\d+_add", layer.name)][-1]
        layers.setdefault(key, key)
    return {key: layers[key] for key in keys}


def _compare_taps(fixture: Fixture, network: keras.Model, images: np.ndarray, mode: str, atol: float) -> None:
    found = [key.split("/", 1)[1] for key in fixture.data if key.startswith(f"{mode}/") and "/updated/" not in key]
    if not found:
        return
    layers = _tap_layers(network, found)
    model = keras.Model(network.input, {key: network.get_layer(name).output for key, name in layers.items()})
    for key, value in model(images, training=mode == "train").items():
        value = np.asarray(value)
        fixture.compare(f"{mode}/{key}", value.mean(axis=(1, 2)) if "mean_over_space" in key else value, rtol=0.0, atol=atol)


def _fitting_checkpoint(folder: Path, width: int) -> Path | None:
    """The checkpoint beside a recording whose network is as wide."""
    for index in sorted(folder.glob("slim_ckpt/*.index")):
        shapes = read_checkpoint(index).get_variable_to_shape_map()
        if LAST_DEPTH in shapes and shapes[LAST_DEPTH][-1] == width:
            return index.with_suffix("")
    return None


@checks(r"mobilenet_v1_\d+_taps\.npz")
def narrow_taps(fixture: Fixture) -> None:
    images, shapes = fixture.input("images"), _shapes(fixture)
    network = _network(fixture, shapes, *images.shape[1:3])
    _described(fixture, network, shapes)
    variables = keras_variables(network)
    logits = next(name for name in shapes if "ogits" in name and name.endswith("/weights"))
    checkpoint = _fitting_checkpoint(fixture.folder, shapes[LAST_DEPTH][-1])
    if checkpoint is not None:
        load_slim(network, checkpoint)
        classifier = read_checkpoint(checkpoint).get_tensor(logits)
    else:
        recorded = float(fixture.data["regularization_sum_without_logits"])
        kernels = [name for name in variables if name.endswith("/weights")]

        def distance(seed: int) -> float:
            return abs(_penalty({name: recipe(name, shapes[name], seed) for name in kernels}) - recorded)

        seed = min(_seeds(fixture.folder), key=distance)
        for name, variable in variables.items():
            variable.assign(recipe(name, shapes[name], seed))
        classifier = recipe(logits, shapes[logits], seed)
    _penalties(fixture, network, classifier)
    _compare_taps(fixture, network, images, "eval", 2e-5)
    before = {name: variable.numpy() for name, variable in variables.items() if "moving_" in name}
    momentum = scheme(fixture.name)[1]
    _compare_taps(fixture, network, images, "train", 1e-3)
    for name, old in before.items():
        if f"train/updated/{name}" not in fixture:
            continue
        value = variables[name].numpy()
        if name.endswith("moving_variance"):
            # Keras divides by n, the original by n - 1.
            layer = network.get_layer(name.split("/")[1])
            rows = len(images) * int(np.prod(layer.output.shape[1:3]))
            value = old * momentum + (value - old * momentum) * rows / (rows - 1)
        note = "Keras' n brought to n - 1" if name.endswith("variance") else ""
        fixture.compare(f"train/updated/{name}", value, rtol=1e-5, atol=2e-6, note=note)


@checks(r".*_taps_recipe\.npz")
def recipe_taps(fixture: Fixture) -> None:
    shapes, seed = _shapes(fixture), int(fixture.input("weight_seed"))
    shape = tuple(int(n) for n in fixture.input("image_shape"))
    images = np.random.RandomState(int(fixture.input("image_seed"))).uniform(-1, 1, shape).astype(np.float32)
    fixture.compare("image_checksum_sum", images.astype(np.float64).sum(), rtol=1e-9)
    network = _network(fixture, shapes, *shape[1:3])
    _described(fixture, network, shapes)
    for name, variable in keras_variables(network).items():
        variable.assign(recipe(name, tuple(variable.shape), seed))
    total = sum(float(np.abs(v.numpy().astype(np.float64)).sum()) for v in keras_variables(network).values())
    fixture.compare("weights_checksum_sum_abs", total, rtol=1e-9)
    logits = next(name for name in shapes if "ogits" in name and name.endswith("/weights"))
    _penalties(fixture, network, recipe(logits, shapes[logits], seed))
    _compare_taps(fixture, network, images, "eval", 1e-4 if "mobilenet" in fixture.name else 2e-4)
    # Training mode is not recorded for the wide networks.


@checks(r"slim_ckpt")
def slim_checkpoints(fixture: Fixture) -> None:
    prefixes = [path.with_suffix("") for path in sorted(fixture.path.glob("*.index"))]
    if not prefixes:
        raise FileNotFoundError(f"{fixture.path}: no checkpoint")
    for prefix in prefixes:
        _slim_checkpoint(fixture, prefix)


def _is_slot(name: str) -> bool:
    return bool(re.search(r"/RMSProp(_\d+)?$", name))


def _slim_checkpoint(fixture: Fixture, prefix: Path) -> None:
    reader = read_checkpoint(prefix)
    shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    own = [name for name in shapes if not name.endswith(AVERAGE) and not _is_slot(name) and name != "global_step"]

    def share_equal(seed: int) -> int:
        return sum(np.array_equal(reader.get_tensor(name), recipe(name, shapes[name], seed)) for name in own)

    seed = max(_seeds(fixture.folder), key=share_equal)
    expected = {name: recipe(name, shapes[name], seed) for name in own}
    label = prefix.name
    width = shapes[LAST_DEPTH][-1] / 1024
    height = int(re.search(r"_(\d+)\.ckpt", label)[1]) if re.search(r"_(\d+)\.ckpt", label) else 64
    for name in own:
        fixture.close(f"{label}/{name}", reader.get_tensor(name), expected[name], rtol=0.0, atol=0.0)
    for name in shapes:
        if name.endswith(AVERAGE):
            fixture.close(f"{label}/{name}", reader.get_tensor(name), 0.9 * expected[name.removesuffix(AVERAGE)], rtol=1e-6, atol=1e-7)
        elif _is_slot(name):
            fixture.equal(f"{label}/{name} (shape)", shapes[name], shapes[name.rsplit("/", 1)[0]])
    averaged = {name.removesuffix(AVERAGE) for name in shapes if name.endswith(AVERAGE)}
    fixture.equal(f"{label}/averaged", sorted(averaged), sorted(name for name in own if "moving_" not in name))
    for ema in (False, True):
        network = slim.mobilenet_v1(height, height, width)
        report = load_slim(network, prefix, ema=ema)
        variables = keras_variables(network)
        taken = {name: name + AVERAGE if ema and name in averaged else name for name in variables}
        where = f"{label} ema={ema}"
        fixture.equal(f"{where}/variables", sorted(variables), sorted(name for name in own if "ogits" not in name))
        fixture.equal(f"{where}/used", sorted(report.used), sorted(taken.values()))
        fixture.equal(f"{where}/missing", report.missing, {})
        fixture.equal(f"{where}/left aside", sorted(report.unused), sorted(set(shapes) - set(taken.values())))
        reasons = {name: _reason(name) for name in report.unused if _reason(name)}
        fixture.equal(f"{where}/reasons", {name: report.unused[name] for name in reasons}, reasons)
        for name, variable in variables.items():
            value = expected[name] * (0.9 if taken[name] != name else 1.0)
            fixture.close(f"{where}/{name}", variable.numpy(), value, rtol=1e-6 if ema else 0.0, atol=1e-7 if ema else 0.0)


def _reason(name: str) -> str | None:
    if name == "global_step":
        return "step counter"
    if name.endswith(AVERAGE):
        return "moving average"
    if _is_slot(name):
        return "state of an optimizer"
    return "classifier" if "ogits" in name else None


def _whole_model(facts: dict) -> tuple[ComposedRetriever, dict[str, tuple], list[tuple[object, list[str]]]]:
    """VAL of the given sizes: the model, original name -> (our variable, way there, way back), and the attention maps' names."""
    mobilenet = "mobilenet" in facts["model"]
    activation, momentum, epsilon = scheme(facts["model"])
    encoder = ImageEncoder(
        "slim_mobilenet_v1" if mobilenet else "slim_resnet_v2_50",
        facts["image_size"],
        ("low", "mid", "high"),
        pooling=None,
        batch_norm="train",
        batch_norm_momentum=momentum,
        name="image_encoder",
    )
    units, cell = facts["text_embedding_size"], "RNN/bidirectional_lstm/rnn/basic_lstm_cell"
    sizes = {
        "RNN/token_embedding_weights": (facts["vocab_size"], facts["word_embedding_size"]),
        "RNN/bidirectional_lstm/forward/init_state_0": (units,),
        "RNN/bidirectional_lstm/forward/init_state_1": (units,),
        f"{cell}/kernel": (),
        f"{cell}/bias": (),
        "projection/text/weights": (1, 1, units, facts["joint_embedding_size"]),
    }
    text = build_text(list(sizes), {n: np.broadcast_to(np.float32(0), s) for n, s in sizes.items()}, momentum, epsilon, legacy=False)
    composer = COMPOSERS.get("val")({"activation": activation, "norm_momentum": momentum, "norm_epsilon": epsilon}, name="composer")
    model = ComposedRetriever(
        encoder, text, composer, projection="none", trainable_scale=False, initial_scale=1.0, l2_penalty=WEIGHT_DECAY
    )
    weights = text_weights(text, list(sizes))
    for name, variable in keras_variables(encoder.network).items():
        weights.add(name, variable)
    maps = []
    for number, level in enumerate(composer.levels):
        part, dense = attention_weights(level, f"attention{number}")
        weights.entries += part.entries
        maps.append((level.attention_maps, dense))
    return model, {name: rest for name, *rest in weights.entries}, maps


def _started(value: np.ndarray) -> str:
    """Whether an initial value was drawn or is the same everywhere."""
    return "drawn" if value.size > 1 and np.ptp(value) > 0 else "constant"


@checks(r"variables_.*\.json")
def variables(fixture: Fixture) -> None:
    facts = json.loads(fixture.path.read_text("utf-8"))
    rows = facts.pop("variables")
    model, entries, maps = _whole_model(facts)
    penalised = {id(kernel) for kernel in model.penalised_kernels()}
    ours = {}

    def describe(name: str, value: np.ndarray, parts: list) -> None:
        decays = any(id(part) in penalised for part in parts)
        ours[name] = (list(value.shape), all(part.trainable for part in parts), decays, _started(value))

    for name, (variable, there, back) in entries.items():
        parts = variables_of(variable)
        value = gradient_of(variable, back, {id(part): part.numpy() for part in parts})
        if len(parts) == 1:
            # The forget gate's constant is part of our bias.
            value = value - np.asarray(back(there(np.zeros_like(value))))
        describe(name, value, parts)
    for variable, dense in maps:
        for name, value in split_maps(variable.numpy(), dense).items():
            describe(name, value, [variable])
    kinds = {"Add": "drawn", "Const": "constant", "Fill": "constant"}
    recorded = {
        row["name"]: (row["shape"], row["trainable"], row["weight_decay"], kinds[row["initial_op"].split(":")[0]])
        for row in rows
        if "ogits" not in row["name"]
    }
    for name, row in recorded.items():
        fixture.equal(name, ours.get(name), row)
    fixture.equal("variables that only we have", sorted(set(ours) - set(recorded)), [])
    counted = {id(v) for variable, *_ in entries.values() for v in variables_of(variable)} | {id(v) for v, _ in maps}
    held = [v for v in model.variables if "seed" not in v.path and v.path.rsplit("/", 1)[-1] not in ("scale", "loss_scale")]
    fixture.equal("variables without a counterpart", sorted(v.path for v in held if id(v) not in counted), [])
    # The classifier of the backbone is held by the original without being trained, and counts in its printed loss.
    classes = [row["shape"] for row in rows if re.search(r"ogits.*/biases$", row["name"])][0]
    classifier = {"weights": ([1, 1, model.image_encoder.channels["high"], *classes], False, True, "drawn")}
    classifier["biases"] = (classes, False, False, "constant")
    for row in rows:
        if "ogits" in row["name"]:
            found = (row["shape"], row["trainable"], row["weight_decay"], kinds[row["initial_op"].split(":")[0]])
            fixture.equal(f"{row['name']} (not part of ours)", classifier[row["name"].rsplit("/", 1)[-1]], found)


@checks(r"preprocess\.npz")
def preprocess_val(fixture: Fixture) -> None:
    names = [key.removesuffix("/jpeg_bytes") for key in fixture.data if key.endswith("/jpeg_bytes")]
    seed = tf.constant([0, 0])
    for name in names:
        contents, pixels = fixture.input(f"{name}/jpeg_bytes").tobytes(), fixture.input(f"{name}/decoded_uint8")
        # The original decodes with the fast DCT, the library with the accurate one: up to 7 grey levels were seen, in pictures of
        # noise. The resampling below starts from the recorded pixels.
        fixture.within(f"{name}/decoded_uint8", decode_image(contents, ImageSpec()), 12, "ours has the accurate DCT")
        fast = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_FAST")
        fixture.close(f"{name}/decoded_uint8 (TensorFlow's fast DCT)", fast, pixels, rtol=0.0, atol=0.0)
        for key in [key for key in fixture.data if key.startswith(f"{name}/")]:
            kind = key.removeprefix(f"{name}/")
            cropped = re.fullmatch(r"train_aug_flip([01])_size(\d+)_resize(\d+)_top(\d+)_left(\d+)", kind)
            whole = re.fullmatch(r"(?:eval|train_noaug_flip([01]))_(\d+)", kind)
            if cropped:
                flip, size, side, top, left = (int(text) for text in cropped.groups())
                mirrored = dataclasses.replace(Augmentation.val(), flip=float(flip)).before_resize(tf.constant(pixels), seed)
                spec = ImageSpec(size, "squash", "bilinear_tf1", scaling="tf")
                found = scale_pixels(resize_and_crop(mirrored, side, top, left, spec), spec.scaling)
            elif whole:
                spec = ImageSpec(int(whole[2]), "squash", "bilinear_tf1", scaling="tf")
                augment = None if whole[1] is None else dataclasses.replace(Augmentation.val(crop=False), flip=float(whole[1]))
                found = preprocess(tf.constant(pixels), spec, augment, seed)
            else:
                continue
            fixture.compare(key, found, rtol=0.0, atol=1e-6)
