"""ResNet-101 with GeM pooling and a linear layer under generated weights: values, batch statistics, gradients."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tests.parity.checks.udma_losses import as_triplets, mined
from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.dirtorch import dirtorch_network, dirtorch_slots
from tf_fashion.checkpoints.torch_weights import fill
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.images import unscale_pixels
from tf_fashion.losses.mined_triplet import MinedTriplet
from tf_fashion.models import DomainAdapter

# Layer of ours -> name in the record.
TAPS = {"conv1": "conv1", "maxpool": "maxpool", **{f"layer{stage}": f"layer{stage}" for stage in range(1, 5)}}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def recipe(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Generated weights; name and shape as in the checkpoint."""
    random = np.random.RandomState(seed)
    if len(shape) == 4:
        value = random.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif name.endswith("running_mean"):
        value = 0.1 * random.standard_normal(shape)
    elif name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif name == "adpool.p":
        value = random.uniform(2.5, 3.5, shape)
    elif name == "fc.weight":
        value = random.standard_normal(shape) / np.sqrt(shape[1])
    elif name == "fc.bias":
        value = 0.02 * random.standard_normal(shape)
    elif name.endswith(".weight"):
        value = random.uniform(0.5, 1.0, shape) * (0.3 if name.endswith("bn3.weight") else 1.0)
    else:
        value = 0.1 * random.standard_normal(shape)
    return value.astype(np.float32)


