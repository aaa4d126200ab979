"""Pictures that stand for a concept: the nearest ones of a pool, and among them a diverse few (FashionKLIP, ACL 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.search import Precision, top_k, unit_rows

# 512 concepts with 20 candidates of 512 numbers are 40 MB in double precision.
CONCEPT_BLOCK = 512


def nearest_images(concepts: Any, images: Any, count: int = 20, precision: Precision = "float32") -> tuple[np.ndarray, np.ndarray]:
    """The nearest pictures of every concept by inner product, exactly and in blocks.

    Args:
        concepts: Floats `(concepts, dim)`, unit vectors of the prompts.
        images: Floats `(images, dim)`, unit vectors of the pool; may be memory-mapped.
        count: How many per concept; fewer where the pool is smaller.
        precision: As in `search.top_k`.

    Returns:
        Positions in the pool, int64 `(concepts, min(count, images))`, best first and ties in the pool's order, and their products,
        float32.

    Raises:
        UsageError: count below 1, or shapes that do not fit.
        DataError: NaN or infinity in the vectors, or an empty pool.
    """
    if not len(images):
        raise DataError("The pool of concept images is empty: expected at least one image vector.")
    scores, positions = top_k(concepts, images, min(count, len(images)) if count > 0 else count, precision=precision)
    return positions, scores


def diverse_order(relevance: np.ndarray, likeness: np.ndarray, count: int, diversity: float = 0.8) -> np.ndarray:
    """Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998) for many queries at once.

    The first is the most relevant candidate; each further one maximises
    `(1 - diversity) relevance - diversity * (greatest likeness to those chosen)`. Of equal candidates the first wins.

    Args:
        relevance: Floats `(n, k)`: of every candidate to its query.
        likeness: Floats `(n, k, k)`: of the candidates to each other.
        count: How many to choose; at most k are.
        diversity: In [0, 1].

    Returns:
        Columns int64 `(n, min(count, k))` in the order of their choice.
    """
    rows = np.arange(len(relevance))
    free = np.ones(relevance.shape, dtype=bool)
    closest = np.zeros_like(relevance)
    gains = relevance
    chosen: list[np.ndarray] = []
    for _ in range(min(count, relevance.shape[1])):
        column = np.argmax(np.where(free, gains, -np.inf), axis=1)
        free[rows, column] = False
        closest = np.maximum(closest, likeness[rows, column]) if chosen else likeness[rows, column]
        gains = (1.0 - diversity) * relevance - diversity * closest
        chosen.append(column)
    return np.stack(chosen, axis=1).astype(np.int64)


def select_prototypes(
    concepts: Any,
    images: Any,
    count: int = 10,
    candidates: int = 20,
    diversity: float = 0.8,
    precision: Precision = "float32",
) -> np.ndarray:
    """The prototypes of every concept: `count` diverse ones (`diverse_order`, by cosines) of its `candidates` nearest pictures.

    Args:
        concepts, images, precision: As in `nearest_images`.
        count: Prototypes per concept.
        candidates: Pictures that they are chosen from, at least `count`.
        diversity: In [0, 1]; 0 chooses the nearest, 1 the most different ones.

    Returns:
        Positions in the pool, int64 `(concepts, count)` in the order of their choice, -1 at the end where the pool is too small.

    Raises:
        UsageError, DataError: as `nearest_images`; also `candidates < count`, or `diversity` outside [0, 1].
    """
    if not 1 <= count <= candidates or not 0.0 <= diversity <= 1.0:
        raise UsageError(
            f"select_prototypes: expected 1 <= count <= candidates and diversity in [0, 1]; found count {count}, candidates "
            f"{candidates}, diversity {diversity}."
        )
    nearest, _ = nearest_images(concepts, images, candidates, precision)
    prototypes = np.full((len(nearest), count), -1, np.int64)
    for start in range(0, len(nearest), CONCEPT_BLOCK):
        positions = nearest[start : start + CONCEPT_BLOCK]
        pictures = unit_rows(np.asarray(images)[positions].astype(np.float64))
        wanted = unit_rows(np.asarray(concepts)[start : start + CONCEPT_BLOCK].astype(np.float64))
        # Rounded from double precision, equal pictures have equal cosines.
        relevance = (pictures @ wanted[:, :, None])[:, :, 0].astype(np.float32)
        likeness = (pictures @ pictures.transpose(0, 2, 1)).astype(np.float32)
        order = diverse_order(relevance, likeness, count, diversity)
        prototypes[start : start + CONCEPT_BLOCK, : order.shape[1]] = np.take_along_axis(positions, order, axis=1)
    return prototypes


class ConceptPrototypes:
    """The current prototypes of a vocabulary of concepts, for training steps and `tf.data` alike.

    They begin as zeros; `update` chooses them, and functions that have been traced before see the new ones. Every picture is
    kept once, however many concepts it stands for.

    Args:
        concept_ids: Integers `(concepts,)`, >= 0 and all different, in any order.
        dim: Width of the vectors.
        count: Prototypes per concept.

    Attributes:
        ids: The concepts' ids, int64 `(concepts,)`.
        positions: Where each concept's prototypes stand in the last pool, int64 `(concepts, count)`, -1 for none.

    Raises:
        UsageError: ids are negative, repeated or no integers, or there are none.
    """

    def __init__(self, concept_ids: Any, dim: int, count: int = 10) -> None:
        ids = np.asarray(concept_ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise UsageError(f"ConceptPrototypes: expected whole numbers (concepts,) as ids, found {ids.dtype} {ids.shape}.")
        self.ids = ids.astype(np.int64)
        self.dim = dim
        self.count = count
        order = np.argsort(self.ids, kind="stable")
        ordered = self.ids[order]
        if ordered[0] < 0 or (ordered[1:] == ordered[:-1]).any():
            raise UsageError("ConceptPrototypes: ids must be different and not negative (-1 stands for padding).")
        self.positions = np.full((len(ids), count), -1, np.int64)
        self._ordered = tf.constant(ordered)
        self._rows = tf.constant(order + 1)
        # Row 0 of both is padding: a concept without prototypes, and a picture of zeros.
        self._places = tf.Variable(tf.zeros((len(ids) + 1, count), tf.int64), trainable=False)
        self._pictures = tf.Variable(tf.zeros((1, dim)), shape=(None, dim), trainable=False)

    def update(
        self, concepts: Any, images: Any, candidates: int = 20, diversity: float = 0.8, precision: Precision = "float32"
    ) -> np.ndarray:
        """Chooses the prototypes anew.

        Args:
            concepts: Floats `(concepts, dim)`, unit vectors in the order of `ids`.
            images, candidates, diversity, precision: As in `select_prototypes`.

        Returns:
            `positions`.

        Raises:
            UsageError, DataError: as `select_prototypes`; also for another number of concepts or another width.
        """
        shape = tuple(np.shape(concepts))
        if shape != (len(self.ids), self.dim):
            raise UsageError(f"ConceptPrototypes: expected concept vectors {(len(self.ids), self.dim)}, found {shape}.")
        self.positions = select_prototypes(concepts, images, self.count, candidates, diversity, precision)
        used, places = np.unique(self.positions, return_inverse=True)
        # Where some positions are -1, they come first and take row 0; else row 0 is nobody's.
        padded = int(used[0] < 0)
        pictures = np.asarray(images)[used[padded:]].astype(np.float32)
        self._pictures.assign(np.concatenate([np.zeros((1, self.dim), np.float32), pictures]))
        places = places.reshape(self.positions.shape) + (1 - padded)
        self._places.assign(np.concatenate([np.zeros((1, self.count), np.int64), places.astype(np.int64)]))
        return self.positions

    def gather(self, ids: Any) -> tf.Tensor:
        """Prototypes of some concepts, inside or outside a graph.

        Args:
            ids: Integers of any shape `(...)`; -1, or any other number that is no concept, for padding.

        Returns:
            float32 `(..., count, dim)`, zeros for padding and for prototypes that the pool was too small for.
        """
        ids = tf.cast(tf.convert_to_tensor(ids), tf.int64)
        flat = tf.reshape(ids, (-1,))
        place = tf.minimum(tf.searchsorted(self._ordered, flat), len(self.ids) - 1)
        found = tf.gather(self._ordered, place) == flat
        rows = tf.where(found, tf.gather(self._rows, place), 0)
        vectors = tf.gather(self._pictures, tf.gather(self._places, tf.reshape(rows, tf.shape(ids))))
        return tf.ensure_shape(vectors, (*ids.shape, self.count, self.dim))
