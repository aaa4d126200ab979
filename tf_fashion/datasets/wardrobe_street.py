"""The drawn wardrobe in two domains: products of two shops, photographed in a studio and in the street, in the files of UDMA.

    root/
      images/{source}-{split}-{product}-{side}-{photo}.jpg
      train_cluster/{df,s2s}_{consumer,shop}.txt              path product category name
      test/consumer_df.txt, shop_df.txt                       path,id
      test/test_{consumer,shop}_single_wardrobe_street2shop.json      photos in the street with boxes

An identity is one design of one maker; its category is the kind of garment. Both shops have the same categories under the same
numbers. They follow the same fashions: for most products one has, the other has one that differs by the maker's look, or by an
attribute or two. No product is in both, or in two splits.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write, write_json
from tf_fashion.datasets.wardrobe_designs import Item, chained, generator, style_line
from tf_fashion.datasets.wardrobe_drawing import draw_item
from tf_fashion.datasets.wardrobe_garments import COLOURS, KINDS, PATTERNS, Attributes, Identity
from tf_fashion.datasets.wardrobe_scenes import Corners, View, second_studio, street_photo

SOURCES = ("df", "s2s")
SIDES = ("consumer", "shop")
# Share of the photos, and consumer and shop photos per product; one product in two of the source's has one more from the street.
PARTS: dict[tuple[str, str], tuple[float, int, int]] = {
    ("df", "train"): (0.40, 2, 2),
    ("s2s", "train"): (0.22, 1, 2),
    ("df", "test"): (0.15, 2, 2),
    ("s2s", "test"): (0.23, 2, 2),
}
# Products of one source that follow one fashion.
FASHION = 12
# Colours of a fashion: few, so that the colour alone does not tell its products apart.
FASHION_COLOURS = 2
# Share of the target's street photos that show much beside the garment.
WIDE = 0.6


@dataclasses.dataclass(frozen=True)
class StreetPhoto(Item):
    """One photo of a product.

    Attributes:
        source: "df" (the labelled shop) or "s2s".
        side: "consumer" (street) or "shop" (studio).
        product: Number of the product, from 0 in its source, over both splits.
        photo: Number of the photo among those of this product and side.
    """

    source: str
    side: str
    product: int
    photo: int

    @property
    def path(self) -> str:
        """As the lists have it."""
        return f"images/{self.id}.jpg"


def photos_per_product(items: int) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """How many consumer and shop photos each product of each source and split has. They add up to `items`.

    Raises:
        UsageError: `items` leave a part less than two products.
    """
    counts: dict[tuple[str, str], list[tuple[int, int]]] = {}
    share, done = 0.0, 0
    for part, (own, consumers, shops) in PARTS.items():
        share += own
        upto = items if part == list(PARTS)[-1] else round(items * share)
        left, done = upto - done, upto
        products: list[tuple[int, int]] = []
        while left >= consumers + shops:
            more = int(part == ("df", "train") and len(products) % 2 == 1 and left > consumers + shops)
            products.append((consumers + more, shops))
            left -= consumers + more + shops
        if len(products) < 2:
            raise UsageError(
                f"Expected enough items for two products of each shop in train and test; {items} leave too few for "
                f"{'/'.join(part)}. Ask for more items."
            )
        products[-1] = (products[-1][0] + left, shops)
        counts[part] = products
    return counts


def _kinds(categories: tuple[str, ...], counts: dict[tuple[str, str], list[tuple[int, int]]]) -> list[str]:
    """Kinds that are sold: as many as can have two products each where products are told apart within their kind."""
    of_category = [[name for name, kind in KINDS.items() if kind.category == category] for category in categories]
    turns = range(max(map(len, of_category)))
    order = [kinds[turn] for turn in turns for kinds in of_category if turn < len(kinds)]
    fewest = min(len(products) for part, products in counts.items() if part != ("df", "test"))
    chosen = order[: max(1, fewest // 2)]
    return [kind for kind in KINDS if kind in chosen]


def _designs(seed: int, kind: str, counts: dict[str, int]) -> dict[str, list[tuple[Attributes, Identity]]]:
    """As many different products of a kind as each source wants, fashion by fashion."""
    found: dict[str, list[tuple[Attributes, Identity]]] = {source: [] for source in SOURCES}
    known: dict[str, set[tuple[str, ...]]] = {source: set() for source in SOURCES}
    fashion = stale = 0
    while any(len(found[source]) < counts[source] for source in SOURCES):
        rng = generator(seed, "street", kind, fashion)
        fashion += 1
        colours = tuple(str(colour) for colour in rng.permutation(list(COLOURS)))
        line = style_line(rng, kind, colours, PATTERNS, dense=False)
        few = list(dict.fromkeys(one["colour"] for one in line))[:FASHION_COLOURS]
        sets = chained([one for one in line if one["colour"] in few], FASHION + 4)
        before = sum(map(len, found.values()))
        for source in SOURCES:
            look = Identity.draw(rng)
            for place in rng.permutation(len(sets))[:FASHION]:
                own = tuple(sets[place].values())
                # A kind of few attributes has only so many designs; then looks alone tell products apart.
                if len(found[source]) < counts[source] and (own not in known[source] or stale > 20):
                    known[source].add(own)
                    found[source].append((sets[place], look.near(rng, 0.25)))
        stale = stale + 1 if sum(map(len, found.values())) == before else stale
    return {source: [designs[place] for place in _order(seed, kind, source, len(designs))] for source, designs in found.items()}


def _order(seed: int, kind: str, source: str, count: int) -> np.ndarray:
    return generator(seed, "street order", kind, source).permutation(count)


def street_photos(arguments: dict[str, Any]) -> Iterator[StreetPhoto]:
    """All photos of a wardrobe of this layout, product by product: those of the source's training set first."""
    seed = arguments["seed"]
    counts = photos_per_product(arguments["items"])
    kinds = _kinds(tuple(arguments["categories"]), counts)
    wanted = {kind: dict.fromkeys(SOURCES, 0) for kind in kinds}
    for (source, _), products in counts.items():
        for place in range(len(products)):
            wanted[kinds[place % len(kinds)]][source] += 1
    stock = {kind: {source: iter(designs) for source, designs in _designs(seed, kind, wanted[kind]).items()} for kind in kinds}
    numbers: collections.Counter[str] = collections.Counter()
    row = 0
    for (source, split), products in counts.items():
        for place, photos in enumerate(products):
            kind = kinds[place % len(kinds)]
            attributes, identity = next(stock[kind][source])
            product = numbers[source]
            numbers[source] += 1
            for side, count in zip(SIDES, photos, strict=True):
                for photo in range(count):
                    yield StreetPhoto(
                        id=f"{source}-{split}-{product:05d}-{side}-{photo}",
                        category=KINDS[kind].category,
                        split=split,
                        design=f"{source}-{product:05d}",
                        attributes=attributes,
                        identity=identity,
                        number=row,
                        source=source,
                        side=side,
                        product=product,
                        photo=photo,
                    )
                    row += 1


