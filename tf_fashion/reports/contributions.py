"""What each member brings to an ensemble."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write

_MEMBER, _ENSEMBLE, _INK = "#64748b", "#2563eb", "#333333"


@dataclass(frozen=True)
class Contribution:
    """One member of an ensemble; figures in percent.

    Attributes:
        name: Its name.
        weight: Share of the weights, 0..1.
        alone: Mean recall of the member alone.
        without: Mean recall of the ensemble without it, the other weights kept in proportion; None where it is the only one.
    """

    name: str
    weight: float
    alone: float
    without: float | None


def draw_contributions(path: str | Path, members: Sequence[Contribution], ensemble: float, protocol: str, title: str = "") -> Path:
    """Draws weights, recalls of each member against the ensemble's, and what is lost without each, into a .png or .svg.

    Args:
        path: The file, replaced as a whole.
        members: In the order of the ensemble.
        ensemble: Its mean recall, in percent, on the same queries.
        protocol: Line printed below.
        title: Printed above.

    Raises:
        UsageError: another ending, or no members.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in (".png", ".svg") or not members:
        raise UsageError(f"Contributions of at least one member are drawn to .png or .svg, not to {path.name!r}.")
    names = [_short(member.name) for member in members]
    places = list(range(len(members)))
    figure = Figure(figsize=(10.5, 1.5 + 0.42 * len(members)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)

    left.barh(places, [100 * member.weight for member in members], color=_MEMBER)
    left.set_title("weight, %", fontsize=9)
    recalls = [member.alone for member in members]
    middle.barh(places, recalls, color=_MEMBER)
    middle.axvline(ensemble, color=_ENSEMBLE, linewidth=1.6)
    middle.set_title(f"mean recall alone (line: ensemble, {ensemble:.1f})", fontsize=9)
    low, high = min([*recalls, ensemble]), max([*recalls, ensemble])
    room = max(high - low, 1.0)
    middle.set_xlim(max(low - room, 0.0), high + 0.35 * room)
    losses = [0.0 if member.without is None else ensemble - member.without for member in members]
    right.barh(places, losses, color=[_ENSEMBLE if loss >= 0 else "#ea580c" for loss in losses])
    right.set_title("points lost without it", fontsize=9)
    spread = max(max(map(abs, losses)), 0.1)
    right.set_xlim(min([0.0, *losses]) - 0.25 * spread, max([0.0, *losses]) + 0.35 * spread)
    for axis, values, form in (
        (left, [100 * member.weight for member in members], "{:.0f}"),
        (middle, recalls, "{:.1f}"),
        (right, losses, "{:+.1f}"),
    ):
        axis.invert_yaxis()
        axis.set_yticks(places, names if axis is left else [""] * len(names), fontsize=9)
        for place, value in zip(places, values, strict=True):
            sign = 1 if value >= 0 else -1
            axis.annotate(
                form.format(value),
                (value, place),
                xytext=(3 * sign, 0),
                textcoords="offset points",
                va="center",
                ha="left" if sign > 0 else "right",
                fontsize=8,
                color=_INK,
            )
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(labelsize=8)
        for label in axis.get_yticklabels():
            # A name with dollar signs is no formula.
            label.set_parse_math(False)
    left.set_xlim(0, 1.2 * max(max(100 * member.weight for member in members), 1.0))
    if title:
        figure.suptitle(title, fontsize=11)
    figure.supxlabel(protocol, fontsize=7, color=_INK, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], facecolor="white")
    with atomic_write(path, "wb") as file:
        file.write(buffer.getvalue())
    return path


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
