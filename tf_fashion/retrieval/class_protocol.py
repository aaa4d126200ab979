"""Protocol of class retrieval: every picture queries all others, and those with the same label are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import hash_json

Unlabelled = Literal["left_out", "wrong"]
Copies = Literal["kept", "removed"]
KIND = "class"


@dataclass(frozen=True)
class ClassProtocol:
    """Everything that decides what a number of class retrieval means.

    A picture is right for a query if both share a label of the task. Queries that no other picture is right for are left out, and
    counted. Equal distances stand in the order of rows.

    Attributes:
        name: Short name; not part of the meaning.
        dataset: The dataset's name.
        split: "val", "test", "validation+test", ...
        task: The task whose labels decide, such as "category".
        unlabelled: Pictures without a label of the task: "left_out" of the gallery (one does not know whether they are right), or in it
            and "wrong".
        copies: Pictures with the query's own bytes: "kept" or "removed". The query itself is always removed.

    Raises:
        UsageError: a value that is not listed above.
    """

    name: str = "class-retrieval"
    dataset: str = "clothing"
    split: str = "val"
    task: str = "category"
    unlabelled: Unlabelled = "left_out"
    copies: Copies = "kept"

    def __post_init__(self) -> None:
        for attribute, kind in (("unlabelled", Unlabelled), ("copies", Copies)):
            if getattr(self, attribute) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UsageError(f"Protocol {self.name!r}: {attribute} must be one of {known}; got {getattr(self, attribute)!r}.")
        for attribute in ("name", "dataset", "split", "task"):
            if not isinstance(getattr(self, attribute), str) or not getattr(self, attribute):
                raise UsageError(f"Protocol: {attribute} must be a non-empty string, got {getattr(self, attribute)!r}.")

    def describe(self) -> str:
        """One line for people, as printed under tables."""
        parts = [
            f"{self.dataset}/{self.split}",
            f"every picture queries all others, right = same {self.task}",
            f"pictures without {self.task} {'left out' if self.unlabelled == 'left_out' else 'are wrong answers'}",
            *(["copies removed"] if self.copies == "removed" else []),
            "ties stable",
        ]
        return f"{self.name}: {' · '.join(parts)}"

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `from_config` reads it back."""
        return {"kind": KIND, **dataclasses.asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ClassProtocol:
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
        """12 hexadecimal digits of all fields but the name."""
        meaning = self.to_config()
        del meaning["name"]
        return hash_json(meaning)[:12]
