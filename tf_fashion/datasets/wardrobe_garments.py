"""What the garments of the drawn wardrobe can be: kinds, attributes, colours, and the individual look of a design."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

Attributes = dict[str, str]

# sRGB of the middle of what each word means. Words that overlap (navy and blue, burgundy and red) are left out on purpose: a
# sentence that names a colour must be true or false, never a matter of taste.
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (40, 40, 44),
    "white": (244, 243, 240),
    "grey": (141, 144, 149),
    "beige": (217, 194, 158),
    "brown": (116, 74, 46),
    "red": (197, 36, 44),
    "orange": (236, 124, 34),
    "yellow": (243, 207, 62),
    "green": (48, 136, 78),
    "blue": (40, 92, 184),
    "purple": (122, 66, 156),
    "pink": (238, 146, 178),
}

PATTERNS = ("plain", "striped", "dotted", "checked", "floral", "zigzag")

# Attributes whose values are ordered, so that "longer", "wider" or "higher" means something. The orders are those of KINDS.
ORDERED = ("sleeve", "length", "fit", "shape", "leg", "heel", "sole", "shaft")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of garment.

    Args:
        category: Name of the category (a FashionIQ category is a set of kinds).
        noun: What a sentence calls it ("dress", "pair of boots").
        plural: Whether the noun takes plural verbs in descriptions ("trousers").
        values: For each attribute besides colour, second and pattern, its values; ordered ones from small to large.
    """

    category: str
    noun: str
    plural: bool
    values: Mapping[str, tuple[str, ...]]


KINDS: dict[str, Kind] = {
    "dress": Kind(
        "dress",
        "dress",
        False,
        {
            "sleeve": ("sleeveless", "short", "three-quarter", "long"),
            "length": ("mini", "knee", "maxi"),
            "neckline": ("round", "v", "square", "boat"),
            "shape": ("straight", "a-line", "flared"),
            "belt": ("no", "yes"),
        },
    ),
    "t-shirt": Kind(
        "top",
        "t-shirt",
        False,
        {
            "sleeve": ("sleeveless", "short", "three-quarter", "long"),
            "length": ("cropped", "hip", "tunic"),
            "neckline": ("round", "v", "square", "boat"),
            "fit": ("slim", "regular", "loose"),
            "pocket": ("no", "yes"),
        },
    ),
    "shirt": Kind(
        "top",
        "shirt",
        False,
        {
            "sleeve": ("sleeveless", "short", "three-quarter", "long"),
            "length": ("cropped", "hip", "tunic"),
            "fit": ("slim", "regular", "loose"),
            "pocket": ("no", "yes"),
            "collar": ("pointed", "stand-up"),
        },
    ),
    "sweater": Kind(
        "top",
        "sweater",
        False,
        {
            "sleeve": ("sleeveless", "short", "three-quarter", "long"),
            "length": ("cropped", "hip", "tunic"),
            "neckline": ("round", "v", "turtle"),
            "fit": ("slim", "regular", "loose"),
        },
    ),
    "trousers": Kind(
        "bottom",
        "trousers",
        True,
        {
            "length": ("short", "knee", "cropped", "full"),
            "leg": ("slim", "straight", "wide"),
            "belt": ("no", "yes"),
            "turn-ups": ("no", "yes"),
        },
    ),
    "skirt": Kind(
        "bottom",
        "skirt",
        False,
        {
            "length": ("mini", "knee", "maxi"),
            "shape": ("straight", "a-line", "flared"),
            "belt": ("no", "yes"),
            "pleats": ("no", "yes"),
        },
    ),
    "sneakers": Kind(
        "shoes",
        "sneakers",
        True,
        {
            "sole": ("thin", "medium", "thick"),
            "shaft": ("low", "mid", "high"),
            "closure": ("laces", "straps", "slip-on"),
        },
    ),
    "boots": Kind(
        "shoes",
        "boots",
        True,
        {
            "heel": ("flat", "mid", "high"),
            "shaft": ("ankle", "calf", "knee"),
            "closure": ("zip", "laces", "buckles"),
            "toe": ("round", "pointed"),
        },
    ),
    "pumps": Kind(
        "shoes",
        "pumps",
        True,
        {
            "heel": ("flat", "mid", "high"),
            "toe": ("round", "pointed"),
            "strap": ("no", "yes"),
            "bow": ("no", "yes"),
        },
    ),
}

CATEGORIES = tuple(dict.fromkeys(kind.category for kind in KINDS.values()))

ATTRIBUTE_NAMES = (
    "kind",
    "colour",
    "pattern",
    "second",
    *dict.fromkeys(name for kind in KINDS.values() for name in kind.values),
)


def values_of(kind: str, name: str) -> tuple[str, ...]:
    """Values that the attribute `name` can take for a kind of garment, ordered from small to large where an order exists."""
    if name == "colour":
        return tuple(COLOURS)
    if name == "pattern":
        return PATTERNS
    return KINDS[kind].values[name]


def lightness(colour: str) -> float:
    """Perceived lightness of a colour word, from 0 (black) to 1 (white): relative luminance to the power 1/2.2."""
    linear = [(channel / 255) ** 2.2 for channel in COLOURS[colour]]
    return float((0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]) ** (1 / 2.2))


def contrast(first: str, second: str) -> float:
    """Distance of two colour words in RGB, in units of the whole range per channel."""
    difference = np.subtract(COLOURS[first], COLOURS[second]) / 255
    return float(np.sqrt((difference**2).sum()))


@dataclasses.dataclass(frozen=True)
class Identity:
    """What makes one design differ from another with the same attributes.

    All fields are numbers in [-1, 1] around what is typical; the drawing turns them into proportions, dye and print placement,
    always little enough that the words of the attributes stay true.
    """

    width: float = 0.0
    height: float = 0.0
    shoulder: float = 0.0
    neck: float = 0.0
    taper: float = 0.0
    sleeve: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    print_size: float = 0.0
    print_x: float = 0.0
    print_y: float = 0.0
    print_turn: float = 0.0
    print_ratio: float = 0.0
    trim: float = 0.0
    gloss: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Identity:
        """A new identity, every field uniform in [-1, 1]."""
        return cls(*(float(value) for value in rng.uniform(-1, 1, len(dataclasses.fields(cls)))))

    def near(self, rng: np.random.Generator, amount: float = 0.12) -> Identity:
        """This identity with normal noise of deviation `amount` on every field, clipped to [-1, 1]."""
        values = np.array(dataclasses.astuple(self))
        values = np.clip(values + rng.normal(0, amount, len(values)), -1, 1)
        return Identity(*(float(value) for value in values))

    def distance(self, other: Identity) -> float:
        """Root mean square difference of the fields."""
        difference = np.subtract(dataclasses.astuple(self), dataclasses.astuple(other))
        return float(np.sqrt((difference**2).mean()))
