"""The drawn wardrobe: an offline data set of garment pictures and true modification sentences, in FashionIQ's layout or another.

    root/
      images/{id}.jpg
      captions/cap.{category}.{split}.json          [{"target", "candidate", "captions": [two sentences]}]; test has no target
      image_splits/split.{category}.{split}.json    ids of the gallery
      image_tag_dataset/tags/asin2attr.{category}.{split}.json    id -> six lists of words
      attributes.csv                                id, category, split, design and every attribute
      descriptions.json                             id -> one full sentence
      wardrobe.json                                 version, arguments and counts; written last

The layouts of Fashion200k, Shoes, FashionGen and iMaterialist have their own files in place of those between images and
wardrobe.json (see `fashion200k.py`, `shoes.py`, `fashion_gen.py` and `imaterialist.py`). So has "street_to_shop", whose pictures are
photos of two shops and of the street (`wardrobe_street.py`).

The tree depends on the arguments alone: the same bytes whatever the number of processes, drawn in one go or continued.
"""

from __future__ import annotations

import errno
import io
import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json, write_json
from tf_fashion.core.machine import cpu_count
from tf_fashion.datasets.wardrobe_designs import SPLITS, Item, generator, split_counts
from tf_fashion.datasets.wardrobe_drawing import Pose, draw_garment, draw_item, lay_on, studio
from tf_fashion.datasets.wardrobe_garments import CATEGORIES, Attributes, Identity
from tf_fashion.datasets.wardrobe_layouts import LAYOUTS, SPLIT_NAMES, VARIED_LAYOUTS, lines_of, shares_of
from tf_fashion.datasets.wardrobe_street import StreetPhoto, draw_street_picture, photos_per_product

__all__ = [
    "CATEGORIES",
    "SPLITS",
    "Attributes",
    "Identity",
    "Item",
    "Pose",
    "draw_garment",
    "draw_item",
    "draw_picture",
    "draw_wardrobe",
    "lay_on",
    "studio",
    "wardrobe_items",
]

VERSION = 1
FORMAT = "tf_fashion drawn wardrobe"
MANIFEST = "wardrobe.json"
UNFINISHED = "wardrobe.unfinished.json"
JPEG_QUALITY = 90
BATCH = 32
SERIAL_BELOW = 150


def wardrobe_items(
    items: int = 3600, seed: int = 0, categories: Sequence[str] = CATEGORIES, splits: Sequence[str] = SPLITS
) -> Iterator[Item]:
    """The garments of a wardrobe without their pictures, one after the other.

    Args:
        items, seed, categories, splits: As in `draw_wardrobe`.

    Yields:
        Every garment, grouped by split and category, in the order of the galleries.

    Raises:
        UsageError: as in `draw_wardrobe`.
    """
    arguments = _arguments(items, seed, 128, categories, splits)
    for line in lines_of(arguments):
        yield from line


def draw_picture(item: Item, seed: int, size: int) -> Image.Image:
    """The catalogue picture of a garment, RGB of `size` x `size`: the same for the same arguments, whatever was drawn before.

    Photos of the layout "street_to_shop" are drawn as such; some of them are larger than `size`.
    """
    if isinstance(item, StreetPhoto):
        return draw_street_picture(item, seed, size)
    return draw_item(item.attributes, generator(seed, item.category, item.split, "picture", item.number), size, item.identity)


