"""Protocols of image-text retrieval as values.

With the same weights, a ranking among 100 candidates gives about twice the recall of one among all candidates, so these numbers travel
with their `DualProtocol`, as those of composed retrieval do with theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import hash_json
from tf_fashion.core.registry import Registry
from tf_fashion.retrieval.ranks import TIES, Tie

Candidates = Literal["full", "sample", "subset"]
Fill = Literal["other", "fewer"]
KIND = "dual"
# Fields without meaning under the others.
_ONLY = {
    "full": (),
    "sample": ("queries", "negatives", "group", "fill", "repeats", "seed"),
    "subset": ("subset", "repeats", "seed"),
}


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class DualProtocol:
    """Everything that decides what a number of image-text retrieval means.

    A query is answered at K if any of its right answers is among the first K.

    Attributes:
        name: Short name for the command line; not part of the meaning.
        dataset: The dataset's name.
        split: "val", "test", ...
        candidates: "full": every query against the whole gallery of the other side. "sample": some queries, each against one of its
            right answers, drawn at random, and some wrong ones. "subset": some pictures and the texts that belong to them, ranked
            against each other.
        queries: "sample": queries drawn for each direction (all, where there are fewer).
        negatives: "sample": wrong candidates per query. No other right answer of the query is among them.
        group: "sample": what the wrong candidates share with the right one, for example "sub-category"; None draws them from the
            whole gallery.
        fill: "sample": where a group has too few: "other" draws the rest at random from the other groups, as FashionViL's and
            FAME-ViL's code comes down to (FashionSAP's adds whole other groups, drawn at random, and draws from their union);
            "fewer" ranks among fewer candidates.
        subset: "subset": pictures drawn.
        repeats: Draws; results are means over them.
        seed: Of the draws.
        tie: Order among equal scores: "stable" (gallery order), "optimistic", "pessimistic" or "expected".
        ks: Cut-offs of the recalls. They do not change what a recall means.

    Raises:
        UsageError: a value that is not listed above.
    """

    name: str
    dataset: str = "fashion_gen"
    split: str = "val"
    candidates: Candidates = "full"
    queries: int = 1000
    negatives: int = 99
    group: str | None = "sub-category"
    fill: Fill = "other"
    subset: int = 1000
    repeats: int = 5
    seed: int = 0
    tie: Tie = "stable"
    ks: tuple[int, ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        for attribute, kind in (("candidates", get_args(Candidates)), ("fill", get_args(Fill)), ("tie", TIES)):
            if getattr(self, attribute) not in kind:
                known = ", ".join(kind)
                raise UsageError(f"Protocol {self.name!r}: {attribute} must be one of {known}; got {getattr(self, attribute)!r}.")
        object.__setattr__(self, "ks", tuple(self.ks))
        if not self.ks or not all(_whole(k, 1) for k in self.ks):
            raise UsageError(f"Protocol {self.name!r}: ks must be whole numbers of at least 1; got {self.ks!r}.")
        for attribute, least in (("queries", 1), ("negatives", 1), ("subset", 1), ("repeats", 1), ("seed", 0)):
            if not _whole(getattr(self, attribute), least):
                raise UsageError(
                    f"Protocol {self.name!r}: {attribute} must be a whole number of at least {least}; got {getattr(self, attribute)!r}."
                )
        for attribute in ("name", "dataset", "split"):
            if not isinstance(getattr(self, attribute), str) or not getattr(self, attribute):
                raise UsageError(f"Protocol: {attribute} must be a non-empty string, got {getattr(self, attribute)!r}.")
        if self.tie == "expected" and self.candidates != "sample":
            raise UsageError(f"Protocol {self.name!r}: tie='expected' is only defined for candidates='sample' (one right answer).")
        if self.group is not None and (not isinstance(self.group, str) or not self.group):
            raise UsageError(f"Protocol {self.name!r}: group must be a name or None, got {self.group!r}.")

    def describe(self) -> str:
        """One line for people, as printed under tables."""
        draws = f"mean of {self.repeats} draws (seed {self.seed})" if self.repeats > 1 else f"one draw (seed {self.seed})"
        if self.candidates == "sample":
            source = "drawn from the whole gallery" if self.group is None else f"of the same {self.group}"
            filled = "" if self.group is None else (", filled up from others" if self.fill == "other" else ", fewer where it has fewer")
            what = [f"{self.queries} queries, each with 1 right and {self.negatives} wrong candidates {source}{filled}", draws]
        elif self.candidates == "subset":
            what = [f"{self.subset} random pictures and their texts", draws]
        else:
            what = ["every query against the whole gallery"]
        return f"{self.name}: {' · '.join([f'{self.dataset}/{self.split}', *what, 'any right answer counts', f'ties {self.tie}'])}"

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `from_config` reads it back."""
        return {"kind": KIND, **dataclasses.asdict(self), "ks": list(self.ks)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DualProtocol:
        """Makes a protocol from `to_config`'s dictionary (a stored fingerprint or description is ignored).

        Raises:
            UsageError: unknown or missing keys, or values that are not allowed.
        """
        values = {key: value for key, value in config.items() if key not in ("fingerprint", "description", "kind")}
        known = {entry.name for entry in dataclasses.fields(cls)}
        if set(values) - known or "name" not in values or config.get("kind", KIND) != KIND:
            raise UsageError(f"A protocol has the keys {', '.join(sorted(known))} ('name' is needed); got {', '.join(sorted(values))}.")
        return cls(**values)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of all fields that have a meaning here but the name and the cut-offs."""
        meaning = self.to_config()
        without = {"name", "ks", *(key for keys in _ONLY.values() for key in keys)} - set(_ONLY[self.candidates])
        if self.candidates == "sample" and self.group is None:
            without.add("fill")
        return hash_json({key: value for key, value in meaning.items() if key not in without})[:12]

    def replace(self, **changes: Any) -> DualProtocol:
        """A copy with some fields changed; it keeps the name unless a new one is given."""
        unknown = set(changes) - {entry.name for entry in dataclasses.fields(self)}
        if unknown:
            raise UsageError(f"A protocol has no field {', '.join(sorted(unknown))}.")
        return dataclasses.replace(self, **changes)


DUAL_PROTOCOLS: Registry[DualProtocol] = Registry("protocol of image-text retrieval")
"""Named protocols of image-text retrieval.

| name | used by |
|---|---|
| `full` | FashionKLIP's code; EI-CLIP, FashionViL, FashionSAP beside the other |
| `sample` | 100 candidates in all, as some papers word it |
| `sample-101` | 101 candidates: the code of FashionViL, FAME-ViL and FashionSAP, after KaleidoBERT |
| `subset-1k` | the habit of image-caption retrieval, for quick looks |
"""

for _protocol in (
    DualProtocol("full"),
    DualProtocol("sample", candidates="sample"),
    DualProtocol("sample-101", candidates="sample", negatives=100),
    DualProtocol("subset-1k", candidates="subset"),
):
    DUAL_PROTOCOLS.register(_protocol.name)(_protocol)


def get_dual_protocol(name: str | DualProtocol, **changes: Any) -> DualProtocol:
    """The named protocol, with fields replaced: `get_dual_protocol("sample", repeats=3)`.

    Raises:
        UsageError: unknown name, field or value.
    """
    protocol = name if isinstance(name, DualProtocol) else DUAL_PROTOCOLS.get(name)
    return protocol.replace(**changes) if changes else protocol
