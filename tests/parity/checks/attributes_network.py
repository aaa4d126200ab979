"""The attribute predictor's ResNet-50 under generated weights: values, gradients, statistics, a step of Adam; its list of weights."""

from __future__ import annotations

import json
import zlib

import keras
import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.torch_weights import Slot, fill, trunk_slots
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.torch_resnet import torch_resnet
from tf_fashion.inputs.images import unscale_pixels
from tf_fashion.training.optimizers import GroupedAdamW

PREFIX = "predictor."
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TRAINED = {"rtol": 1e-4, "atol": 1e-3}


def recipe(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Generated weights; name and shape as in the checkpoint."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed * 1000003) % 2**32)
    if name.endswith("running_mean"):
        value = 0.1 * random.standard_normal(shape)
    elif name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif name.endswith("fc.weight"):
        value = 0.05 * random.standard_normal(shape)
    elif name.endswith("fc.bias"):
        value = -2 + 0.5 * random.standard_normal(shape)
    elif len(shape) == 4:
        value = np.sqrt(1.0 / np.prod(shape[1:])) * random.standard_normal(shape)
    elif name.endswith("weight"):
        value = random.uniform(0.2, 0.5, shape) if ".bn3." in name else random.uniform(0.6, 1.4, shape)
    else:
        value = 0.1 * random.standard_normal(shape)
    return value.astype(np.float32)


def _to_torch(value: np.ndarray) -> np.ndarray:
    return np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else np.transpose(value)


class _Predictor:
    """The network and its classifier, by the checkpoint's names."""

    def __init__(self, height: int, width: int, labels: int) -> None:
        self.network = torch_resnet("resnet50", height, width, unbiased_variance=True)
        self.head = keras.layers.Dense(labels)
        self.head.build((None, self.network.output.shape[-1]))
        kernel = Slot((f"{PREFIX}fc.weight",), self.head.kernel, np.transpose)
        self.slots = [*trunk_slots(self.network, PREFIX), kernel, Slot((f"{PREFIX}fc.bias",), self.head.bias)]
        self.variables = {slot.names[0]: slot.variable for slot in self.slots}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: _to_torch(np.empty(variable.shape)).shape for name, variable in self.variables.items()}

    def fill(self, seed: int) -> dict[str, np.ndarray]:
        arrays = {name: recipe(name, shape, seed) for name, shape in self.shapes().items()}
        fill(self.slots, arrays, "recipe", "the attribute predictor")
        return arrays

    def logits(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        return self.head(tf.reduce_mean(self.network(images, training=training), axis=(1, 2)))


@checks(r"state_dict_keys\.json")
def state_dict_keys(fixture: Fixture) -> None:
    recorded = json.loads(fixture.path.read_text("utf-8"))
    shapes = {name: tuple(shape) for name, shape, _ in recorded["state_dict"]}
    ours = _Predictor(32, 32, shapes[f"{PREFIX}fc.bias"][0]).shapes()
    counters = {name.replace("running_var", "num_batches_tracked"): () for name in ours if name.endswith("running_var")}
    fixture.equal("state_dict", {**ours, **counters}, shapes)
    types = {name: kind for name, _, kind in recorded["state_dict"]}
    fixture.equal("types", {name: f"torch.{'int64' if name in counters else 'float32'}" for name in types}, types)
    fixture.equal("n_tensors", len(ours) + len(counters), recorded["n_tensors"])
    parameters = [shape for name, shape in ours.items() if "running" not in name]
    fixture.equal("n_parameters", sum(int(np.prod(shape)) for shape in parameters), recorded["n_parameters"])


@checks(r"resnet50\.npz")
def resnet50(fixture: Fixture) -> None:
    x, targets, seed = fixture.input("x_nchw"), tf.constant(fixture.input("targets")), int(fixture.input("seed"))
    images = tf.constant(x.transpose(0, 2, 3, 1))
    model = _Predictor(*x.shape[2:], targets.shape[1])
    arrays = model.fill(seed)
    for key in [key for key in fixture.data if key.startswith("weightcheck/")]:
        value = arrays[key.removeprefix("weightcheck/")].astype(np.float64).ravel()
        fixture.compare(key, [*value[:6], value.sum(), np.abs(value).sum()], rtol=1e-7, atol=1e-9)
    _evaluated(fixture, model, images)
    _through_the_encoder(fixture, arrays, images)
    _gradients(fixture, model, images, targets, training=False)
    gradients = _gradients(fixture, model, images, targets, training=True)
    for key in [key for key in fixture.data if key.startswith("train/updated/")]:
        fixture.compare(key, model.variables[key.removeprefix("train/updated/")], **TRAINED)
    _adam(fixture, model, gradients)


def _evaluated(fixture: Fixture, model: _Predictor, images: tf.Tensor) -> None:
    layers = ["conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    outputs = [model.network.get_layer(name).output for name in layers]
    maps = dict(zip(layers, keras.Model(model.network.input, outputs)(images, training=False), strict=True))
    for name, value in maps.items():
        nchw = value.numpy().transpose(0, 3, 1, 2)
        fixture.compare(f"eval/{name}", nchw[:, : fixture.data[f"eval/{name}"].shape[1]], **CLOSE)
    pooled = tf.reduce_mean(maps["layer4"], axis=(1, 2), keepdims=True)
    fixture.compare("eval/avgpool", pooled.numpy().transpose(0, 3, 1, 2), **CLOSE)
    logits = model.logits(images, training=False).numpy()
    fixture.compare("eval/logits", logits, **CLOSE)
    fixture.compare("eval/prob", 1 / (1 + np.exp(-logits.astype(np.float64))), **CLOSE)


def _through_the_encoder(fixture: Fixture, arrays: dict[str, np.ndarray], images: tf.Tensor) -> None:
    """From pixels on, by the encoder that training uses."""
    if images.shape[1] != images.shape[2]:
        return
    encoder = ImageEncoder("torch_resnet50", images.shape[1], scaling="imaterialist")
    fill(trunk_slots(encoder.network, PREFIX), arrays, "recipe", "torch_resnet50")
    features = encoder.encode(unscale_pixels(images, "imaterialist"))
    fixture.compare("eval/avgpool", features.numpy()[:, :, np.newaxis, np.newaxis], **CLOSE, note="from pixels")


def _gradients(fixture: Fixture, model: _Predictor, images: tf.Tensor, targets: tf.Tensor, training: bool) -> dict[str, np.ndarray]:
    part = "train" if training else "evalmode_backward"
    names = [name for name in model.variables if "running" not in name]
    with tf.GradientTape() as tape:
        logits = model.logits(images, training)
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))
    found = tape.gradient(loss, [model.variables[name].value for name in names])
    gradients = {name: _to_torch(gradient.numpy()) for name, gradient in zip(names, found, strict=True)}
    tolerance = TRAINED if training else CLOSE
    fixture.compare(f"{part}/logits", logits, **tolerance)
    fixture.compare(f"{part}/loss", loss, **tolerance)
    recorded = [str(name) for name in fixture.data[f"{part}/grad_norm_names"]]
    fixture.equal(f"{part}/grad_norm_names", sorted(gradients), sorted(recorded))
    norms = [np.linalg.norm(gradients[name].astype(np.float64)) for name in recorded]
    fixture.compare(f"{part}/grad_norms", norms, rtol=1e-3, atol=1e-7)
    for key in [key for key in fixture.data if key.startswith(f"{part}/grad/")]:
        name, _, rows = key.removeprefix(f"{part}/grad/").partition("_first")
        value = gradients[name][: int(rows.removesuffix("rows"))] if rows else gradients[name]
        # Small elements are sums of large terms that cancel, with batch statistics of a handful of values even more so.
        small = 5e-3 if training else 1e-3
        fixture.compare(key, value, rtol=1e-3, atol=small * float(np.abs(fixture.data[key]).max()))
    return gradients


def _adam(fixture: Fixture, model: _Predictor, gradients: dict[str, np.ndarray]) -> None:
    rate, beta_1, beta_2, epsilon, decay = (float(value) for value in fixture.input("adam_hparams_lr_b1_b2_eps_wd"))
    optimizer = GroupedAdamW(rate, weight_decay=decay, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
    names = list(gradients)
    variables = [model.variables[name] for name in names]
    optimizer.apply([tf.constant(_from_torch(gradients[name])) for name in names], variables)
    for key in [key for key in fixture.data if key.startswith("adam_step1/")]:
        name = key.removeprefix("adam_step1/")
        ours, recorded, gradient = _to_torch(model.variables[name].numpy()), fixture.data[key], np.abs(gradients[name])
        # The first step is the rate times the gradient's sign: rounding decides it where the gradient is about 0.
        unsure = gradient < 1e-3 * gradient.max()
        fixture.compare(key, np.where(unsure, recorded, ours), rtol=0, atol=2e-6, note=f"without {unsure.sum()} gradients about 0")
        fixture.compare(key, ours, rtol=0, atol=2.1 * rate)


def _from_torch(value: np.ndarray) -> np.ndarray:
    return np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else np.transpose(value)
