"""Garments of the drawn wardrobe as two shops photograph them, and as people do in the street.

The first shop lays garments flat on a quiet sheet (`wardrobe_drawing.draw_item`). The second stands them before a strong colour, with a
long shadow and warm light. Street photos show a garment tilted, small or cut off, before clutter, in whatever light there is.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tf_fashion.datasets.wardrobe_drawing import PRINTS, Pose, draw_garment, lay_on
from tf_fashion.datasets.wardrobe_garments import COLOURS, KINDS, PATTERNS, Attributes, Identity

Corners = tuple[int, int, int, int]
# How far pictures may be turned in the street, in degrees.
MAX_TILT = 25.0
_SHEETS = ((196, 148, 62), (186, 98, 72), (120, 146, 118), (104, 134, 160), (142, 96, 124), (94, 96, 104))
_SKIN = ((232, 190, 160), (198, 144, 108), (150, 100, 70), (96, 64, 48))


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a source's street photos are like.

    Attributes:
        things: Least and greatest number of things that stand around.
        garments: Chance of another garment in the background.
        exposure: Least and greatest brightness.
        warmth: Mean and deviation of the light's colour; above 0 it is warm.
        lamps: Chance of lights in the dark.
        noise: Greatest deviation of the sensor's noise, in grey levels.
        hidden: Chance that something stands before the garment.
    """

    things: tuple[int, int]
    garments: float
    exposure: tuple[float, float]
    warmth: tuple[float, float]
    lamps: float
    noise: float
    hidden: float


SCENES = {
    "df": Scene((6, 11), 0.5, (0.75, 1.2), (0.0, 0.11), 0.0, 7.0, 0.4),
    "s2s": Scene((9, 15), 0.7, (0.66, 1.0), (0.12, 0.13), 0.6, 10.0, 0.45),
}


@dataclasses.dataclass(frozen=True)
class View:
    """Where a garment is in a street photo.

    Attributes:
        width, height: Of the photo in pixels.
        box: Left, top, right and bottom of the part that shows the garment, inside the photo.
        centre: The garment's middle, in pixels.
        side: Side of the square that the garment would fill in a catalogue, in pixels.
        pose: How the garment lies.
        shear: Sideways shift over height.
    """

    width: int
    height: int
    box: Corners
    centre: tuple[float, float]
    side: float
    pose: Pose
    shear: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, wide: bool = False) -> View:
        """A view of at least `size` pixels in both directions: the garment alone, or (`wide`) with much around it."""
        pose = Pose(
            tilt=float(np.clip(rng.normal(0, 13), -MAX_TILT, MAX_TILT)),
            scale=float(rng.uniform(0.62, 1.14)),
            mirrored=bool(rng.random() < 0.5),
            stretch=float(rng.uniform(0.85, 1.12)),
        )
        shear, shift = float(rng.uniform(-0.15, 0.15)), rng.uniform(-0.22, 0.22, 2)
        factors = rng.uniform(1.1, 1.7, 2) if wide else np.ones(2)
        width, height = (int(round(size * factor)) for factor in factors)
        places = rng.uniform(0, 1, 2) * (width - size, height - size)
        centre = places + size / 2 + shift * size / 2
        if not wide:
            return cls(width, height, (0, 0, width, height), (float(centre[0]), float(centre[1])), float(size), pose, shear)
        # As people draw boxes: about the garment, and never quite the same.
        reach = 0.5 * size * pose.scale * rng.uniform(0.9, 1.12, 4)
        left, top = (max(0, int(at - far)) for at, far in zip(centre, reach[:2], strict=True))
        right, bottom = (min(end, math.ceil(at + far)) for end, at, far in zip((width, height), centre, reach[2:], strict=True))
        return cls(width, height, (left, top, right, bottom), (float(centre[0]), float(centre[1])), float(size), pose, shear)


def any_garment(rng: np.random.Generator) -> Attributes:
    """Attributes of some garment."""
    kind = str(rng.choice(list(KINDS)))
    colour, second = (str(word) for word in rng.permutation(list(COLOURS))[:2])
    own = {name: str(rng.choice(values)) for name, values in KINDS[kind].values.items()}
    pattern = str(rng.choice(PATTERNS))
    return {"kind": kind, "colour": colour, "pattern": pattern, "second": second if pattern != "plain" else "", **own}


