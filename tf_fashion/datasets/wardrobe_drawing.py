"""Draws one garment of the wardrobe: curved outlines, cloth, light and folds, and a catalogue background.

Coordinates of the outlines are garment units: x to the right, y downwards, the origin in the middle of the picture, whose edges are
at -1 and 1 before the pose is applied. The garment is drawn with alpha and knows nothing of its background, so other
scenes can be composed with the same garment.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.wardrobe_garments import COLOURS, KINDS, Attributes, Identity

OVERSAMPLE = 2
CATMULL_ROM = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
Points = np.ndarray
Crease = tuple[Points, float, float]


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a garment lies in the picture.

    Args:
        tilt: Turn in degrees, clockwise.
        scale: Size relative to the usual one.
        shift: Offset of the middle, in half picture widths.
        mirrored: Whether left and right change places.
        stretch: Width relative to the height (camera angle).
    """

    tilt: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    stretch: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Pose:
        """A pose as a catalogue's photographer would accept it."""
        return cls(
            tilt=float(np.clip(rng.normal(0, 2.5), -6, 6)),
            scale=float(rng.uniform(0.94, 1.03)),
            shift=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.03, 0.03))),
            mirrored=bool(rng.random() < 0.5),
            stretch=float(rng.uniform(0.98, 1.02)),
        )


@dataclasses.dataclass
class Part:
    """One piece of cloth or other material with its outline (points x 2), drawn over the pieces before it."""

    outline: Points
    tint: tuple[float, float, float] | None = None  # RGB; None means the garment's own cloth
    printed: bool = True
    turn: float = 0.0
    gain: float = 1.0
    folds: float = 1.0
    depth: float = 1.0
    lift: float = 0.5
    creases: list[Crease] = dataclasses.field(default_factory=list)
    seams: list[Points] = dataclasses.field(default_factory=list)
    stitches: list[Points] = dataclasses.field(default_factory=list)


def curve(*points: ArrayLike, steps: int = 9) -> Points:
    """Open Catmull-Rom spline through the points."""
    knots = np.asarray(points, float)
    if len(knots) < 3:
        return knots
    padded = np.concatenate([[2 * knots[0] - knots[1]], knots, [2 * knots[-1] - knots[-2]]])
    windows = np.stack([padded[place : len(padded) - 3 + place] for place in range(4)])
    time = np.linspace(0, 1, steps, endpoint=False)
    weights = np.stack([np.ones(steps), time, time**2, time**3], 1) @ CATMULL_ROM
    return np.concatenate([np.einsum("sk,kpd->psd", weights, windows).reshape(-1, 2), knots[-1:]])


def flip(points: ArrayLike) -> Points:
    """Mirror image at the vertical axis, in reversed order so that two halves join."""
    return np.asarray(points, float)[::-1] * (-1, 1)


def join(*pieces: ArrayLike) -> Points:
    return np.concatenate([np.asarray(piece, float) for piece in pieces])


def both(half: Points) -> Points:
    """Closes a half outline that runs from the top middle down the right side to the bottom middle."""
    return join(half, flip(half))


def mirrored(part: Part) -> Part:
    """The part on the other side of the body."""
    return dataclasses.replace(
        part,
        outline=flip(part.outline),
        turn=-part.turn,
        creases=[(flip(line), strength, width) for line, strength, width in part.creases],
        seams=[flip(line) for line in part.seams],
        stitches=[flip(line) for line in part.stitches],
    )


def disc(x: float, y: float, radius: float, height: float | None = None) -> Points:
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + (height or radius) * np.sin(angle)], 1)


def band(line: ArrayLike, width: float) -> Points:
    """Outline of a strip of the given width along an open line."""
    line = np.asarray(line, float)
    direction = np.gradient(line, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1) * width / 2
    return join(line + normal, (line - normal)[::-1])


def dye(colour: str, identity: Identity) -> np.ndarray:
    """RGB (floats 0 to 255) of a colour word as this design dyes it; the shift is too small to earn another word."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[colour]))
    hue = (hue + identity.hue * 0.012) % 1
    saturation = np.clip(saturation * (1 + 0.12 * identity.saturation), 0, 1)
    value = np.clip(value * (1 + 0.08 * identity.value) if colour != "white" else value - 0.02 * (1 + identity.value), 0, 1)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


def _step(value: np.ndarray, softness: float) -> np.ndarray:
    return np.clip(0.5 + value / (2 * softness), 0, 1)


def _cells(u: np.ndarray, v: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Staggered cells: position in the cell (in periods, from -0.5 to 0.5) and the cell's column and row."""
    row = np.floor(v / period)
    shifted = u / period + 0.5 * (row % 2)
    column = np.floor(shifted)
    return shifted - column - 0.5, v / period - row - 0.5, column, row


def _striped(u: np.ndarray, v: np.ndarray, period: float, soft: float, ratio: float) -> np.ndarray:
    return _step(np.sin(2 * np.pi * v / period) + 0.35 * ratio, soft / period * 6)


def _dotted(u: np.ndarray, v: np.ndarray, period: float, soft: float, ratio: float) -> np.ndarray:
    x, y, _, _ = _cells(u, v, period)
    return _step(0.29 + 0.03 * ratio - np.sqrt(x * x + y * y), soft / period)


def _checked(u: np.ndarray, v: np.ndarray, period: float, soft: float, ratio: float) -> np.ndarray:
    period = period * 1.15
    across = _step(np.sin(2 * np.pi * u / period) + 0.2 * ratio, soft / period * 6)
    along = _step(np.sin(2 * np.pi * v / period) + 0.2 * ratio, soft / period * 6)
    return 0.5 * (across + along)


def _floral(u: np.ndarray, v: np.ndarray, period: float, soft: float, ratio: float) -> np.ndarray:
    period = period * 1.35
    x, y, column, row = _cells(u, v, period)
    chance = np.sin(column * 12.9898 + row * 78.233) * 43758.5453
    chance = chance - np.floor(chance)
    x, y = x - 0.12 * (chance - 0.5), y - 0.12 * np.cos(chance * 9)
    radius, angle = np.sqrt(x * x + y * y), np.arctan2(y, x)
    petals = 0.29 + 0.11 * np.cos(5 * angle + 6 * chance) + 0.02 * ratio
    flower = _step(petals - radius, soft / period)
    return flower * (1 - 0.85 * _step(0.1 - radius, soft / period))


def _zigzag(u: np.ndarray, v: np.ndarray, period: float, soft: float, ratio: float) -> np.ndarray:
    wave = np.abs(((u / (1.7 * period)) % 1) - 0.5) * 1.9 * period
    return _step(np.sin(2 * np.pi * (v + wave) / (1.15 * period)) + 0.3 * ratio, soft / period * 6)


PRINTS: dict[str, Callable[..., np.ndarray]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "floral": _floral,
    "zigzag": _zigzag,
}


def _wide_blur(image: Image.Image, radius: float) -> np.ndarray:
    """Gaussian blur of a grey picture, as floats from 0 to 1, made at half the size: nothing is lost where the radius is wide."""
    small = image.reduce(2).filter(ImageFilter.GaussianBlur(radius / 2))
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR), np.float32) / 255


