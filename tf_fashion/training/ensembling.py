"""`tf-fashion scores` and `tf-fashion ensemble`: from trained models to a fused ranking."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, make_out_folder, write_json
from tf_fashion.datasets import CategorySplit
from tf_fashion.ensemble.fusion import Fusion
from tf_fashion.ensemble.scores import MANIFEST, ScoredQuery, ScoreFile, ScoreWriter, open_scores, refuse_existing, refuse_unknown_dtype
from tf_fashion.ensemble.submission import refuse_unsubmittable, submission_of, write_submission
from tf_fashion.ensemble.weights import FittedWeights, fit_weights
from tf_fashion.inputs.pipelines import query_text
from tf_fashion.reports.contributions import Contribution, draw_contributions
from tf_fashion.reports.tables import format_table
from tf_fashion.retrieval.protocol import Protocol, gallery_for, get_protocol, summarise
from tf_fashion.retrieval.search import QUERY_BLOCK, score_matrix
from tf_fashion.training.commands import load_composed, open_split, split_features
from tf_fashion.training.evaluation import Embedder, embed_queries
from tf_fashion.training.runs import versions

SUBMITTED = 50


def scored_queries(part: CategorySplit, protocol: Protocol) -> tuple[list[ScoredQuery], list[str]]:
    """The rows of a category's score matrix and their texts: one per pair, or one per caption; targets may be unknown."""
    queries, texts = [], []
    for row, triplet in enumerate(part.triplets):
        name = f"{part.split}_{part.category}_{triplet.reference}_{row}"
        if protocol.captions != "single":
            queries.append(ScoredQuery(name, triplet.reference, triplet.target, tuple(triplet.captions)))
            texts.append(query_text(triplet.captions, protocol.join))
            continue
        for number, caption in enumerate(triplet.captions):
            if caption.strip():
                queries.append(ScoredQuery(f"{name}_{number}", triplet.reference, triplet.target, (caption,)))
                texts.append(caption.strip())
    return queries, texts


def export_scores(
    model_path: str,
    data: str,
    images: str | None,
    dataset_name: str,
    categories: tuple[str, ...] | None,
    split: str | None,
    protocol_name: str | None,
    out: str,
    dtype: str = "float32",
    skip_bad_images: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    name: str | None = None,
) -> Path:
    """Writes the scores of a model on a split, with or without targets; see `tf-fashion scores --help`."""
    folder = Path(out)
    refuse_existing(folder, overwrite)
    refuse_unknown_dtype(dtype)
    dataset, split, names = open_split(data, images, categories, dataset_name, split)
    protocol = get_protocol(protocol_name or dataset.default_protocol, dataset=dataset.name, split=split)
    if protocol.gallery == "union" and not all(dataset.get(c, split).has_targets for c in names):
        raise UsageError(
            f"The protocol {protocol.name!r} makes the gallery from references and targets, and the split {split!r} has no targets. "
            "Take a protocol with the whole gallery, such as original."
        )
    model = load_composed(model_path)
    if protocol_name is None:
        protocol = protocol.replace(join=model.caption_style)
    embedder = Embedder(model)
    make_out_folder(folder.parent)
    bad_list = folder.with_name("bad_images.csv")
    dataset, table = split_features(embedder, dataset, split, names, bad_list, skip_bad_images, progress)
    run = {
        "model": {"file": Path(model_path).name, "sha256": hash_file(model_path)},
        "versions": versions(),
        "data_hash": dataset.data_hash([split]),
        "left_out": {c: dataset.get(c, split).dropped_triplets for c in names if dataset.get(c, split).dropped_triplets},
    }
    scale = float(np.square(model.scaled.scale.numpy()))
    title = name or Path(model_path).resolve().parent.name
    with ScoreWriter(folder, title, protocol, scale, run, dtype, overwrite) as writer:
        for category in names:
            part = dataset.get(category, split)
            queries, texts = scored_queries(part, protocol)
            references = [query.reference for query in queries]
            embeddings = embed_queries(embedder, table, protocol, references, texts, [query.captions for query in queries])
            gallery_ids = gallery_for(protocol, list(part.gallery), part.triplets)
            gallery = embedder.gallery(table, gallery_ids)
            matrix = writer.category(category, queries, gallery_ids, part.labels if protocol.hit == "any" else None)
            starts = tqdm(
                range(0, len(queries), QUERY_BLOCK), desc=f"scores {category}", unit="block", disable=not progress, leave=False
            )
            for start in starts:
                # Double precision, as in every evaluation, so that both rank alike.
                rows = slice(start, start + QUERY_BLOCK)
                matrix[rows] = score_matrix(embeddings[rows], gallery, precision="float64")
    return folder


