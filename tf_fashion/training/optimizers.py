"""AdamW with groups: learning-rate factors by name, weight decay on kernels and embeddings only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError


def _check_multipliers(who: str, lr_multipliers: Mapping[str, float]) -> None:
    for expression in lr_multipliers:
        try:
            re.compile(expression)
        except re.error as error:
            raise UsageError(f"{who}: {expression!r} in lr_multipliers is not a regular expression: {error}.") from None


def _multiplier(lr_multipliers: Mapping[str, float], path: str) -> float:
    return next((factor for expression, factor in lr_multipliers.items() if re.search(expression, path)), 1.0)


def _is_kernel(variable: Any) -> bool:
    """Whether a variable is a kernel or an embedding, by its name where its shape misleads.

    The biases of recurrences and of attention heads have two axes, CLIP's class embedding has one.
    """
    if re.search(r"(^|_)(bias|gamma|beta)$", variable.name):
        return False
    return len(variable.shape) > 1 or (len(variable.shape) == 1 and variable.name.endswith("embedding"))


def _adam_step(variable: Any, m: Any, v: Any, gradient: Any, rate: Any, beta_1: float, beta_2: float, epsilon: Any) -> None:
    """Moves both moments, then `variable -= rate m / (sqrt(v) + epsilon)`: one kernel that reads and writes every number once."""
    kind = variable.dtype
    parts = [part.value if isinstance(part, keras.Variable) else part for part in (variable, m, v)]
    tf.raw_ops.ResourceApplyAdam(
        **{name: part.handle for name, part in zip(("var", "m", "v"), parts, strict=True)},
        # The correction of the moments is part of the rate.
        beta1_power=tf.zeros((), kind),
        beta2_power=tf.zeros((), kind),
        lr=tf.cast(rate, kind),
        beta1=tf.cast(beta_1, kind),
        beta2=tf.cast(beta_2, kind),
        epsilon=tf.cast(epsilon, kind),
        grad=tf.cast(gradient, kind),
    )


@keras.saving.register_keras_serializable("tf_fashion")
class TFAdam(keras.optimizers.Adam):
    """Adam as TensorFlow 1 has it: `theta <- theta - lr_t m / (sqrt(v) + epsilon)`, `lr_t = lr sqrt(1 - b2^t) / (1 - b1^t)`.

    Args:
        learning_rate: Number or schedule.
        beta_1, beta_2, epsilon: Moments' decay rates and the guard of the division, which stands before the correction.
        lr_multipliers: As in `GroupedAdamW`.
        original_frozen_correction: Leaves t at 1, as the released VAL does by mistake: steps are up to twice as long at first
            and fall to 0.316 of the rate within a few thousand steps.
        **kwargs: As for `keras.optimizers.Adam`.

    Raises:
        UsageError: an expression is not valid.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        lr_multipliers: Mapping[str, float] | None = None,
        original_frozen_correction: bool = False,
        name: str = "tf_adam",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, name=name, **kwargs)
        self.lr_multipliers = dict(lr_multipliers or {})
        self.original_frozen_correction = original_frozen_correction
        _check_multipliers("TFAdam", self.lr_multipliers)

    def build(self, var_list: list[Any]) -> None:
        if self.built:
            return
        super().build(var_list)
        self._factors = tuple(_multiplier(self.lr_multipliers, variable.path) for variable in var_list)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        kind = variable.dtype
        gradient = tf.cast(tf.convert_to_tensor(gradient), kind)
        step = tf.ones((), kind) if self.original_frozen_correction else tf.cast(self.iterations + 1, kind)
        corrected = tf.sqrt(1.0 - tf.pow(tf.cast(self.beta_2, kind), step)) / (1.0 - tf.pow(tf.cast(self.beta_1, kind), step))
        rate = tf.cast(learning_rate, kind) * self._factors[index] * corrected
        m, v = self._momentums[index], self._velocities[index]
        _adam_step(variable, m, v, gradient, rate, self.beta_1, self.beta_2, self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "lr_multipliers": self.lr_multipliers,
            "original_frozen_correction": self.original_frozen_correction,
        }


@keras.saving.register_keras_serializable("tf_fashion")
class GroupedAdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov & Hutter, ICLR 2019) with a learning-rate factor per group of variables.

    A step is `theta <- theta (1 - lr decay)`, then `theta <- theta - lr m^ / (sqrt(v^) + epsilon)` with the bias-corrected
    moments: epsilon stands beside the corrected root, as in the paper and in PyTorch (Keras' own AdamW adds it before the correction).

    Args:
        learning_rate: Number or schedule.
        weight_decay: Decoupled decay.
        beta_1, beta_2, epsilon: Moments' decay rates and the guard of the division.
        lr_multipliers: Regular expression -> factor. The first expression found in a variable's path (`model/layer/kernel`)
            gives its learning rate's factor, decay included; 0 freezes. Variables that match none have factor 1.
        decay_vectors: Whether biases, normalisation parameters (gamma, beta) and other vectors and scalars, such as the scale of
            logits, decay too. The original FashionIQ 2020 entry decays all of them; CLIP and FashionKLIP, as the default does,
            decay kernels, projections and all embeddings (those of tokens, positions and the class) alone.
        **kwargs: As for `keras.optimizers.AdamW` (clipping, moving averages, ...).

    Raises:
        UsageError: an expression is not valid, or `amsgrad` is asked for.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        lr_multipliers: Mapping[str, float] | None = None,
        decay_vectors: bool = False,
        name: str = "grouped_adamw",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("amsgrad"):
            raise UsageError("GroupedAdamW has no amsgrad variant; leave amsgrad out.")
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )
        self.lr_multipliers = dict(lr_multipliers or {})
        self.decay_vectors = decay_vectors
        _check_multipliers("GroupedAdamW", self.lr_multipliers)

    def multiplier(self, path: str) -> float:
        """The learning-rate factor of the variable with this path."""
        return _multiplier(self.lr_multipliers, path)

    def build(self, var_list: list[Any]) -> None:
        if self.built:
            return
        super().build(var_list)
        # Plain tuples of Python numbers: the trackable base would wrap lists.
        self._factors = tuple(self.multiplier(variable.path) for variable in var_list)
        self._decays = tuple(
            self.weight_decay if (self.decay_vectors or _is_kernel(variable)) and self._use_weight_decay(variable) else 0.0
            for variable in var_list
        )

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """Nothing: the decay is part of `update_step`, where the group's learning rate is known."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        kind = variable.dtype
        rate = tf.cast(learning_rate, kind) * self._factors[index]
        gradient = tf.cast(tf.convert_to_tensor(gradient), kind)
        step = tf.cast(self.iterations + 1, kind)
        if self._decays[index]:
            self.assign(variable, tf.convert_to_tensor(variable) * (1.0 - rate * self._decays[index]))
        # Both moments' corrections, taken out of the fraction.
        root = tf.sqrt(1.0 - tf.pow(tf.cast(self.beta_2, kind), step))
        corrected = rate * root / (1.0 - tf.pow(tf.cast(self.beta_1, kind), step))
        m, v = self._momentums[index], self._velocities[index]
        _adam_step(variable, m, v, gradient, corrected, self.beta_1, self.beta_2, self.epsilon * root)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lr_multipliers": self.lr_multipliers, "decay_vectors": self.decay_vectors}
