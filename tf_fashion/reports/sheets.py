"""Picture sheets: what a person looks at to judge a retrieval model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import atomic_write

MAX_PIXELS = 50_000_000
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER = (255, 255, 255)
_INK = (31, 41, 55)
_FAINT = (107, 114, 128)
_LINE = (229, 231, 235)
_GREEN = (22, 163, 74)
_BLUE = (37, 99, 235)
_BOX = (229, 231, 235)


@dataclass(frozen=True)
class SheetRow:
    """One query and what was found for it.

    Attributes:
        reference: Picture of the query; None for a query by words alone.
        sentence: What the query says.
        results: Pictures found, best first; None where there is no file.
        result_ids: Their ids.
        scores: Their scores, or None.
        target: Position (from 0) of the right answer in `results`; None if it is not among them or not known.
        target_rank: The right answer's rank (from 1) in the whole gallery, if known.
        reference_id: Id of the query picture, shown if the picture cannot be.
        note: A few words, such as the category.
        also_right: Positions in `results` of further right answers, where there are several.
        details: For each result lines to print under it, each with whether it speaks for the result (green) or not (grey).
    """

    reference: str | Path | None
    sentence: str
    results: Sequence[str | Path | None]
    result_ids: Sequence[str]
    scores: Sequence[float] | None = None
    target: int | None = None
    target_rank: int | None = None
    reference_id: str = ""
    note: str = ""
    also_right: Sequence[int] = ()
    details: Sequence[Sequence[tuple[str, bool]]] = ()

    def __post_init__(self) -> None:
        if len(self.results) != len(self.result_ids):
            raise UsageError(f"A sheet row has {len(self.results)} pictures but {len(self.result_ids)} ids.")
        if self.scores is not None and len(self.scores) != len(self.results):
            raise UsageError(f"A sheet row has {len(self.results)} pictures but {len(self.scores)} scores.")
        if self.details and len(self.details) != len(self.results):
            raise UsageError(f"A sheet row has {len(self.results)} pictures but details for {len(self.details)}.")
        if self.target is not None and not 0 <= self.target < len(self.results):
            raise UsageError(f"The target position {self.target} is outside the row's {len(self.results)} results (use None).")

    def is_right(self, place: int) -> bool:
        """Whether a position in `results` is a right answer."""
        return place == self.target or place in self.also_right

    def verdict(self, columns: int) -> str:
        """Where the right answer is, in words, for a sheet that shows `columns` results; empty if nothing is known."""
        if self.target is not None and self.target < columns:
            return f"found at rank {self.target + 1}"
        rank = self.target_rank or (None if self.target is None else self.target + 1)
        return "" if rank is None else f"target at rank {rank}"


def retrieval_sheet(
    path: str | Path,
    rows: Sequence[SheetRow],
    *,
    title: str = "Retrieved items",
    protocol: str = "",
    columns: int = 8,
    tile: int = 132,
    show_ids: bool = False,
) -> Path:
    """Draws queries, their sentences and the first results, the right answer in a green frame.

    Args:
        path: Ends in .png, .jpg, .jpeg or .webp; written whole or not at all.
        rows: The queries. A picture that is missing or cannot be read becomes a grey box with its id.
        title, protocol: Header lines; `protocol` is wrapped if long.
        columns: Results per query.
        tile: Side of a picture's square in pixels.
        show_ids: Print each result's id under it.

    Raises:
        UsageError: no rows, another ending, a column count below 1 or a tile smaller than 48.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"A sheet is written as .png, .jpg or .webp, not as {path.name!r}.")
    if not rows:
        raise UsageError("A sheet needs at least one query.")
    if columns < 1 or tile < 48:
        raise UsageError(f"A sheet needs at least one column and tiles of 48 pixels, got {columns} and {tile}.")
    big, normal, small = (load_font(size) for size in (20, 14, 11))
    margin, gap, text_width = 24, 10, max(170, int(tile * 1.5))
    label = 34 if show_ids or any(row.scores is not None for row in rows) else 20
    # Queries by words alone need no room for a picture.
    words = margin + tile + 14 if any(row.reference is not None for row in rows) else margin
    first = words + text_width + 14
    width = first + columns * (tile + gap) - gap + margin
    lines = wrap(protocol, small, width - 2 * margin) if protocol else []
    top = margin + 32 + 17 * len(lines) + 14
    texts = [wrap(row.sentence or "(no words)", normal, text_width) for row in rows]
    under = [max(map(len, row.details[:columns]), default=0) for row in rows]
    heights = [max(tile + label + 14 * lines, 20 * len(text) + 40) + 22 for text, lines in zip(texts, under, strict=True)]
    sheet = Image.new("RGB", (width, top + sum(heights) + margin - 10), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 4), title, font=big, fill=_INK)
    for number, line in enumerate(lines):
        draw.text((margin, margin + 30 + 17 * number), line, font=small, fill=_FAINT)
    y = top
    for row, text, height in zip(rows, texts, heights, strict=True):
        draw.line((margin, y - 12, width - margin, y - 12), fill=_LINE)
        if row.reference is not None:
            _tile(sheet, draw, (margin, y), tile, row.reference, row.reference_id, small)
            draw.rectangle((margin - 2, y - 2, margin + tile + 1, y + tile + 1), outline=_BLUE, width=2)
            draw.text((margin, y + tile + 4), "query" + (f" · {row.note}" if row.note else ""), font=small, fill=_BLUE)
        x = words
        for number, line in enumerate(text):
            draw.text((x, y + 20 * number), line, font=normal, fill=_INK)
        verdict = row.verdict(columns)
        if verdict:
            colour = _GREEN if verdict.startswith("found") else _FAINT
            draw.text((x, y + 20 * len(text) + 6), verdict, font=small, fill=colour)
        for place in range(min(columns, len(row.results))):
            x = first + place * (tile + gap)
            _tile(sheet, draw, (x, y), tile, row.results[place], row.result_ids[place], small)
            right = row.is_right(place)
            if right:
                draw.rectangle((x - 4, y - 4, x + tile + 3, y + tile + 3), outline=_GREEN, width=4)
            caption = f"{place + 1}" + ("  target" if right else "")
            draw.text((x, y + tile + 5), caption, font=small, fill=_GREEN if right else _INK)
            if row.scores is not None:
                score = f"{row.scores[place]:.3f}"
                draw.text((x + tile - draw.textlength(score, font=small), y + tile + 5), score, font=small, fill=_FAINT)
            if show_ids:
                draw.text((x, y + tile + 19), _fit(row.result_ids[place], small, tile), font=small, fill=_FAINT)
            for number, (line, good) in enumerate(row.details[place] if row.details else ()):
                colour = _GREEN if good else _FAINT
                draw.text((x, y + tile + label - 1 + 14 * number), _fit(line, small, tile), font=small, fill=colour)
        y += height
    with atomic_write(path, "wb") as file:
        sheet.save(file, format={".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG"), quality=90)
    return path


