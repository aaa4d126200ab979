"""Evaluation protocols as values, and the evaluation of composed retrieval under one of them.

Published FashionIQ numbers follow protocols that differ by more than most methods do: with the same weights, a gallery made of
the queries' own pictures gives some ten points more than the full gallery. So no number here travels without its `Protocol`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_json
from tf_fashion.core.registry import Registry
from tf_fashion.retrieval import class_protocol, dual_protocol, multi_positive
from tf_fashion.retrieval.metrics import recall_at_k
from tf_fashion.retrieval.ranks import RankCounts, Tie

Gallery = Literal["split", "union"]
Reference = Literal["kept", "removed"]
Captions = Literal["joined", "both_orders", "single"]
Join = Literal["and", "clip4cir", "starter_kit", "rtic", "fiq2020"]
Hit = Literal["id", "any"]

_JOIN_WORDS: dict[str, str] = {
    "and": "'c1 and c2'",
    "clip4cir": "'C1 and c2'",
    "starter_kit": "'c1 <and> c2'",
    "rtic": "'c1 [SEP] c2'",
    "fiq2020": "'[CLS] c1 [SEP] c2'",
}


@dataclass(frozen=True)
class Protocol:
    """Everything that decides what a retrieval number means.

    Attributes:
        name: Short name for the command line; not part of the meaning.
        dataset: The dataset's name.
        split: "val", "test", ...
        gallery: "split": all ids that the dataset lists for the split. "union": only the references and targets of its queries.
        reference: "kept": the query's own picture may be found (and counts as a wrong answer). "removed": it is taken out of the
            query's gallery.
        captions: "joined": the captions of a pair make one query. "both_orders": the embeddings of both joining orders are
            averaged. "single": each caption is a query of its own.
        join: How captions are joined, a style of `tf_fashion.inputs.text.join_captions`. Without meaning for "single".
        tie: Order among equal scores: "stable" (gallery order), "optimistic", "pessimistic" or "expected".
        hit: "id": ids are unique and only the target's own entry is right. "any": every gallery entry that carries the target's
            id (a label, say) is right, and the best of them counts.
        ks: Cut-offs of the recalls that are published. They do not change what a recall means.

    Raises:
        UsageError: a value that is not listed above.
    """

    name: str
    dataset: str = "fashion_iq"
    split: str = "val"
    gallery: Gallery = "split"
    reference: Reference = "kept"
    captions: Captions = "joined"
    join: Join = "and"
    tie: Tie = "stable"
    hit: Hit = "id"
    ks: tuple[int, ...] = (10, 50)

    def __post_init__(self) -> None:
        choices = {"gallery": Gallery, "reference": Reference, "captions": Captions, "join": Join, "tie": Tie, "hit": Hit}
        for attribute, kind in choices.items():
            if getattr(self, attribute) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UsageError(f"Protocol {self.name!r}: {attribute} must be one of {known}; got {getattr(self, attribute)!r}.")
        if self.hit == "any" and self.tie == "expected":
            raise UsageError(f"Protocol {self.name!r}: tie='expected' is only defined for hit='id'.")
        object.__setattr__(self, "ks", tuple(self.ks))
        if not self.ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.ks):
            raise UsageError(f"Protocol {self.name!r}: ks must be whole numbers of at least 1; got {self.ks!r}.")
        for attribute in ("name", "dataset", "split"):
            if not isinstance(getattr(self, attribute), str) or not getattr(self, attribute):
                raise UsageError(f"Protocol: {attribute} must be a non-empty string, got {getattr(self, attribute)!r}.")

    def describe(self) -> str:
        """One line for people, as printed under tables."""
        gallery = "gallery: full split" if self.gallery == "split" else "gallery: union of references and targets"
        captions = {
            "joined": f"captions joined {_JOIN_WORDS[self.join]}",
            "both_orders": f"captions joined {_JOIN_WORDS[self.join]}, both orders averaged",
            "single": "each caption a query",
        }[self.captions]
        hit = "" if self.hit == "id" else " · any entry with the target's label is right"
        parts = (f"{self.dataset}/{self.split}", gallery, f"reference {self.reference}", captions, f"ties {self.tie}")
        return f"{self.name}: {' · '.join(parts)}{hit}"

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `from_config` reads it back."""
        return {**dataclasses.asdict(self), "ks": list(self.ks)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Protocol:
        """Makes a protocol from `to_config`'s dictionary (a stored fingerprint or description is ignored).

        Raises:
            UsageError: unknown or missing keys, or values that are not allowed.
        """
        values = {key: value for key, value in config.items() if key not in ("fingerprint", "description")}
        known = {entry.name for entry in dataclasses.fields(cls)}
        if set(values) - known or "name" not in values:
            raise UsageError(f"A protocol has the keys {', '.join(sorted(known))} ('name' is needed); got {', '.join(sorted(values))}.")
        return cls(**values)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of all fields but the name and the cut-offs: equal fingerprints mean comparable numbers."""
        meaning = self.to_config()
        del meaning["name"], meaning["ks"]
        if self.captions == "single":
            del meaning["join"]
        return hash_json(meaning)[:12]

    def replace(self, **changes: Any) -> Protocol:
        """A copy with some fields changed; it keeps the name unless a new one is given."""
        unknown = set(changes) - {entry.name for entry in dataclasses.fields(self)}
        if unknown:
            raise UsageError(f"A protocol has no field {', '.join(sorted(unknown))}.")
        return dataclasses.replace(self, **changes)

    def texts(self, captions: Sequence[str]) -> list[str]:
        """The sentences to embed for one pair with one or two captions.

        "joined" gives one; "both_orders" gives two, whose embeddings are to be averaged; "single" gives one query per caption
        that is not blank.

        Raises:
            DataError: no caption, or more than two.
        """
        if isinstance(captions, str) or not 1 <= len(captions) <= 2:
            raise DataError(f"Expected a list of one or two captions, got {captions!r}.")
        if self.captions == "single":
            return [text.strip() for text in captions if text.strip()]
        from tf_fashion.inputs.text import join_captions

        orders = [captions, captions[::-1]] if self.captions == "both_orders" and len(captions) == 2 else [captions]
        return [join_captions(order, self.join) for order in orders]


AnyProtocol = Protocol | dual_protocol.DualProtocol | class_protocol.ClassProtocol | multi_positive.StreetProtocol

PROTOCOLS: Registry[Protocol] = Registry("protocol")
"""Published protocols: FashionIQ's validation protocols, and those of Shoes and Fashion200k.

| name | code bases that use it |
|---|---|
| `original` | CLIP4Cir, SPRC, the SPN family, CSMCIR; FAME-ViL (does not say) |
| `original-noref` | DCNet, Air-Know, INTENT, HABIT, ConeSep; the TG-CIR family with its `original-split` option |
| `val-split` | VAL (each caption is a query, so two per pair) |
| `val-split-joined` | CLVC-Net, TG-CIR, LIMN, PAIR, ENCODER, OFFSET, DQU-CIR (some also correct the spelling) |
| `val-split-both-orders` | CoSMo |
| `starter-kit` | the organisers' starter kit |
| `fiq2020` | the 2020 challenge's second place (it shuffles each pair's captions once; here file order) |
| `rtic` | RTIC, RTIC-GCN |
| `covr` | CoVR, CoVR-2 |
| `shoes` | VAL and its successors on Shoes |
| `fashion200k` | TIRG (with the reference removed), VAL and their successors on Fashion200k |
"""

for _protocol in (
    Protocol("original", join="clip4cir"),
    Protocol("original-noref", reference="removed"),
    Protocol("val-split", gallery="union", reference="removed", captions="single"),
    Protocol("val-split-joined", gallery="union", reference="removed"),
    Protocol("val-split-both-orders", gallery="union", reference="removed", captions="both_orders"),
    Protocol("starter-kit", join="starter_kit"),
    Protocol("fiq2020", join="fiq2020"),
    Protocol("rtic", reference="removed", join="rtic"),
    Protocol("covr", reference="removed"),
    Protocol("shoes", "shoes", "test", reference="removed", captions="single", ks=(1, 10, 50)),
    Protocol("fashion200k", "fashion200k", "test", reference="removed", captions="single", hit="any", ks=(1, 10, 50)),
):
    PROTOCOLS.register(_protocol.name)(_protocol)


def get_protocol(name: str | Protocol, **changes: Any) -> Protocol:
    """The named protocol, with fields replaced: `get_protocol("original", dataset="wardrobe", split="test")`.

    Raises:
        UsageError: unknown name, field or value.
    """
    protocol = name if isinstance(name, Protocol) else PROTOCOLS.get(name)
    return protocol.replace(**changes) if changes else protocol


def read_protocol(config: Mapping[str, Any]) -> AnyProtocol:
    """The protocol that a result names, of any kind of retrieval; raises as `from_config`."""
    kinds: dict[str, type[AnyProtocol]] = {
        dual_protocol.KIND: dual_protocol.DualProtocol,
        class_protocol.KIND: class_protocol.ClassProtocol,
        multi_positive.KIND: multi_positive.StreetProtocol,
    }
    return kinds.get(str(config.get("kind")), Protocol).from_config(config)


def gallery_for(protocol: Protocol, gallery_ids: Sequence[str], triplets: Iterable[Any]) -> list[str]:
    """The ids to search among, in gallery order.

    Args:
        protocol: Its `gallery` decides.
        gallery_ids: All ids of the split, unique under `hit="id"`.
        triplets: The queries: objects or dictionaries with `reference` (or `candidate`) and `target`, or tuples
            `(reference, target, ...)`. Only read for `gallery="union"`.

    Returns:
        "split": `gallery_ids`. "union": those of them that some query has as reference or target, then ids that only the queries
        know, in order of appearance.

    Raises:
        DataError: an empty result, or repeated ids under `hit="id"`.
    """
    ids = list(gallery_ids)
    if protocol.gallery == "union":
        wanted: dict[str, None] = {}
        for triplet in triplets:
            reference, target = _pair(triplet)
            wanted.setdefault(reference)
            if target is not None:
                wanted.setdefault(target)
        listed = set(ids)
        ids = [entry for entry in ids if entry in wanted] + [entry for entry in wanted if entry not in listed]
    if not ids:
        raise DataError(f"The gallery of protocol {protocol.name!r} is empty: no ids in the split file, or no queries.")
    if protocol.hit == "id":
        _refuse_repeats(ids)
    return ids


@dataclass(frozen=True)
class CategoryResult:
    """Retrieval of one category (or one whole dataset) under a protocol.

    Attributes:
        recall: {K: fraction} under the protocol's tie rule.
        pessimistic, optimistic: {K: fraction}; every order of tied scores lies between them.
        queries: Number of queries.
        gallery: Number of gallery entries.
        counts: `RankCounts` (Q,), from which other metrics follow. Under `hit="any"`, those of the best right entry.
        protocol: The protocol.
    """

    recall: dict[int, float]
    pessimistic: dict[int, float]
    optimistic: dict[int, float]
    queries: int
    gallery: int
    counts: RankCounts = field(repr=False)
    protocol: Protocol

    @property
    def ranks(self) -> np.ndarray:
        """Ranks from 1 (Q,) under the protocol's tie rule."""
        return self.counts.ranks(self.protocol.tie)