@checks(r"resnet101_gem\.npz")
def resnet101_gem(fixture: Fixture) -> None:
    seed = int(fixture.input("recipe_seed"))
    names = [str(name) for name in fixture.input("tensor_names")]
    shapes = [tuple(map(int, filter(None, str(text).split(",")))) for text in fixture.input("tensor_shapes")]
    arrays = {name: recipe(name, shape, seed + i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    sums = [x.astype(np.float64).sum() for x in arrays.values()]
    fixture.compare("tensor_sums_f64", sums, rtol=1e-7, atol=1e-6, note="recipe")
    fixture.compare("tensor_first", [x.ravel()[0] for x in arrays.values()], rtol=1e-7, atol=0, note="recipe")
    fixture.compare("adpool.p", arrays["adpool.p"], rtol=1e-7, note="recipe")
    network = dirtorch_network("resnet101", arrays["fc.weight"].shape[0])
    slots = dirtorch_slots(network, network.get_layer("adpool"), network.get_layer("fc"))
    ours = [name for slot in slots for name in slot.names]
    fixture.equal("names", sorted(ours), sorted(names))
    fill(slots, arrays, "recipe", "dirtorch's network")
    for part in sorted({key.split("/")[0] for key in fixture.data if key.startswith("in")}):
        _evaluated(fixture, part, network)
    _through_the_adapter(fixture, arrays)
    _trained(fixture, network, seed)


def _evaluated(fixture: Fixture, part: str, network: keras.Model) -> None:
    x = tf.transpose(fixture.input(f"{part}/x"), (0, 2, 3, 1))
    outputs = {**network.output, **{name: network.get_layer(layer).output for layer, name in TAPS.items()}}
    found = keras.Model(network.input, outputs)(x, training=False)
    for name in TAPS.values():
        maps = found[name].numpy().astype(np.float64)
        fixture.exact(f"{part}/{name}_spatial", maps.shape[1:3])
        fixture.compare(f"{part}/{name}_channel_mean", maps.mean((1, 2)), **CLOSE)
        fixture.compare(f"{part}/{name}_channel_std", maps.std((1, 2)), **CLOSE)
    fixture.compare(f"{part}/layer4", tf.transpose(found["layer4"], (0, 3, 1, 2)), **CLOSE)
    fixture.compare(f"{part}/gem", found["pooled"][:, :, None, None], **CLOSE)
    # One picture alone loses its axis there.
    for key, name, tolerance in (("fc", "projected", CLOSE), ("out", "embedding", {"rtol": 0, "atol": 2e-6})):
        for twin in ("", "_f64"):
            if f"{part}/{key}{twin}" in fixture:
                fixture.compare(f"{part}/{key}{twin}", tf.reshape(found[name], fixture.data[f"{part}/{key}{twin}"].shape), **tolerance)


def _through_the_adapter(fixture: Fixture, arrays: dict[str, np.ndarray]) -> None:
    """From pixels on, by the model that training uses."""
    squares = [
        key for key in fixture.data if key.startswith("in") and key.endswith("/x") and len(set(fixture.data[key].shape[2:])) == 1
    ]
    for key in squares[:1]:
        x = fixture.data[key]
        encoder = ImageEncoder("torch_resnet101", image_size=x.shape[2], pooling="gem")
        model = DomainAdapter(encoder, dim=arrays["fc.weight"].shape[0])
        fill(dirtorch_slots(encoder.network, encoder.gems[0], model.fc), arrays, "recipe", "torch_resnet101")
        out = model({"image": unscale_pixels(tf.transpose(x, (0, 2, 3, 1)), "torch")})
        name = f"{key.split('/')[0]}/out"
        fixture.compare(name, tf.reshape(out, fixture.data[name].shape), rtol=0, atol=2e-6, note="from pixels")


def _trained(fixture: Fixture, network: keras.Model, seed: int) -> None:
    labels, side = fixture.input("train/labels"), 64
    x = np.random.RandomState(seed + 20000).standard_normal((len(labels), 3, side, side)).astype(np.float32)
    loss = MinedTriplet(original_fallback=True)
    fc, pool = network.get_layer("fc"), network.get_layer("adpool")
    variables = {
        "adpool.p": pool.p,
        "fc.bias": fc.bias,
        "fc.weight": fc.kernel,
        "bn1.weight": network.get_layer("bn1").gamma,
        "conv1.weight": network.get_layer("conv1").kernel,
    }
    with tf.GradientTape() as tape:
        out = network(tf.transpose(x, (0, 2, 3, 1)), training=True)["embedding"]
        value = loss(labels, out)
    found = tape.gradient(value, [variable.value for variable in variables.values()])
    gradients = {name: tf.convert_to_tensor(x).numpy() for name, x in zip(variables, found, strict=True)}
    for twin in ("", "_f64"):
        fixture.compare(f"train/out{twin}", out, rtol=0, atol=1e-5)
        fixture.compare(f"train/loss{twin}", value, rtol=0, atol=1e-5)
    _, hard = mined(out, labels)
    triplets = as_triplets(hard).numpy()
    for place, name in enumerate(("anchor", "positive", "negative")):
        fixture.exact(f"train/{name}", triplets[:, place])
    for key in [key for key in fixture.data if key.startswith("train/after_")]:
        layer, _, statistic = key.removeprefix("train/after_").rpartition(".")
        norm = network.get_layer(layer.replace(".", "_"))
        moved = norm.moving_mean if statistic == "running_mean" else norm.moving_variance
        fixture.compare(key, moved, rtol=1e-4)
    for key in [key for key in fixture.data if key.startswith("train/grad_")]:
        name = key.removeprefix("train/grad_")
        if name.endswith("_norm"):
            fixture.compare(key, np.linalg.norm(gradients[name.removesuffix("_norm")].astype(np.float64)), rtol=0.02)
            continue
        recorded = fixture.data[key].astype(np.float64)
        gradient = gradients[name.removesuffix("_f64")].reshape(recorded.shape)
        # The first layer's gradient is a sum over all of the network, of which single elements have few digits.
        apart = np.linalg.norm(gradient - recorded) / np.linalg.norm(recorded)
        fixture.compare(key, gradient, rtol=0.02, atol=0.02 * float(np.linalg.norm(recorded)), note=f"{apart:.2g} of its norm apart")
        fixture.close(f"{key} (relative distance)", apart, 0.0, rtol=0, atol=0.02)
