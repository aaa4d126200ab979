"""RTIC's composers and the Combiner of CLIP4Cir."""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from tests.parity.checks import torch_layouts as torch
from tests.parity.checks.composers import build
from tests.parity.harness import Fixture, checks
from tf_fashion.losses import LOSSES

Table = dict[str, tuple[str, str]]

MRN: Table = {
    "image_hidden": ("dense", "v_block.1"),
    "image_out": ("dense", "v_block.4"),
    "text_out": ("dense", "t_block.1"),
    "shortcut": ("dense", "t_linear.1"),
}
COMPOSE_AE: Table = {
    "convolution": ("conv1d", "encoderWithConv.1.conv"),
    **{
        f"{path}_{part}.{layer}": (kind, f"{theirs}.{index}")
        for path, encoder in (("linear", "encoderLinear"), ("conv", "encoderWithConv"))
        for part, theirs, indices in (
            ("angle", f"{encoder}.0.text_features", (0, 1, 3)),
            ("modulus", f"{encoder}.0.image_features", (0, 1, 4)),
            ("mapping", f"{encoder}.1.mapping", (0, 2, 4)),
        )
        for layer, kind, index in zip(("norm", "hidden", "out"), ("norm", "dense", "dense"), indices, strict=True)
    },
}
DECODERS: Table = {
    f"{ours}.{layer}": (kind, f"{theirs}.{index}")
    for ours, theirs in (("image_decoder", "decoder"), ("text_decoder", "txtdecoder"))
    for layer, kind, index in (("norm", "norm", 0), ("hidden", "dense", 2), ("out", "dense", 4))
}
COMBINER: Table = {
    "text_projection": ("dense", "text_projection_layer"),
    "image_projection": ("dense", "image_projection_layer"),
    "mixture_hidden": ("dense", "combiner_layer"),
    "mixture_out": ("dense", "output_layer"),
    "balance_hidden": ("dense", "dynamic_scalar.0"),
    "balance_out": ("dense", "dynamic_scalar.3"),
}


def rtic_table(blocks: int, prefix: str = "") -> Table:
    table = {
        "fusion_norm": ("norm", f"{prefix}fs.module.0"),
        "fusion_out": ("dense", f"{prefix}fs.module.2"),
        "gate_hidden": ("dense", f"{prefix}gating.module.0"),
        "gate_norm": ("norm", f"{prefix}gating.module.1"),
        "gate_out": ("dense", f"{prefix}gating.module.3"),
    }
    parts = {"down": ("dense", 0), "down_norm": ("norm", 1), "middle": ("dense", 3), "middle_norm": ("norm", 4), "up": ("dense", 6)}
    for k in range(blocks):
        table |= {f"encoders.{k}.{part}": (kind, f"{prefix}ee.{k}.module.{index}") for part, (kind, index) in parts.items()}
    return table


def film_table(blocks: int) -> Table:
    table = {"modulation": ("dense", "film")}
    for k in range(blocks):
        table[f"pointwise.{k}"] = ("conv", f"resblocks.{k}.conv1")
        table[f"spread.{k}"] = ("conv", f"resblocks.{k}.conv2")
        table[f"norms.{k}"] = ("norm", f"resblocks.{k}.bn")
    return table


def count_blocks(weights: dict[str, np.ndarray], pattern: str) -> int:
    k = 0
    while pattern.format(k) in weights:
        k += 1
    return k


def part_of(layer, path: str) -> keras.layers.Layer:
    """The sub-layer at a dotted path whose numbers are places in lists."""
    return functools.reduce(lambda at, step: at[int(step)] if step.isdigit() else getattr(at, step), path.split("."), layer)


def load_parts(layer, table: Table, weights: dict[str, np.ndarray]) -> list:
    """Sets the weights of all parts; returns (PyTorch name, variable, converter) of the trained ones."""
    entries = []
    for path, (kind, name) in table.items():
        part = part_of(layer, path)
        if kind == "dense":
            torch.set_dense(part, weights, name)
            entries += torch.variables_of(part, kind, name)
        elif kind == "norm":
            stored = ("weight", "bias") if part.scale else ()
            part.set_weights([weights[f"{name}.{key}"] for key in (*stored, "running_mean", "running_var")])
            entries += torch.variables_of(part, kind, name) if part.scale else []
        else:
            axes = {"conv": (2, 3, 1, 0), "conv1d": (2, 1, 0)}[kind]
            bias = [weights[f"{name}.bias"]] if part.use_bias else []
            part.set_weights([weights[f"{name}.weight"].transpose(axes), *bias])
            back = tuple(np.argsort(axes))
            entries.append((f"{name}.weight", part.kernel, lambda x, back=back: np.transpose(x, back)))
            entries += [(f"{name}.bias", part.bias, np.asarray)] if part.use_bias else []
    return entries