def _generator(item: StreetPhoto, seed: int, what: str) -> np.random.Generator:
    return generator(seed, "street", what, item.source, item.split, item.side, item.product, item.photo)


def view_of(item: StreetPhoto, seed: int, size: int) -> View:
    """Where a street photo has its garment. Only the target's test photos show more than the garment."""
    rng = _generator(item, seed, "view")
    wide = (item.source, item.split) == ("s2s", "test") and rng.random() < WIDE
    return View.draw(rng, size, wide)


def box_of(item: StreetPhoto, seed: int, size: int) -> Corners:
    """Left, top, right and bottom of the garment in a street photo."""
    return view_of(item, seed, size).box


def draw_street_picture(item: StreetPhoto, seed: int, size: int) -> Image.Image:
    """A photo, RGB: `size` x `size`, or larger where the target's test photos show much beside the garment."""
    rng = _generator(item, seed, "picture")
    if item.side == "consumer":
        return street_photo(item.attributes, item.identity, view_of(item, seed, size), item.source, rng)
    if item.source == "s2s":
        return second_studio(item.attributes, item.identity, rng, size, close=item.photo > 0 and rng.random() < 0.5)
    return draw_item(item.attributes, rng, size, item.identity)


def write_street_to_shop(root: Path, arguments: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """UDMA's layout: training lists of both shops, and test lists of each in its own format."""
    for folder in ("train_cluster", "test"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    photos = list(street_photos(arguments))
    sold = {photo.attributes["kind"] for photo in photos}
    labels = {kind: number for number, kind in enumerate(kind for kind in KINDS if kind in sold)}
    counts: dict[str, dict[str, dict[str, int]]] = collections.defaultdict(dict)
    for source, split in PARTS:
        for side in SIDES:
            listed = [photo for photo in photos if (photo.source, photo.split, photo.side) == (source, split, side)]
            if split == "train":
                _write_lines(root / f"train_cluster/{source}_{side}.txt", [_train_line(photo, labels) for photo in listed])
            elif source == "df":
                lines = [f"{photo.path},id_{photo.product + 1:08d}" for photo in listed]
                _write_lines(root / f"test/{side}_df.txt", lines)
            else:
                entries = [_json_entry(photo, labels, arguments) for photo in listed]
                write_json(root / f"test/test_{side}_single_wardrobe_street2shop.json", entries)
            products = len({photo.product for photo in listed})
            counts[f"{source}_{side}"][split] = {"images": len(listed), "products": products}
    return dict(counts)


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def _train_line(photo: StreetPhoto, labels: dict[str, int]) -> str:
    kind = photo.attributes["kind"]
    return f"{photo.path} {photo.product} {labels[kind]} {kind}"


def _json_entry(photo: StreetPhoto, labels: dict[str, int], arguments: dict[str, Any]) -> dict[str, Any]:
    kind = photo.attributes["kind"]
    entry = {"path": photo.path, "photo": photo.number, "product": photo.product, "category": kind, "label": labels[kind]}
    if photo.side == "consumer":
        left, top, right, bottom = box_of(photo, arguments["seed"], arguments["size"])
        entry["bbox"] = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    return entry
