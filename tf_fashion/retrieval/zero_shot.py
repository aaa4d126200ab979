"""Zero-shot classification: pictures are given the class whose name, said in several sentences, is nearest.

A class is the mean of the unit embeddings of its name in all templates, scaled to length one again (Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.4). FashionCLIP reports the F1 of the classes
weighted by their numbers of pictures ("weighted macro F1"; Chia et al., "Contrastive language and vision learning of general fashion
concepts", 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.search import top_k

FASHION_TEMPLATES = (
    "a photo of {}",
    "a photo of a {}",
    "a product photo of {}",
    "a studio photo of {} for a fashion shop",
    "a person wearing {}",
    "a close look at {}",
    "{} in an online shop",
    "an item of the category {}",
)
"""Sentences for names of garments, shoes and accessories."""

Embed = Callable[[Sequence[str]], Any]


def class_embeddings(names: Sequence[str], embed: Embed, templates: Sequence[str] = FASHION_TEMPLATES) -> np.ndarray:
    """Unit embeddings float32 `(classes, dim)` of class names.

    Args:
        names: Class names, without repeats.
        embed: Function from a list of sentences to embeddings `(sentences, dim)`, of any length.
        templates: Sentences with one `{}` each, where the name goes.

    Raises:
        UsageError: no or repeated names, templates without `{}`, or an `embed` that gives another shape.
        DataError: embeddings that are not finite, or zero.
    """
    names = list(names)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UsageError(f"Class names must be different strings that are not blank, at least one; got {names[:10]}.")
    if isinstance(templates, str) or not templates or any(not _fits(template) for template in templates):
        raise UsageError(f"Templates must be sentences with one {{}} for the class name; got {templates!r}.")
    sentences = [template.replace("{}", name) for name in names for template in templates]
    values = np.asarray(embed(sentences), np.float64)
    if values.ndim != 2 or len(values) != len(sentences):
        raise UsageError(f"The embedding function must give {len(sentences)} rows for as many sentences, gave {values.shape}.")
    units = _units(values, "sentences").reshape(len(names), len(templates), -1)
    return _units(units.mean(axis=1), "classes").astype(np.float32)


def classify(image_embeddings: Any, classes: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest classes of pictures by cosine.

    Args:
        image_embeddings: (N, D) floats of any length.
        classes: (C, D), see `class_embeddings`.
        k: How many; at most C.

    Returns:
        Class numbers int64 (N, k), best first (among equal ones the first class), and their cosines float32 (N, k).

    Raises:
        UsageError: shapes that do not fit, k out of range.
        DataError: NaN or infinity.
    """
    if not 1 <= k <= len(classes):
        raise UsageError(f"k must be from 1 to the number of classes ({len(classes)}), got {k}.")
    scores, numbers = top_k(image_embeddings, classes, k, metric="cosine", precision="float64")
    return numbers, scores


@dataclass(frozen=True)
class ClassScores:
    """How well pictures were classified.

    Attributes:
        names: Class names.
        confusion: int64 (C, C): row = right class, column = predicted class.
    """

    names: tuple[str, ...]
    confusion: np.ndarray = field(repr=False)

    @property
    def support(self) -> np.ndarray:
        """int64 (C,): pictures of each class."""
        return self.confusion.sum(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of pictures that got their own class."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def precision(self) -> np.ndarray:
        """float64 (C,): share of the pictures predicted as a class that belong to it; 0 where none was."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """float64 (C,): share of a class' pictures that were found; 0 for a class without pictures."""
        return _ratio(np.diag(self.confusion), self.support)

    @property
    def f1(self) -> np.ndarray:
        """float64 (C,): harmonic mean of precision and recall; 0 where both are."""
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(axis=0) + self.support)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that have pictures or were predicted."""
        seen = (self.support + self.confusion.sum(axis=0)) > 0
        return float(self.f1[seen].mean())

    @property
    def weighted_f1(self) -> float:
        """Mean F1 weighted by the number of pictures of each class."""
        return float((self.f1 * self.support).sum() / self.support.sum())

    def summary(self) -> dict[str, Any]:
        """All numbers as fractions, for JSON."""
        columns = zip(self.names, self.precision, self.recall, self.f1, self.support, strict=True)
        return {
            "accuracy": self.accuracy,
            "weighted_f1": self.weighted_f1,
            "macro_f1": self.macro_f1,
            "images": int(self.support.sum()),
            "classes": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "images": int(n)} for name, p, r, f, n in columns
            },
            "confusion": self.confusion.tolist(),
        }

    def mistakes(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The most frequent confusions: right class, predicted class, number of pictures."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [np.unravel_index(place, wrong.shape) for place in order]
        return [(self.names[row], self.names[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column]]


def score_classes(names: Sequence[str], right: Sequence[str], predicted: Sequence[int] | np.ndarray) -> ClassScores:
    """Counts right and wrong classes.

    Args:
        names: Class names.
        right: N names of the right classes.
        predicted: N class numbers.

    Raises:
        UsageError: lengths that do not fit.
        DataError: no picture, or a right class that is not among the names.
    """
    place = {name: number for number, name in enumerate(names)}
    numbers = np.asarray(predicted, np.int64).reshape(-1)
    if len(numbers) != len(right):
        raise UsageError(f"Expected one predicted class per picture ({len(right)}), got {len(numbers)}.")
    if not len(right):
        raise DataError("There are no pictures to classify.")
    unknown = [name for name in dict.fromkeys(right) if name not in place]
    if unknown:
        raise DataError(f"{len(unknown)} labels are no class names: {', '.join(map(repr, unknown[:5]))}. Add them, or leave them out.")
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (np.array([place[name] for name in right]), numbers), 1)
    return ClassScores(tuple(names), confusion)


def evaluate_zero_shot(
    image_embeddings: Any,
    labels: Sequence[str],
    embed: Embed,
    names: Sequence[str] | None = None,
    templates: Sequence[str] = FASHION_TEMPLATES,
    say: Mapping[str, str] | None = None,
) -> ClassScores:
    """Classifies pictures by the names of classes and counts how often that is right.

    Args:
        image_embeddings: (N, D) floats.
        labels: N right class names.
        embed: See `class_embeddings`.
        names: The classes; default those of the labels, sorted.
        templates: See `class_embeddings`.
        say: Class name -> how it is said in the sentences, where the name itself is no word ("tshirts": "t-shirt").

    Raises:
        UsageError, DataError: as `class_embeddings`, `classify` and `score_classes`.
    """
    names = sorted(set(labels)) if names is None else list(names)
    said = [(say or {}).get(name, name) for name in names]
    predicted, _ = classify(image_embeddings, class_embeddings(said, embed, templates))
    return score_classes(names, labels, predicted[:, 0])


def _fits(template: Any) -> bool:
    return isinstance(template, str) and template.count("{}") == 1


def _units(values: np.ndarray, what: str) -> np.ndarray:
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise DataError(f"Some embeddings of {what} are not finite, or zero. Look for a diverged model.")
    return values / lengths


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