def compare_statistics(fixture: Fixture, layer, table: Table, weights: dict[str, np.ndarray], rows: dict[str, int] | int) -> None:
    for path, (kind, name) in table.items():
        if kind == "norm":
            norm = part_of(layer, path)
            n = rows if isinstance(rows, int) else rows[path]
            fixture.compare(f"after.{name}.running_mean", norm.moving_mean.numpy(), rtol=1e-5, atol=1e-6)
            variance = torch.unbiased_variance(norm, weights[f"{name}.running_var"], n)
            fixture.compare(f"after.{name}.running_var", variance, rtol=1e-5, atol=1e-6, note="Keras' n brought to n - 1")


def compare_mode(fixture: Fixture, mode: str, forward, image, text, entries: list, spatial: bool = False) -> None:
    """Output and gradients of `sum(out * R)` for both inputs and every trained weight."""
    x, t = tf.constant(image), tf.constant(text)
    with tf.GradientTape() as tape:
        tape.watch([x, t])
        out = forward(x, t, mode == "train")
        total = tf.reduce_sum(out * fixture.input(f"{mode}.R"))
    gradients = tape.gradient(total, [x, t, *(v.value for _, v, _ in entries)])
    fixture.compare(f"{mode}.out", out, rtol=1e-5, atol=1e-5)
    dx = gradients[0].numpy()
    key = "feature_map" if spatial else "image"
    fixture.compare(f"{mode}.grad.{key}", dx.transpose(0, 3, 1, 2) if spatial else dx, rtol=1e-4, atol=torch.gradient_atol(dx))
    fixture.compare(f"{mode}.grad.text", gradients[1], rtol=1e-4, atol=torch.gradient_atol(gradients[1].numpy()))
    for (theirs, _, to_torch), gradient in zip(entries, gradients[2:], strict=True):
        atol = torch.gradient_atol(fixture.data[f"{mode}.grad.{theirs}"])
        fixture.compare(f"{mode}.grad.{theirs}", to_torch(gradient.numpy()), rtol=1e-4, atol=atol)


@checks(r"composer_rtic\.npz")
def rtic(fixture: Fixture) -> None:
    image, text, weights = fixture.input("image"), fixture.input("text"), fixture.inputs_below("w.")
    blocks = count_blocks(weights, "ee.{}.module.0.weight")
    layer = build("rtic", image, text, blocks=blocks)
    table = rtic_table(blocks)
    entries = load_parts(layer, table, weights)
    fixture.compare("eval.extra", layer.branches(image, text, training=False)[1], rtol=1e-5, atol=1e-5)
    compare_mode(fixture, "eval", layer.call, image, text, entries)
    compare_mode(fixture, "train", layer.call, image, text, entries)
    compare_statistics(fixture, layer, table, weights, len(image))
    fixture.compare("train.extra", layer.branches(image, text, training=True)[1], rtol=1e-5, atol=1e-5)


@checks(r"composer_mrn\.npz")
def mrn(fixture: Fixture) -> None:
    image, text = fixture.input("image"), fixture.input("text")
    layer = build("mrn", image, text, dropout=0.0)
    entries = load_parts(layer, MRN, fixture.inputs_below("w."))
    for mode in ("eval", "train"):
        compare_mode(fixture, mode, layer.call, image, text, entries)


@checks(r"composer_film\.npz")
def film(fixture: Fixture) -> None:
    image = fixture.input("feature_map").transpose(0, 2, 3, 1)
    text, weights = fixture.input("text"), fixture.inputs_below("w.")
    blocks = count_blocks(weights, "resblocks.{}.conv1.weight")
    layer = build("film", image, text, blocks=blocks, legacy_padding=True)
    table = film_table(blocks)
    entries = load_parts(layer, table, weights)
    rows, height, width, _ = image.shape
    for mode in ("eval", "train"):
        compare_mode(
            fixture, mode, lambda x, t, train: tf.reduce_mean(layer(x, t, training=train), axis=(1, 2)), image, text, entries, True
        )
    places = {f"norms.{k}": rows * (height + 2 * k + 2) * (width + 2 * k + 2) for k in range(blocks)}
    compare_statistics(fixture, layer, table, weights, places)