def _paint(rng: np.random.Generator, saturation: float = 0.6) -> np.ndarray:
    hue, value = rng.random(), rng.uniform(0.25, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue, saturation * rng.random(), value), np.float32) * 255


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise (height, width) from 0 to 1."""
    small = Image.fromarray(rng.integers(0, 256, (cells, cells), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates from -1 to 1 along the shorter side: x (1, width) and y (height, 1)."""
    short = min(height, width) / 2
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short
    return x[None, :], y[:, None]


def _bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _axes(height, width)
    high, wide = rng.uniform(0.12, 0.3), rng.uniform(0.3, 0.7)
    row = np.floor(y / high + rng.random())
    across, along = x / wide + 0.5 * (row % 2), y / high
    column = np.floor(across)
    tone = 0.9 + 0.14 * np.sin(12.9 * column + 78.2 * row)
    joint = (np.abs(across - column - 0.5) > 0.46) | (np.abs((along % 1) - 0.5) > 0.44)
    stone, mortar = _paint(rng, 0.55), _paint(rng, 0.15)
    return np.where(joint[..., None], mortar, stone * tone[..., None])


def _leaves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), (40, 62, 34))
    draw = ImageDraw.Draw(image)
    short = min(width, height)
    for _ in range(110):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), short * rng.uniform(0.03, 0.1)
        green = colorsys.hsv_to_rgb(rng.uniform(0.2, 0.38), rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.8))
        draw.ellipse((x - radius, y - 0.6 * radius, x + radius, y + 0.6 * radius), fill=_rgb(np.array(green) * 255))
    return np.asarray(image, np.float32)


