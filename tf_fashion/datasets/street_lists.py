"""The lists of consumer-to-shop data: DeepFashion's and Street2Shop's, in all forms that UDMA's programs read.

| reader | a line or entry |
|---|---|
| `read_id_list` | `path,id` (DeepFashion's test files) |
| `read_train_list` | `path product category [category name]`, separated by blanks |
| `read_photo_json` | `{"path", "product", "label", "category", "bbox": {"left", "top", "width", "height"}, "photo"}` in a JSON list |
| `read_eval_partition` | `consumer_path shop_path item_id status`, separated by blanks, with or without DeepFashion's two head lines |
| `read_pair_json` | `{"0": {"Consumer": [[{..}]], "Shop": [[{..}]]}, ...}` |

Readers give what is wrong to a callback (by default the first problem is raised as `DataError`) and leave the entry out, so that the
`check` command lists everything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_fashion.core import files
from tf_fashion.core.errors import DataError
from tf_fashion.datasets.catalogue import id_from_path, relative_path_problem
from tf_fashion.datasets.records import OnProblem, Problem, raise_errors, short_repr

STATUSES = ("train", "val", "test")
PAIRS_HEADER = ("image_pair_name_1", "image_pair_name_2", "item_id", "evaluation_status")
MAX_BOX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a picture, in pixels from its upper left corner; may reach beyond the picture, where it is black.

    Attributes:
        left, top, width, height: Finite numbers, not necessarily whole.
    """

    left: float
    top: float
    width: float
    height: float

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in whole pixels, each cut off towards zero as UDMA's loader does."""
        return int(self.left), int(self.top), int(self.left + self.width), int(self.top + self.height)


@dataclass(frozen=True, slots=True)
class ProductPhoto:
    """A photo of a product, or a part of one.

    Attributes:
        image_id: Made from the path and the box, safe as a file name; equal for equal parts of one photo.
        path: As in the list, relative, with forward slashes.
        product: The product's id or number, as text.
        category: Number of its category in the list's own numbering; None where the list has none.
        category_name: Its name; may be empty.
        box: The part that shows the product; None for the whole photo.
        row: Its place in the list, from 0 (lines that say nothing are not counted).
    """

    image_id: str
    path: str
    product: str
    category: int | None
    category_name: str
    box: Box | None
    row: int

    @property
    def identity(self) -> str:
        """What tells products apart: Street2Shop counts them in each category anew, so the category belongs to it."""
        return self.product if self.category is None else f"{self.category}/{self.product}"


@dataclass(frozen=True, slots=True)
class PhotoPair:
    """A line of DeepFashion's `list_eval_partition.txt`: a consumer and a shop photo of one item, and the split."""

    consumer: str
    shop: str
    item: str
    status: str
    row: int


@dataclass(frozen=True, slots=True)
class Product:
    """A product with its photos of both sides.

    Attributes:
        name: What identifies it: a folder, or the lists' product number.
        consumers, shops: Photos of each side, in the order of the lists.
    """

    name: str
    consumers: tuple[ProductPhoto, ...]
    shops: tuple[ProductPhoto, ...]


def read_id_list(path: str | Path, on_problem: OnProblem = raise_errors) -> list[ProductPhoto]:
    """Reads `path,id` lines: DeepFashion's test queries and gallery. Ids stay text."""
    photos = []
    for row, (where, line) in enumerate(_lines(Path(path), on_problem)):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 2 or not all(cells):
            found = f"{len(cells)} columns" if len(cells) != 2 else "an empty column"
            fix = "Separate path and id by one comma, without a header." if len(line.split()) > 1 or len(cells) != 2 else ""
            on_problem(Problem("error", where, f"expected `path,id`, found {found}: {short_repr(line)}.", fix, "wrong columns"))
            continue
        photo = _photo(where, on_problem, cells[0], cells[1], None, "", None, row)
        if photo is not None:
            photos.append(photo)
    return photos


