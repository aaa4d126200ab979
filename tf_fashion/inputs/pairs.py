"""Batches of pictures with their texts, for models with two towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource, planned_batches

# What makes two pairs belong together.
SAME = ("phrases", "text", "none")


@dataclass(frozen=True)
class PairTable:
    """Training pairs as columns of equal length.

    Attributes:
        images: Image ids.
        tokens: int32 `(n, steps)`: token ids of the texts.
        labels: int64 `(n,)`: pairs with equal labels belong together, so that they are not each other's negatives.
        concepts: int32 `(n, slots)`: rows of the prototypes, -1 for none; None without concepts.
        prompts: int32 `(n, slots)`: rows of `prompt_tokens`.
        prompt_tokens: int32 `(prompts, steps)`: token ids of the concepts' prompts.
    """

    images: list[str]
    tokens: np.ndarray
    labels: np.ndarray
    concepts: np.ndarray | None = None
    prompts: np.ndarray | None = None
    prompt_tokens: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


def pair_labels(images: Sequence[str], texts: Sequence[str], phrases: Sequence[Sequence[str]], same: str = "phrases") -> np.ndarray:
    """Which pairs belong together.

    Pairs of one picture or of one text (without case and spaces around) always do; "none" leaves every pair alone, as the originals
    do.

    Args:
        images: Image id of each pair.
        texts: Text of each pair.
        phrases: Phrases of each pair.
        same: "phrases": pairs with equal sets of phrases too, if these are not empty; "text"; or "none".

    Returns:
        int64 `(n,)`.

    Raises:
        UsageError: unknown `same`.
    """
    if same not in SAME:
        raise UsageError(f"--same-pairs: expected one of {', '.join(SAME)}; found {same!r}.")
    if same == "none":
        return np.arange(len(images), dtype=np.int64)
    # Union of all pairs that share one of their keys.
    parent = list(range(len(images)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, object], int] = {}
    for number, (image, text, found) in enumerate(zip(images, texts, phrases, strict=True)):
        keys: list[tuple[str, object]] = [("image", image), ("text", text.strip().lower())]
        if same == "phrases" and found:
            keys.append(("phrases", frozenset(found)))
        for key in keys:
            parent[root(number)] = root(first.setdefault(key, number))
    return np.array([root(i) for i in range(len(parent))], dtype=np.int64)


def pair_batches(
    table: PairTable,
    source: FeatureSource | PhotoSource,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    seed: int = 0,
    steps_per_epoch: int | None = None,
) -> tuple[tf.data.Dataset, int]:
    """Batches of all epochs, one after the other, for `model.fit(..., steps_per_epoch=steps)`.

    Args:
        table: The pairs.
        source: Where pictures or their features come from.
        batch_size: Pairs per (global) batch; the rest of an epoch that fills no batch is left out of that epoch.
        epochs, initial_epoch: The epochs `initial_epoch <= e < epochs` are produced.
        seed: Decides orders and augmentations.
        steps_per_epoch: Batches per epoch; default all full ones.

    Returns:
        Dataset of `(inputs, labels)` as `DualEncoder` takes them, and the number of steps per epoch.

    Raises:
        DataError: there are no pairs.
        UsageError: fewer pairs than one batch needs.
    """
    columns = {"image": source.rows(table.images), "text": table.tokens, "label": table.labels}
    if table.concepts is not None:
        columns |= {"concepts": table.concepts, "prompts": np.asarray(table.prompts)}
    with tf.device("CPU:0"):
        fixed = {name: tf.constant(column) for name, column in columns.items()}
        prompt_tokens = None if table.prompt_tokens is None else tf.constant(table.prompt_tokens)
    gather = source.gatherer()

    def batch(rows: tf.Tensor, seeds: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        chosen = {name: tf.gather(column, rows) for name, column in fixed.items()}
        inputs = {source.key: gather(chosen["image"], seeds), "text": chosen["text"]}
        if prompt_tokens is not None:
            inputs |= {"concept_ids": chosen["concepts"], "concept_prompts": chosen["prompts"]}
            inputs["concept_text"] = tf.gather(prompt_tokens, chosen["prompts"])
        return inputs, chosen["label"]

    return planned_batches(len(table), "pairs", batch_size, epochs, initial_epoch, seed, steps_per_epoch, batch)