def _room(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wall, a floor of boards or tiles that run away, and a lighter opening."""
    x, y = _axes(height, width)
    edge, lean = rng.uniform(0.1, 0.8), rng.uniform(-0.2, 0.2)
    wall, floor, light = _paint(rng, 0.5), _paint(rng, 0.5), _paint(rng, 0.2) * 0.4 + 150
    line = y - edge - lean * x
    below = line > 0
    depth = 1 / (np.maximum(line, 0) + 0.35)
    boards = 0.92 + 0.08 * np.sign(np.sin(9 * (x * depth + lean))) + 0.05 * np.sin(20 * depth)
    picture = np.where(below[..., None], floor * boards[..., None], wall * (0.95 - 0.12 * y[..., None]))
    at, half = rng.uniform(-0.9, 0.9), rng.uniform(0.2, 0.5)
    opening = (np.abs(x - at) < half) & (y > -0.9) & ~below & (y < edge - rng.uniform(0, 0.6))
    return np.where(opening[..., None], light, picture)


def _cloth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A blanket or a rug: a print, turned, with folds."""
    x, y = _axes(height, width)
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    amount = PRINTS[str(rng.choice(list(PRINTS)))](u, v, rng.uniform(0.2, 0.6), 0.02, 0.0).astype(np.float32)[..., None]
    one, two = _paint(rng), _paint(rng)
    folds = 0.85 + 0.3 * _clouds(rng, height, width, 7)[..., None]
    return (one + (two - one) * amount) * folds


_GROUNDS = (_bricks, _leaves, _room, _room, _cloth)


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = np.clip(colour, 0, 255).astype(int).tolist()
    return red, green, blue


def _things(image: Image.Image, rng: np.random.Generator, count: int) -> None:
    """Draws boxes, posters, discs, poles and pieces of cloth all over a picture."""
    draw = ImageDraw.Draw(image)
    short = min(image.size)
    for _ in range(count):
        at = rng.uniform(0, 1, 2) * image.size
        colour, shade = _paint(rng, 0.9), rng.uniform(0.55, 0.85)
        shape = rng.random()
        angle = rng.uniform(0, np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        half = short * rng.uniform(0.05, 0.24, 2)
        corners = (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half) @ turn.T + at
        if shape < 0.45:
            draw.polygon([tuple(point) for point in corners.tolist()], fill=_rgb(colour))
            # Writing on a poster, slats of a crate.
            for step in np.linspace(-0.7, 0.7, int(rng.integers(0, 5))):
                ends = (np.array([(-0.8, step), (rng.uniform(0, 0.8), step)]) * half) @ turn.T + at
                draw.line([tuple(point) for point in ends.tolist()], fill=_rgb(colour * shade), width=max(1, short // 60))
        elif shape < 0.7:
            first, last = at - half, at + half
            draw.ellipse((*first.tolist(), *last.tolist()), fill=_rgb(colour))
            inner = 0.55 * half
            draw.ellipse((*(at - inner).tolist(), *(at + inner).tolist()), fill=_rgb(colour * shade))
        elif shape < 0.85:
            far = turn @ np.array([1.5 * short, 0])
            draw.line((*(at - far).tolist(), *(at + far).tolist()), fill=_rgb(colour * shade), width=max(2, int(short * 0.04)))
        else:
            patch = _cloth(rng, *(max(8, int(2 * side)) for side in half))
            patch_image = Image.fromarray(np.clip(patch, 0, 255).astype(np.uint8)).convert("RGBA")
            patch_image = patch_image.rotate(math.degrees(angle), expand=True)
            image.paste(patch_image, tuple((at - half).astype(int).tolist()), patch_image)


def _surroundings(rng: np.random.Generator, scene: Scene, width: int, height: int) -> Image.Image:
    """What is behind the garment, slightly out of focus. RGB."""
    ground = _GROUNDS[int(rng.integers(len(_GROUNDS)))](rng, height, width)
    light = 0.8 + 0.4 * _clouds(rng, height, width, 4)[..., None]
    image = Image.fromarray(np.clip(ground * light, 0, 255).astype(np.uint8))
    short = min(width, height)
    _things(image, rng, int(rng.integers(scene.things[0], scene.things[1] + 1)))
    if rng.random() < scene.garments:
        small = draw_garment(any_garment(rng), rng, max(16, short // 3), pose=Pose(tilt=float(rng.uniform(-60, 60))))
        side = int(short * rng.uniform(0.5, 0.9))
        small = small.resize((side, side), Image.Resampling.BILINEAR)
        # At the edge, where it is a part of a garment and cannot be taken for the one that is meant.
        corner = rng.integers(0, 2, 2) * np.array(image.size) - side / 2
        image.paste(small, tuple(corner.astype(int).tolist()), small)
    if rng.random() < scene.lamps:
        glow = Image.new("RGB", image.size)
        draw = ImageDraw.Draw(glow)
        for _ in range(int(rng.integers(4, 12))):
            at, radius = rng.uniform(0, 1, 2) * image.size, short * rng.uniform(0.015, 0.06)
            colour = np.array(colorsys.hsv_to_rgb(rng.uniform(0.02, 0.16), rng.uniform(0.2, 0.7), 1)) * 190
            draw.ellipse((*(at - radius).tolist(), *(at + radius).tolist()), fill=_rgb(colour))
        glow = glow.filter(ImageFilter.GaussianBlur(0.01 * short))
        dark = np.asarray(image, np.float32) * rng.uniform(0.5, 0.8)
        image = Image.fromarray(np.clip(dark + np.asarray(glow, np.float32), 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.003, 0.014)) * short))


def _hide(image: Image.Image, rng: np.random.Generator, view: View) -> Image.Image:
    """Puts an arm, a strap or a bag before the garment."""
    left, top, right, bottom = view.box
    short = min(right - left, bottom - top)
    mask = Image.new("L", image.size)
    draw = ImageDraw.Draw(mask)
    kind = rng.random()
    side = -1 if rng.random() < 0.5 else 1
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    start = middle + (side * rng.uniform(0.1, 0.5) * short, -0.75 * short)
    end = middle + (-side * rng.uniform(0.0, 0.35) * short, rng.uniform(0.1, 0.8) * short)
    colour = np.array(_SKIN[int(rng.integers(len(_SKIN)))], np.float32) if kind < 0.4 else _paint(rng, 0.8)
    if kind < 0.75:
        thick = short * (rng.uniform(0.08, 0.13) if kind < 0.4 else rng.uniform(0.025, 0.05))
        draw.line((*start.tolist(), *end.tolist()), fill=255, width=max(2, int(thick)))
        draw.ellipse((*(end - 0.6 * thick).tolist(), *(end + 0.6 * thick).tolist()), fill=255)
    else:
        at = middle + rng.choice([-1.0, 1.0], 2) * short * rng.uniform(0.28, 0.46, 2)
        half = short * rng.uniform(0.1, 0.19, 2)
        draw.rounded_rectangle((*(at - half).tolist(), *(at + half).tolist()), radius=float(0.3 * half.min()), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(max(0.6, 0.008 * short)))
    cover = np.asarray(mask, np.float32)[..., None] / 255
    shadow = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.03 * short)), np.float32)[..., None] / 255
    # Round: lighter in the middle of the mask than at its edges.
    body = colour * (0.6 + 0.4 * shadow)
    ground = np.asarray(image, np.float32) * (1 - 0.35 * shadow)
    return Image.fromarray(np.clip(ground + (body - ground) * cover, 0, 255).astype(np.uint8))


def _street_light(image: Image.Image, rng: np.random.Generator, scene: Scene) -> Image.Image:
    """Exposure, colour of the light, a shadow, a vignette, blur and noise."""
    width, height = image.size
    short = min(width, height)
    x, y = _axes(height, width)
    light = np.ones((height, width), np.float32)
    angle, style = rng.uniform(0, 2 * np.pi), rng.random()
    if style < 0.45:
        edge = (x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.5, 0.6)) / rng.uniform(0.04, 0.4)
        light -= rng.uniform(0.25, 0.6) / (1 + np.exp(-np.clip(4 * edge, -20, 20)))
    elif style < 0.65:
        light -= rng.uniform(0.2, 0.4) * np.clip(4 * (_clouds(rng, height, width, 8) - 0.5) + 0.5, 0, 1)
    else:
        light += rng.uniform(0.05, 0.25) * (x * np.cos(angle) + y * np.sin(angle)) / 1.4
    light *= 1 - rng.uniform(0.05, 0.3) * (x * x + y * y) / 2
    light *= rng.uniform(*scene.exposure)
    warm = float(np.clip(rng.normal(*scene.warmth), -0.28, 0.34))
    gains = np.array([1 + 0.8 * warm, 1 + 0.12 * rng.normal(0, 0.4), 1 - warm], np.float32)
    if rng.random() < 0.7:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9)) * short / 128))
    picture = np.asarray(image, np.float32) / 255
    picture = (picture * light[..., None] * gains) ** np.float32(rng.uniform(0.88, 1.15))
    haze, grain = rng.uniform(0, 0.07), rng.uniform(0.2, 1) * scene.noise
    picture = haze + (1 - haze) * picture
    # Grain of about one pixel of a small picture, so that the picture's size does not change how it looks.
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(grain)
    return Image.fromarray(np.clip(255 * picture + noise + 0.5, 0, 255).astype(np.uint8))