def read_train_list(path: str | Path, on_problem: OnProblem = raise_errors) -> list[ProductPhoto]:
    """Reads `path product category [name]` lines: the photos that are clustered and trained on. Numbers are whole, from 0."""
    photos: list[ProductPhoto] = []
    category_of: dict[str, tuple[int, str]] = {}
    for row, (where, line) in enumerate(_lines(Path(path), on_problem)):
        cells = line.split()
        if len(cells) not in (3, 4):
            what = f"expected `path product category [category name]`, found {len(cells)} columns: {short_repr(line)}."
            on_problem(Problem("error", where, what, "", "wrong columns"))
            continue
        numbers = [_whole(cell) for cell in cells[1:3]]
        bad = next((cell for cell, number in zip(cells[1:3], numbers, strict=True) if number is None), None)
        if bad is not None:
            what = f"expected whole numbers from 0 as product and category, found {short_repr(bad)}."
            on_problem(Problem("error", where, what, "", "bad number"))
            continue
        product, category = str(numbers[0]), numbers[1]
        photo = _photo(where, on_problem, cells[0], product, category, cells[3] if len(cells) == 4 else "", None, row)
        if photo is None or category is None:
            continue
        before = category_of.setdefault(product, (category, where))
        if before[0] != category:
            what = f"product {product} has category {category} here and {before[0]} in {before[1]}."
            on_problem(
                Problem("error", where, what, "A product belongs to one category; give it two numbers.", "product in two categories")
            )
            continue
        photos.append(photo)
    return photos


def read_photo_json(path: str | Path, on_problem: OnProblem = raise_errors, boxes: bool = False) -> list[ProductPhoto]:
    """Reads a JSON list of photos: Street2Shop's test queries (with boxes) and gallery (without).

    Args:
        path: The file.
        on_problem: What to do about each problem.
        boxes: Whether every entry must have a box.
    """
    path = Path(path)
    try:
        entries = files.read_json(path)
    except DataError as error:
        on_problem(Problem("error", str(path), str(error).removeprefix(f"{path}: "), "", "unreadable file"))
        return []
    if not isinstance(entries, list):
        what = f"expected a JSON list of photos, found {short_repr(entries)}."
        on_problem(Problem("error", str(path), what, "", "wrong content"))
        return []
    if not entries:
        on_problem(Problem("error", str(path), "the list is empty.", "", "empty list"))
    found = (_json_photo(entry, f"{path}, entry {row}", on_problem, boxes, row) for row, entry in enumerate(entries))
    return [photo for photo in found if photo is not None]


def read_eval_partition(path: str | Path, on_problem: OnProblem = raise_errors) -> list[PhotoPair]:
    """Reads DeepFashion's pairs. The head lines (a count, the names of the columns) may be there; `img/` before paths is taken off.

    The third step of a path must be the item's id: `TOPS/T_Shirt/id_00000001/comsumer_01.jpg`.
    """
    pairs: list[PhotoPair] = []
    counted: int | None = None
    lines = list(_lines(Path(path), on_problem))
    if lines and lines[0][1].strip().isdigit():
        counted = int(lines.pop(0)[1])
    if lines and tuple(lines[0][1].split()) == PAIRS_HEADER:
        lines.pop(0)
    for row, (where, line) in enumerate(lines):
        cells = line.split()
        if len(cells) != 4:
            what = f"expected `consumer_path shop_path item_id status`, found {len(cells)} columns: {short_repr(line)}."
            on_problem(Problem("error", where, what, "", "wrong columns"))
            continue
        consumer, shop = (cell.replace("\\", "/").removeprefix("img/") for cell in cells[:2])
        problem = relative_path_problem(consumer, where) or relative_path_problem(shop, where)
        if problem is None and cells[3] not in STATUSES:
            problem = Problem("error", where, f"expected train, val or test, found {short_repr(cells[3])}.", "", "bad status")
        for photo in (consumer, shop):
            steps = photo.split("/")
            if problem is None and (len(steps) < 4 or steps[2] != cells[2]):
                what = f"the third step of {short_repr(photo)} is not the item's id {cells[2]!r}."
                problem = Problem("error", where, what, "Paths are GROUP/CATEGORY/ITEM/PHOTO.", "wrong item")
        if problem is not None:
            on_problem(problem)
            continue
        pairs.append(PhotoPair(consumer, shop, cells[2], cells[3], row))
    if counted is not None and counted != len(lines):
        what = f"the first line promises {counted} pairs, found {len(lines)}."
        on_problem(Problem("warning", str(path), what, "The file may be cut short.", "wrong count"))
    return pairs


