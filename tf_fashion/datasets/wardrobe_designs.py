"""Which garments hang in the drawn wardrobe, and which of them answer a wish.

Garments come in lines: one kind, most attributes fixed, a few that vary over a small grid. In the galleries for validation and test a
line is long and two makers sew it, each with an own look (`Identity`). So for every query there are many garments near the
reference in every direction, many that fulfil the words, and few that do both; of those the reference's maker has one. Training
has many short lines, for variety.

Everything about a garment follows from (seed, category, split, number), so a wardrobe of any size is made line by line.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from tf_fashion.datasets.wardrobe_garments import (
    ATTRIBUTE_NAMES,
    CATEGORIES,
    COLOURS,
    KINDS,
    ORDERED,
    PATTERNS,
    Attributes,
    Identity,
    contrast,
    lightness,
)
from tf_fashion.datasets.wardrobe_sentences import changed

SPLITS = ("train", "val", "test")
SHARES = {"train": 0.5, "val": 0.37, "test": 0.13}
# Chance of a pair to differ in 1, 2 or 3 attributes. Pairs that differ in several are those that no picture alone answers.
CHANGES = {1: 0.3, 2: 0.6, 3: 0.1}
# How likely a named change (a colour, a neckline) is beside an ordered one ("longer"), by the number of changes: several named ones
# together would describe the target so well that its words alone find it.
NAMED = {1: 0.7, 2: 0.35, 3: 0.25}
PAIRS_PER_TARGET = {"train": 4, "val": 1, "test": 1}
LINE = {"train": 24, "val": 120, "test": 120}
MAKERS = {"train": 1, "val": 2, "test": 2}


@dataclasses.dataclass(frozen=True)
class Item:
    """One garment.

    Args:
        id: Name of the picture, unique in the wardrobe.
        category: FashionIQ category.
        split: train, val or test.
        design: Line and maker; garments of one design share most of their look.
        attributes: Value of every attribute of ATTRIBUTE_NAMES, empty where the kind has none.
        identity: The garment's individual look.
        number: Position in its category and split.
    """

    id: str
    category: str
    split: str
    design: str
    attributes: Attributes
    identity: Identity
    number: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """A reference, a target, and the names of the attributes in which they differ."""

    reference: Item
    target: Item
    names: tuple[str, ...]


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on the key alone, the same in every process."""
    return np.random.default_rng([zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key])


def tell_apart(first: str, second: str) -> bool:
    """Whether a print of one colour shows clearly on cloth of another."""
    gap = abs(lightness(first) - lightness(second))
    return contrast(first, second) >= 0.5 and (gap >= 0.15 or contrast(first, second) >= 0.95)


def split_counts(
    items: int, categories: tuple[str, ...], splits: tuple[str, ...], shares: Mapping[str, float] = SHARES
) -> dict[tuple[str, str], int]:
    """How many garments each category has in each split. They add up to `items`."""
    total = sum(shares[split] for split in splits)
    edges, done, counts = 0.0, 0, {}
    for split in splits:
        edges += shares[split] / total
        upto = round(items * edges) if split != splits[-1] else items
        number, done = upto - done, upto
        for place, category in enumerate(categories):
            counts[category, split] = number // len(categories) + (place < number % len(categories))
    return counts


def _palette(rng: np.random.Generator, second: str, among: tuple[str, ...], count: int) -> list[str]:
    fitting = [colour for colour in among if tell_apart(colour, second)]
    return [str(colour) for colour in rng.permutation(fitting)[:count]]


def style_line(
    rng: np.random.Generator, kind: str, season: tuple[str, ...], patterns: tuple[str, ...], dense: bool
) -> list[Attributes]:
    """The attribute sets of a line: the product of the values of its varying attributes, in random order."""
    second = str(max(rng.permutation(list(COLOURS)), key=lambda colour: min(5, len(_palette(rng, str(colour), season, 12)))))
    varying: dict[str, list[str]] = {"colour": _palette(rng, second, season, 4 if dense else 5)}
    own = dict(KINDS[kind].values)
    names = sorted(own, key=lambda name: -min(len(own[name]), 3) - 1.3 * float(rng.random()))
    if rng.random() < 0.6:
        varying["pattern"] = [str(value) for value in rng.permutation(patterns)[:3]]
    for name in names[: 4 - len(varying) if dense else 5 - len(varying)]:
        values = own[name]
        chosen = sorted(rng.permutation(len(values))[: 3 if dense else 4])
        varying[name] = [values[place] for place in chosen]
    base = dict.fromkeys(ATTRIBUTE_NAMES, "") | {"kind": kind}
    base["pattern"] = str(patterns[int(rng.integers(len(patterns)))]) if rng.random() < 0.6 else "plain"
    for name, values in own.items():
        base[name] = str(values[int(rng.integers(len(values)))])
    grid = []
    for values in itertools.product(*varying.values()):
        attributes = base | dict(zip(varying, values, strict=True))
        attributes["second"] = second if attributes["pattern"] != "plain" else ""
        grid.append(attributes)
    return [grid[place] for place in rng.permutation(len(grid))]


