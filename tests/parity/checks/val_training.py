"""The whole VAL model: features of photos and sentences, and training steps of the released program."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.checks.val_model import (
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


# Networks that start from weights which differ in their last digit only, to see how far their losses part in a few steps.
NEIGHBOURS = 6
LAST_DIGIT = 6e-8


class Run:
    """Training steps of the original's recipe on our model."""

    def __init__(self, fixture: Fixture, original: Original, variant: str) -> None:
        self.original, self.fixture = original, fixture
        original.reset()
        trained = original.weights.trained()
        self.variables = {id(v): v for _, variable, _, _ in trained for v in variables_of(variable)}
        self.variables |= {id(level.attention_maps): level.attention_maps for level, _ in original.maps}
        if variant == "released":
            for state in [v for name, v, _, _ in trained if "init_state" in name]:
                self.variables.pop(id(state))
        self.optimizer = TFAdam(float(fixture.input("lr")), epsilon=1e-8, original_frozen_correction=variant == "released")
        self.loss = BidirectionalMatching(float(fixture.input("margin")), "column", legacy_duplicate_negatives=True)
        original.model.compile(TFAdam(1e-3), self.loss)

    def disturb(self, seed: int) -> None:
        """Changes every weight by about half of its last digit."""
        random = np.random.default_rng(seed)
        for variable in self.variables.values():
            value = variable.numpy()
            variable.assign(value * (1 + LAST_DIGIT * random.standard_normal(value.shape)).astype(np.float32))

    def gradients(self, step: int) -> tuple[list[float], float, dict[int, tf.Tensor]]:
        """The loss of every level, the total and the gradients of one step."""
        fixture, model = self.fixture, self.original.model
        inputs = {
            "text": tf.constant(fixture.input("ids")[step]),
            "text_lengths": tf.constant(fixture.input("lengths")[step]),
            "reference_image": pixels(fixture.input("source_uint8")[step]),
            "target_image": pixels(fixture.input("target_uint8")[step]),
        }
        labels = np.arange(len(inputs["text"]))
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            total = model.compute_loss(inputs, tf.constant(labels), outputs)
        found = tape.gradient(total, [v.value for v in self.variables.values()])
        levels = {role: model._levels(x) for role, x in outputs.items()}
        losses = [float(self.loss(labels, {r: levels[r][n] for r in levels})) for n in range(len(self.original.maps))]
        return losses, float(total), {key: tf.convert_to_tensor(g) for key, g in zip(self.variables, found, strict=True)}

    def apply(self, gradients: dict[int, tf.Tensor]) -> None:
        self.optimizer.apply(list(gradients.values()), list(self.variables.values()))


def _curve(fixture: Fixture, original: Original, variant: str, seed: int) -> np.ndarray:
    """Losses of all steps from slightly disturbed weights: `(steps, levels)`."""
    run = Run(fixture, original, variant)
    run.disturb(seed)
    rows = []
    for step in range(len(fixture.input("source_uint8"))):
        losses, _, gradients = run.gradients(step)
        rows.append(losses)
        run.apply(gradients)
    return np.array(rows)


