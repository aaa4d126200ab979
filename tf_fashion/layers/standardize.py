"""Standardisation of vectors by the mean and deviation of each of their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.layers.normalization import _Float32Layer

_BLOCK = 4096
# A column whose deviation is below this share of its largest size varies by float32's rounding alone.
_CONSTANT = 1e-6


@keras.saving.register_keras_serializable("tf_fashion")
class Standardize(_Float32Layer):
    """`(x - mean) * factor`, value by value. Nothing is trained; `adapt` sets mean and factor, which start as 0 and 1.

    Call arguments:
        x: Floating `(..., dim)`.

    Returns:
        float32 `(..., dim)`.
    """

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        self.mean = self.add_weight(name="mean", shape=(width,), initializer="zeros", trainable=False, dtype="float32")
        self.factor = self.add_weight(name="factor", shape=(width,), initializer="ones", trainable=False, dtype="float32")
        self.built = True

    def adapt(
        self, features: Any, widths: Sequence[int] | None = None, weights: Sequence[float] | None = None, length: float = 8.0
    ) -> None:
        """Takes mean and deviation from rows, in float64.

        A value's factor is the weight of its block over its deviation and the square root of the block's width, so that blocks count by
        their weights and not by their widths; and a common one, so that the root mean square length of these rows is `length`. Columns
        that do not vary get factor 0.

        Args:
            features: Floating `(rows, dim)`; memory maps are read in blocks of rows.
            widths: Sizes of the blocks of columns, in order (`ImageEncoder.block_widths`); default one block.
            weights: Of the blocks, at least 0; default 1 each.
            length: Root mean square length of the result.

        Raises:
            UsageError: features of another shape, blocks that do not fill the columns, or weights or a length that are none.
            DataError: values that are not finite, or rows that are all the same.
        """
        if getattr(features, "ndim", 0) != 2 or (self.built and features.shape[1] != self.mean.shape[0]):
            expected = f"(rows, {self.mean.shape[0]})" if self.built else "(rows, dim)"
            raise UsageError(f"Standardize.adapt: expected features {expected}, found {getattr(features, 'shape', type(features))}.")
        width = int(features.shape[1])
        sizes = [width] if widths is None else [int(size) for size in widths]
        trust = [1.0] * len(sizes) if weights is None else [float(weight) for weight in weights]
        if sum(sizes) != width or min(sizes, default=0) < 1:
            raise UsageError(f"Standardize.adapt(widths=...): expected sizes with the sum {width}, found {sizes}.")
        if len(trust) != len(sizes) or not all(0 <= weight < math.inf for weight in trust) or not any(trust):
            raise UsageError(
                f"Standardize.adapt(weights=...): expected {len(sizes)} numbers of at least 0, one of them above; found {trust}."
            )
        if not 0 < length < math.inf:
            raise UsageError(f"Standardize.adapt(length=...): expected a number above 0, found {length!r}.")
        mean, deviation = moments(features)
        of_column = np.repeat(np.asarray(trust) / np.sqrt(sizes), sizes)
        factor = np.divide(of_column, deviation, out=np.zeros(width), where=deviation > 0)
        squared = float(np.square(factor * deviation).sum())
        if not squared:
            raise DataError(f"The {len(features)} rows of features do not differ in any column that counts. Give other photos.")
        if not self.built:
            self.build((None, width))
        self.mean.assign(mean.astype(np.float32))
        self.factor.assign((factor * (length / math.sqrt(squared))).astype(np.float32))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return tuple(input_shape)

    def call(self, x: Any) -> Any:
        return (ops.cast(x, "float32") - self.mean) * self.factor


def float64_blocks(features: Any) -> Iterator[np.ndarray]:
    """The rows `(rows, dim)` as float64, a block at a time.

    Raises:
        DataError: values that are not finite.
    """
    for at in range(0, len(features), _BLOCK):
        block = np.asarray(features[at : at + _BLOCK], np.float64)
        if not np.isfinite(block).all():
            row = at + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise DataError(f"Row {row} of the features has values that are not finite. Compute it anew, or leave it out.")
        yield block


def moments(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (with n in the denominator) of the columns, float64 `(dim,)`; exactly 0 for columns that do not vary.

    Raises:
        DataError: values that are not finite, or no rows.
    """
    count, width = features.shape
    if not count:
        raise DataError("There are no rows of features.")
    mean, squares, largest = np.zeros(width), np.zeros(width), np.zeros(width)
    for block in float64_blocks(features):
        mean += block.sum(axis=0)
        largest = np.maximum(largest, np.abs(block).max(axis=0))
    mean /= count
    # A second pass over the rows, since the difference of two large sums would lose all digits.
    for block in float64_blocks(features):
        squares += np.square(block - mean).sum(axis=0)
    deviation = np.sqrt(squares / count)
    return mean, np.where(deviation > _CONSTANT * largest, deviation, 0.0)