def evaluate_category(
    query_embeddings: Any,
    gallery_embeddings: Any,
    gallery_ids: Sequence[str],
    target_ids: Sequence[str],
    reference_ids: Sequence[str] | None,
    protocol: Protocol,
    ks: Iterable[int] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    metric: Literal["dot", "cosine"] = "dot",
    precision: Literal["float32", "float64"] = "float64",
) -> CategoryResult:
    """Ranks every query's target in the gallery and counts recalls.

    Args:
        query_embeddings: (Q, D) floats. Under `captions="single"` that is one row per caption, "both_orders" one averaged row per
            pair: the caller embeds what `Protocol.texts` gives.
        gallery_embeddings: (N, D) floats, rows in the order of `gallery_ids`.
        gallery_ids: N ids, for example from `gallery_for`.
        target_ids: Q ids, each in the gallery.
        reference_ids: Q ids; None is fine where the protocol keeps the reference. Ids outside the gallery need no removal.
        protocol: Decides on references, ties and hits.
        ks: Cut-offs of the recalls; default those of the protocol.
        labels: Under `hit="any"`, gallery id -> what makes an entry right, such as its caption: then every entry with the target's
            label is right, ids stay unique, and only the reference's own entry is removed.
        metric, precision: As in `tf_fashion.retrieval.search.top_k`; double precision makes a result the same on every machine.

    Raises:
        UsageError: lengths or shapes that do not fit.
        DataError: no queries, targets that are not in the gallery, references equal to targets where they are removed, repeated
            gallery ids under `hit="id"`, NaN in embeddings.
    """
    from tf_fashion.retrieval.search import rank_counts, ranks_of_positives

    ids, targets = list(gallery_ids), list(target_ids)
    for name, rows, expected in (
        ("query_embeddings", query_embeddings, len(targets)),
        ("gallery_embeddings", gallery_embeddings, len(ids)),
    ):
        if len(np.shape(rows)) != 2 or np.shape(rows)[0] != expected:
            raise UsageError(f"{name} must have one row per id ({expected}), got shape {tuple(np.shape(rows))}.")
    answers = answers_of(ids, targets, reference_ids, protocol, labels)
    options: dict[str, Any] = {"exclude": answers.exclude, "metric": metric, "precision": precision}
    if protocol.hit == "id":
        columns = np.array([places[0] for places in answers.right])
        counts = rank_counts(query_embeddings, gallery_embeddings, columns, **options)
    else:
        positives = ranks_of_positives(query_embeddings, gallery_embeddings, answers.right, **options)
        counts = _of_the_best(positives.splits, positives.counts)
    return result_of_counts(counts, len(ids), protocol, ks)


