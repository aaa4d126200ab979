"""RTIC's learning rates, for the backbone and for the rest."""

from __future__ import annotations

import re

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.training.optimizers import GroupedAdamW
from tf_fashion.training.schedules import WarmupCosine, WarmupStepDecay

WARMUP_RATIO, BACKBONE_FACTOR = 0.15, 0.652


@checks(r"lr_schedule_rtic\.npz")
def lr_schedule_rtic(fixture: Fixture) -> None:
    optimizer = GroupedAdamW(lr_multipliers={r"(^|/)image_encoder/": BACKBONE_FACTOR})
    factors = np.array([optimizer.multiplier(f"model/{part}/kernel") for part in ("composer", "image_encoder")])
    for key, recorded in fixture.data.items():
        if match := re.fullmatch(r"cosine_total(\d+)", key):
            schedule: WarmupCosine | WarmupStepDecay = WarmupCosine(1.0, int(match[1]), WARMUP_RATIO, end_at_last_step=True)
        elif re.fullmatch(r"step_epoch0_\d+", key):
            schedule = WarmupStepDecay(1.0, 32, 1, 0, 0.70710678, range(10, 100, 10), reference_batch=32, first_epoch=0)
        else:
            continue
        fixture.compare(key, schedule.rates(np.arange(len(recorded)))[:, None] * factors, rtol=1e-9, atol=1e-15)
