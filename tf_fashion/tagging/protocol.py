"""What a number about attributes means: which photos, labels and rule of decision."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tf_fashion.core.files import hash_json

KIND = "attributes"


@dataclass(frozen=True)
class AttributeProtocol:
    """Everything that decides what an F1, an average precision or an accuracy of labels means.

    Attributes:
        dataset, split: What is measured on.
        labels: Number of labels; macro means are over all of them.
        label_map: Fingerprint of the label map.
        exclusive: Groups whose likeliest label is decided.
        thresholds: "constant" for 0.5, or how thresholds were fitted: "global", "group" or "label".
        objective: What they were fitted for, "micro" or "macro"; "" for constant ones.
        folds: Parts of the split for cross-fitting, so that no photo is decided by thresholds that have seen it; 0 for thresholds that
            were not fitted on the split.
        tta: Test-time augmentation, "none" or "flip".
        name: Short name; not part of the meaning.
    """

    dataset: str
    split: str
    labels: int
    label_map: str
    exclusive: tuple[str, ...] = ()
    thresholds: str = "label"
    objective: str = "micro"
    folds: int = 5
    tta: str = "none"
    name: str = "attributes"

    def describe(self) -> str:
        """One line for people, as printed under tables."""
        fitted = f"fitted for {self.objective}-F1" if self.objective else ""
        rule = {
            "constant": "threshold 0.5",
            "global": "one threshold",
            "group": "a threshold per group",
            "label": "a threshold per label",
        }
        how = f"cross-fitted over {self.folds} parts" if self.folds else ""
        parts = [
            f"{self.dataset}/{self.split}",
            f"{self.labels} labels",
            ", ".join(part for part in (rule[self.thresholds], fitted, how) if part),
            *([f"one label at most of {', '.join(self.exclusive)}"] if self.exclusive else []),
            *([f"test-time {self.tta}"] if self.tta != "none" else []),
        ]
        return f"{self.name}: {' · '.join(parts)}"

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary for JSON, with fingerprint and description."""
        values = {"kind": KIND, **dataclasses.asdict(self), "exclusive": list(self.exclusive)}
        return {**values, "fingerprint": self.fingerprint, "description": self.describe()}

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of everything but the name."""
        return hash_json({key: value for key, value in dataclasses.asdict(self).items() if key != "name"})[:12]
