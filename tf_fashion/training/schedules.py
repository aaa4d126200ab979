"""Learning rates over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import UsageError


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Base of the schedules here: computed in float64, used in float32."""

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def __call__(self, step: Any) -> tf.Tensor:
        return tf.cast(self._rate(tf.cast(step, tf.float64)), tf.float32)

    def rates(self, steps: np.ndarray) -> np.ndarray:
        """The exact rates of some steps.

        Args:
            steps: Numbers of steps done before, integers >= 0.

        Returns:
            float64 array of the same shape.
        """
        return self._rate(tf.constant(np.asarray(steps, dtype=np.float64))).numpy()


@keras.saving.register_keras_serializable("tf_fashion")
class WarmupStepDecay(_Schedule):
    """Linear warm-up counted in images, then a factor at fixed epochs: the schedule of the FashionIQ 2020 entry.

    `base = learning_rate * batch_size / reference_batch`; the rate of a step is `min(base, base * n / warmup_images)`, n the images
    seen with this step's, times `decay_factor` for every entry of `decay_epochs` that is not after the current epoch.

    RTIC's step policy is `WarmupStepDecay(0.01, batch, steps, warmup_images=0, decay_factor=0.70710678,
    decay_epochs=range(10, 100, 10), reference_batch=32, first_epoch=0)`.

    Args:
        learning_rate: Rate for `reference_batch` images per step.
        batch_size: Images per step, over all replicas.
        steps_per_epoch: Steps per epoch.
        warmup_images: Length of the warm-up; 0 for none.
        decay_factor: Factor at each entry of `decay_epochs`.
        decay_epochs: Epochs, counted from `first_epoch`.
        reference_batch: Images per step that `learning_rate` is meant for.
        first_epoch: Number of the first epoch.

    Raises:
        UsageError: a size is not positive.
    """

    def __init__(
        self,
        learning_rate: float = 0.00011148,
        batch_size: int = 32,
        steps_per_epoch: int = 562,
        warmup_images: int = 10_000,
        decay_factor: float = 0.4747,
        decay_epochs: Sequence[int] = (10, 20, 30, 40, 50, 60, 70),
        reference_batch: int = 16,
        first_epoch: int = 1,
    ) -> None:
        if min(batch_size, steps_per_epoch, reference_batch) < 1:
            raise UsageError(
                "WarmupStepDecay: batch_size, steps_per_epoch and reference_batch must be at least 1, found "
                f"{batch_size}, {steps_per_epoch} and {reference_batch}."
            )
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.warmup_images = warmup_images
        self.decay_factor = decay_factor
        self.decay_epochs = tuple(decay_epochs)
        self.reference_batch = reference_batch
        self.first_epoch = first_epoch

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        base = self.learning_rate * self.batch_size / self.reference_batch
        rate = tf.fill(tf.shape(step), tf.constant(base, tf.float64))
        if self.warmup_images:
            rate = tf.minimum(rate, base * (step + 1) * self.batch_size / self.warmup_images)
        epoch = tf.floor(step / self.steps_per_epoch) + self.first_epoch
        for entry in self.decay_epochs:
            rate = tf.where(epoch >= entry, rate * self.decay_factor, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "warmup_images": self.warmup_images,
            "decay_factor": self.decay_factor,
            "decay_epochs": list(self.decay_epochs),
            "reference_batch": self.reference_batch,
            "first_epoch": self.first_epoch,
        }


@keras.saving.register_keras_serializable("tf_fashion")
class WarmupCosine(_Schedule):
    """Linear warm-up, then half a cosine down to the end value.

    CLIP's and FashionKLIP's schedule is `WarmupCosine(rate, steps, warmup_steps=10_000)`: step n of the warm-up has
    `rate (n + 1) / warmup_steps`, the last one of it and the one after it have the whole rate.

    Args:
        learning_rate: Highest rate.
        total_steps: Steps of the run; afterwards the rate stays at its end value.
        warmup_ratio: Share of the steps spent in warm-up, in [0, 1).
        final_ratio: End value as a share of the highest rate.
        end_at_last_step: Whether the last of the steps has the end value, as in RTIC (with an end of 0 that step is lost); else the
            rate would reach it one step later.
        warmup_steps: Length of the warm-up in steps, in place of `warmup_ratio`; a run that is not longer than this ends in its
            warm-up.

    Raises:
        UsageError: `total_steps` is not positive, `warmup_ratio` outside [0, 1), or `warmup_steps` negative.
    """

    def __init__(
        self,
        learning_rate: float,
        total_steps: int,
        warmup_ratio: float = 0.05,
        final_ratio: float = 0.0,
        end_at_last_step: bool = False,
        warmup_steps: int | None = None,
    ) -> None:
        if total_steps < 1 or not 0.0 <= warmup_ratio < 1.0:
            raise UsageError(
                f"WarmupCosine: total_steps must be at least 1, warmup_ratio in [0, 1); found {total_steps} and {warmup_ratio}."
            )
        if warmup_steps is not None and warmup_steps < 0:
            raise UsageError(f"WarmupCosine: warmup_steps must not be negative, found {warmup_steps}.")
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_ratio = warmup_ratio
        self.final_ratio = final_ratio
        self.end_at_last_step = end_at_last_step
        self.warmup_steps = warmup_steps

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        warmup = self.total_steps * self.warmup_ratio if self.warmup_steps is None else self.warmup_steps
        done = step + 1 if self.end_at_last_step else step
        length = self.total_steps - warmup
        progress = tf.clip_by_value((done - warmup) / (length if length > 0 else 1.0), 0.0, 1.0)
        falling = self.final_ratio + (1.0 - self.final_ratio) * 0.5 * (1.0 + tf.cos(np.pi * progress))
        rising = (step + 1) / max(warmup, 1.0)
        return self.learning_rate * tf.where(step + 1 < warmup, rising, falling)

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_ratio": self.warmup_ratio,
            "final_ratio": self.final_ratio,
            "end_at_last_step": self.end_at_last_step,
            "warmup_steps": self.warmup_steps,
        }
