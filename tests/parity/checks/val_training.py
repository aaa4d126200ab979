"""The whole VAL model: features of photos and sentences, and training steps of the released program."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.checks.val_model import (
    Weights,
    attention_weights,
    build_text,
    gradient_of,
    gradient_tolerance,
    scheme,
    set_attention_maps,
    split_maps,
    text_weights,
    variables_of,
)
from tests.parity.checks.val_recipe import recipe
from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.tf_slim import keras_variables
from tf_fashion.composers import COMPOSERS
from tf_fashion.encoders import slim
from tf_fashion.encoders.image import BACKBONES, Backbone, ImageEncoder
from tf_fashion.losses.matching import BidirectionalMatching
from tf_fashion.models import ComposedRetriever
from tf_fashion.training.optimizers import TFAdam


class Original:
    """A model of ours with the weights of the original's recipe, and the way from its names to our variables."""

    def __init__(self, fixture: Fixture, size: int, width: float | None) -> None:
        mobilenet = width is not None
        activation, momentum, epsilon = scheme("mobilenet" if mobilenet else "resnet")
        names = [str(name) for name in fixture.input("var_names")]
        shapes = [tuple(int(n) for n in re.findall(r"\d+", str(shape))) for shape in fixture.input("var_shapes")]
        seed = int(fixture.input("recipe_seed"))
        self.values = {name: recipe(name, shape, seed) for name, shape in zip(names, shapes, strict=True)}
        self.momentum = momentum

        def build(side: int, weights: str | None):
            return slim.mobilenet_v1(side, side, width) if mobilenet else slim.resnet_v2_50(side, side)

        taps = BACKBONES.get("slim_mobilenet_v1" if mobilenet else "slim_resnet_v2_50").taps
        name = f"parity_{width}_{size}"
        if name not in BACKBONES:
            BACKBONES.register(name)(Backbone(build, "tf", size, taps=taps))
        encoder = ImageEncoder(
            name, size, ("low", "mid", "high"), pooling=None, batch_norm_momentum=momentum, batch_norm="train", name="image_encoder"
        )
        text = build_text(names, self.values, momentum, epsilon, legacy=True)
        options = {"activation": activation, "attention_dropout": 0.0, "norm_momentum": momentum, "norm_epsilon": epsilon}
        decay = float(fixture.input("weight_decay")) if "weight_decay" in fixture else 0.0
        self.model = ComposedRetriever(
            encoder,
            text,
            COMPOSERS.get("val")({**options}, name="composer"),
            projection="none",
            trainable_scale=False,
            initial_scale=1.0,
            l2_penalty=decay,
        )
        self.weights = text_weights(text, names)
        for theirs, variable in keras_variables(encoder.network).items():
            self.weights.add(theirs, variable)
        self.maps: list[tuple[object, list[str]]] = []
        for number, level in enumerate(self.model.composer.levels):
            weights, dense = attention_weights(level, f"attention{number}")
            self.weights.entries += weights.entries
            self.maps.append((level, dense))
        self.reset()

    def reset(self) -> None:
        self.weights.load(self.values)
        for level, dense in self.maps:
            set_attention_maps(level, dense, self.values)

    def unused(self) -> dict[str, np.ndarray]:
        known = {name for name, *_ in self.weights.entries} | {name for _, dense in self.maps for name in dense}
        return {name: value for name, value in self.values.items() if name not in known}


def pixels(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values.astype(np.float32))


@checks(r"features_.+\.npz")
def features(fixture: Fixture) -> None:
    images, ids, lengths = (fixture.input(key) for key in ("images_uint8", "ids", "lengths"))
    width = float(fixture.input("depth_multiplier")) if "depth_multiplier" in fixture else None
    size = int(fixture.input("image_size")) if "image_size" in fixture else images.shape[1]
    original = Original(fixture, size, width if "mobilenet" in fixture.name else None)
    model = original.model
    # The original has three vectors of length one in a row, we a vector of length one.
    scale = len(model.level_dims) ** 0.5
    encoded = model.encode_image(pixels(images), training=False)
    queries = [
        model.embed_query(encoded[row : row + 1], ids[row : row + 1, :length], lengths[row : row + 1])
        for row, length in enumerate(lengths)
    ]
    fixture.compare("query_features", scale * np.concatenate(queries), rtol=0.0, atol=1e-4)
    fixture.compare("gallery_features", scale * model.embed_features(encoded).numpy(), rtol=0.0, atol=1e-4)