@dataclass(frozen=True)
class EnsembleConfig:
    """What decides an ensemble; explained by `tf-fashion ensemble --help`."""

    members: tuple[str, ...]
    out: str
    test: tuple[str, ...] = ()
    normalise: str = "zscore"
    trials: int = 100
    folds: int = 5
    seed: int = 0
    weights: tuple[float, ...] | None = None
    fused: bool = True
    overwrite: bool = False
    progress: bool = True


def _open_fusion(folders: Sequence[str], how: str) -> Fusion:
    fusion = Fusion([open_scores(folder) for folder in folders], how)
    names = [member.name for member in fusion.members]
    if len(set(names)) < len(names):
        # Two seeds of one recipe: the folders tell them apart.
        fusion.members = [_renamed(member) for member in fusion.members]
    return fusion


def _renamed(member: ScoreFile) -> ScoreFile:
    parts = [part for part in member.folder.resolve().parts[-3:] if part not in ("/", "scores")]
    return replace(member, name="/".join(parts))


def build_ensemble(config: EnsembleConfig) -> dict[str, Any]:
    """Finds weights, measures them on queries that they were not found on, and writes what `tf-fashion ensemble --help` lists.

    Nothing but the searches' own state is written before every score of every member has been read and found sound. Workers of a
    search with a chief (see `ensemble.tuner`) help to find the weights and leave the rest to the chief.

    Returns:
        The content of `ensemble.json`; empty in a worker.
    """
    if len(config.members) < 2:
        raise UsageError(f"--members: an ensemble needs at least two score files, found {len(config.members)}.")
    fusion = _open_fusion(config.members, config.normalise)
    if not fusion.has_targets:
        raise DataError(f"{config.members[0]}: these queries have no targets, so no weights can be found on them. Give the val scores.")
    test = None
    if config.test:
        if len(config.test) != len(config.members):
            raise UsageError(
                f"--test: expected one score file per member, in their order ({len(config.members)}), found {len(config.test)}."
            )
        test = _open_fusion(config.test, config.normalise)
        refuse_unsubmittable(test.protocol, "--test")
        _refuse_other_models(fusion, test)
        absent = [name for name in fusion.categories if name not in test.categories]
        if absent:
            raise DataError(f"{config.test[0]}: the categories {', '.join(absent)} are missing, which {config.members[0]} has.")
    if config.weights is not None and (
        len(config.weights) != len(config.members)
        or not all(0 <= weight < math.inf for weight in config.weights)
        or not 0 < sum(config.weights) < math.inf
    ):
        raise UsageError(f"--weights: expected {len(config.members)} numbers of at least 0 that are not all 0, found {config.weights}.")
    out = Path(config.out)
    _refuse_results_folder(out, [side for side in (fusion, test) if side is not None], config.fused)
    if test is not None:
        test.check_finite()
    if config.weights is not None:
        fusion.check_finite()
        weights = np.array(config.weights, np.float64) / sum(config.weights)
        fitted = None
        make_out_folder(out)
    else:
        fitted = fit_weights(fusion, out / "search", config.trials, config.folds, config.seed, config.overwrite, config.progress)
        weights = fitted.weights
        from tf_fashion.ensemble.tuner import is_worker

        if is_worker():
            return {}
    return _Results(config, fusion, test, weights, fitted, out).write()


