"""Losses of the originals and of tensorflow-addons."""

from __future__ import annotations

import re

import keras
import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.layers import ScaledL2Norm
from tf_fashion.losses import LOSSES
from tf_fashion.losses.base import pairwise_distances
from tf_fashion.losses.pairwise import contrastive_terms, npairs_rows


def value_and_gradients(function, *arrays):
    tensors = [tf.constant(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return value, [tf.convert_to_tensor(gradient) for gradient in tape.gradient(value, tensors)]


# The original's options behind each group of keys. `soft` there is the logarithm, with a margin of 30 that keeps it defined.
VARIANTS = {
    "default": {},
    "l2": {"squared": False},
    "l1": {"p": 1},
    "soft": {"soft": True, "legacy_log": True, "margin": 30.0},
}


@checks(r"losses_nashory\.npz")
def losses_nashory(fixture: Fixture) -> None:
    x1, x2 = fixture.input("x1"), fixture.input("x2")
    labels = np.arange(len(x1))
    for key in fixture.data:
        if not key.endswith(".loss") or key == "match.loss":
            continue
        group = key.removesuffix(".loss")
        margin = re.fullmatch(r"margin(\d)(\d*)", group)
        options = VARIANTS.get(group)
        if margin:
            options = {"margin": float(f"{margin[1]}.{margin[2] or 0}")}
        if options is None:
            fixture.not_covered(key, "unknown variant of the loss")
            continue
        loss = LOSSES.get("batch_hard_triplet")(**options)
        value, gradients = value_and_gradients(lambda q, t, loss=loss: loss(labels, {"query": q, "target": t}), x1, x2)
        fixture.compare(key, value, rtol=1e-5, atol=1e-6)
        fixture.compare(f"{group}.d1", gradients[0], rtol=1e-4, atol=1e-5)
        fixture.compare(f"{group}.d2", gradients[1], rtol=1e-4, atol=1e-5)
    both = tf.concat([x1, x2], 0)
    fixture.compare("sqdist", pairwise_distances(both, both, "squared_l2"), rtol=1e-5, atol=1e-5)

    query, target, embedding = (fixture.input(f"match.{k}") for k in ("query", "target", "embedding"))
    loss = LOSSES.get("match_embedding")()
    value, (dq, dt) = value_and_gradients(lambda q, t: loss(embedding, {"query": q, "target": t}), query, target)
    fixture.compare("match.loss", value, rtol=1e-5)
    fixture.compare("match.dquery", dq, rtol=1e-4, atol=1e-6)
    fixture.compare("match.dtarget", dt, rtol=1e-4, atol=1e-6)
    norm = ScaledL2Norm(4.0)
    norm.build(query.shape)
    with tf.GradientTape() as tape:
        value = loss(embedding, {"query": norm(query), "target": norm(target)})
    fixture.compare("match.dscale", np.reshape(tape.gradient(value, norm.scale.value), 1), atol=1e-6, note="zero up to rounding")

    x = tf.constant(fixture.input("norm.x"))
    norm = ScaledL2Norm(float(fixture.input("norm.s")))
    norm.build(x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = norm(x)
        total = tf.reduce_sum(out * fixture.input("norm.R"))
    dx, ds = tape.gradient(total, [x, norm.scale.value])
    fixture.compare("norm.out", out, rtol=1e-5)
    fixture.compare("norm.dx", dx, rtol=1e-4, atol=1e-6)
    fixture.compare("norm.ds", np.reshape(ds, 1), rtol=1e-4)


@checks(r"losses_tirg\.npz")
def losses_tirg(fixture: Fixture) -> None:
    x1, x2, triplets = fixture.input("x1"), fixture.input("x2"), fixture.input("triplets")
    for key, prefix, legacy in (("true_loss", "true_grad", False), ("soft_triplet_loss", "original_grad", True)):
        loss = LOSSES.get("soft_triplet")(legacy_half_gradient=legacy)
        value, gradients = value_and_gradients(lambda a, b, loss=loss: loss.from_triplets(tf.concat([a, b], 0), triplets), x1, x2)
        fixture.compare(key, np.reshape(value, fixture.data[key].shape), rtol=1e-5)
        fixture.compare(f"{prefix}_x1", gradients[0], rtol=1e-4, atol=1e-6)
        fixture.compare(f"{prefix}_x2", gradients[1], rtol=1e-4, atol=1e-6)
    labels = np.arange(len(x1))
    scale = float(fixture.input("norm_s"))
    for chunk in (None, 2):
        loss = LOSSES.get("batch_classification")(chunk_size=chunk)
        note = f"chunks of {chunk}" if chunk else ""
        value, (d1, d2) = value_and_gradients(lambda a, b, loss=loss: loss(labels, {"query": a, "target": b}), x1, x2)
        fixture.compare("batch_classification_loss", value, rtol=1e-5, note=note)
        fixture.compare("bc_grad_x1", d1, rtol=1e-4, atol=1e-6, note=note)
        fixture.compare("bc_grad_x2", d2, rtol=1e-4, atol=1e-6, note=note)
        norm = ScaledL2Norm(scale)
        norm.build(x1.shape)
        a, b = tf.constant(x1), tf.constant(x2)
        with tf.GradientTape() as tape:
            tape.watch([a, b])
            value = loss(labels, {"query": norm(a), "target": norm(b)})
        d1, d2, ds = tape.gradient(value, [a, b, norm.scale.value])
        fixture.compare("normed_bc_loss", value, rtol=1e-5, note=note)
        fixture.compare("normed_bc_grad_x1", d1, rtol=1e-4, atol=1e-6, note=note)
        fixture.compare("normed_bc_grad_x2", d2, rtol=1e-4, atol=1e-6, note=note)
        fixture.compare("normed_bc_grad_s", np.reshape(ds, 1), rtol=1e-4, atol=1e-6, note=note)


_NUMBER = r"(\d*\.?\d+)"


@checks(r"metric_learning\.npz")
def metric_learning(fixture: Fixture) -> None:
    unit, labels = fixture.input("embeddings_l2"), fixture.input("labels")
    fixture.compare("embeddings_l2", tf.math.l2_normalize(fixture.input("embeddings"), 1), atol=1e-6, note="inputs are consistent")

    def both(name: str, function, array) -> None:
        value, (gradient,) = value_and_gradients(function, array)
        fixture.compare(f"{name}_loss", value, rtol=1e-5, atol=1e-5)
        fixture.compare(f"{name}_grad", gradient, rtol=0.0, atol=1e-5)

    for key in fixture.data:
        name = key.removesuffix("_loss")
        if name != key:
            if match := re.fullmatch(rf"triplet_semihard_(l2|squared_l2|angular)_m{_NUMBER}", name):
                loss = LOSSES.get("triplet_semihard")(margin=float(match[2]), distance=match[1])
                both(name, lambda x, loss=loss: loss(labels, x), unit)
            elif match := re.fullmatch(rf"triplet_hard_(l2|squared_l2|angular)_m{_NUMBER}", name):
                loss = LOSSES.get("triplet_hard")(margin=float(match[2]), distance=match[1])
                both(name, lambda x, loss=loss: loss(labels, x), unit)
            elif match := re.fullmatch(r"triplet_hard_soft_(l2|squared_l2|angular)", name):
                loss = LOSSES.get("triplet_hard")(soft=True, distance=match[1])
                both(name, lambda x, loss=loss: loss(labels, x), unit)
            elif match := re.fullmatch(rf"lifted_struct_m{_NUMBER}", name):
                loss = LOSSES.get("lifted_structure")(margin=float(match[1]))
                both(name, lambda x, loss=loss: loss(labels, x), unit)
            elif name == "npairs":
                same = fixture.input("npairs_labels")[:, None] == fixture.input("npairs_labels")[None, :]
                both(name, lambda x, same=same: tf.reduce_mean(npairs_rows(x, same)), fixture.input("npairs_similarities"))
            elif match := re.fullmatch(rf"contrastive_m{_NUMBER}", name):
                same, margin = fixture.input("contrastive_same"), float(match[1])
                both(
                    name,
                    lambda d, same=same, margin=margin: tf.reduce_mean(contrastive_terms(same, d, margin)),
                    fixture.input("contrastive_distance"),
                )
            elif match := re.fullmatch(rf"sigmoid_focal_a{_NUMBER}_g{_NUMBER}", name):
                _focal(fixture, name, float(match[1]), float(match[2]))
        elif match := re.fullmatch(rf"f1_(None|micro|macro|weighted)_t{_NUMBER}", key):
            average = None if match[1] == "None" else match[1]
            metric = keras.metrics.F1Score(average=average, threshold=float(match[2]))
            metric.update_state(fixture.input("multilabel_true"), fixture.input("multilabel_prob"))
            fixture.compare(key, metric.result(), rtol=1e-5, note="keras.metrics.F1Score")
        elif match := re.fullmatch(rf"hamming_multilabel_t{_NUMBER}", key):
            metric = keras.metrics.BinaryAccuracy(threshold=float(match[1]))
            metric.update_state(fixture.input("multilabel_true"), fixture.input("multilabel_prob"))
            fixture.compare(key, 1.0 - metric.result().numpy(), rtol=1e-5, note="1 - keras.metrics.BinaryAccuracy")


def _focal(fixture: Fixture, name: str, alpha: float, gamma: float) -> None:
    truth = fixture.input("multilabel_true")
    clipped = np.clip(fixture.input("multilabel_prob"), 0.01, 0.99)
    # Keras means over the classes where tensorflow-addons sums.
    focal = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, alpha=alpha, gamma=gamma)
    value, (gradient,) = value_and_gradients(lambda p: focal(truth, p) * truth.shape[1], clipped)
    note = "keras.losses.BinaryFocalCrossentropy x classes"
    fixture.compare(f"{name}_loss", value, rtol=1e-5, atol=1e-5, note=note)
    fixture.compare(f"{name}_grad", gradient, rtol=1e-5, atol=1e-5, note=note)