@checks(r"composer_compose_ae\.npz")
def compose_ae(fixture: Fixture) -> None:
    image, text, weights = fixture.input("image"), fixture.input("text"), fixture.inputs_below("w.")
    channels = weights["encoderWithConv.1.conv.weight"].shape[0]
    options = {"dropout": 0.0, "conv_channels": channels, "initial_scalars": weights["a"][:2].tolist(), "legacy_conjugate": True}
    layer = build("compose_ae", image, text, **options)
    entries = load_parts(layer, COMPOSE_AE, weights)
    load_parts(layer, DECODERS, weights)
    entries.append(("a", layer.scalars, lambda g: np.concatenate([g, np.zeros(len(weights["a"]) - 2)])))
    statistics = [v for v in layer.non_trainable_variables if "moving" in v.path]
    before = [v.numpy() for v in statistics]
    for mode in ("eval", "train"):
        training = mode == "train"
        query = layer(image, text, training=training)
        fixture.compare(f"{mode}.repres", query, rtol=1e-5, atol=1e-5)
        if training:
            compare_statistics(fixture, layer, COMPOSE_AE | DECODERS, weights, len(image))
        decoded = layer.reconstructions(query, training=training)
        fixture.compare(f"{mode}.repr_to_compare_with_source", decoded[0], rtol=1e-5, atol=1e-5)
        fixture.compare(f"{mode}.repr_to_compare_with_mods", decoded[1], rtol=1e-5, atol=1e-5)
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)
        compare_mode(fixture, mode, layer.call, image, text, entries)


@checks(r"clip4cir_combiner\.npz")
def clip4cir_combiner(fixture: Fixture) -> None:
    image, text, target = (fixture.input(key) for key in ("image", "text", "target"))
    weights = fixture.inputs_below("w.")
    options = {
        "projection_width": weights["text_projection_layer.weight"].shape[0],
        "hidden_width": weights["combiner_layer.weight"].shape[0],
        "dropout": 0.0,
    }
    labels = np.arange(len(image))
    loss = LOSSES.get("batch_classification")(scale=100.0)
    unit = functools.partial(tf.math.l2_normalize, axis=1)
    layer, plain = build("combiner", image, text, **options), build("sum", image, text)
    entries = load_parts(layer, COMBINER, weights)
    for composer, variables, keys in (
        (layer, entries, ("combined", "logits", "loss", "dloss.{}")),
        (plain, [], ("sum_feature", "sum_logits", "sum_loss", "sum_d{}")),
    ):
        inputs = [tf.constant(x) for x in (image, text, target)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            query, gallery = unit(composer(*inputs[:2], training=True)), unit(inputs[2])
            value = loss(labels, {"query": query, "target": gallery})
        gradients = tape.gradient(value, [*inputs, *(v.value for _, v, _ in variables)])
        fixture.compare(keys[0], query, rtol=1e-5, atol=1e-6)
        fixture.compare(keys[1], loss.scale * tf.matmul(query, gallery, transpose_b=True), rtol=1e-5, atol=1e-4)
        fixture.compare(keys[2], value, rtol=1e-5, atol=1e-5)
        names = ["image", "text", "target", *(theirs for theirs, _, _ in variables)]
        converters = [np.asarray] * 3 + [convert for _, _, convert in variables]
        for name, gradient, convert in zip(names, gradients, converters, strict=True):
            key = keys[3].format(name)
            fixture.compare(key, convert(gradient.numpy()), rtol=1e-3, atol=torch.gradient_atol(fixture.data[key]))
    projected_text, projected_image = layer.projections(image, text)
    fixture.compare("text_proj", projected_text, rtol=1e-5, atol=1e-6)
    fixture.compare("image_proj", projected_image, rtol=1e-5, atol=1e-6)
    fixture.compare("scalar", layer.branches(projected_text, projected_image)[0], rtol=1e-5, atol=1e-6)