class Canvas:
    """An RGBA picture that parts are painted on, in oversampled pixels."""

    def __init__(self, attributes: Attributes, identity: Identity, pose: Pose, zoom: float, rng: np.random.Generator, size: int):
        self.side = size * OVERSAMPLE
        self.rgb = np.zeros((3, self.side, self.side), np.float32)  # planes: numpy is twice as fast on them
        self.alpha = np.zeros((self.side, self.side), np.float32)
        self.identity = identity
        self.main = dye(attributes["colour"], identity)
        self.second = dye(attributes["second"], identity) if attributes.get("second") else self.main
        self.pattern = attributes["pattern"]
        angle = np.deg2rad(pose.tilt)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shape = np.diag([(-1 if pose.mirrored else 1) * pose.stretch, 1 / pose.stretch])
        self.matrix = rotation @ shape * (pose.scale * zoom * self.side / 2)
        self.inverse = np.linalg.inv(self.matrix)
        self.middle = np.array([1 + pose.shift[0], 1 + pose.shift[1]]) * self.side / 2
        self.anchor = np.zeros(2)
        self.unit = float(np.sqrt(abs(np.linalg.det(self.matrix))))
        self.weave = rng.standard_normal((self.side, self.side), np.float32) * np.float32(0.02)
        self.waves = [(rng.uniform(0.9, 2.4), rng.uniform(-0.5, 0.5), rng.uniform(0, 6.28), rng.uniform(0.5, 1)) for _ in range(3)]

    def zoom_by(self, factor: float) -> None:
        """Changes the scale before anything is painted."""
        self.matrix = self.matrix * factor
        self.inverse = self.inverse / factor
        self.unit *= factor

    def put_behind(self, offset: Points) -> None:
        """Puts a darker copy of the picture behind it, moved by `offset` (garment units): the second shoe of a pair."""
        move = np.rint(self.matrix @ offset).astype(int)
        shade = Image.fromarray((self.alpha * 255).astype(np.uint8))
        dark = np.float32(0.94) - np.float32(0.42) * _wide_blur(shade, 0.02 * self.side)
        alpha = np.roll(self.alpha, tuple(move[::-1]), (0, 1))
        behind = np.roll(self.rgb, tuple(move[::-1]), (1, 2)) * dark
        self.rgb = behind + (self.rgb - behind) * self.alpha
        self.alpha = self.alpha + (1 - self.alpha) * alpha

    def pixels(self, points: Points) -> Points:
        return (np.asarray(points, float) - self.anchor) @ self.matrix.T + self.middle

    def _lines(self, size: tuple[int, int], corner: Points, lines: list[tuple[Points, int, int]], ground: int) -> Image.Image:
        image = Image.new("L", size, ground)
        draw = ImageDraw.Draw(image)
        for line, value, width in lines:
            draw.line([tuple(point) for point in (self.pixels(line) - corner).tolist()], fill=value, width=width, joint="curve")
        return image

    def paint(self, part: Part) -> None:
        """Draws a part over what is there."""
        side, unit = self.side, self.unit
        outline = self.pixels(part.outline)
        small = (outline.max(0) - outline.min(0)).max() < 0.17 * side
        margin = int((0.02 if small else 0.04) * side) + 2
        low = np.maximum(np.floor(outline.min(0)).astype(int) - margin, 0)
        high = np.minimum(np.ceil(outline.max(0)).astype(int) + margin, side)
        if (high - low < 2).any():
            return
        width, height = (high - low).tolist()
        mask_image = Image.new("L", (2 * width, 2 * height), 0)
        ImageDraw.Draw(mask_image).polygon([tuple(point) for point in ((outline - low) * 2).tolist()], fill=255)
        mask_image = mask_image.reduce(2)
        mask = np.asarray(mask_image, np.float32) / 255

        def blurred(image: Image.Image, radius: float) -> np.ndarray:
            return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255

        x = np.arange(low[0], high[0], dtype=np.float32)[None, :] + 0.5 - np.float32(self.middle[0])
        y = np.arange(low[1], high[1], dtype=np.float32)[:, None] + 0.5 - np.float32(self.middle[1])
        inverse = self.inverse.astype(np.float32)
        u = inverse[0, 0] * x + inverse[0, 1] * y + np.float32(self.anchor[0])
        v = inverse[1, 0] * x + inverse[1, 1] * y + np.float32(self.anchor[1])
        if part.turn:
            cosine, sine = np.float32(np.cos(part.turn)), np.float32(np.sin(part.turn))
            u, v = u * cosine - v * sine, u * sine + v * cosine

        soft = blurred(mask_image, 0.009 * side) if small else _wide_blur(mask_image, 0.026 * side)
        light = self._light(part, mask_image, soft, u, v, low, unit, blurred)
        base = self.main if part.tint is None else np.asarray(part.tint, float)
        base = (base * part.gain).astype(np.float32)[:, None, None]
        colour: np.ndarray = base
        if part.tint is None and part.printed and self.pattern in PRINTS:
            amount = self._print(u, v, unit)
            other = (self.second * part.gain).astype(np.float32)[:, None, None]
            colour = base + (other - base) * amount
        rgb = colour * light
        rgb += 34 * (light - np.float32(0.96))

        patch = (slice(low[1], high[1]), slice(low[0], high[0]))
        planes = (slice(None), *patch)
        if part.lift:
            offset = max(1, int(0.012 * side))
            shadow = np.roll(soft, (offset, offset // 2), (0, 1)) * np.float32(-0.42 * part.lift)
            self.rgb[planes] *= 1 + shadow
        rgb -= self.rgb[planes]
        rgb *= mask
        self.rgb[planes] += rgb
        self.alpha[patch] += (1 - self.alpha[patch]) * mask

    def _print(self, u: np.ndarray, v: np.ndarray, unit: float) -> np.ndarray:
        identity = self.identity
        period = 0.27 * (1 + 0.28 * identity.print_size)
        turn = np.float32(0.1 * identity.print_turn)
        # The period is in picture units, not garment units, so that prints stay visible on garments drawn at a smaller scale.
        period = period * (self.side / 2) * 0.78 / unit
        u = u + period * identity.print_x
        v = v + period * identity.print_y
        u, v = u - turn * v, v + turn * u
        return PRINTS[self.pattern](u, v, np.float32(period), np.float32(1.2 / unit), identity.print_ratio).astype(np.float32)

    def _light(
        self,
        part: Part,
        mask: Image.Image,
        soft: np.ndarray,
        u: np.ndarray,
        v: np.ndarray,
        corner: Points,
        unit: float,
        blurred: Callable[[Image.Image, float], np.ndarray],
    ) -> np.ndarray:
        """Brightness of every pixel of a part: roundness, light from the upper left, folds, seams, weave."""
        step = max(1, int(0.012 * self.side))
        slope = np.roll(soft, -step, 1) - np.roll(soft, step, 1) + 0.8 * (np.roll(soft, -step, 0) - np.roll(soft, step, 0))
        light = 0.8 + 0.22 * part.depth * np.clip(2 * soft - 1, 0, 1) + 0.22 * (1 - part.depth) + 0.3 * part.depth * slope
        if part.folds:
            folds = np.zeros_like(light)
            bent = u + np.float32(0.18) * np.sin(3 * v + np.float32(self.waves[0][2]))
            for across, along, phase, amount in self.waves:
                folds += np.float32(amount) * np.sin(
                    np.float32(6.28 * across) * bent + np.float32(6.28 * along) * v + np.float32(phase)
                )
            light += np.float32(0.028 * part.folds) * folds
        if part.creases:
            lines = [
                (line, int(128 + 127 * np.clip(strength, -1, 1)), max(1, int(width * unit))) for line, strength, width in part.creases
            ]
            image = self._lines(mask.size, corner, lines, 128)
            light += 0.55 * (blurred(image, 0.011 * self.side) * 255 - 128) / 128
        x, y = corner
        light += self.weave[y : y + light.shape[0], x : x + light.shape[1]]
        if part.seams or part.stitches:
            thin = max(1, round(self.side / 150))
            lines = [(line, 255, thin) for line in part.seams]
            image = self._lines(mask.size, corner, lines, 0)
            draw = ImageDraw.Draw(image)
            for line in part.stitches:
                points = self.pixels(line) - corner
                for start, end in zip(points[:-1:2], points[1::2], strict=False):
                    draw.line([tuple(start.tolist()), tuple(end.tolist())], fill=150, width=thin)
            light *= 1 - 0.38 * blurred(image, 0.5)
        edge = (
            soft
            if min(mask.size) < 0.12 * self.side
            else np.asarray(mask.filter(ImageFilter.BoxBlur(0.008 * self.side)), np.float32) / 255
        )
        rim = np.clip(2 * edge - 1, 0, 1)
        return light * (0.66 + 0.34 * rim)

    def image(self, size: int) -> Image.Image:
        """The drawing as RGBA of `size` x `size`, reduced with the colour weighted by alpha."""
        packed = np.empty((self.side, self.side, 4), np.uint8)
        packed[..., :3] = (np.clip(self.rgb, 0, 255) * self.alpha + np.float32(0.5)).transpose(1, 2, 0)
        packed[..., 3] = 255 * self.alpha + np.float32(0.5)
        picture = Image.frombuffer("RGBa", (self.side, self.side), packed.tobytes(), "raw", "RGBa", 0, 1)
        return picture.reduce(OVERSAMPLE).convert("RGBA")


def _dashes(line: ArrayLike, count: int) -> Points:
    """Resamples a line to `2 * count` points at equal distances."""
    line = np.asarray(line, float)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0, length[-1], 2 * count)
    return np.stack([np.interp(at, length, line[:, axis]) for axis in range(2)], 1)


def _drape(rng: np.random.Generator, top: Points, bottom: Points, count: int, strength: float) -> list[Crease]:
    """Folds that fall from a line to another, dark and light ones beside each other."""
    creases: list[Crease] = []
    for place in np.linspace(0.08, 0.92, count) + rng.normal(0, 0.02, count):
        start = top[0] + (top[1] - top[0]) * place
        end = bottom[0] + (bottom[1] - bottom[0]) * place
        start = start + (end - start) * rng.uniform(0, 0.3)
        bend = (start + end) / 2 + (rng.normal(0, 0.015), 0)
        line = curve(start, bend, end)
        amount = strength * rng.uniform(0.6, 1.1)
        creases.append((line, -amount, 0.035))
        creases.append((line + (0.045, 0), 0.7 * amount, 0.03))
    return creases


def _wrinkles(rng: np.random.Generator, x: float, top: float, bottom: float, count: int, strength: float = 0.3) -> list[Crease]:
    """Short slanting wrinkles inside a body of half width `x`."""
    creases: list[Crease] = []
    for _ in range(count):
        start = np.array([rng.uniform(-x, x) * 0.85, rng.uniform(top, bottom)])
        reach = np.array([-np.sign(start[0]) * rng.uniform(0.08, 0.2), rng.uniform(0.12, 0.34)])
        line = curve(start, start + reach * 0.5 + (0.03, 0), start + reach)
        creases.append((line, -strength * rng.uniform(0.6, 1.2), 0.03))
        creases.append((line + (0.04, -0.01), 0.6 * strength, 0.025))
    return creases


def _sleeve(
    rng: np.random.Generator, shoulder: Points, underarm: Points, value: str, identity: Identity, cuff: str, unit: float = 1.0
) -> list[Part]:
    """The right sleeve; lengths are in units of `unit`."""
    length = {"short": 0.36, "three-quarter": 0.78, "long": 1.16}[value] * (1 + 0.06 * identity.sleeve) * unit
    angle = np.deg2rad({"short": 42, "three-quarter": 27, "long": 19}[value] + rng.normal(0, 2))
    half = {"short": 0.165, "three-quarter": 0.125, "long": 0.1}[value] * (1 + 0.12 * identity.taper) * unit
    along, outward = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    middle = (shoulder + underarm) / 2
    end = middle + along * length + outward * 0.03
    outer, inner = end + outward * half, end - outward * half
    elbow_out = (shoulder + outer) / 2 + outward * 0.045 * unit
    elbow_in = (underarm + inner) / 2 + outward * 0.02 * unit
    outline = join(curve(shoulder, elbow_out, outer), curve(inner, elbow_in, underarm), [middle - (0.12 * unit, 0)])
    creases: list[Crease] = []
    for place in rng.uniform(0.15, 0.85, 2 if value == "short" else 4):
        start = underarm + (inner - underarm) * place
        reach = start + outward * half * rng.uniform(0.8, 1.5) - along * 0.06
        line = curve(start, (start + reach) / 2 + along * 0.02, reach)
        creases += [(line, -0.4, 0.03), (line + along * 0.04, 0.25, 0.03)]
    hem = np.stack([outer, inner]) - along * 0.045 * unit
    part = Part(outline, turn=float(angle), creases=creases, folds=0.8, lift=0.2)
    if cuff == "stitched":
        part.stitches = [_dashes(hem, 6)]
        return [part]
    depth = (0.11 if cuff == "ribbed" else 0.1) * unit
    tighten = 0.86 if cuff == "ribbed" else 1.0
    top, bottom = end - along * depth, end + along * 0.01
    wide = half * 1.06
    shape = join([top + outward * wide, bottom + outward * wide * tighten, bottom - outward * wide * tighten, top - outward * wide])
    seams = []
    if cuff == "ribbed":
        for place in np.linspace(-0.75, 0.75, 5):
            seams.append(np.stack([top + outward * wide * place, bottom + outward * wide * tighten * place]))
    return [part, Part(shape, turn=float(angle), printed=False, seams=seams, folds=0, lift=0.5, gain=0.97)]


def _neck(value: str, half: float, top: float, identity: Identity) -> tuple[Points, float]:
    """Front neckline from the middle to the right neck point, and half the width of the neck."""
    deep = 1 + 0.12 * identity.neck
    if value == "v":
        return curve((0, top + 0.47 * deep), (half * 0.5, top + 0.22 * deep), (half, top)), half
    if value == "square":
        half = half * 1.28
        return join([(0, top + 0.27 * deep), (half * 0.93, top + 0.27 * deep), (half, top)]), half
    if value == "boat":
        half = half * 1.62
        return curve((0, top + 0.1 * deep), (half * 0.6, top + 0.075 * deep), (half, top + 0.03)), half
    return curve((0, top + 0.2 * deep), (half * 0.62, top + 0.145 * deep), (half, top)), half


def _neck_parts(neck: Points, half: float, top: float, rim: bool) -> tuple[Part, list[Part]]:
    """The inside of the back that shows in the neckline, and the rim around it."""
    back = curve((half, neck[-1][1]), (0.5 * half, top + 0.045), (0, top + 0.055), (-0.5 * half, top + 0.045), (-half, neck[-1][1]))
    front = join(flip(neck), neck)
    inside = Part(join(front, back), gain=0.58, folds=0, printed=False, lift=0, depth=0.4)
    over = [Part(band(front, 0.05), printed=False, gain=0.9, folds=0, lift=0.25, depth=0.5)] if rim else []
    return inside, over


def _button(x: float, y: float, radius: float, dark: bool) -> Part:
    shade = (62, 54, 50) if dark else (240, 236, 226)
    return Part(disc(x, y, radius), tint=shade, folds=0, lift=0.9, depth=0.6)


def _top(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    kind = attributes["kind"]
    sleeve, fit = attributes["sleeve"], attributes["fit"]
    top = -0.86
    collar = kind == "shirt"
    neckline = "collar" if collar else attributes["neckline"]
    half_neck = 0.2 * (1 + 0.08 * identity.neck)
    neck, half_neck = _neck("round" if neckline in ("collar", "turtle") else neckline, half_neck, top, identity)
    shoulder_x = 0.52 * (1 + 0.05 * identity.shoulder) * {"slim": 0.92, "regular": 1.0, "loose": 1.1}[fit]
    if sleeve == "sleeveless":
        shoulder_x = max(half_neck + 0.13, shoulder_x * 0.82)
    shoulder = np.array([shoulder_x, top + 0.1 + 0.02 * identity.shoulder])
    body = {"slim": 0.41, "regular": 0.54, "loose": 0.71}[fit] * (1 + 0.05 * identity.width)
    underarm = np.array([max(body * 0.98, shoulder_x * 0.86), top + 0.52])
    hem = {"cropped": 0.06, "hip": 0.52, "tunic": 0.98}[attributes["length"]] + 0.03 * identity.height
    waist = np.array([body * (0.88 if fit == "slim" else 0.98), (underarm[1] + hem) / 2])
    hem_x = body * (1.04 + 0.05 * identity.taper)
    tail = 0.11 if collar else 0.03
    armhole = (
        curve(shoulder, (shoulder[0] - 0.055, (shoulder[1] + underarm[1]) / 2 + 0.03), underarm)
        if sleeve == "sleeveless"
        else curve(shoulder, (shoulder[0] - 0.015, (shoulder[1] + underarm[1]) / 2), underarm)
    )
    side = curve(underarm, waist, (hem_x, hem - (0.1 if collar else 0)))
    bottom = curve(side[-1], (hem_x * 0.6, hem + tail * 0.55), (0, hem + tail))
    half = join(neck, armhole, side, bottom)
    stitch = bottom - (0, 0.05)
    drop = hem - underarm[1]
    cloth = Part(
        both(half),
        creases=_wrinkles(rng, body, underarm[1], hem - 0.25 * drop, 3 + (fit == "loose") * 2),
        seams=[armhole, flip(armhole)] if sleeve != "sleeveless" else [],
        stitches=[_dashes(join(stitch, flip(stitch)), 17)],
        lift=0.35,
    )
    for sign in (-1, 1):
        line = curve(
            (sign * body * 0.9, underarm[1] + 0.06), (sign * body * 0.6, underarm[1] + 0.22), (sign * body * 0.5, underarm[1] + 0.42)
        )
        cloth.creases += [(line, -0.4, 0.035), (line + (0.05, 0), 0.25, 0.03)]
    cuff = {"t-shirt": "stitched", "shirt": "band", "sweater": "ribbed"}[kind]
    sleeves: list[Part] = []
    if sleeve != "sleeveless":
        for part in _sleeve(rng, shoulder, underarm, sleeve, identity, cuff if sleeve != "short" or kind == "sweater" else "stitched"):
            sleeves += [part, mirrored(part)]
    inside, rim = _neck_parts(neck, half_neck, top, rim=not collar)
    parts = [*sleeves, cloth]
    if kind == "sweater":
        rib = join(
            [(hem_x * 0.985, hem - 0.14), (hem_x * 0.93, hem + 0.03)],
            curve((hem_x * 0.93, hem + 0.03), (hem_x * 0.5, hem + 0.05), (0, hem + 0.055)),
        )
        ribs = [np.array([[place * hem_x, hem - 0.12], [place * hem_x * 0.95, hem + 0.06]]) for place in np.linspace(-0.92, 0.92, 17)]
        parts.append(Part(both(rib), printed=False, seams=ribs, folds=0, gain=0.97, lift=0.4))
    parts.append(inside)
    if neckline == "turtle":
        wide = half_neck * 1.02
        tube = join(
            [(0, top - 0.2)],
            curve((wide * 0.86, top - 0.2), (wide * 0.94, top - 0.06), (wide * 1.08, top + 0.06)),
            curve((wide * 1.08, top + 0.06), (wide * 0.6, top + 0.16), (0, top + 0.19)),
        )
        ribs = [np.array([[place * wide * 0.9, top - 0.19], [place * wide, top + 0.16]]) for place in np.linspace(-0.8, 0.8, 7)]
        fold = curve((-wide * 0.95, top - 0.04), (0, top + 0.03), (wide * 0.95, top - 0.04))
        parts.append(Part(both(tube), printed=False, seams=ribs, folds=0, gain=0.96, lift=0.7, creases=[(fold, -0.7, 0.03)]))
    elif not collar:
        parts += rim
    if collar:
        dark = identity.trim > 0.3
        parts.append(
            Part(
                np.array([(-0.055, top + 0.18), (0.055, top + 0.18), (0.055, hem + tail - 0.01), (-0.055, hem + tail - 0.01)]),
                folds=0.4,
                lift=0.45,
                depth=0.6,
            )
        )
        for y in np.arange(top + 0.3, hem - 0.02, 0.185):
            parts.append(_button(0, float(y), 0.03, dark))
        if attributes["collar"] == "pointed":
            leaf = join(
                curve((0.0, top + 0.2), (half_neck * 0.55, top + 0.1), (half_neck * 0.85, top - 0.06)),
                curve((half_neck * 1.2, top - 0.0), (half_neck * 1.5, top + 0.14), (half_neck * 1.15, top + 0.34)),
            )
            for part in (Part(leaf, folds=0, lift=1.0, depth=0.6, turn=0.5),):
                parts += [part, mirrored(part)]
        else:
            leaf = curve((0.0, top + 0.21), (half_neck * 0.7, top + 0.14), (half_neck * 1.05, top + 0.0))
            stand = join(
                leaf,
                [(half_neck * 0.92, top - 0.1)],
                curve((half_neck * 0.92, top - 0.1), (half_neck * 0.5, top + 0.04), (0.02, top + 0.1)),
            )
            part = Part(stand, folds=0, lift=1.0, depth=0.6)
            parts += [part, mirrored(part)]
    if attributes.get("pocket") == "yes":
        x, y, wide = body * 0.48, top + 0.58, 0.125
        shape = join(
            [(x - wide, y), (x + wide, y), (x + wide, y + 0.22)], curve((x + wide, y + 0.22), (x, y + 0.3), (x - wide, y + 0.22))
        )
        top_line = np.array([[x - wide, y + 0.05], [x + wide, y + 0.05]])
        parts.append(Part(shape, folds=0, lift=1.0, depth=0.5, gain=0.9, seams=[top_line]))
    return parts


def _belt(half: float, y: float, identity: Identity, colour: str) -> list[Part]:
    """A leather belt with a metal buckle, dark on light garments and light on dark ones."""
    leather = (96, 62, 38) if colour not in ("brown", "black", "red", "purple") else (216, 186, 140)
    strip = join(
        curve((-half, y - 0.055), (0, y - 0.035), (half, y - 0.055)), curve((half, y + 0.055), (0, y + 0.075), (-half, y + 0.055))
    )
    ring = join([(-0.085, y - 0.06), (0.085, y - 0.06), (0.085, y + 0.1), (-0.085, y + 0.1)])
    hole = join([(-0.045, y - 0.02), (0.045, y - 0.02), (0.045, y + 0.06), (-0.045, y + 0.06)])
    metal = (214, 178, 92) if identity.trim > 0 else (198, 202, 208)
    return [
        Part(strip, tint=leather, folds=0, lift=0.9, depth=0.8),
        Part(ring, tint=metal, folds=0, lift=0.7, depth=0.7),
        Part(hole, tint=leather, folds=0, lift=0, gain=0.8, depth=0.4),
    ]


def _wavy(start: Points, end_y: float, waves: float, height: float, phase: float) -> Points:
    """A hem from the right side to the middle that swings as a full skirt does."""
    x = np.linspace(1, 0, 17)
    swing = height * np.cos(waves * np.pi * x + phase) * (0.4 + 0.6 * x)
    y = start[1] + (end_y - start[1]) * (1 - x**2) + swing - swing[0] * x
    return np.stack([start[0] * x, y], 1)


def _skirt_half(waist: Points, hem_y: float, shape: str, identity: Identity, unit: float = 1.0) -> tuple[Points, Points, float]:
    """Right half of a skirt below the waist (side and hem), the hem line, and half the hem's width."""
    fall = hem_y - waist[1]
    spread = {"straight": 0.1, "a-line": 0.2 + 0.22 * fall, "flared": 0.3 + 0.34 * fall}[shape] * unit
    spread *= 1 + 0.08 * identity.taper
    hem_x = waist[0] + spread
    if shape == "straight":
        side = curve(
            waist,
            (waist[0] + 0.085 * unit, waist[1] + min(0.26 * unit, 0.5 * fall)),
            (hem_x - 0.01, waist[1] + 0.7 * fall),
            (hem_x - 0.02, hem_y),
        )
        hem = curve(side[-1], (hem_x * 0.55, hem_y + 0.025), (0, hem_y + 0.035))
    elif shape == "a-line":
        side = curve(waist, (waist[0] + 0.42 * spread, waist[1] + 0.34 * fall), (hem_x, hem_y))
        hem = curve(side[-1], (hem_x * 0.55, hem_y + 0.05), (0, hem_y + 0.07))
    else:
        side = curve(
            waist,
            (waist[0] + 0.3 * spread, waist[1] + 0.22 * fall),
            (waist[0] + 0.72 * spread, waist[1] + 0.66 * fall),
            (hem_x, hem_y - 0.05),
        )
        hem = _wavy(side[-1], hem_y + 0.08, 5, 0.035, identity.print_x)
    return join(side, hem), hem, hem_x


def _dress(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    sleeve, shape = attributes["sleeve"], attributes["shape"]
    top = -1.05
    neck, half_neck = _neck(attributes["neckline"], 0.19 * (1 + 0.08 * identity.neck), top, identity)
    shoulder_x = 0.43 * (1 + 0.05 * identity.shoulder)
    if sleeve == "sleeveless":
        shoulder_x = max(half_neck + 0.1, shoulder_x * 0.84)
    shoulder = np.array([shoulder_x, top + 0.09])
    underarm = np.array([0.385 * (1 + 0.05 * identity.width), top + 0.47])
    waist = np.array([0.315 * (1 + 0.06 * identity.width), top + 0.92 + 0.03 * identity.height])
    hem_y = {"mini": 0.34, "knee": 0.72, "maxi": 1.22}[attributes["length"]] + 0.03 * identity.height
    armhole = curve(
        shoulder, (shoulder[0] - (0.06 if sleeve == "sleeveless" else 0.02), (shoulder[1] + underarm[1]) / 2 + 0.03), underarm
    )
    bodice = join(neck, armhole, curve(underarm, (underarm[0] * 0.93, (underarm[1] + waist[1]) / 2), waist))
    lower, hem, hem_x = _skirt_half(waist, hem_y, shape, identity)
    creases = _wrinkles(rng, waist[0], underarm[1], waist[1] - 0.2, 2, 0.25)
    count = {"straight": 2, "a-line": 5, "flared": 9}[shape]
    creases += _drape(
        rng,
        np.array([(-waist[0] * 0.9, waist[1] + 0.03), (waist[0] * 0.9, waist[1] + 0.03)]),
        np.array([(-hem_x * 0.92, hem_y), (hem_x * 0.92, hem_y)]),
        count,
        {"straight": 0.22, "a-line": 0.32, "flared": 0.55}[shape],
    )
    seam = curve((-waist[0], waist[1]), (0, waist[1] + 0.025), (waist[0], waist[1]))
    stitch = hem - (0, 0.045)
    cloth = Part(
        both(join(bodice, lower)),
        creases=creases,
        seams=[seam] + ([armhole, flip(armhole)] if sleeve != "sleeveless" else []),
        stitches=[_dashes(join(stitch, flip(stitch)), 20)],
        lift=0.35,
    )
    sleeves: list[Part] = []
    if sleeve != "sleeveless":
        for part in _sleeve(rng, shoulder, underarm, sleeve, identity, "stitched", 0.9):
            sleeves += [part, mirrored(part)]
    inside, rim = _neck_parts(neck, half_neck, top, rim=True)
    parts = [*sleeves, cloth, inside, *rim]
    if attributes["belt"] == "yes":
        parts += _belt(waist[0] * 1.03, float(waist[1]), identity, attributes["colour"])
    return parts


def _skirt(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    top = -0.82
    waist = np.array([0.4 * (1 + 0.06 * identity.width), top])
    hem_y = {"mini": 0.0, "knee": 0.45, "maxi": 1.05}[attributes["length"]] + 0.04 * identity.height
    shape = attributes["shape"]
    lower, hem, hem_x = _skirt_half(waist, hem_y, shape, identity, 1.15)
    pleated = attributes["pleats"] == "yes"
    seams: list[Points] = []
    if pleated:
        creases = []
        for place in np.linspace(-0.86, 0.86, 9):
            line = np.array(
                [[place * waist[0], top + 0.02], [place * (waist[0] + hem_x) / 2, (top + hem_y) / 2], [place * hem_x, hem_y + 0.03]]
            )
            creases += [(line, -1.0, 0.045), (line + (0.06, 0), 0.7, 0.04)]
            seams.append(line)
    else:
        creases = _drape(
            rng,
            np.array([(-waist[0] * 0.9, top + 0.08), (waist[0] * 0.9, top + 0.08)]),
            np.array([(-hem_x * 0.92, hem_y), (hem_x * 0.92, hem_y)]),
            {"straight": 2, "a-line": 4, "flared": 7}[shape],
            {"straight": 0.2, "a-line": 0.26, "flared": 0.42}[shape],
        )
    stitch = hem - (0, 0.05)
    outline = both(join([(0, top + 0.02)], lower))
    cloth = Part(outline, creases=creases, seams=seams, stitches=[] if pleated else [_dashes(join(stitch, flip(stitch)), 20)], lift=0.3)
    strip = both(
        join(
            curve((0, top - 0.06), (waist[0] * 0.6, top - 0.07), (waist[0] * 0.98, top - 0.1)),
            curve((waist[0] * 1.02, top + 0.03), (waist[0] * 0.6, top + 0.055), (0, top + 0.065)),
        )
    )
    parts = [cloth, Part(strip, printed=False, folds=0, gain=0.95, lift=0.5, depth=0.7)]
    if attributes["belt"] == "yes":
        return parts + _belt(waist[0] * 1.04, top - 0.02, identity, attributes["colour"])
    return [*parts, _button(0, top, 0.035, identity.trim > 0)]


def _trousers(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    top = -1.0
    waist = 0.37 * (1 + 0.05 * identity.width)
    hip = waist + 0.1
    crotch = np.array([0.0, -0.38 + 0.03 * identity.shoulder])
    hem_y = {"short": -0.08, "knee": 0.3, "cropped": 0.72, "full": 1.12}[attributes["length"]] + 0.03 * identity.height
    share = np.clip((hem_y - crotch[1]) / 1.5, 0.12, 1)
    leg = attributes["leg"]
    half = {"slim": 0.235 - 0.105 * share, "straight": 0.245 - 0.03 * share, "wide": 0.28 + 0.13 * share}[leg]
    half *= 1 + 0.05 * identity.taper
    middle = {"slim": 0.25, "straight": 0.275, "wide": 0.33}[leg] + 0.05 * share
    outer, inner = np.array([middle + half, hem_y]), np.array([max(middle - half, 0.02), hem_y + 0.02])
    knee_y = (crotch[1] + hem_y) / 2
    knee_out = (hip * 0.96 + outer[0]) / 2 + {"slim": -0.015, "straight": 0.0, "wide": -0.03}[leg]
    half_outline = join(
        [(0, top)],
        curve((waist, top), (hip * 0.97, top + 0.26), (hip, crotch[1]), (knee_out, knee_y), outer),
        curve(inner, ((inner[0] + 0.03) / 2 + 0.012, knee_y), (0.03, crotch[1] + 0.05), crotch),
    )
    press = curve((middle * 0.78, top + 0.3), (middle * 0.95, knee_y), (middle, hem_y))
    creases: list[Crease] = [(press, 0.35, 0.03), (press + (0.05, 0), -0.22, 0.03)]
    for place in (0.06, 0.14, 0.23):
        line = curve(
            (0.03, crotch[1] + place - 0.06), (0.16, crotch[1] + place - 0.09), (0.3, crotch[1] + place - 0.04 + rng.normal(0, 0.02))
        )
        creases += [(line, -0.42, 0.028), (line + (0, 0.04), 0.22, 0.025)]
    pocket = curve((waist * 0.62, top + 0.1), (waist * 0.82, top + 0.25), (hip * 0.95, top + 0.34))
    hem_line = np.stack([outer, inner]) - (0, 0.055)
    leg_part = Part(half_outline, creases=creases, seams=[pocket], stitches=[_dashes(hem_line, 6)], lift=0.25)
    other = mirrored(leg_part)
    fly = curve((0.0, top + 0.08), (0.0, crotch[1] - 0.12), (0.0, crotch[1]))
    flap = curve((0.09, top + 0.08), (0.09, top + 0.32), (0.0, crotch[1] - 0.1))
    leg_part.seams += [fly]
    leg_part.stitches += [_dashes(flap, 9)]
    parts = [other, leg_part]
    strip = both(
        join(
            curve((0, top - 0.06), (waist * 0.6, top - 0.07), (waist * 0.98, top - 0.1)),
            curve((waist * 1.03, top + 0.06), (waist * 0.6, top + 0.08), (0, top + 0.085)),
        )
    )
    if attributes["turn-ups"] == "yes":
        wide = half + 0.03
        centre = (outer[0] + inner[0]) / 2
        shape = join(
            [(centre - wide, hem_y - 0.13), (centre + wide, hem_y - 0.15), (centre + wide, hem_y + 0.02)],
            curve((centre + wide, hem_y + 0.02), (centre, hem_y + 0.04), (centre - wide, hem_y + 0.04)),
        )
        part = Part(
            shape,
            tint=None,
            printed=False,
            gain=1.18 if attributes["colour"] not in ("white", "beige", "yellow") else 0.82,
            folds=0,
            lift=1.0,
        )
        parts += [part, mirrored(part)]
    parts.append(Part(strip, printed=False, folds=0, gain=0.94, lift=0.5, depth=0.7))
    if attributes["belt"] == "yes":
        parts += _belt(waist * 1.05, top - 0.005, identity, attributes["colour"])
    else:
        parts.append(_button(0, top + 0.01, 0.035, identity.trim > 0))
    for x in (-0.62, -0.28, 0.28, 0.62):
        at = x * waist
        parts.append(
            Part(
                join([(at - 0.02, top - 0.085), (at + 0.02, top - 0.085), (at + 0.02, top + 0.09), (at - 0.02, top + 0.09)]),
                printed=False,
                gain=0.9,
                folds=0,
                lift=0.7,
                depth=0.3,
            )
        )
    return parts


def _sneaker(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    ground = 0.52
    thick = {"thin": 0.09, "medium": 0.2, "thick": 0.36}[attributes["sole"]] * (1 + 0.06 * identity.height)
    floor = ground - thick
    rise = {"low": 0.0, "mid": 0.3, "high": 0.62}[attributes["shaft"]]
    heel_top = floor - 0.56 - rise
    tongue = np.array([-0.2 - 0.06 * (rise > 0.1), floor - 0.64 - rise])
    toe = 1.0 + 0.04 * identity.width
    nose = 0.3 + 0.03 * identity.taper
    back = curve((-0.86, floor + 0.04), (-0.93, floor - 0.2), (-0.84, floor - 0.44), (-0.87, heel_top))
    opening = curve((-0.87, heel_top), (-0.6, heel_top + 0.13 + 0.02 * identity.neck), (-0.36, heel_top + 0.06), tongue)
    front = curve(
        tongue,
        (0.1, floor - 0.46 - 0.12 * rise),
        (0.45, floor - nose - 0.03),
        (0.78, floor - nose + 0.01),
        (toe - 0.02, floor - 0.12),
        (toe, floor + 0.04),
    )
    cap = curve((0.5, floor + 0.03), (0.46, floor - 0.16), (0.6, floor - nose - 0.02))
    counter = curve((-0.5, floor + 0.03), (-0.53, floor - 0.22), (-0.86, floor - 0.34))
    quarter = curve((-0.05, floor + 0.03), (0.05, floor - 0.22), (-0.13, floor - 0.44 - 0.6 * rise))
    bend = curve((-0.75, floor - 0.5), (-0.45, floor - 0.42), (-0.2, floor - 0.5))
    upper = Part(
        join(back, opening, front),
        seams=[cap, counter, quarter],
        stitches=[_dashes(cap + (0.04, 0), 5), _dashes(counter + (0.04, 0.03), 6)],
        creases=[
            (bend, -0.3 if rise else 0.0, 0.04),
            (curve((0.2, floor - 0.25), (0.33, floor - 0.2), (0.4, floor - 0.1)), -0.35, 0.03),
        ],
        folds=0.35,
        lift=0.3,
    )
    inner = join(opening, curve(tongue + (0.02, 0.0), (-0.45, heel_top - 0.02), (-0.87, heel_top)))
    lining = Part(inner, tint=(92, 88, 86), folds=0, lift=0, depth=0.4)
    flap = join(curve(tongue + (-0.02, 0.1), tongue + (-0.1, -0.06), tongue + (0.02, -0.12), tongue + (0.14, 0.1)))
    pale = np.array([236, 233, 226]) if identity.trim > -0.4 else np.array([208, 168, 120])
    sole = join(
        curve((-0.95, floor + 0.03), (-0.98, ground - thick * 0.4), (-0.93, ground)),
        curve(
            (-0.93, ground),
            (0.2, ground + 0.015),
            (0.85, ground),
            (toe + 0.05, ground - 0.35 * thick - 0.03),
            (toe + 0.04, floor - 0.02),
        ),
        curve((toe + 0.04, floor - 0.02), (0.3, floor + 0.03), (-0.95, floor + 0.03)),
    )
    groove = curve((-0.96, ground - thick * 0.42), (0.1, ground - thick * 0.36), (toe, ground - thick * 0.5))
    parts = [lining, Part(flap, printed=False, gain=0.86, folds=0, lift=0.4), upper]
    parts.append(Part(sole, tint=tuple(pale), folds=0, lift=0.6, seams=[groove] if thick > 0.12 else [], depth=0.8))
    closure = attributes["closure"]
    base, slope = tongue + (0.02, 0.1), np.array([0.48, floor - nose - 0.02]) - tongue - (0.02, 0.1)
    if closure == "laces":
        lace = (244, 242, 238) if attributes["colour"] not in ("white", "beige", "yellow") else (70, 66, 70)
        for place in np.linspace(0.04, 0.9, 5 + (rise > 0.4)):
            at = base + slope * place
            parts.append(
                Part(
                    band(curve(at + (-0.12, 0.09), at + (-0.01, 0.015), at + (0.07, -0.025)), 0.052),
                    tint=lace,
                    folds=0,
                    lift=0.9,
                    depth=0.4,
                )
            )
    elif closure == "straps":
        for place in (0.08, 0.5) if rise < 0.5 else (-0.12, 0.2, 0.55):
            at = base + slope * place
            strip = band(curve(at + (-0.36, 0.26), at + (-0.1, 0.06), at + (0.09, -0.04)), 0.15)
            parts.append(Part(strip, printed=False, gain=0.74, folds=0, lift=1.0, depth=0.8))
    else:
        gore = join(
            curve(base + (-0.08, 0.04), base + (0.02, 0.22), base + (0.08, 0.3)),
            curve(base + (-0.12, 0.34), base + (-0.22, 0.16), base + (-0.2, 0.02)),
        )
        lines = [np.stack([base + (-0.17 + 0.06 * step, 0.06), base + (-0.08 + 0.05 * step, 0.31)]) for step in range(4)]
        parts.append(Part(gore, tint=(60, 58, 62), folds=0, lift=0.2, depth=0.3, seams=lines))
    return parts


def _sole_line(heel: float, ground: float, toe_x: float) -> Points:
    """Underside of a foot on a heel of the given height, from the back to the toe."""
    return curve(
        (-0.84, ground - heel),
        (-0.5, ground - heel * 0.96),
        (-0.08, ground - heel * 0.42),
        (0.32, ground - 0.02 * heel - 0.01),
        (toe_x - 0.12, ground - 0.01),
    )


def _heel_part(heel: float, ground: float, slender: bool) -> Part | None:
    """The heel block under the back of the foot."""
    if heel < 0.09:
        return None
    foot = 0.07 if slender else 0.15
    wide = 0.3 if not slender else 0.26
    shape = join(
        curve((-0.86, ground - heel - 0.03), (-0.85 + 0.04 * slender, ground - heel * 0.5), (-0.8, ground)),
        [(-0.8 + foot, ground)],
        curve((-0.8 + foot, ground), (-0.76 + foot * 0.9, ground - heel * 0.55), (-0.86 + wide + 0.14, ground - heel * 0.93)),
    )
    return Part(shape, tint=None, printed=False, gain=0.55, folds=0, lift=0.3)


def _boot(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    ground = 0.95
    heel = {"flat": 0.07, "mid": 0.24, "high": 0.46}[attributes["heel"]] * (1 + 0.05 * identity.taper)
    pointed = attributes["toe"] == "pointed"
    toe_x = (1.06 if pointed else 0.92) + 0.03 * identity.width
    shaft_top = ground - heel - {"ankle": 0.66, "calf": 1.12, "knee": 1.72}[attributes["shaft"]] - 0.03 * identity.height
    sole = _sole_line(heel, ground, toe_x)
    ankle_y = ground - heel - 0.52
    nose = 0.1 if pointed else 0.24
    widen = {"ankle": 0.0, "calf": 0.05, "knee": 0.09}[attributes["shaft"]]
    back = curve(
        (-0.84, ground - heel),
        (-0.88, ground - heel - 0.2),
        (-0.8, ankle_y),
        (-0.84 - widen, (ankle_y + shaft_top) / 2),
        (-0.84 - widen, shaft_top),
    )
    rim = curve((-0.84 - widen, shaft_top), (-0.5, shaft_top + 0.05), (-0.14 + widen, shaft_top + 0.02))
    front = curve(
        (-0.14 + widen, shaft_top + 0.02),
        (-0.12 + widen, (ankle_y + shaft_top) / 2),
        (-0.14, ankle_y),
        (0.14, ground - heel * 0.66 - 0.38),
        (0.55, ground - 0.2 - nose * 0.7),
        (toe_x - 0.06, ground - nose * 0.72),
        (toe_x, ground - (0.04 if pointed else 0.1)),
        (toe_x - 0.04, ground - 0.01),
    )
    under = curve(*sole[::6][::-1]) if len(sole) > 12 else sole[::-1]
    creases: list[Crease] = []
    for drop in (0.0, 0.09, 0.17):
        line = curve((-0.18, ankle_y + drop), (-0.42, ankle_y + drop + 0.06), (-0.68, ankle_y + drop - 0.02))
        creases += [(line, -0.55, 0.035), (line + (0, 0.045), 0.35, 0.03)]
    gloss = curve((-0.42, shaft_top + 0.12), (-0.4, (shaft_top + ankle_y) / 2), (-0.38, ankle_y - 0.1))
    creases += [
        (gloss, 0.35 + 0.2 * identity.gloss, 0.1),
        (curve((0.3, ground - 0.33), (0.55, ground - 0.25), (0.75, ground - 0.2)), 0.4, 0.06),
    ]
    vamp = curve((0.12, ground - 0.02 - heel * 0.2), (0.06, ground - heel * 0.55 - 0.2), (0.2, ground - heel * 0.6 - 0.36))
    upper = Part(join(back, rim, front, under), creases=creases, seams=[vamp], folds=0.3, lift=0.3)
    inside = Part(
        join(rim, curve((-0.14 + widen, shaft_top + 0.02), (-0.5, shaft_top - 0.05), (-0.84 - widen, shaft_top))),
        tint=(70, 62, 58),
        folds=0,
        lift=0,
        depth=0.3,
    )
    plate = join(sole + (0, 0.0), (sole + (0, 0.055))[::-1])
    plate[:1, 0] -= 0.02
    parts: list[Part] = []
    block = _heel_part(heel, ground + 0.04, False)
    if block is not None:
        block.tint = (58, 48, 42)
        block.gain = 1.0
        parts.append(block)
    parts += [inside, upper, Part(plate, tint=(58, 48, 42), folds=0, lift=0.2, depth=0.5)]
    closure = attributes["closure"]
    pale = (236, 228, 210) if attributes["colour"] not in ("white", "beige", "yellow", "grey", "pink") else (66, 56, 50)
    if closure == "zip":
        line = curve((-0.52, shaft_top + 0.07), (-0.5, (shaft_top + ankle_y) / 2), (-0.5, ankle_y + 0.32))
        parts.append(Part(band(line, 0.06), tint=(84, 84, 90) if pale[0] > 100 else (160, 160, 166), folds=0, lift=0.2, depth=0.3))
        parts.append(Part(band(line, 0.024), tint=(222, 222, 226), folds=0, lift=0, depth=0.3))
        parts.append(Part(disc(-0.52, shaft_top + 0.13, 0.04, 0.07), tint=(222, 222, 226), folds=0, lift=0.8, depth=0.4))
    elif closure == "laces":
        for y in np.arange(shaft_top + 0.1, ankle_y + 0.26, 0.125):
            slide = max(0.0, y - ankle_y) * 0.9
            x = -0.16 + widen * (y < ankle_y) + slide
            parts.append(
                Part(
                    band(curve((x - 0.2, y + 0.055), (x - 0.08, y + 0.0), (x + 0.02, y - 0.03)), 0.05),
                    tint=pale,
                    folds=0,
                    lift=0.9,
                    depth=0.4,
                )
            )
    else:
        for y in (ankle_y + 0.02, *((shaft_top + 0.2,) if attributes["shaft"] != "ankle" else ())):
            bulge = widen if y < ankle_y - 0.1 else 0.0
            strip = curve((-0.85 - bulge, y - 0.02), (-0.5, y + 0.05), (-0.13 + bulge, y))
            parts.append(Part(band(strip, 0.11), printed=False, tint=None, gain=0.66, folds=0, lift=1.0))
            parts.append(
                Part(
                    join([(-0.46, y - 0.05), (-0.28, y - 0.05), (-0.28, y + 0.13), (-0.46, y + 0.13)]),
                    tint=(224, 192, 104),
                    folds=0,
                    lift=1.0,
                    depth=0.5,
                )
            )
            parts.append(
                Part(
                    join([(-0.42, y - 0.0), (-0.32, y - 0.0), (-0.32, y + 0.08), (-0.42, y + 0.08)]),
                    printed=False,
                    gain=0.5,
                    folds=0,
                    lift=0,
                    depth=0.3,
                )
            )
    return parts


def _pump(attributes: Attributes, identity: Identity, rng: np.random.Generator) -> list[Part]:
    ground = 0.6
    heel = {"flat": 0.06, "mid": 0.36, "high": 0.72}[attributes["heel"]] * (1 + 0.04 * identity.height)
    pointed = attributes["toe"] == "pointed"
    toe_x = (1.08 if pointed else 0.9) + 0.03 * identity.width
    sole = _sole_line(heel, ground, toe_x)
    seat = ground - heel
    nose = 0.08 if pointed else 0.23
    back = curve((-0.84, seat), (-0.9, seat - 0.2), (-0.85, seat - 0.42 - 0.02 * identity.neck))
    line = curve(
        (-0.85, seat - 0.42),
        (-0.5, seat - 0.2 + 0.05 * heel),
        (-0.05, ground - 0.6 * heel - 0.16),
        (0.3, ground - 0.2 * heel - 0.16),
        (0.5, ground - 0.26 - 0.05 * heel),
    )
    front = curve(
        (0.5, ground - 0.26 - 0.05 * heel),
        (0.72, ground - 0.12 - nose * 0.55),
        (toe_x - 0.05, ground - nose * 0.6),
        (toe_x, ground - (0.03 if pointed else 0.1)),
        (toe_x - 0.05, ground - 0.01),
    )
    under = curve(*sole[::6][::-1])
    gloss = curve((0.45, ground - 0.19), (0.66, ground - 0.15), (toe_x - 0.12, ground - 0.09))
    shine = curve((-0.74, seat - 0.28), (-0.55, seat - 0.12), (-0.2, seat + heel * 0.25 - 0.08))
    upper = Part(join(back, line, front, under), creases=[(gloss, 0.6, 0.045), (shine, 0.4, 0.05)], folds=0.2, lift=0.3)
    far = line + (0.02, -0.07) * np.sin(np.linspace(0, np.pi, len(line)))[:, None]
    inside = Part(join(line, far[::-1]), tint=(196, 158, 122), folds=0, lift=0, depth=0.4, gain=0.9)
    parts: list[Part] = []
    block = _heel_part(heel, ground + 0.035, True)
    if block is not None:
        block.gain, block.tint = 0.8, None
        parts.append(block)
    plate = join(sole, (sole + (0, 0.04))[::-1])
    parts += [inside, upper, Part(plate, tint=(64, 48, 40), folds=0, lift=0.1, depth=0.4)]
    if attributes["strap"] == "yes":
        loop = curve(
            (-0.84, seat - 0.36),
            (-0.87, seat - 0.5),
            (-0.62, seat - 0.6),
            (-0.34, seat - 0.6),
            (-0.24, seat - 0.52),
            (-0.36, seat - 0.45),
            (-0.62, seat - 0.44),
            (-0.85, seat - 0.5),
            steps=7,
        )
        parts.append(Part(band(loop, 0.065), printed=False, gain=0.85, folds=0, lift=0.4, depth=0.6))
        parts.append(Part(disc(-0.38, seat - 0.455, 0.05), tint=(224, 192, 104), folds=0, lift=0.8, depth=0.6))
    if attributes["bow"] == "yes":
        at = np.array([0.5, ground - 0.3 - 0.05 * heel])
        wing = join(curve(at, at + (0.14, -0.13), at + (0.31, -0.19)), curve(at + (0.34, 0.13), at + (0.16, 0.08), at))
        wings = [wing, (wing - at) * (-1, 1) + at]
        for shape in wings:
            knot = np.stack([at, shape[len(shape) // 2]])
            parts.append(Part(shape, printed=False, gain=0.72, folds=0, lift=1.0, creases=[(knot, -0.6, 0.03)]))
        parts.append(Part(disc(float(at[0]), float(at[1]), 0.055, 0.075), printed=False, gain=0.6, folds=0, lift=0.8))
    return parts


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a kind is laid out: its drawing function, zoom, vertical middle and the offset of the second shoe."""

    parts: Callable[[Attributes, Identity, np.random.Generator], list[Part]]
    zoom: float
    middle: tuple[float, float]
    pair: tuple[float, float] | None = None


CUTS: dict[str, Cut] = {
    "dress": Cut(_dress, 0.78, (0, 0.0)),
    "t-shirt": Cut(_top, 0.85, (0, 0.0)),
    "shirt": Cut(_top, 0.85, (0, 0.0)),
    "sweater": Cut(_top, 0.83, (0, 0.0)),
    "trousers": Cut(_trousers, 0.83, (0, 0.0)),
    "skirt": Cut(_skirt, 0.86, (0, 0.0)),
    "sneakers": Cut(_sneaker, 0.78, (0.05, -0.1), (0.2, -0.3)),
    "boots": Cut(_boot, 0.7, (0.08, 0.0), (0.26, -0.17)),
    "pumps": Cut(_pump, 0.76, (0.08, 0.05), (0.2, -0.3)),
}


def draw_garment(
    attributes: Attributes,
    rng: np.random.Generator,
    size: int,
    identity: Identity | None = None,
    pose: Pose | None = None,
) -> Image.Image:
    """Draws a garment without background.

    Args:
        attributes: Values for all attributes of the kind, as `wardrobe_items` gives them.
        rng: Source of folds, weave and whatever of `identity` and `pose` is not given.
        size: Width and height in pixels, at least 16.
        identity: The design's individual look.
        pose: How the garment lies.

    Returns:
        RGBA image of `size` x `size`; alpha is 0 outside the garment.

    Raises:
        UsageError: unknown kind, an attribute missing or with an unknown value, or a size below 16.
    """
    check_attributes(attributes)
    if size < 16:
        raise UsageError(f"Expected a picture size of at least 16 pixels, found {size}.")
    identity = identity or Identity.draw(rng)
    pose = pose or Pose.draw(rng)
    cut = CUTS[attributes["kind"]]
    canvas = Canvas(attributes, identity, pose, cut.zoom, rng, size)
    parts = cut.parts(attributes, identity, rng)
    points = np.concatenate([part.outline for part in parts])
    span = (points.min(0) + points.max(0)) / 2
    canvas.anchor = span
    reach = np.abs(points - span).max(0).max() + (max(np.abs(cut.pair)) / 2 if cut.pair else 0)
    # Small garments are drawn a little larger and the largest ones fit into the picture; lengths stay comparable.
    canvas.zoom_by(float(np.clip((0.93 / (reach * cut.zoom)) ** 0.35, 0.8, 1.3)) * min(1.0, 0.95 / (reach * cut.zoom)) ** 0.65)
    if cut.pair:
        canvas.anchor = span + np.asarray(cut.pair) / 2
    for part in parts:
        canvas.paint(part)
    if cut.pair:
        canvas.put_behind(np.asarray(cut.pair))
    return canvas.image(size)


BACKDROPS = (
    (226, 226, 228),
    (231, 226, 217),
    (214, 223, 230),
    (233, 219, 217),
    (217, 226, 214),
    (222, 217, 230),
    (205, 207, 211),
)


def studio(rng: np.random.Generator, size: int) -> Image.Image:
    """An empty catalogue background: a tinted sheet with uneven light, sometimes with a linen weave or boards. RGB."""
    base = np.array(BACKDROPS[rng.integers(len(BACKDROPS))], np.float32) + rng.normal(0, 3, 3).astype(np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    centre = rng.uniform(-0.5, 0.5, 2)
    light = 1.035 - 0.05 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) + np.float32(rng.normal(0, 0.012)) * x
    style = rng.random()
    light = np.broadcast_to(light, (size, size)).copy()
    if style < 0.22:
        period = rng.uniform(0.035, 0.05)
        light += 0.012 * (np.sin(6.28 * x / period) + np.sin(6.28 * y / period))
    elif style < 0.4:
        board = rng.uniform(0.3, 0.45)
        place = (x + rng.uniform(0, 1)) / board
        number = np.floor(place)
        light += 0.018 * np.sin(number * 7.7) - 0.08 * (np.abs(place - number - 0.5) > 0.485)
        light += 0.01 * np.sin(40 * x + 3 * np.sin(2 * y + number))
    light += rng.standard_normal((size, size), np.float32) * 0.006
    return Image.fromarray(np.clip(base * light[..., None], 0, 255).astype(np.uint8), "RGB")


def lay_on(garment: Image.Image, background: Image.Image, rng: np.random.Generator, strength: float = 0.45) -> Image.Image:
    """Lays a garment (RGBA) on a background (RGB, same size) with a soft shadow to the lower right. RGB."""
    size = garment.width
    alpha = garment.getchannel("A")
    far = _wide_blur(alpha, 0.03 * size)
    near = np.asarray(alpha.filter(ImageFilter.GaussianBlur(0.009 * size)), np.float32) / 255
    move = max(1, round(size * rng.uniform(0.014, 0.026)))
    shadow = np.roll(far, (move, move // 2), (0, 1)) * strength + np.roll(near, (max(1, move // 3), 1), (0, 1)) * 0.3
    ground = np.asarray(background, np.float32) * (1 - np.clip(shadow, 0, 0.8))[..., None]
    cover = np.asarray(alpha, np.float32)[..., None] / 255
    rgb = np.asarray(garment.convert("RGB"), np.float32)
    return Image.fromarray(np.clip(rgb * cover + ground * (1 - cover) + 0.5, 0, 255).astype(np.uint8), "RGB")


def draw_item(
    attributes: Attributes, rng: np.random.Generator, size: int, identity: Identity | None = None, pose: Pose | None = None
) -> Image.Image:
    """Draws a garment as a catalogue shows it: laid flat on a quiet background.

    Args:
        attributes, rng, size, identity, pose: As in `draw_garment`.

    Returns:
        RGB image of `size` x `size`.

    Raises:
        UsageError: as in `draw_garment`.
    """
    garment = draw_garment(attributes, rng, size, identity, pose)
    return lay_on(garment, studio(rng, size), rng)


def check_attributes(attributes: Attributes) -> None:
    """Checks that the attributes describe a garment that can be drawn.

    Raises:
        UsageError: unknown kind, an attribute missing or with an unknown value.
    """
    kind = attributes.get("kind", "")
    if kind not in KINDS:
        raise UsageError(f"Unknown kind of garment {kind!r}. Known: {', '.join(KINDS)}.")
    allowed = {"colour": tuple(COLOURS), "pattern": ("plain", *PRINTS), **KINDS[kind].values}
    for name, values in allowed.items():
        if attributes.get(name) not in values:
            raise UsageError(f"{kind}: expected {name} to be one of {', '.join(values)}; found {attributes.get(name)!r}.")
    if attributes["pattern"] != "plain" and attributes.get("second") not in COLOURS:
        raise UsageError(f"{kind}: a {attributes['pattern']} pattern needs a `second` colour; found {attributes.get('second')!r}.")
