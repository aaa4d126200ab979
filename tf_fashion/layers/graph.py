"""Graphs among many examples, and convolutions on them (Kipf & Welling, ICLR 2017; as in RTIC-GCN)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError

LAYOUTS = ("auto", "bits", "sparse")

# Below this share of neighbours TensorFlow's sparse product is the cheaper one.
SPARSE_BELOW = 0.02

# Zeros and ones unpacked at a time, as float32.
UNPACKED_ELEMENTS = 2**24

_BIT_MASKS = np.array([128, 64, 32, 16, 8, 4, 2, 1], dtype=np.uint8)


class Adjacency:
    """Who neighbours whom among N nodes, and products with the normalised form of it.

    With Z the 0/1 matrix of neighbours (ones on the diagonal), the rows of Z - I scaled to sum 1, and
    `P = tau (Z - I) + I`: the normalised form is `A = D^-1/2 P^T D^-1/2`, D holding the row sums of P. A node without neighbours
    has a 1 on A's diagonal. A is never stored. Z is, with one bit per entry: 40 MB for 18,000 nodes, where the float matrix takes
    1.3 GB, and so does a list of non-zero entries at the density of a fifth that RTIC-GCN uses.

    Args:
        bits: uint8 `(N, ceil(N / 8))`: the rows of Z through `numpy.packbits`.
        tau: Weight of all neighbours together against the node itself, at least 0.
        layout: How products are formed: "bits" unpacks blocks of rows and multiplies densely; "sparse" keeps A as a `tf.SparseTensor`
            too (20 bytes per non-zero entry); "auto" takes "sparse" below a density of 0.02.

    Raises:
        UsageError: shape, tau or layout do not fit, or the diagonal has zeros.
    """

    def __init__(self, bits: np.ndarray, tau: float, layout: str = "auto") -> None:
        bits = np.ascontiguousarray(bits)
        nodes = bits.shape[0]
        if bits.dtype != np.uint8 or bits.shape != (nodes, (nodes + 7) // 8):
            raise UsageError(
                f"Adjacency(bits=...): expected uint8 of shape (N, ceil(N / 8)), found {bits.dtype} {bits.shape}. "
                "numpy.packbits(matrix, axis=1) makes it from a square boolean matrix."
            )
        if tau < 0.0:
            raise UsageError(f"Adjacency(tau=...): expected a number of at least 0, found {tau!r}.")
        if layout not in LAYOUTS:
            raise UsageError(f"Adjacency(layout=...): expected one of {', '.join(LAYOUTS)}; found {layout!r}.")
        places = np.arange(nodes)
        if not (bits[places, places // 8] & _BIT_MASKS[places % 8]).all():
            raise UsageError("Adjacency: every node must be its own neighbour (ones on the diagonal).")
        degrees = np.bitwise_count(bits).sum(axis=1, dtype=np.int64) if hasattr(np, "bitwise_count") else _degrees(bits)
        others = degrees - 1
        self.nodes = nodes
        self.tau = float(tau)
        self.density = float(degrees.sum() / nodes**2)
        self.layout = layout if layout != "auto" else "sparse" if self.density < SPARSE_BELOW else "bits"
        self._bits = tf.constant(bits)
        self._share = np.where(others > 0, 1.0 / np.maximum(others, 1), 0.0)  # 1 / row sum of Z - I
        self._scale = 1.0 / np.sqrt(1.0 + self.tau * (others > 0))  # D^-1/2
        self._sparse = self.sparse() if self.layout == "sparse" else None

    @property
    def bits(self) -> np.ndarray:
        """uint8 `(N, ceil(N / 8))`: the rows of Z through `numpy.packbits`."""
        return self._bits.numpy()

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, tau: float, layout: str = "auto") -> Adjacency:
        """From a square matrix whose non-zero entries are neighbours, for graphs small enough to have one."""
        return cls(np.packbits(np.asarray(matrix) != 0, axis=1), tau, layout)

    def neighbours(self, rows: Any) -> tf.Tensor:
        """Rows of Z.

        Args:
            rows: Integer tensor `(batch,)`, values in [0, N).

        Returns:
            float32 `(batch, N)` of zeros and ones.
        """
        return self._unpack(tf.gather(self._bits, rows))

    def _unpack(self, bits: Any) -> tf.Tensor:
        ones = tf.not_equal(tf.bitwise.bitwise_and(bits[:, :, None], tf.constant(_BIT_MASKS)), 0)
        return tf.cast(tf.reshape(ones, (tf.shape(bits)[0], 8 * bits.shape[1]))[:, : self.nodes], tf.float32)

    def sparse(self) -> tf.SparseTensor:
        """A as a float32 `tf.SparseTensor` `(N, N)`."""
        rows, columns = [], []
        step = max(UNPACKED_ELEMENTS // self.nodes, 1)
        bits = self._bits.numpy()
        for start in range(0, self.nodes, step):
            block = np.unpackbits(bits[start : start + step], axis=1, count=self.nodes)
            row, column = np.nonzero(block)
            rows.append(row + start)
            columns.append(column)
        row, column = np.concatenate(rows), np.concatenate(columns)
        # A is the transpose of what Z's rows hold.
        value = self._scale[row] * self._scale[column] * np.where(row == column, 1.0, self.tau * self._share[row])
        indices = np.stack([column, row], axis=1)
        return tf.sparse.reorder(tf.SparseTensor(indices, value.astype(np.float32), (self.nodes, self.nodes)))

    def matmul(self, x: Any) -> tf.Tensor:
        """`A x` for float32 `(N, width)`, with gradients for x."""
        if self._sparse is not None:
            return self._sparse_product(x)
        scale = tf.constant(self._scale[:, None], tf.float32)
        own = scale * x
        passed = tf.constant(self._share[:, None], tf.float32) * own
        return scale * (self.tau * (self._product(passed) - passed) + own)

    def _sparse_product(self, x: Any) -> tf.Tensor:
        # TensorFlow's own gradient also forms the one of A's entries: (non-zero entries, width) numbers.
        @tf.custom_gradient
        def product(x: Any) -> tuple[Any, Any]:
            return (
                tf.sparse.sparse_dense_matmul(self._sparse, x),
                lambda upstream: tf.sparse.sparse_dense_matmul(self._sparse, upstream, adjoint_a=True),
            )

        return product(x)

    def _product(self, x: Any) -> tf.Tensor:
        """`Z^T x` by blocks of Z's rows."""
        step = max(UNPACKED_ELEMENTS // self.nodes, 1)

        @tf.custom_gradient
        def product(x: Any) -> tuple[Any, Any]:
            def add(start: Any, total: Any) -> tuple[Any, Any]:
                block = self._unpack(self._bits[start : start + step])
                return start + step, total + tf.matmul(block, x[start : start + step], transpose_a=True)

            _, total = tf.while_loop(lambda start, _: start < self.nodes, add, (0, tf.zeros_like(x)), parallel_iterations=1)

            def gradient(upstream: Any) -> Any:
                def write(start: Any, place: Any, parts: Any) -> tuple[Any, Any, Any]:
                    block = self._unpack(self._bits[start : start + step])
                    return start + step, place + 1, parts.write(place, tf.matmul(block, upstream))

                parts = tf.TensorArray(tf.float32, size=-(-self.nodes // step), element_shape=(None, x.shape[-1]), infer_shape=False)
                *_, parts = tf.while_loop(lambda start, *_: start < self.nodes, write, (0, 0, parts), parallel_iterations=1)
                return tf.ensure_shape(parts.concat(), x.shape)

            return total, gradient

        return product(x)


def _degrees(bits: np.ndarray) -> np.ndarray:
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
    return ones[bits].sum(axis=1, dtype=np.int64)


@keras.saving.register_keras_serializable("tf_fashion")
class GraphConvolution(keras.layers.Layer):
    """`A (x W) + b`: every node takes a weighted mean of what its neighbours send. Computes in float32 under every policy.

    Args:
        units: Width of the result.
        gain: The kernel starts at N(0, gain^2 * 2 / (width + units)) (RTIC-GCN: 0.02), the bias at 0.

    Call arguments:
        nodes: Floating tensor `(N, width)`.
        adjacency: The `Adjacency` of the N nodes; by name, as Keras wants it for what is no tensor.

    Returns:
        float32 tensor `(N, units)`.
    """

    def __init__(self, units: int, gain: float = 0.02, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.units = units
        self.gain = gain

    def build(self, nodes_shape: tuple) -> None:
        start = keras.initializers.VarianceScaling(self.gain**2, mode="fan_avg", distribution="untruncated_normal")
        self.kernel = self.add_weight(name="kernel", shape=(nodes_shape[-1], self.units), initializer=start)
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self.built = True

    def call(self, nodes: Any, adjacency: Adjacency) -> Any:
        # The product with A costs as much as its operand is wide.
        if nodes.shape[-1] < self.units:
            return ops.matmul(adjacency.matmul(nodes), self.kernel) + self.bias
        return adjacency.matmul(ops.matmul(nodes, self.kernel)) + self.bias

    def compute_output_shape(self, nodes_shape: tuple) -> tuple:
        return (*nodes_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "gain": self.gain}