def _garment_in(view: View, attributes: Attributes, identity: Identity, rng: np.random.Generator) -> Image.Image:
    """The garment where a view has it. RGBA of the photo's size."""
    side = max(view.width, view.height)
    offset = (side - view.width) // 2, (side - view.height) // 2
    shift = tuple((2 * (at + add) / side) - 1 for at, add in zip(view.centre, offset, strict=True))
    pose = dataclasses.replace(view.pose, scale=view.pose.scale * view.side / side, shift=(shift[0], shift[1]))
    garment = draw_garment(attributes, rng, side, identity, pose)
    row = view.centre[1] + offset[1]
    # Premultiplied, or the black outside of the garment would darken its edge.
    lean = (1, view.shear, -view.shear * row, 0, 1, 0)
    garment = garment.convert("RGBa").transform(garment.size, Image.Transform.AFFINE, lean, Image.Resampling.BILINEAR).convert("RGBA")
    return garment.crop((offset[0], offset[1], offset[0] + view.width, offset[1] + view.height))


def street_photo(attributes: Attributes, identity: Identity, view: View, source: str, rng: np.random.Generator) -> Image.Image:
    """A photo of a garment in the street.

    Args:
        attributes: As in `draw_garment`.
        identity: The design's individual look.
        view: What is where.
        source: "df" (by day) or "s2s" (rather in the evening, busier).
        rng: Source of everything else.

    Returns:
        RGB image of the view's size.
    """
    scene = SCENES[source]
    garment = _garment_in(view, attributes, identity, rng)
    behind = _surroundings(rng, scene, view.width, view.height)
    photo = _cast(garment, behind, rng, 0.04) if rng.random() < 0.7 else behind
    photo = _over(garment, photo)
    if rng.random() < scene.hidden:
        photo = _hide(photo, rng, view)
    return _street_light(photo, rng, scene)