def _training(fixture: Fixture, original: Original, variant: str) -> None:
    curves = np.stack([_curve(fixture, original, variant, seed) for seed in range(NEIGHBOURS)])
    run = Run(fixture, original, variant)
    model, decay = original.model, float(fixture.input("ema_decay"))
    constant = 0.5 * model.l2_penalty * sum(float(np.sum(np.square(w))) for n, w in original.unused().items() if n.endswith("weights"))
    steps, batch = fixture.input("source_uint8").shape[:2]
    matching, totals = [], []
    shadow = np.array([level.joint_weight.numpy() for level, _ in original.maps])
    for step in range(steps):
        before = np.array([level.joint_weight.numpy() for level, _ in original.maps])
        statistics = {name: v.numpy() for name, v, _, _ in original.weights.moving()}
        losses, total, gradients = run.gradients(step)
        matching.append(losses)
        totals.append(total + constant)
        if step == 0 and variant == "fixed":
            penalty = float(model._penalty()) + constant
            fixture.compare("step0/regularization_loss", penalty, rtol=1e-5)
            _gradients(fixture, original, {key: g.numpy() for key, g in gradients.items()})
        run.apply(gradients)
        shadow = decay * shadow + (1 - decay) * before
        where = f"{variant}/after_step{step}"
        # Adam divides by the gradient's size: where that is near zero, rounding decides the direction of a step.
        slack = {"rtol": 0.0, "atol": 2e-5 if step == 0 else 1e-3 * 2**step}
        fixture.compare(f"{where}/r_weights", [float(level.joint_weight) for level, _ in original.maps], **slack)
        fixture.compare(f"{where}/self_weights", [float(level.self_weight) for level, _ in original.maps], **slack)
        fixture.compare(f"{where}/ema_r_weights", shadow, rtol=0.0, atol=1e-5)
        if step == 0:
            _variables(fixture, original, f"{where}/var/", statistics, batch)
    spread = np.abs(curves - np.array(matching)).max(axis=(0, 2))
    _compare_growing(fixture, f"{variant}/matching_losses", np.array(matching), spread)
    _compare_growing(fixture, f"{variant}/total_losses", np.array(totals), len(original.maps) * spread)
    fixture.compare(f"{variant}/final_global_step", int(run.optimizer.iterations))
    power = 0.9 if variant == "released" else 0.9 ** (int(run.optimizer.iterations) + 1)
    fixture.compare(f"{variant}/final_beta1_power", power, rtol=1e-6)


def _compare_growing(fixture: Fixture, key: str, ours: np.ndarray, spread: np.ndarray) -> None:
    """Compares the losses of every step; `spread` says how far runs part that begin a last digit from each other.

    Adam's first steps have the full size for the smallest gradients too, and nets normalised over a few rows multiply a difference
    by some hundred in each step. Twice the spread of neighbouring runs is what two exact programs may differ by.
    """
    recorded = fixture.data[key]
    for step in range(len(recorded)):
        tolerance = (1e-3 * step or 1e-5) + 2.0 * float(spread[step])
        note = "" if step == 0 else f"runs from weights a last digit apart differ by {spread[step]:.2g}"
        fixture.close(f"{key}[{step}]", ours[step], recorded[step], rtol=0.0, atol=tolerance, note=note)
    fixture.inputs.add(key)


def _gradients(fixture: Fixture, original: Original, gradients: dict[int, np.ndarray]) -> None:
    found = {n: gradient_of(v, back, gradients) for n, v, _, back in original.weights.trained()}
    for level, dense in original.maps:
        found |= split_maps(gradients[id(level.attention_maps)], dense)
    names = [str(name) for name in fixture.input("grad_norm_names")]
    recorded = fixture.data["grad_norms"]
    norms = np.array([np.linalg.norm(found[name].astype(np.float64)) for name in names])
    fixture.compare("grad_norms", norms, rtol=1e-3, atol=1e-3 * float(np.median(recorded)) + 1e-6)
    for key in [key for key in fixture.data if key.startswith("grad/")]:
        tolerance = gradient_tolerance(fixture.data[key])
        # A shift of the text vector is taken out again by the next normalisation: that gradient is zero but for rounding.
        tolerance["atol"] = max(tolerance["atol"], 1e-7 * float(np.median(recorded)))
        fixture.compare(key, found[key.removeprefix("grad/")], **tolerance)


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
        note, slack = ("Keras' n brought to n - 1" if name.endswith("variance") else ""), 2e-5
        if _only_rounding(fixture, name):
            note, slack = "its gradient is rounding only, of which Adam makes a whole step", 2.01 * float(fixture.input("lr"))
        fixture.compare(key, value, rtol=1e-4, atol=slack, note=note)


def _only_rounding(fixture: Fixture, name: str) -> bool:
    gradient = fixture.data.get(f"grad/{name}")
    return gradient is not None and float(np.abs(gradient).max()) < 1e-7 * float(np.median(fixture.data["grad_norms"]))


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