def read_pair_json(path: str | Path, on_problem: OnProblem = raise_errors) -> list[Product]:
    """Reads the products of `train_dataset_street2shop.json`, in the order of their keys "0", "1", ...

    Entries of Street2Shop have `path`, `product`, `label`, `category` and perhaps `bbox`; those of DeepFashion a list of paths and the
    product's folder as `product`.
    """
    path = Path(path)
    try:
        content = files.read_json(path)
    except DataError as error:
        on_problem(Problem("error", str(path), str(error).removeprefix(f"{path}: "), "", "unreadable file"))
        return []
    if not isinstance(content, dict) or any(_whole(key) is None for key in content):
        what = f'expected a JSON object with the keys "0", "1", ..., found {short_repr(content)}.'
        on_problem(Problem("error", str(path), what, "", "wrong content"))
        return []
    products = []
    for key in sorted(content, key=int):
        where = f"{path}, product {key}"
        sides: list[tuple[ProductPhoto, ...]] = []
        for side in ("Consumer", "Shop"):
            entry = content[key].get(side) if isinstance(content[key], dict) else None
            if not isinstance(entry, list):
                what = f"expected lists of photos under 'Consumer' and 'Shop', found {short_repr(content[key])}."
                on_problem(Problem("error", where, what, "", "wrong content"))
                break
            sides.append(tuple(_side(entry, f"{where}, {side}", on_problem)))
        if len(sides) == 2:
            products.append(Product(_product_name(sides, key), sides[0], sides[1]))
    return products


def products_of(consumers: Iterable[ProductPhoto], shops: Iterable[ProductPhoto]) -> list[Product]:
    """Products that have photos on both sides, by identity, in the order of the consumer photos."""
    sides: list[dict[str, list[ProductPhoto]]] = [{}, {}]
    for photos, found in ((consumers, sides[0]), (shops, sides[1])):
        for photo in photos:
            found.setdefault(photo.identity, []).append(photo)
    return [Product(name, tuple(photos), tuple(sides[1][name])) for name, photos in sides[0].items() if name in sides[1]]


def products_of_pairs(
    pairs: Sequence[PhotoPair], images: Path | None = None, statuses: Sequence[str] = ("train", "val")
) -> list[Product]:
    """DeepFashion's products to train on: the folders of the shop photos of the pairs, with at least one photo of either side.

    Args:
        pairs: What `read_eval_partition` gives.
        images: Where the folders are: all `comsumer*` and `shop*` photos there are taken, as UDMA does. None takes those of the pairs.
        statuses: Whose pairs count; ("train",) leaves the validation pairs out.

    Returns:
        Products named by their folders, sorted; `product` of a photo is the folder and its category is None.
    """
    listed: dict[str, tuple[set[str], set[str]]] = {}
    for pair in pairs:
        if pair.status in statuses:
            sides = listed.setdefault(pair.shop.rsplit("/", 1)[0], (set(), set()))
            sides[1].add(pair.shop)
            if pair.consumer.startswith(f"{pair.shop.rsplit('/', 1)[0]}/"):
                sides[0].add(pair.consumer)
    products = []
    for folder in sorted(listed):
        if images is None:
            consumers, shops = (sorted(side) for side in listed[folder])
        else:
            place = images / folder
            names = sorted(entry.name for entry in place.iterdir() if entry.is_file()) if place.is_dir() else []
            consumers = [f"{folder}/{name}" for name in names if name.startswith(("comsumer", "consumer"))]
            shops = [f"{folder}/{name}" for name in names if name.startswith("shop")]
        if consumers and shops:
            sides_of = [
                tuple(ProductPhoto(id_from_path(photo), photo, folder, None, "", None, row) for row, photo in enumerate(side))
                for side in (consumers, shops)
            ]
            products.append(Product(folder, sides_of[0], sides_of[1]))
    return products