def draw_wardrobe(
    root: str | Path,
    items: int = 3600,
    seed: int = 0,
    size: int = 128,
    categories: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
    layout: str = "fashion_iq",
) -> Path:
    """Draws a wardrobe into a folder, or returns at once where the same one is complete.

    An interrupted drawing is continued by the same call. Pictures are written one by one, so memory does not grow with `items`
    beyond the captions of one category and split.

    Args:
        root: Folder to make; it must be missing, empty, or an (unfinished) wardrobe of the same arguments.
        items: Number of pictures over all categories and splits.
        seed: Non-negative; another seed gives other garments.
        size: Width and height of the pictures in pixels, 32 to 2048 (in "street_to_shop" some street photos are larger).
        categories: Some of "dress", "top", "bottom", "shoes"; default all, or "shoes" in the layout of that name. Their order does
            not matter.
        splits: Some of "train", "val", "test" (shares of the pictures 50, 37, 13 %). No garment design is in two of them. The
            layouts of Fashion200k and Shoes have train and test, which are made as "train" and "val"; those of FashionGen and
            iMaterialist have train and val (shares 5 to 1), and in val too the garments vary as much as in train. "street_to_shop"
            has train and test of each of its two shops.
        progress: Whether to show a progress bar.
        workers: Processes that draw; None takes one per available core, 1 draws in this process.
        layout: "fashion_iq", "fashion200k", "shoes", "fashion_gen", "imaterialist" or "street_to_shop".

    Returns:
        The folder.

    Raises:
        UsageError: an argument out of range, or a folder that holds something else; the message says what.
        DataError: the disk is full, or `wardrobe.json` is damaged.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"Unknown layout {layout!r} of the drawn wardrobe. Known: {', '.join(LAYOUTS)}.")
    if layout != "fashion_iq" and splits is not None:
        names = SPLIT_NAMES if layout in VARIED_LAYOUTS else SPLIT_NAMES.values()
        raise UsageError(f"The layout {layout!r} always has {' and '.join(names)}; leave out splits.")
    default_splits = SPLITS if layout == "fashion_iq" else tuple(SPLIT_NAMES)
    default_categories = ("shoes",) if layout == "shoes" else CATEGORIES
    chosen = default_categories if categories is None else categories, default_splits if splits is None else splits
    arguments = _arguments(items, seed, size, *chosen, layout)
    if layout != "fashion_iq":
        arguments["layout"] = layout
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise UsageError(f"Expected workers to be a whole number of at least 1 or None, found {workers!r}.")
    root = Path(root)
    if _is_complete(root, arguments):
        return root
    try:
        (root / "images").mkdir(parents=True, exist_ok=True)
        counts = LAYOUTS[arguments.get("layout", "fashion_iq")](root, arguments)
        _write_pictures(root, arguments, progress, workers)
        write_json(root / MANIFEST, {"format": FORMAT, "version": VERSION, "arguments": arguments, "counts": counts})
        (root / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"The disk is full: the wardrobe in {root} is unfinished. Free some space and run again.") from error
        raise UsageError(f"Cannot write to the folder {root}: {error.strerror}. Give another folder.") from error
    return root


def _whole(name: str, value: object, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UsageError(f"Expected {name} to be a whole number {limits}, found {value!r}.")
    return value


def _some_of(name: str, value: Sequence[str], known: tuple[str, ...]) -> list[str]:
    chosen = [value] if isinstance(value, str) else list(value)
    if not chosen:
        raise UsageError(f"Expected at least one of the {name} {', '.join(known)}; found none.")
    for entry in chosen:
        if entry not in known:
            raise UsageError(f"Unknown entry {entry!r} in {name} of the drawn wardrobe. Known: {', '.join(known)}.")
    return [entry for entry in known if entry in chosen]


def _arguments(
    items: int, seed: int, size: int, categories: Sequence[str], splits: Sequence[str], layout: str = "fashion_iq"
) -> dict[str, Any]:
    """The checked arguments as they are written to the manifest."""
    arguments: dict[str, Any] = {
        "items": _whole("items", items, 1),
        "seed": _whole("seed", seed, 0, 2**63 - 1),
        "size": _whole("size", size, 32, 2048),
        "categories": _some_of("categories", categories, CATEGORIES),
        "splits": _some_of("splits", splits, SPLITS),
    }
    if layout == "street_to_shop":
        photos_per_product(items)
        return arguments
    counts = split_counts(items, tuple(arguments["categories"]), tuple(arguments["splits"]), shares_of(layout))
    short = [key for key, count in counts.items() if count < 2]
    if short:
        raise UsageError(
            f"Expected enough items for two pictures in each category and split; {items} leave too few for {'/'.join(short[0])}. "
            f"Ask for more items, or for fewer categories or splits."
        )
    return arguments


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Whether the folder holds the whole wardrobe; claims an empty or missing folder for this one.

    Raises:
        UsageError: the folder holds something else.
    """
    if root.exists() and not root.is_dir():
        raise UsageError(f"Expected a folder for the wardrobe, found a file: {root}. Give another folder.")
    for name in (MANIFEST, UNFINISHED):
        if not (root / name).is_file():
            continue
        found = read_json(root / name)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UsageError(f"{root / name} was not written by this generator. Give another folder.")
        if found.get("version") != VERSION or found.get("arguments") != arguments:
            state = "a wardrobe" if name == MANIFEST else "an unfinished wardrobe"
            there, asked = found.get("arguments"), arguments
            differ = [key for key in asked if not isinstance(there, dict) or there.get(key) != asked[key]]
            detail = "; ".join(
                f"{key} {there.get(key) if isinstance(there, dict) else None!r}, asked for {asked[key]!r}" for key in differ
            )
            detail = detail or f"version {found.get('version')!r}, this generator is {VERSION!r}"
            raise UsageError(f"{root} holds {state} with other arguments ({detail}). Give another folder or delete this one.")
        return name == MANIFEST
    if root.is_dir() and any(root.iterdir()):
        some = ", ".join(sorted(path.name for path in itertools.islice(root.iterdir(), 3)))
        raise UsageError(f"{root} is not empty and not a drawn wardrobe (it holds {some}, ...). Give an empty or a new folder.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / UNFINISHED, {"format": FORMAT, "version": VERSION, "arguments": arguments})
    except OSError as error:
        raise UsageError(f"Cannot write to the folder {root}: {error.strerror}. Give another folder.") from error
    return False


def _draw_batch(folder: str, seed: int, size: int, batch: list[Item]) -> int:
    """Draws and writes some pictures; each appears under its name only when it is whole."""
    for item in batch:
        buffer = io.BytesIO()
        draw_picture(item, seed, size).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        path = os.path.join(folder, f"{item.id}.jpg")
        temporary = os.path.join(folder, f".{item.id}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(buffer.getbuffer())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    return len(batch)


def _missing_batches(folder: Path, arguments: dict[str, Any]) -> Iterator[list[Item]]:
    missing = (item for line in lines_of(arguments) for item in line if not (folder / f"{item.id}.jpg").is_file())
    while batch := list(itertools.islice(missing, BATCH)):
        yield batch


def _write_pictures(root: Path, arguments: dict[str, Any], progress: bool, workers: int | None) -> None:
    folder = root / "images"
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    seed, size = arguments["seed"], arguments["size"]
    there = sum(1 for entry in os.scandir(folder) if entry.name.endswith(".jpg"))
    if workers is None:
        workers = cpu_count()
        # Starting processes costs about a second each, and daemons may not have children.
        if arguments["items"] - there < SERIAL_BELOW or multiprocessing.current_process().daemon:
            workers = 1
    with tqdm(total=arguments["items"], initial=there, desc="Drawing", unit=" pictures", mininterval=1, disable=not progress) as bar:
        if workers > 1:
            try:
                _draw_parallel(folder, arguments, workers, bar)
                return
            except BrokenProcessPool:
                bar.write("The drawing processes could not work; drawing in this process instead.")
                bar.n = sum(1 for entry in os.scandir(folder) if entry.name.endswith(".jpg"))
        for batch in _missing_batches(folder, arguments):
            bar.update(_draw_batch(str(folder), seed, size, batch))


def _draw_parallel(folder: Path, arguments: dict[str, Any], workers: int, bar: tqdm) -> None:
    # Spawned processes: a forked one may inherit locks of TensorFlow's threads and wait for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: set[Future[int]] = set()
        try:
            for batch in _missing_batches(folder, arguments):
                running.add(pool.submit(_draw_batch, str(folder), arguments["seed"], arguments["size"], batch))
                if len(running) >= 3 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    bar.update(sum(future.result() for future in done))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                bar.update(sum(future.result() for future in done))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