def _over(garment: Image.Image, behind: Image.Image) -> Image.Image:
    photo = behind.copy()
    photo.paste(garment, (0, 0), garment)
    return photo


def _cast(garment: Image.Image, behind: Image.Image, rng: np.random.Generator, far: float, strength: float = 0.5) -> Image.Image:
    """The shadow of a garment on what is behind it, moved by `far` of the width to the lower left or right."""
    short = min(garment.size)
    move = int(short * far * rng.uniform(0.6, 1.3)) * (-1 if rng.random() < 0.5 else 1)
    shade = garment.getchannel("A").filter(ImageFilter.GaussianBlur(0.4 * short * far))
    dark = np.roll(np.asarray(shade, np.float32), (abs(move) // 2, move), (0, 1)) / 255
    return Image.fromarray((np.asarray(behind, np.float32) * (1 - strength * dark[..., None])).astype(np.uint8))


def second_studio(attributes: Attributes, identity: Identity, rng: np.random.Generator, size: int, close: bool = False) -> Image.Image:
    """A catalogue picture of the second shop: a strong colour behind, a cast shadow, warm light, the garment slightly turned.

    Args:
        attributes: As in `draw_garment`.
        identity: The design's individual look.
        rng: Source of everything else.
        size: Width and height in pixels.
        close: Whether the garment fills more than the picture.

    Returns:
        RGB image of `size` x `size`.
    """
    pose = Pose(
        tilt=float(rng.uniform(4, 14)),
        scale=float(rng.uniform(1.08, 1.22) if close else rng.uniform(0.7, 0.82)),
        shift=(float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.06, 0.1))),
        mirrored=bool(rng.random() < 0.5),
        stretch=float(rng.uniform(0.93, 0.98)),
    )
    garment = draw_garment(attributes, rng, size, identity, pose)
    x, y = _axes(size, size)
    sheet = np.array(_SHEETS[int(rng.integers(len(_SHEETS)))], np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    edge = rng.uniform(0.45, 0.75)
    floor = 1 / (1 + np.exp(-(y - edge) / 0.05))
    light = 1.12 - 0.22 * x - 0.16 * y + 0.16 * floor - 0.1 * (x * x + y * y)
    behind = Image.fromarray(np.clip(sheet * light[..., None], 0, 255).astype(np.uint8))
    shaded = Image.fromarray(
        np.clip(np.asarray(behind, np.float32) * (1 - 0.5 * _long_shadow(garment, size)[..., None]), 0, 255).astype(np.uint8)
    )
    picture = np.asarray(lay_on(garment, shaded, rng, 0.2), np.float32) / 255
    picture = picture * (1.06 - 0.14 * x[..., None]) * np.array([1.07, 0.99, 0.83], np.float32)
    # Matt film: lifted blacks, soft whites, a little less colour.
    grey = picture.mean(2, keepdims=True)
    picture = 0.07 + 0.88 * np.clip(grey + 0.84 * (picture - grey), 0, 1.05)
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(2.0)
    return Image.fromarray(np.clip(255 * picture + noise + 0.5, 0, 255).astype(np.uint8))


def _long_shadow(garment: Image.Image, size: int) -> np.ndarray:
    """The shadow of a low lamp on the left: (size, size) from 0 to 1."""
    lean = (1, 0.35, -0.35 * 0.9 * size - 0.1 * size, 0, 1.08, -0.06 * size)
    alpha = garment.getchannel("A").transform((size, size), Image.Transform.AFFINE, lean, Image.Resampling.BILINEAR)
    return np.asarray(alpha.filter(ImageFilter.GaussianBlur(0.022 * size)), np.float32) / 255