def _lines(path: Path, on_problem: OnProblem) -> Iterator[tuple[str, str]]:
    """Place and text of every line that says something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"expected UTF-8, found other bytes at offset {error.start}"
        on_problem(Problem("error", str(path), f"cannot be read ({reason}).", "", "unreadable file"))
        return
    empty = True
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            empty = False
            yield f"{path}, line {number}", line.strip()
    if empty:
        on_problem(Problem("error", str(path), "the list is empty.", "", "empty list"))


def _photo(
    where: str,
    on_problem: OnProblem,
    path: str,
    product: str,
    category: int | None,
    name: str,
    box: Box | None,
    row: int,
) -> ProductPhoto | None:
    path = path.replace("\\", "/")
    problem = relative_path_problem(path, where)
    if problem is not None:
        on_problem(problem)
        return None
    # Parts of one photo need ids of their own.
    stem, extension = os.path.splitext(path)
    part = "" if box is None else "__box_" + "_".join(map(str, box.corners))
    return ProductPhoto(id_from_path(f"{stem}{part}{extension}"), path, product, category, name, box, row)


def _json_photo(entry: Any, where: str, on_problem: OnProblem, boxes: bool, row: int) -> ProductPhoto | None:
    what, kind = _entry_problem(entry, boxes)
    if what:
        on_problem(Problem("error", where, what, "", kind))
        return None
    box = None
    if entry.get("bbox") is not None:
        box = read_box(entry["bbox"], where, on_problem)
        if box is None:
            return None
    return _photo(where, on_problem, entry["path"], str(entry["product"]), entry["label"], entry.get("category", ""), box, row)


def _entry_problem(entry: Any, boxes: bool) -> tuple[str, str]:
    """What is wrong with an entry of a JSON list (but for its box), and the kind of problem; empty texts if nothing is."""
    if not isinstance(entry, dict):
        return f"expected an object with path, product and label, found {short_repr(entry)}.", "wrong content"
    missing = [key for key in ("path", "product", "label") if key not in entry]
    if missing:
        return f"expected the keys path, product and label, found no {', '.join(missing)} in {short_repr(entry)}.", "missing key"
    path, product, label, name = entry["path"], entry["product"], entry["label"], entry.get("category", "")
    if not isinstance(path, str) or not path:
        return f"expected a path (a string), found {short_repr(path)}.", "wrong content"
    if isinstance(product, bool) or not isinstance(product, (int, str)) or product == "":
        return f"expected a product number, found {short_repr(product)}.", "bad number"
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        return f"expected a category number (a whole number from 0) as label, found {short_repr(label)}.", "bad number"
    if not isinstance(name, str):
        return f"expected a category's name, found {short_repr(name)}.", "wrong content"
    if boxes and entry.get("bbox") is None:
        return 'expected a box {"left", "top", "width", "height"} as bbox, found none.', "bad box"
    return "", ""


def read_box(value: Any, where: str, on_problem: OnProblem = raise_errors) -> Box | None:
    """A box from `{"left", "top", "width", "height"}`; None (and a problem) if it is none or has no pixel."""
    keys = ("left", "top", "width", "height")
    numbers: list[Any] = [value.get(key) for key in keys] if isinstance(value, dict) else []
    if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n) for n in numbers):
        what = f"expected a box of numbers (left, top, width, height), found {short_repr(value)}."
        on_problem(Problem("error", where, what, "", "bad box"))
        return None
    box = Box(*(float(number) for number in numbers))
    left, top, right, bottom = box.corners
    if box.width <= 0 or box.height <= 0 or right <= left or bottom <= top:
        what = f"the box {short_repr(value)} has no pixel."
        on_problem(Problem("error", where, what, "Width and height must be at least 1.", "bad box"))
        return None
    if (right - left) * (bottom - top) > MAX_BOX_PIXELS:
        what = f"the box {short_repr(value)} has more than {MAX_BOX_PIXELS} pixels."
        on_problem(Problem("error", where, what, "", "bad box"))
        return None
    return box


def _side(entry: list[Any], where: str, on_problem: OnProblem) -> Iterator[ProductPhoto]:
    flat = [item for part in entry for item in (part if isinstance(part, list) else [part])]
    row = 0
    for item in flat:
        if isinstance(item, dict) and isinstance(item.get("path"), list):
            folder = item.get("product")
            if not isinstance(folder, str) or not all(isinstance(photo, str) for photo in item["path"]):
                what = f"expected a list of paths and the product's folder, found {short_repr(item)}."
                on_problem(Problem("error", where, what, "", "wrong content"))
                continue
            found = [_photo(where, on_problem, photo, folder, None, "", None, row + n) for n, photo in enumerate(item["path"])]
        else:
            found = [_json_photo(item, where, on_problem, False, row)]
        row += len(found)
        yield from (photo for photo in found if photo is not None)


def _product_name(sides: Sequence[Sequence[ProductPhoto]], key: str) -> str:
    names = {photo.identity for side in sides for photo in side}
    return names.pop() if len(names) == 1 else key


def _whole(text: str) -> int | None:
    """A whole number from 0 in plain digits, or None."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19 else None