def chained(sets: list[Attributes], count: int) -> list[Attributes]:
    """Takes `count` sets so that each is a wish away (at most three changes) from one before it; repeats them if there are too few."""
    chosen = [sets[0]]
    rest = sets[1:]
    while len(chosen) < min(count, len(sets)):
        near = (place for place, candidate in enumerate(rest) if len(changed(chosen[-1], candidate)) <= 2)
        chosen.append(rest.pop(next(near, 0)))
    return chosen + [chosen[place % len(chosen)] for place in range(count - len(chosen))]


def wardrobe_lines(
    items: int,
    seed: int,
    categories: tuple[str, ...] = CATEGORIES,
    splits: tuple[str, ...] = SPLITS,
    shares: Mapping[str, float] = SHARES,
    galleries: bool = True,
) -> Iterator[list[Item]]:
    """The garments of a wardrobe, line by line, so that memory does not grow with `items`.

    Args:
        items: Number of garments over all categories and splits.
        seed: Non-negative.
        categories: Some of CATEGORIES.
        splits: Some of SPLITS.
        shares: Parts of the garments that go to each split.
        galleries: Whether validation and test have the long lines that a search by picture and words needs; else all splits have
            the variety of training.

    Yields:
        The garments of one line; all of one category and split.
    """
    for (category, split), count in split_counts(items, categories, splits, shares).items():
        like = split if galleries else "train"
        kinds = [name for name, kind in KINDS.items() if kind.category == category]
        season_rng = generator(seed, category, split, "season")
        season = tuple(str(colour) for colour in season_rng.permutation(list(COLOURS)))
        prints = tuple(str(pattern) for pattern in season_rng.permutation(PATTERNS))
        number = line_number = 0
        while number < count:
            rng = generator(seed, category, split, "line", line_number)
            kind = kinds[line_number % len(kinds)]
            if like != "train":
                # A gallery's fashion: few colours at a time, so that many garments share the wished one.
                shift = (line_number // (3 * len(kinds))) * 5
                palette = tuple(season[(shift + place) % len(season)] for place in range(5))
                patterns = tuple(prints[(shift + place) % len(prints)] for place in range(3))
            else:
                palette, patterns = season, PATTERNS
            sets = style_line(rng, kind, palette, patterns, like != "train")
            share = min(LINE[like], count - number)
            makers = MAKERS[like] if share >= 8 else 1
            line: list[Item] = []
            for maker in range(makers):
                part = share // makers + (maker < share % makers)
                if not part:
                    continue
                look = Identity.draw(rng)
                order = [sets[place] for place in rng.permutation(len(sets))]
                for attributes in chained(order, part):
                    own = generator(seed, category, split, "item", number)
                    line.append(
                        Item(
                            id=f"{category}-{split}-{number:06d}",
                            category=category,
                            split=split,
                            design=f"{category}-{split}-{line_number:04d}{'ab'[maker]}",
                            attributes=attributes,
                            identity=look.near(own),
                            number=number,
                        )
                    )
                    number += 1
            yield line
            line_number += 1


def line_pairs(line: list[Item], seed: int) -> Iterator[Pair]:
    """Pairs of a line: for each garment as target, references of the same design that differ in one to three attributes.

    In validation and test every garment is the target of at most one pair.
    """
    for target in line:
        rng = generator(seed, target.category, target.split, "pairs", target.number)
        near: dict[int, list[tuple[Item, list[str]]]] = {}
        for reference in line:
            if reference.design != target.design or reference is target:
                continue
            names = changed(reference.attributes, target.attributes)
            if 1 <= len(names) <= 3:
                near.setdefault(len(names), []).append((reference, names))
        for _ in range(PAIRS_PER_TARGET[target.split]):
            sizes = [size for size in sorted(near) if near[size]]
            if not sizes:
                break
            weights = np.array([CHANGES[size] for size in sizes])
            size = sizes[int(rng.choice(len(sizes), p=weights / weights.sum()))]
            likely = np.array([np.prod([1.0 if name in ORDERED else NAMED[size] for name in names]) for _, names in near[size]])
            reference, names = near[size].pop(int(rng.choice(len(likely), p=likely / likely.sum())))
            yield Pair(reference, target, tuple(names))
