"""Everything that decides the training of an attribute classifier, checked before anything slow happens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tf_fashion.core.errors import UsageError
from tf_fashion.losses import MULTILABEL_LOSSES
from tf_fashion.tagging.thresholds import KINDS, OBJECTIVES
from tf_fashion.training.config import FromPreset, RunConfig
from tf_fashion.training.presets import ATTRIBUTE_DEFAULTS, ATTRIBUTE_PRESETS

OPTIONS_OF = {"loss_options": "loss", "optimizer_options": "optimizer", "schedule_options": "schedule"}

BALANCES = ("none", "class_balanced", "positive")
TTA = ("none", "flip")
UNLABELLED = ("absent", "unknown")


@dataclass(frozen=True, kw_only=True)
class AttributeConfig(RunConfig):
    """Everything that decides a run. Fields that are None take the preset's value (see `ATTRIBUTE_PRESETS`).

    Attributes are explained by `tf-fashion train attributes --help`.
    """

    data_options: dict[str, Any] = field(default_factory=dict)
    hidden: FromPreset = None
    hidden_dropout: FromPreset = None
    exclusive: FromPreset = None
    correlation: FromPreset = None
    correlation_options: FromPreset = None
    label_smoothing: FromPreset = None
    balance: FromPreset = None
    unlabelled: FromPreset = None
    start_at_prior: FromPreset = None
    tta: FromPreset = None
    thresholds: FromPreset = None
    objective: FromPreset = None
    folds: FromPreset = None

    def resolved(self) -> AttributeConfig:
        """The same with the preset's values filled in.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        preset = self._preset_name(ATTRIBUTE_PRESETS)
        values = {**ATTRIBUTE_DEFAULTS, **ATTRIBUTE_PRESETS[preset]}
        changes = {key: value for key, value in values.items() if getattr(self, key) is None}
        changes |= self._merged_options(values, ATTRIBUTE_PRESETS[preset], OPTIONS_OF)
        config = dataclasses.replace(self, preset=preset, **changes)
        config.check()
        return config

    def check(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        self.check_run()
        if self.loss == "grouped" or self.loss not in MULTILABEL_LOSSES:
            known = [name for name in MULTILABEL_LOSSES if name != "grouped"]
            raise UsageError(
                f"--loss: expected {' or '.join(known)} (groups that exclude each other are --exclusive); found {self.loss!r}."
            )
        self.one_of("balance", BALANCES)
        self.one_of("tta", TTA)
        self.one_of("unlabelled", UNLABELLED)
        self.one_of("thresholds", KINDS)
        self.one_of("objective", OBJECTIVES)
        self.shares("hidden_dropout", "label_smoothing")
        self.check_backbone()
        if self.pooling == "none":
            raise UsageError("--pooling none: attributes are read from vectors. Choose avg, max, gem or avg_max.")
        if any(width < 1 for width in self.hidden):
            raise UsageError(f"--hidden: expected widths of at least 1, found {','.join(map(str, self.hidden))}.")
        if self.folds < 2:
            raise UsageError(f"--folds: expected at least 2, found {self.folds}.")


def describe_model(config: AttributeConfig) -> str:
    """The network in a few words."""
    return " + ".join([str(config.backbone), *map(str, config.hidden), *(["label correlation"] if config.correlation else [])])
