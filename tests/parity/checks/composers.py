"""TIRG in its three forms, and concatenation."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.checks import torch_layouts as torch
from tests.parity.harness import Fixture, checks
from tf_fashion.composers import COMPOSERS
from tf_fashion.layers import ScaledL2Norm
from tf_fashion.losses import LOSSES

# our part of the composer -> (kind, name in the original's state dictionary)
TIRG = {
    "gate_norm": ("norm", "gated_feature_composer.1"),
    "gate_out": ("dense", "gated_feature_composer.3"),
    "residual_norm": ("norm", "res_info_composer.1"),
    "residual_hidden": ("dense", "res_info_composer.3"),
    "residual_out": ("dense", "res_info_composer.5"),
}
TIRG_FIQ2020 = {
    **TIRG,
    "gate_hidden": ("dense", "gated_feature_composer.3"),
    "gate_hidden_norm": ("norm", "gated_feature_composer.4"),
    "gate_out": ("dense", "gated_feature_composer.6"),
}
CONCAT = {
    "norm_in": ("norm", "m.0"),
    "hidden": ("dense", "m.2"),
    "norm_hidden": ("norm", "m.3"),
    "out": ("dense", "m.6"),
}
LASTCONV = {
    "gate_norm": ("norm", "mod2d_gate.0"),
    "gate_hidden": ("conv", "mod2d_gate.1"),
    "gate_out": ("conv", "mod2d_gate.3"),
    "residual_norm": ("norm", "mod2d.0"),
    "residual_hidden": ("conv", "mod2d.1"),
    "residual_out": ("conv", "mod2d.3"),
}


def load(layer, table: dict, weights: dict[str, np.ndarray]) -> None:
    setters = {"dense": torch.set_dense, "norm": torch.set_norm, "conv": torch.set_conv}
    for part, (kind, name) in table.items():
        setters[kind](getattr(layer, part), weights, name)


def trained(layer, table: dict) -> list:
    return [entry for part, (kind, name) in table.items() for entry in torch.variables_of(getattr(layer, part), kind, name)]


def compare_statistics(fixture: Fixture, layer, table: dict, before: dict[str, np.ndarray], rows: int) -> None:
    for part, (kind, name) in table.items():
        if kind == "norm":
            norm = getattr(layer, part)
            fixture.compare(f"after.{name}.running_mean", norm.moving_mean.numpy(), rtol=1e-5, atol=1e-6)
            variance = torch.unbiased_variance(norm, before[f"{name}.running_var"], rows)
            fixture.compare(f"after.{name}.running_var", variance, rtol=1e-5, atol=1e-6, note="Keras' n brought to n - 1")


def build(name: str, image: np.ndarray, text: np.ndarray, **options):
    composer = COMPOSERS.get(name)(**options)
    composer(tf.constant(image), tf.constant(text), training=False)
    return composer


@checks(r"composer_(tirg|concat|tirg_lastconv)\.npz")
def composer(fixture: Fixture) -> None:
    name = fixture.path.stem.removeprefix("composer_")
    spatial = name == "tirg_lastconv"
    table = {"tirg": TIRG, "concat": CONCAT, "tirg_lastconv": LASTCONV}[name]
    weights = fixture.inputs_below("w.")
    key = "feature_map" if spatial else "image"
    image = fixture.input(key)
    image = image.transpose(0, 2, 3, 1) if spatial else image
    text = fixture.input("text")
    options = {} if name == "concat" else {"initial_scalars": weights["a"][:2].tolist()}
    layer = build(name, image, text, **({"dropout": 0.0} if name == "concat" else options))
    load(layer, table, weights)

    def forward(image, text, training):
        out = layer(image, text, training=training)
        if spatial:
            out = tf.reduce_mean(out, axis=(1, 2)) @ fc_kernel + fc_bias
        return out

    extra = []
    if spatial:
        fc_kernel = tf.Variable(weights["img_model.fc.0.weight"].T)
        fc_bias = tf.Variable(weights["img_model.fc.0.bias"])
        extra = [("img_model.fc.0.weight", fc_kernel, np.transpose), ("img_model.fc.0.bias", fc_bias, np.asarray)]
    if name != "concat":
        extra.append(("a", layer.scalars, lambda x: np.concatenate([x, [0.0, 0.0]])))
    for mode in ("eval", "train"):
        x, t = tf.constant(image), tf.constant(text)
        entries = trained(layer, table) + extra
        with tf.GradientTape() as tape:
            tape.watch([x, t])
            out = forward(x, t, mode == "train")
            total = tf.reduce_sum(out * fixture.input(f"{mode}.R"))
        variables = [v.value if hasattr(v, "value") and not isinstance(v, tf.Variable) else v for _, v, _ in entries]
        gradients = tape.gradient(total, [x, t, *variables])
        fixture.compare(f"{mode}.out", out, rtol=1e-5, atol=1e-5)
        dx = gradients[0].numpy()
        fixture.compare(f"{mode}.grad.{key}", dx.transpose(0, 3, 1, 2) if spatial else dx, rtol=1e-4, atol=1e-5)
        fixture.compare(f"{mode}.grad.text", gradients[1], rtol=1e-4, atol=1e-5)
        for (theirs, _, to_torch), gradient in zip(entries, gradients[2:], strict=True):
            if f"{mode}.grad.{theirs}" in fixture:
                atol = torch.gradient_atol(fixture.data[f"{mode}.grad.{theirs}"])
                fixture.compare(f"{mode}.grad.{theirs}", to_torch(gradient.numpy()), rtol=1e-4, atol=atol)
        if mode == "train":
            compare_statistics(fixture, layer, table, weights, int(np.prod(image.shape[:-1])))


@checks(r"composer_tirg_nashory\.npz")
def composer_tirg_nashory(fixture: Fixture) -> None:
    image, text, target = (fixture.input(key) for key in ("image", "text", "target"))
    w, weights = fixture.input("w"), fixture.inputs_below("w0.")
    layer = build("tirg_fiq2020", image, text, initial_scalars=w[:2].tolist())
    load(layer, TIRG_FIQ2020, weights)
    norm = ScaledL2Norm(float(fixture.input("norm_s")[0]))
    norm.build(image.shape)
    loss = LOSSES.get("batch_hard_triplet")()
    labels = np.arange(len(image))
    for mode in ("eval", "train"):
        x, t, y = tf.constant(image), tf.constant(text), tf.constant(target)
        entries = [
            *trained(layer, TIRG_FIQ2020),
            ("w", layer.scalars, lambda g: np.concatenate([g, [0.0, 0.0]])),
            ("norm_s", norm.scale, lambda g: g.reshape(1)),
        ]
        before = [v.numpy() for v in layer.non_trainable_variables]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, t, y])
            out = layer(x, t, training=mode == "train")
            query, gallery = norm(out), norm(y)
            value = loss(labels, {"query": query, "target": gallery})
            total = tf.reduce_sum(out * fixture.input(f"{mode}.R"))
        gradients = tape.gradient(value, [x, t, y, *(v.value for _, v, _ in entries)])
        fixture.compare(f"{mode}.composed", out, rtol=1e-5, atol=1e-5)
        fixture.compare(f"{mode}.normed", query, rtol=1e-5, atol=1e-5)
        fixture.compare(f"{mode}.normed_target", gallery, rtol=1e-5, atol=1e-5)
        fixture.compare(f"{mode}.loss", value, rtol=1e-5, atol=1e-5)
        names = ["image", "text", "target", *(theirs for theirs, _, _ in entries)]
        to_torch = [np.asarray, np.asarray, np.asarray, *(f for _, _, f in entries)]
        for theirs, gradient, convert in zip(names, gradients, to_torch, strict=True):
            atol = torch.gradient_atol(fixture.data[f"{mode}.dloss.{theirs}"])
            fixture.compare(f"{mode}.dloss.{theirs}", convert(gradient.numpy()), rtol=2e-4, atol=atol)
        direct = tape.gradient(total, [x, t])
        del tape
        fixture.compare(f"{mode}.grad.image", direct[0], rtol=2e-4, atol=1e-5)
        fixture.compare(f"{mode}.grad.text", direct[1], rtol=2e-4, atol=1e-5)
        if mode == "train":
            compare_statistics(fixture, layer, TIRG_FIQ2020, weights, len(image))
            for variable, value_before in zip(layer.non_trainable_variables, before, strict=True):
                variable.assign(value_before)
        gate, residual = layer.branches(x, t, training=mode == "train")
        fixture.compare(f"{mode}.gate_preact", gate, rtol=1e-5, atol=1e-5)
        fixture.compare(f"{mode}.residual", residual, rtol=1e-5, atol=1e-5)