def _refuse_other_models(fusion: Fusion, test: Fusion) -> None:
    for val, other in zip(fusion.members, test.members, strict=True):
        models = [_entry(member, "model").get("sha256") for member in (val, other)]
        if None not in models and models[0] != models[1]:
            raise UsageError(f"--test: {other.folder} was made by another model than {val.folder}. Give both in the same order.")


def _entry(member: ScoreFile, key: str) -> dict[str, Any]:
    found = member.run.get(key)
    return found if isinstance(found, dict) else {}


def _refuse_results_folder(out: Path, sides: Sequence[Fusion], fused: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, found a file.")
    target = (out / "fused").resolve()
    for member in (member for side in sides for member in side.members):
        if member.folder.resolve().is_relative_to(target):
            raise UsageError(f"{member.folder} is a member and lies where the fused scores of {out} go. Choose another --out.")
    if fused:
        for side in sides:
            refuse_existing(out / "fused" / side.protocol.split, overwrite=True)


class _Results:
    """Measures an ensemble and writes its files."""

    def __init__(
        self,
        config: EnsembleConfig,
        fusion: Fusion,
        test: Fusion | None,
        weights: np.ndarray,
        fitted: FittedWeights | None,
        out: Path,
    ) -> None:
        self.config, self.fusion, self.test, self.weights, self.fitted, self.out = config, fusion, test, weights, fitted, out

    def write(self) -> dict[str, Any]:
        """Writes everything; returns the content of `ensemble.json`."""
        config, fusion, count = self.config, self.fusion, len(self.fusion.members)
        self._clear()
        run = {
            "name": "ensemble",
            "members": [member.name for member in fusion.members],
            "weights": self.weights.tolist(),
            "normalise": config.normalise,
            "seed": config.seed,
            "versions": versions(),
        }
        named: list[tuple[str, Any]] = [(member.name, row) for member, row in zip(fusion.members, np.eye(count), strict=True)]
        named.append(("equal weights", np.full(count, 1.0 / count)))
        if self.fitted is None:
            named.append(("given weights", self.weights))
        else:
            named.append((f"ensemble, cross-fitted ({config.folds} folds)", self.fitted.per_query))
            named.append(("ensemble, on its own queries (optimistic)", self.weights))
            run |= {"trials": config.trials, "folds": config.folds, "fold_weights": self.fitted.folds.tolist()}
        rest = [np.where(np.arange(count) == number, 0.0, self.weights) for number in range(count)]
        results = fusion.evaluate(*(weights for _, weights in named), *rest)
        rows = [
            summarise(result, fusion.protocol, {"name": name}) for (name, _), result in zip(named, results[: len(named)], strict=True)
        ]
        without = [summarise(result, fusion.protocol)["mean"]["mean"] for result in results[len(named) :]]
        headline, tuned = rows[count + 1], rows[-1]
        contributions = [
            Contribution(member.name, float(weight), row["mean"]["mean"], mean if others.any() else None)
            for member, weight, row, mean, others in zip(fusion.members, self.weights, rows, without, rest, strict=False)
        ]
        result = {
            "protocol": tuned["protocol"],
            "members": [{**vars(contribution), **row["mean"]} for contribution, row in zip(contributions, rows[:count], strict=True)],
            "equal": rows[count]["mean"],
            "cross_fitted": None if self.fitted is None else headline["mean"],
            "on_its_own_queries": tuned["mean"],
            "run": run,
        }
        write_json(self.out / "metrics.json", {**headline, "run": {**run, "measured": headline["run"]["name"]}})
        draw_contributions(
            self.out / "contributions.png",
            contributions,
            tuned["mean"]["mean"],
            fusion.protocol.describe(),
            "What each member brings" + ("" if self.fitted is None else " (recalls on the queries of the search)"),
        )
        self._rankings()
        write_json(self.out / "ensemble.json", result)
        if config.progress:
            print(self._table(rows))
            print(self._listing())
        return result

    def _clear(self) -> None:
        """Removes an older ensemble's results, so that those of two never stand side by side."""
        marker = self.out / "ensemble.json"
        if not marker.is_file():
            return
        marker.unlink()
        for pattern in ("metrics.json", "contributions.png", "ranking.*.json", "submission/*.pred.json"):
            for path in self.out.glob(pattern):
                path.unlink()
        for path in self.out.glob(f"fused/*/{MANIFEST}"):
            shutil.rmtree(path.parent)

    def _table(self, rows: list[dict[str, Any]]) -> str:
        cuts = list(rows[0]["mean"])
        weights = [*(f"{weight:.2f}" for weight in self.weights), *([None] * (len(rows) - len(self.weights)))]
        lines = [[row["run"]["name"], weight, *(row["mean"][key] for key in cuts)] for row, weight in zip(rows, weights, strict=True)]
        table = format_table(["member", "weight", *cuts], lines)
        return f"{table}\nPercent. Protocol {self.fusion.protocol.describe()}. Scores normalised: {self.config.normalise}."

    def _rankings(self) -> None:
        """The fused ranking of each split, the fused scores as a score file, and the submission."""
        write_json(self.out / f"ranking.{self.fusion.protocol.split}.json", self._ranking(self.fusion))
        if self.config.fused:
            self._fused_scores(self.fusion, self.out / "fused" / self.fusion.protocol.split)
        if self.test is not None:
            split = self.test.protocol.split
            rankings = self._ranking(self.test)
            write_json(self.out / f"ranking.{split}.json", rankings)
            parts = self.test.members[0].categories
            objects = {
                name: submission_of(part, [[entry for entry, _ in rankings[name][query.id]] for query in part.queries])
                for name, part in parts.items()
            }
            write_submission(self.out / "submission", split, objects)
            if self.config.fused:
                self._fused_scores(self.test, self.out / "fused" / split)

    def _ranking(self, fusion: Fusion) -> dict[str, dict[str, list[list[Any]]]]:
        """Category -> query id -> the best gallery ids with their fused scores."""
        rankings: dict[str, dict[str, list[list[Any]]]] = {}
        for name, part in fusion.members[0].categories.items():
            rankings[name] = {}
            scores, places = fusion.top(name, self.weights, SUBMITTED)
            for query, line, found in zip(part.queries, scores, places, strict=True):
                kept = found >= 0
                rankings[name][query.id] = [
                    [part.gallery[place], round(float(score), 6)] for place, score in zip(found[kept], line[kept], strict=True)
                ]
        return rankings

    def _fused_scores(self, fusion: Fusion, folder: Path) -> None:
        run = {
            "fused": [member.name for member in fusion.members],
            "weights": self.weights.tolist(),
            "normalise": self.config.normalise,
        }
        with ScoreWriter(folder, "ensemble", fusion.protocol, None, run, overwrite=True) as writer:
            for name, part in fusion.members[0].categories.items():
                matrix = writer.category(name, part.queries, part.gallery, part.labels)
                for rows in fusion.blocks(name):
                    matrix[rows] = fusion.fused(name, rows, self.weights)

    def _listing(self) -> str:
        kept = {
            "ensemble.json": "weights, members and results",
            "metrics.json": "the headline result with its protocol",
            "contributions.png": "what each member brings",
            f"ranking.{self.fusion.protocol.split}.json": "the best entries of every query",
            "fused": "the fused scores, which can be a member of another ensemble",
            "submission": "the challenge's files for the test split",
        }
        lines = [f"  {self.out / name}  {what}" for name, what in kept.items() if (self.out / name).exists()]
        for member in self.test.members if self.test is not None else ():
            for category, count in _entry(member, "left_out").items():
                lines.append(
                    f"Note: {member.folder} leaves out {count} queries of {category}, whose pictures could not be used; the challenge "
                    "wants a ranking for every query."
                )
        return "\n".join(["Results:", *lines])