def _training(fixture: Fixture, original: Original, variant: str) -> None:
    model, decay = original.model, float(fixture.input("ema_decay"))
    original.reset()
    trained = original.weights.trained()
    flat = {id(v): v for _, variable, _, _ in trained for v in variables_of(variable)}
    flat |= {id(level.attention_maps): level.attention_maps for level, _ in original.maps}
    if variant == "released":
        states = [v for name, v, _, _ in trained if "init_state" in name]
        for state in states:
            flat.pop(id(state))
    optimizer = TFAdam(float(fixture.input("lr")), epsilon=1e-8, original_frozen_correction=variant == "released")
    loss = BidirectionalMatching(float(fixture.input("margin")), "column", legacy_duplicate_negatives=True)
    model.compile(optimizer, loss)
    constant = 0.5 * model.l2_penalty * sum(float(np.sum(np.square(w))) for n, w in original.unused().items() if n.endswith("weights"))
    sources, targets, ids, lengths = (fixture.input(key) for key in ("source_uint8", "target_uint8", "ids", "lengths"))
    labels = np.arange(sources.shape[1])
    matching, totals = [], []
    shadow = np.array([level.joint_weight.numpy() for level, _ in original.maps])
    optimizer = TFAdam(float(fixture.input("lr")), epsilon=1e-8, original_frozen_correction=variant == "released")
    # Late losses follow the differences of earlier steps.
    for step in range(len(sources)):
        inputs = {
            "text": tf.constant(ids[step]),
            "text_lengths": tf.constant(lengths[step]),
            "reference_image": pixels(sources[step]),
            "target_image": pixels(targets[step]),
        }
        before = np.array([level.joint_weight.numpy() for level, _ in original.maps])
        statistics = {name: v.numpy() for name, v, _, _ in original.weights.moving()}
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            total = model.compute_loss(inputs, tf.constant(labels), outputs)
        found = tape.gradient(total, [v.value for v in flat.values()])
        gradients = {key: tf.convert_to_tensor(g) for key, g in zip(flat, found, strict=True)}
        levels = {role: model._levels(x) for role, x in outputs.items()}
        matching.append([float(loss(labels, {r: levels[r][n] for r in levels})) for n in range(len(original.maps))])
        totals.append(float(total) + constant)
        if step == 0 and variant == "fixed":
            penalty = float(model._penalty()) + constant
            fixture.compare("step0/regularization_loss", penalty, rtol=1e-5)
            _gradients(fixture, original, {key: g.numpy() for key, g in gradients.items()})
        optimizer.apply(list(gradients.values()), list(flat.values()))
        shadow = decay * shadow + (1 - decay) * before
        where = f"{variant}/after_step{step}"
        # Adam divides by the gradient's size: where that is near zero, rounding decides the direction of a step.
        slack = {"rtol": 0.0, "atol": 2e-5 if step == 0 else 1e-3}
        fixture.compare(f"{where}/r_weights", [float(level.joint_weight) for level, _ in original.maps], **slack)
        fixture.compare(f"{where}/self_weights", [float(level.self_weight) for level, _ in original.maps], **slack)
        fixture.compare(f"{where}/ema_r_weights", shadow, rtol=0.0, atol=1e-5)
        if step == 0:
            _variables(fixture, original, f"{where}/var/", statistics, sources.shape[1])
    matching, totals = np.array(matching), np.array(totals)
    _compare_growing(fixture, f"{variant}/matching_losses", matching)
    _compare_growing(fixture, f"{variant}/total_losses", totals)
    fixture.compare(f"{variant}/final_global_step", int(optimizer.iterations))
    power = 0.9 if variant == "released" else 0.9 ** (int(optimizer.iterations) + 1)
    fixture.compare(f"{variant}/final_beta1_power", power, rtol=1e-6)


def _compare_growing(fixture: Fixture, key: str, ours: np.ndarray) -> None:
    recorded = fixture.data[key]
    for step in range(len(recorded)):
        fixture.close(f"{key}[{step}]", ours[step], recorded[step], rtol=0.0, atol=1e-5 if step == 0 else 1e-3 * 2**step)
    fixture.compare(key, ours, rtol=0.0, atol=1e-3 * 2 ** (len(recorded) - 1))


def _gradients(fixture: Fixture, original: Original, gradients: dict[int, np.ndarray]) -> None:
    found = {n: gradient_of(v, back, gradients) for n, v, _, back in original.weights.trained()}
    for level, dense in original.maps:
        found |= split_maps(gradients[id(level.attention_maps)], dense)
    names = [str(name) for name in fixture.input("grad_norm_names")]
    recorded = fixture.data["grad_norms"]
    norms = np.array([np.linalg.norm(found[name].astype(np.float64)) for name in names])
    fixture.compare("grad_norms", norms, rtol=1e-3, atol=1e-3 * float(np.median(recorded)) + 1e-6)
    for key in [key for key in fixture.data if key.startswith("grad/")]:
        fixture.compare(key, found[key.removeprefix("grad/")], **gradient_tolerance(fixture.data[key]))


def _variables(fixture: Fixture, original: Original, prefix: str, before: dict[str, np.ndarray], batch: int) -> None:
    entries = {name: variable for name, variable, _, _ in original.weights.entries}
    for key in [key for key in fixture.data if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        value = entries[name].numpy()
        if name.endswith("moving_variance"):
            # Both towers update a backbone's statistics. Keras divides by n, the original by n - 1.
            updates = 1 if name.startswith(("attention", "projection")) else 2
            kept = before[name] * original.momentum**updates
            rows = batch * _places(name, original)
            value = kept + (value - kept) * rows / (rows - 1)
        fixture.compare(key, value, rtol=1e-4, atol=2e-5, note="Keras' n brought to n - 1" if name.endswith("variance") else "")


def _places(name: str, original: Original) -> int:
    """Places of the map that a batch normalisation averages over."""
    if name.startswith("projection") or "/Conv_1/" in name:
        return 1
    if name.startswith("attention"):
        height, width = original.model._map_shapes[int(re.match(r"attention(\d+)", name)[1])][:2]
        return height * width
    variable = next(v for n, v, _, _ in original.weights.entries if n == name)
    network = original.model.image_encoder.network
    layer = next(x for x in network.layers if any(v is variable for v in x.variables))
    return int(np.prod(layer.output.shape[1:3]))


@checks(r"train_steps_mobilenet_.*\.npz")
def train_steps(fixture: Fixture) -> None:
    size = fixture.input("source_uint8").shape[2]
    original = Original(fixture, size, float(fixture.input("depth_multiplier")))
    for variant in ("fixed", "released"):
        _training(fixture, original, variant)


__all__ = ["Weights"]