@dataclass(frozen=True)
class Answers:
    """Which gallery entries answer each query, and which it must not find.

    Attributes:
        right: Gallery positions per query, ascending, at least one each.
        exclude: None, or int64 (Q, m) gallery positions, -1 for "none".
    """

    right: list[list[int]]
    exclude: np.ndarray | None


def answers_of(
    gallery_ids: Sequence[str],
    target_ids: Sequence[str],
    reference_ids: Sequence[str] | None,
    protocol: Protocol,
    labels: Mapping[str, str] | None = None,
) -> Answers:
    """Finds a category's right answers under a protocol; arguments and errors as of `evaluate_category`."""
    ids, targets = list(gallery_ids), list(target_ids)
    if not targets:
        raise DataError("There are no queries to evaluate.")
    if protocol.hit == "id" or labels is not None:
        _refuse_repeats(ids)
    places: dict[str, list[int]] = {}
    for position, entry in enumerate(ids):
        places.setdefault(entry, []).append(position)
    absent = [entry for entry in dict.fromkeys(targets) if entry not in places]
    if absent:
        raise DataError(
            f"{len(absent)} target(s) are not in the gallery of {len(ids)} entries: {_named(absent)}. "
            "Check that the split file and the caption file belong together."
        )
    exclude = None
    if protocol.reference == "removed":
        if reference_ids is None or len(reference_ids) != len(targets):
            found = "none" if reference_ids is None else str(len(reference_ids))
            raise UsageError(f"Protocol {protocol.name!r} removes references: expected {len(targets)} reference ids, got {found}.")
        same = [str(r) for r, t in zip(reference_ids, targets, strict=True) if r == t]
        if same:
            raise DataError(
                f"Protocol {protocol.name!r} removes the reference, but in {len(same)} of {len(targets)} queries reference and "
                f"target are the same id: {_named(same)}."
            )
        exclude = excluded_positions(places, reference_ids)
    right = [places[entry] for entry in targets]
    if protocol.hit == "any" and labels is not None:
        right = _labelled(ids, targets, labels)
        if exclude is not None:
            # The reference may carry the target's label; what is taken out of the gallery cannot be found.
            right = [[place for place in rows if place not in gone] for rows, gone in zip(right, exclude.tolist(), strict=True)]
    return Answers(right, exclude)