def open_picture(path: str | Path | None, side: int) -> Image.Image | None:
    """An RGB picture at most `side` pixels wide and high, turned as its EXIF says; None if there is none or it is not usable.

    Pictures of more than 50 million pixels are refused before they are decoded.
    """
    if path is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                image.draft("RGB", (2 * side, 2 * side))
                upright = ImageOps.exif_transpose(image)
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
                    upright = Image.alpha_composite(white, upright.convert("RGBA"))
                upright = upright.convert("RGB")
                upright.thumbnail((side, side), Image.Resampling.LANCZOS)
                return upright
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError):
        return None


@functools.cache
def load_font(size: int) -> Font:
    """DejaVu Sans as it comes with matplotlib (Pillow's own font has no accented letters), else Pillow's."""
    try:
        import matplotlib

        return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size=size)


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, at blanks; words that are too long are cut."""
    lines: list[str] = []
    line = ""
    for word in _printable(text).split():
        while font.getlength(word) > width and len(word) > 1:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            if line:
                lines.append(line)
                line = ""
            lines.append(word[:cut])
            word = word[cut:]
        joined = f"{line} {word}" if line else word
        if line and font.getlength(joined) > width:
            lines.append(line)
            line = word
        else:
            line = joined
    return [*lines, line] if line or not lines else lines


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    side: int,
    path: str | Path | None,
    name: str,
    font: Font,
) -> None:
    x, y = corner
    picture = open_picture(path, side)
    if picture is None:
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_BOX)
        lines = [*wrap(name or (Path(path).stem if path else ""), font, side - 16)[:4], "no picture"]
        for number, line in enumerate(lines):
            offset = y + side // 2 - 8 * len(lines) + 16 * number
            draw.text((x + (side - draw.textlength(line, font=font)) // 2, offset), line, font=font, fill=_FAINT)
        return
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=(249, 250, 251))
    sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))


def _fit(text: str, font: Font, width: int) -> str:
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
