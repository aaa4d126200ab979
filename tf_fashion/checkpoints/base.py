"""What every conversion of published weights reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras

from tf_fashion.core.registry import Registry

Converter = Callable[..., tuple[keras.Model, "ConversionReport"]]
CONVERTERS: Registry[Converter] = Registry("checkpoint converter")
"""Name of a network -> function of the checkpoint's path that returns the network with its weights, and the report."""


@dataclass
class ConversionReport:
    """Which variables of a checkpoint went where.

    Attributes:
        source: The checkpoint.
        used: Names that were loaded.
        unused: Name -> why it was left aside.
        missing: Name that the network has and the file has not -> what it holds instead.
        notes: Further sentences: what was changed on the way, what was checked.
    """

    source: Path
    used: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def format(self, limit: int | None = 8) -> str:
        """The report for a terminal; of each list the first `limit` entries, or with None all."""
        lines = [f"{self.source}: {len(self.used)} variables used, {len(self.unused)} left aside, {len(self.missing)} missing"]
        groups: dict[str, list[str]] = {"used": list(self.used)}
        for name, reason in self.unused.items():
            groups.setdefault(f"left aside, {reason}", []).append(name)
        for name, reason in self.missing.items():
            groups.setdefault(f"missing, {reason}", []).append(name)
        for heading, names in groups.items():
            lines.append(f"  {heading} ({len(names)}):")
            lines += [f"    {name}" for name in sorted(names)[:limit]]
            if limit is not None and len(names) > limit:
                lines.append(f"    and {len(names) - limit} more")
        return "\n".join(lines + [f"  {note}" for note in self.notes])
