"""Whitening of embeddings by principal components, and pooling of embeddings over scales of a photo."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import _Float32Layer, l2_normalize

SCALE_POOLINGS = ("mean", "gem")


@keras.saving.register_keras_serializable("tf_fashion")
class Whitening(_Float32Layer):
    """Projection to principal components, division by a power of their variances, and length one (dirtorch's test time).

    `z = (x - mean) components^T`, `z / (multiplier * variance^power)`, `z / |z|`. Nothing is trained. UDMA itself never whitens.

    Args:
        components: Number of components K, the first of the analysis.
        power: Exponent of the variances; 0.5 gives variance one, dirtorch's instructions use 0.25.
        multiplier: Factor of the divisor.
        whiten: False leaves out the division.
        normalize: Whether results are scaled to length one.

    Call arguments:
        x: Floating `(..., dim)`.

    Returns:
        float32 `(..., components)`.

    Raises:
        UsageError: no components, or more than the width of `x`.
    """

    def __init__(
        self,
        components: int,
        power: float = 0.5,
        multiplier: float = 1.0,
        whiten: bool = True,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if components < 1:
            raise UsageError(f"Whitening(components=...): expected at least 1, found {components!r}.")
        self.components = components
        self.power = power
        self.multiplier = multiplier
        self.whiten = whiten
        self.normalize = normalize

    @classmethod
    def of(cls, mean: np.ndarray, components: np.ndarray, variance: np.ndarray, dim: int | None = None, **options: Any) -> Whitening:
        """The layer of an analysis, as scikit-learn's PCA names it.

        Args:
            mean: `(width,)`, `mean_`.
            components: `(K, width)`, `components_`.
            variance: `(K,)`, `explained_variance_`.
            dim: How many of the components are used; default all.
            **options: As the constructor's.

        Raises:
            UsageError: shapes that do not fit, values that are not finite, variances that are not above 0, or more components
                than there are.
        """
        mean, components, variance = (np.asarray(x) for x in (mean, components, variance))
        if components.ndim != 2 or mean.shape != components.shape[1:] or variance.shape != components.shape[:1]:
            raise UsageError(
                "Whitening.of: expected a mean (width,), components (K, width) and variances (K,); found "
                f"{mean.shape}, {components.shape} and {variance.shape}."
            )
        count = len(components) if dim is None else dim
        if not 1 <= count <= len(components):
            raise UsageError(f"Whitening.of(dim=...): expected 1 to {len(components)}, found {dim!r}.")
        finite = all(np.isfinite(x).all() for x in (mean, components, variance))
        layer = cls(count, **options)
        if not finite or (layer.whiten and (variance[:count] <= 0).any()):
            raise UsageError("Whitening.of: expected finite values and variances above 0. Take fewer components with dim=...")
        layer.build((None, components.shape[1]))
        for variable, value in ((layer.mean, mean), (layer.matrix, components[:count].T), (layer.variance, variance[:count])):
            variable.assign(value.astype(np.float32))
        return layer

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        if self.components > width:
            raise UsageError(f"Whitening(components={self.components}): vectors have only {width} values.")
        fixed = {"trainable": False, "dtype": "float32"}
        self.mean = self.add_weight(name="mean", shape=(width,), initializer="zeros", **fixed)
        self.matrix = self.add_weight(name="matrix", shape=(width, self.components), initializer="identity", **fixed)
        self.variance = self.add_weight(name="variance", shape=(self.components,), initializer="ones", **fixed)
        self.built = True

    def call(self, x: Any) -> Any:
        z = ops.matmul(ops.cast(x, "float32") - self.mean, self.matrix)
        if self.whiten:
            z = z / (self.multiplier * ops.power(self.variance, self.power))
        return l2_normalize(z) if self.normalize else z

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], self.components)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "components": self.components,
            "power": self.power,
            "multiplier": self.multiplier,
            "whiten": self.whiten,
            "normalize": self.normalize,
        }


def pool_scales(embeddings: Any, how: str = "mean", p: float = 3.0, epsilon: float = 1e-6) -> Any:
    """One unit vector per photo from those of its scales.

    Args:
        embeddings: Floating `(scales, photos, dim)`.
        how: "mean", or "gem": values to the power p with their signs (at least `epsilon` in size), their mean, and its root of order p
            with its sign.
        p: Exponent of "gem".
        epsilon: Least size of a value and of a mean in "gem".

    Returns:
        `(photos, dim)`, length one.

    Raises:
        UsageError: unknown `how`.
    """
    if how not in SCALE_POOLINGS:
        raise UsageError(f"pool_scales(how=...): expected one of {', '.join(SCALE_POOLINGS)}; found {how!r}.")
    x = ops.convert_to_tensor(embeddings)
    if how == "gem":
        x = _signed_power(x, p, epsilon)
    pooled = ops.mean(x, axis=0)
    return l2_normalize(_signed_power(pooled, 1.0 / p, epsilon) if how == "gem" else pooled)


def _signed_power(x: Any, p: float, epsilon: float) -> Any:
    return ops.sign(x) * ops.power(ops.maximum(ops.abs(x), epsilon), p)