def excluded_positions(places: Mapping[str, Sequence[int]], ids: Sequence[str]) -> np.ndarray:
    """int64 (Q, m): the gallery positions of each query's id, filled up with -1."""
    removed = [list(places.get(entry, ())) for entry in ids]
    width = max(1, max(map(len, removed), default=1))
    return np.array([entry + [-1] * (width - len(entry)) for entry in removed], np.int64).reshape(-1, width)


def result_of_counts(counts: RankCounts, gallery: int, protocol: Protocol, ks: Iterable[int] | None = None) -> CategoryResult:
    """The result of a category whose targets (or best right entries) have these rank counts.

    Args:
        counts: One entry per query.
        gallery: Number of gallery entries.
        protocol: Decides on ties, and on the cut-offs unless `ks` does.
        ks: Cut-offs of the recalls.
    """
    cuts = protocol.ks if ks is None else tuple(ks)
    return CategoryResult(
        recall=recall_at_k(counts, cuts, protocol.tie),
        pessimistic=recall_at_k(counts, cuts, "pessimistic"),
        optimistic=recall_at_k(counts, cuts, "optimistic"),
        queries=len(counts),
        gallery=gallery,
        counts=counts,
        protocol=protocol,
    )


def summarise(results: Mapping[str, CategoryResult], protocol: Protocol, run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of `metrics.json`, in percent.

    `{"protocol": {...}, "categories": {NAME: {"R@10": .., "R@50": .., "mean": .., "queries": .., "gallery": ..,
    "interval": {"R@10": [pessimistic, optimistic], ..}}}, "mean": {"R@10": .., "R@50": .., "mean": ..}, "run": {...}}`

    "mean" averages over categories, each with the same weight; its "mean" averages over the cut-offs (FashionIQ's headline).

    Raises:
        UsageError: no category, different cut-offs, or a result that belongs to another protocol.
    """
    if not results:
        raise UsageError("There is no category to summarise.")
    cuts = list(next(iter(results.values())).recall)
    categories: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        if list(result.recall) != cuts:
            raise UsageError(f"Category {name!r} has the cut-offs {list(result.recall)}, others have {cuts}.")
        if result.protocol.fingerprint != protocol.fingerprint:
            raise UsageError(f"Category {name!r} was evaluated as [{result.protocol.describe()}], not as [{protocol.describe()}].")
        values: dict[str, Any] = {f"R@{k}": 100 * result.recall[k] for k in cuts}
        values["mean"] = float(np.mean([values[f"R@{k}"] for k in cuts]))
        values["queries"], values["gallery"] = result.queries, result.gallery
        values["interval"] = {f"R@{k}": [100 * result.pessimistic[k], 100 * result.optimistic[k]] for k in cuts}
        categories[name] = values
    mean = {f"R@{k}": float(np.mean([entry[f"R@{k}"] for entry in categories.values()])) for k in cuts}
    mean["mean"] = float(np.mean(list(mean.values())))
    described = {**protocol.to_config(), "fingerprint": protocol.fingerprint, "description": protocol.describe()}
    return {"protocol": described, "categories": categories, "mean": mean, "run": dict(run or {})}


def compare_results(metrics: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One row of means per result, for results of one protocol only.

    Args:
        metrics: Dictionaries as `summarise` makes them.
        names: One name per result; by default its `run["name"]`, or its position.

    Returns:
        `[{"name": .., "R@10": .., "R@50": .., "mean": ..}, ...]` in percent.

    Raises:
        UsageError: results of different protocols, or with different cut-offs.
        DataError: an entry without protocol or mean.
    """
    rows: list[dict[str, Any]] = []
    first: AnyProtocol | None = None
    for index, entry in enumerate(metrics):
        if not isinstance(entry.get("protocol"), Mapping) or not isinstance(entry.get("mean"), Mapping):
            raise DataError(
                f"Result {index}: expected 'protocol' and 'mean' as in metrics.json, found keys {', '.join(map(str, entry))}."
            )
        protocol = read_protocol(entry["protocol"])
        name = names[index] if names is not None else str(entry.get("run", {}).get("name", index))
        if first is None:
            first = protocol
        elif protocol.fingerprint != first.fingerprint:
            raise UsageError(
                "Results of different protocols cannot stand in one column: "
                f"{rows[0]['name']!r} is [{first.describe()}], {name!r} is [{protocol.describe()}]. "
                "Evaluate both under one protocol."
            )
        row = {"name": name, **entry["mean"]}
        if rows and set(row) != set(rows[0]):
            raise UsageError(f"{name!r} has {', '.join(row)}, but {rows[0]['name']!r} has {', '.join(rows[0])}: use the same cut-offs.")
        rows.append(row)
    return rows


def _pair(triplet: Any) -> tuple[str, str | None]:
    if isinstance(triplet, Mapping):
        return triplet["reference"] if "reference" in triplet else triplet["candidate"], triplet.get("target")
    if isinstance(triplet, (tuple, list)) and not hasattr(triplet, "_fields"):
        return triplet[0], triplet[1]
    reference = triplet.reference if hasattr(triplet, "reference") else triplet.candidate
    return reference, getattr(triplet, "target", None)


def _refuse_repeats(ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        repeated = [entry for entry in ids if entry in seen or seen.add(entry)]  # type: ignore[func-returns-value]
        raise DataError(
            f"{len(repeated)} gallery id(s) appear more than once: {_named(list(dict.fromkeys(repeated)))}. "
            "Remove the repeats, or use a protocol with hit='any'."
        )


def _of_the_best(splits: np.ndarray, counts: RankCounts) -> RankCounts:
    """Counts of each query's best right entry; right entries on its score are no rivals, except that the first of them counts."""
    starts = splits[:-1]
    owner = np.repeat(np.arange(len(starts)), np.diff(splits))
    level = counts.above == counts.above[starts][owner]
    fellows = np.bincount(owner[level], minlength=len(starts)) - 1
    best = counts.take(starts)
    return RankCounts(best.above, best.tied_before, best.tied_after - fellows)


def _labelled(ids: Sequence[str], targets: Sequence[str], labels: Mapping[str, str]) -> list[list[int]]:
    """Positions of all gallery entries with the label of each target."""
    without = [entry for entry in dict.fromkeys([*ids, *targets]) if entry not in labels]
    if without:
        raise DataError(f"{len(without)} picture(s) of gallery or queries have no label: {_named(without)}.")
    carriers: dict[str, list[int]] = {}
    for position, entry in enumerate(ids):
        carriers.setdefault(labels[entry], []).append(position)
    return [carriers[labels[entry]] for entry in targets]


def _named(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
