"""UDMA's miner and loss as pytorch-metric-learning has them, and its linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.layers import l2_normalize
from tf_fashion.losses.mined_triplet import (
    Hardest,
    MinedTriplet,
    hardest,
    mining_distances,
    multi_similarity_pairs,
    triplets_of_pairs,
)
from tf_fashion.models import DomainAdapter

VARIANTS: dict[str, dict[str, Any]] = {
    "swap": {"swap": True},
    "smooth": {"smooth": True},
    "power2": {"power": 2.0},
    "mean_all": {"average": "all"},
    "nonorm": {"normalize": False},
}
ORIGINAL = {"original_fallback": True, "original_pairing": True}


def mined(unit: tf.Tensor, labels: np.ndarray, original_fallback: bool = True) -> tuple[tf.Tensor, Hardest]:
    """Distances of a labelled set, and its hardest triplets."""
    own = tf.eye(len(labels), dtype=tf.bool)
    same = tf.constant(labels[:, None] == labels[None])
    distances = mining_distances(unit, unit, own)
    return distances, hardest(distances, same & ~own, ~same, original_fallback=original_fallback)


def loss_and_gradient(loss: Any, labels: np.ndarray, embeddings: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    x = tf.constant(embeddings)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, x)
    return value, tf.convert_to_tensor(tape.gradient(value, x))


def as_triplets(found: Hardest) -> tf.Tensor:
    return tf.stack([tf.range(len(found.positive)), found.positive, found.negative], axis=1)


@checks(r"mlp_loss_miner\.npz")
def mlp_loss_miner(fixture: Fixture) -> None:
    for part in sorted({key.split("/")[0] for key in fixture.data if key.endswith("/pairwise_dist")}):
        _block(fixture, part)
    embeddings, labels = fixture.input("basic/embeddings"), fixture.input("basic/labels")
    for part in sorted({key.split("/")[0] for key in fixture.data if key.startswith("variant_")}):
        name = part.removeprefix("variant_")
        options = {"margin": float(name.removeprefix("margin"))} if name.startswith("margin") else VARIANTS[name]
        value, gradient = loss_and_gradient(MinedTriplet(**options, **ORIGINAL), labels, embeddings)
        fixture.compare(f"{part}/loss", value, rtol=1e-5)
        fixture.compare(f"{part}/grad_embeddings", gradient, rtol=0, atol=1e-6)
    _multi_similarity(fixture, embeddings, labels)
    _linear_layer(fixture)
    _full_width(fixture)


def _block(fixture: Fixture, part: str) -> None:
    embeddings, labels = fixture.input(f"{part}/embeddings"), fixture.input(f"{part}/labels")
    unit = l2_normalize(tf.constant(embeddings))
    distances, found = mined(unit, labels)
    # The root of a small square has fewer digits.
    fixture.compare(f"{part}/pairwise_dist", distances, rtol=1e-6, atol=2e-5)
    fixture.exact(f"{part}/anchor", np.arange(len(labels)))
    fixture.exact(f"{part}/positive", found.positive)
    fixture.exact(f"{part}/negative", found.negative)
    fixture.compare(f"{part}/hardest_pos_pair_dist", tf.reduce_max(found.positive_distance), atol=1e-5)
    fixture.compare(f"{part}/hardest_neg_pair_dist", tf.reduce_min(found.negative_distance), atol=1e-5)
    gap = tf.reduce_max(found.positive_distance - found.negative_distance)
    fixture.compare(f"{part}/hardest_triplet_dist", gap, atol=1e-5)
    fixture.compare(f"{part}/avg_embedding_norm", tf.reduce_mean(tf.norm(unit, axis=1)), rtol=1e-6)
    loss = MinedTriplet(**ORIGINAL)
    value, gradient = loss_and_gradient(loss, labels, embeddings)
    fixture.compare(f"{part}/loss", value, rtol=1e-5)
    fixture.compare(f"{part}/grad_embeddings", gradient, rtol=0, atol=1e-6)
    rows = [tf.gather(unit, column) for column in (tf.range(len(labels)), found.positive, found.negative)]
    fixture.exact(f"{part}/num_non_zero_triplets", np.sum(loss.triplet_losses(*rows).numpy() > 0))
    fixture.compare(f"{part}/loss", loss.of_categories(labels[None].astype(np.int64), embeddings[None]), note="as one category")
    fixture.compare(f"{part}/loss", loss.from_triplets(tf.constant(embeddings), as_triplets(found)), note="of its triplets")


def _multi_similarity(fixture: Fixture, embeddings: np.ndarray, labels: np.ndarray) -> None:
    part = "multi_similarity_miner"
    unit = l2_normalize(tf.constant(embeddings))
    own, same = tf.eye(len(labels), dtype=tf.bool), tf.constant(labels[:, None] == labels[None])
    pairs = multi_similarity_pairs(tf.matmul(unit, unit, transpose_b=True), same & ~own, ~same, 0.1)
    for columns, found in zip((("a1", "p"), ("a2", "n")), pairs, strict=True):
        for place, column in enumerate(columns):
            fixture.exact(f"{part}/{column}", found[:, place])
    loss = MinedTriplet(miner="multi_similarity", **ORIGINAL)
    value, gradient = loss_and_gradient(loss, labels, embeddings)
    fixture.compare(f"{part}/triplet_loss", value, rtol=1e-5)
    fixture.compare(f"{part}/grad_embeddings", gradient, rtol=0, atol=1e-6)
    triplets = triplets_of_pairs(*pairs, len(labels), original_pairing=True)
    fixture.compare(f"{part}/triplet_loss", loss.from_triplets(tf.constant(embeddings), triplets), note="of its triplets")


def _linear_layer(fixture: Fixture) -> None:
    weight, bias, x, labels = (fixture.input(f"mlp/{key}") for key in ("fc.weight", "fc.bias", "x", "labels"))
    model = DomainAdapter(feature_dim=x.shape[1], dim=len(bias))
    model.set_linear(weight, bias)
    loss = MinedTriplet(**ORIGINAL)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = model({"features": x}, training=True)
        value = loss(labels, out)
    kernel, shift, inputs = tape.gradient(value, [model.fc.kernel.value, model.fc.bias.value, x])
    fixture.compare("mlp/pre_norm", model.project(x), rtol=1e-5)
    fixture.compare("mlp/out", out, rtol=0)
    fixture.compare("mlp/loss", value, rtol=1e-5)
    fixture.compare("mlp/grad_fc.weight", tf.transpose(kernel), rtol=0)
    fixture.compare("mlp/grad_fc.bias", shift, rtol=0)
    fixture.compare("mlp/grad_x", inputs, rtol=0)
    _, found = mined(l2_normalize(out), labels)
    fixture.exact("mlp/anchor", np.arange(len(labels)))
    fixture.exact("mlp/positive", found.positive)
    fixture.exact("mlp/negative", found.negative)


def _full_width(fixture: Fixture) -> None:
    rows, width = fixture.data["mlp2048/out"].shape
    random = np.random.RandomState(int(fixture.input("mlp2048/recipe_seed")))
    weight = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    bias = (0.02 * random.standard_normal(width)).astype(np.float32)
    x = random.uniform(0, 1, (rows, width)).astype(np.float32)
    for name, value in (("W", weight), ("b", bias), ("x", x)):
        fixture.exact(f"mlp2048/{name}_first8", value.ravel()[:8], note="recipe")
    fixture.compare("mlp2048/W_sum", weight.astype(np.float64).sum(), rtol=1e-6, atol=1e-3, note="recipe")
    model = DomainAdapter(feature_dim=width)
    model.set_linear(weight, bias)
    fixture.compare("mlp2048/pre_norm", model.project(x), rtol=1e-5, atol=1e-5)
    fixture.compare("mlp2048/out", model({"features": x}), rtol=0)
