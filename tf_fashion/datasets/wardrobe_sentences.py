"""Words of the drawn wardrobe: what changes from one garment to another, descriptions, and tags. Every sentence is true."""

from __future__ import annotations

import numpy as np

from tf_fashion.datasets.wardrobe_garments import KINDS, ORDERED, Attributes, lightness, values_of

# A phrase is (form, words). Forms: "np" is something the garment has, "adj" something it is, "vp" something it does; {d} takes a
# word of degree. Each list has at least one "np", the form that fits every template.
Phrase = tuple[str, str]

COMPARATIVES: dict[str, tuple[list[Phrase], list[Phrase]]] = {
    "sleeve": (
        [("np", "{d}longer sleeves"), ("np", "sleeves that are {d}longer"), ("vp", "covers {d}more of the arms")],
        [("np", "{d}shorter sleeves"), ("np", "sleeves that are {d}shorter"), ("vp", "covers {d}less of the arms")],
    ),
    "length": (
        [("adj", "{d}longer"), ("np", "a {d}longer cut"), ("np", "a {d}lower hem")],
        [("adj", "{d}shorter"), ("np", "a {d}shorter cut"), ("np", "a {d}higher hem")],
    ),
    "fit": (
        [("adj", "{d}looser"), ("adj", "{d}baggier"), ("np", "a {d}looser fit"), ("np", "a {d}wider body")],
        [("adj", "{d}tighter"), ("adj", "{d}more fitted"), ("np", "a {d}tighter fit"), ("np", "a {d}narrower body")],
    ),
    "shape": (
        [("vp", "flares out {d}more"), ("np", "a {d}fuller skirt"), ("np", "a {d}wider hem")],
        [("adj", "{d}less flared"), ("np", "a {d}straighter skirt"), ("np", "a {d}narrower hem")],
    ),
    "leg": (
        [("np", "{d}wider legs"), ("np", "legs that are {d}wider"), ("adj", "{d}wider in the leg")],
        [("np", "{d}narrower legs"), ("np", "legs that are {d}slimmer"), ("adj", "{d}narrower in the leg")],
    ),
    "heel": (
        [("np", "{d}higher heels"), ("np", "heels that are {d}taller"), ("np", "a {d}higher heel")],
        [("np", "{d}lower heels"), ("np", "heels that are {d}lower"), ("np", "a {d}lower heel")],
    ),
    "sole": (
        [("np", "{d}thicker soles"), ("np", "a {d}chunkier sole"), ("np", "soles that are {d}thicker")],
        [("np", "{d}thinner soles"), ("np", "a {d}flatter sole"), ("np", "soles that are {d}thinner")],
    ),
    "shaft": (
        [("np", "a {d}higher shaft"), ("vp", "reaches {d}higher up the leg"), ("np", "a {d}taller upper")],
        [("np", "a {d}lower shaft"), ("vp", "covers {d}less of the leg"), ("np", "a {d}shorter upper")],
    ),
}

EXACT: dict[tuple[str, str], list[Phrase]] = {
    ("sleeve", "sleeveless"): [("adj", "sleeveless"), ("np", "no sleeves"), ("np", "bare arms")],
    ("sleeve", "short"): [("np", "short sleeves"), ("adj", "short-sleeved")],
    ("sleeve", "three-quarter"): [("np", "three-quarter sleeves"), ("np", "sleeves to below the elbow")],
    ("sleeve", "long"): [("np", "long sleeves"), ("adj", "long-sleeved"), ("np", "full-length sleeves")],
    ("length", "mini"): [("np", "a mini length"), ("adj", "mini length"), ("np", "a hem well above the knee")],
    ("length", "knee"): [("np", "a knee length"), ("adj", "knee-length"), ("vp", "ends at the knee")],
    ("length", "maxi"): [("np", "a maxi length"), ("adj", "floor-length"), ("vp", "reaches the floor")],
    ("length", "cropped"): [("np", "a cropped length"), ("adj", "cropped")],
    ("length", "hip"): [("np", "a hip length"), ("adj", "hip-length"), ("vp", "ends at the hip")],
    ("length", "tunic"): [("np", "a tunic length"), ("adj", "tunic-length")],
    ("length", "short"): [("np", "the length of shorts"), ("adj", "cut as shorts")],
    ("length", "full"): [("np", "a full length"), ("adj", "full-length"), ("vp", "reaches the ankles")],
    ("fit", "slim"): [("np", "a slim fit"), ("adj", "slim-fitting")],
    ("fit", "regular"): [("np", "a regular fit"), ("adj", "regular in fit")],
    ("fit", "loose"): [("np", "a loose fit"), ("adj", "loose-fitting")],
    ("shape", "straight"): [("np", "a straight skirt"), ("adj", "straight in shape")],
    ("shape", "a-line"): [("np", "an a-line shape"), ("adj", "a-line")],
    ("shape", "flared"): [("np", "a flared skirt"), ("adj", "flared")],
    ("leg", "slim"): [("np", "slim legs"), ("adj", "slim in the leg")],
    ("leg", "straight"): [("np", "straight legs"), ("adj", "straight in the leg")],
    ("leg", "wide"): [("np", "wide legs"), ("adj", "wide in the leg")],
    ("heel", "flat"): [("np", "flat heels"), ("adj", "flat")],
    ("heel", "mid"): [("np", "mid heels"), ("np", "heels of medium height")],
    ("heel", "high"): [("np", "high heels"), ("adj", "high-heeled")],
    ("sole", "thin"): [("np", "thin soles"), ("adj", "thin-soled")],
    ("sole", "medium"): [("np", "medium soles"), ("np", "soles of medium height")],
    ("sole", "thick"): [("np", "thick soles"), ("adj", "thick-soled"), ("np", "platform soles")],
    ("shaft", "low"): [("np", "a low top"), ("adj", "low-top")],
    ("shaft", "mid"): [("np", "a mid top"), ("adj", "mid-top")],
    ("shaft", "high"): [("np", "a high top"), ("adj", "high-top")],
    ("shaft", "ankle"): [("np", "an ankle-high shaft"), ("adj", "ankle-high")],
    ("shaft", "calf"): [("np", "a calf-high shaft"), ("adj", "calf-high")],
    ("neckline", "round"): [("np", "a round neck"), ("np", "a round neckline"), ("np", "a crew neck")],
    ("neckline", "v"): [("np", "a v-neck"), ("np", "a v-shaped neckline"), ("adj", "v-necked")],
    ("neckline", "square"): [("np", "a square neck"), ("np", "a square neckline")],
    ("neckline", "boat"): [("np", "a boat neck"), ("np", "a wide boat neckline")],
    ("neckline", "turtle"): [("np", "a turtleneck"), ("np", "a high rolled neck")],
    ("collar", "pointed"): [("np", "a pointed collar"), ("np", "a collar with points")],
    ("collar", "stand-up"): [("np", "a stand-up collar"), ("np", "a mandarin collar")],
    ("closure", "laces"): [("np", "laces"), ("vp", "laces up"), ("np", "a lace-up front")],
    ("closure", "straps"): [("np", "velcro straps"), ("vp", "closes with straps")],
    ("closure", "slip-on"): [("np", "an elastic inset to slip on"), ("vp", "slips on"), ("np", "a slip-on style")],
    ("closure", "zip"): [("np", "a zip"), ("vp", "zips up"), ("np", "a zipper on the side")],
    ("closure", "buckles"): [("np", "a buckled strap"), ("vp", "closes with a buckle")],
    ("toe", "round"): [("np", "round toes"), ("np", "a round toe"), ("adj", "rounded at the toe")],
    ("toe", "pointed"): [("np", "pointed toes"), ("np", "a pointed toe"), ("adj", "pointy at the toe")],
    ("belt", "yes"): [("np", "a belt"), ("np", "a belt at the waist"), ("adj", "belted")],
    ("belt", "no"): [("np", "no belt"), ("vp", "does without a belt"), ("np", "a waist without a belt")],
    ("pocket", "yes"): [("np", "a chest pocket"), ("np", "a pocket on the chest")],
    ("pocket", "no"): [("np", "no pocket"), ("np", "no chest pocket")],
    ("turn-ups", "yes"): [("np", "turned-up hems"), ("np", "turn-ups"), ("adj", "rolled up at the hems")],
    ("turn-ups", "no"): [("np", "no turn-ups"), ("np", "plain hems"), ("np", "hems that are not turned up")],
    ("pleats", "yes"): [("np", "pleats"), ("adj", "pleated")],
    ("pleats", "no"): [("np", "no pleats"), ("adj", "not pleated"), ("np", "a smooth front without pleats")],
    ("strap", "yes"): [("np", "an ankle strap"), ("np", "a strap around the ankle")],
    ("strap", "no"): [("np", "no ankle strap"), ("np", "no strap")],
    ("bow", "yes"): [("np", "a bow"), ("np", "a bow on the toe"), ("adj", "decorated with a bow")],
    ("bow", "no"): [("np", "no bow"), ("np", "toes without a bow")],
}

PRINT_WORDS: dict[str, list[str]] = {
    "striped": ["stripes", "horizontal stripes"],
    "dotted": ["dots", "polka dots"],
    "checked": ["checks", "a checked pattern"],
    "floral": ["flowers", "a floral print"],
    "zigzag": ["zigzags", "a zigzag pattern"],
}

DARKER_BY = 0.12
DEGREES = {"little": ("slightly ", "a bit ", "a little "), "much": ("much ", "a lot ", "far ")}


def changed(reference: Attributes, target: Attributes) -> list[str]:
    """Names of the attributes that differ. The second colour counts only where both garments have a pattern.

    Colours of a pattern that appears or vanishes belong to that change and are no change of their own.
    """
    names = []
    for name in ("colour", "pattern", *KINDS[target["kind"]].values):
        if reference[name] != target[name]:
            names.append(name)
    if reference["second"] and target["second"] and reference["second"] != target["second"]:
        names.append("second")
    return names


def _colour_phrases(old: str, new: str, relative: bool) -> list[Phrase]:
    if relative:
        word = "darker" if lightness(new) < lightness(old) else "lighter"
        return [("adj", f"{{d}}{word}"), ("adj", f"{{d}}{word} in colour"), ("np", f"a {{d}}{word} colour")]
    return [
        ("in", new),
        ("in", f"{new} instead of {old}"),
        ("in", f"{new} rather than {old}"),
        ("adj", f"{new} and not {old}"),
        ("adj", f"{new} in colour"),
        ("np", f"{'an' if new[0] in 'aeiou' else 'a'} {new} colour"),
    ]


def _pattern_phrases(old: str, new: str, second: str) -> list[Phrase]:
    if new == "plain":
        gone = PRINT_WORDS[old][0]
        return [
            ("adj", "plain"),
            ("np", "no pattern"),
            ("np", f"no {gone}"),
            ("adj", "one plain colour"),
            ("adj", f"plain instead of {old}"),
        ]
    first, other = PRINT_WORDS[new]
    phrases: list[Phrase] = [("np", first), ("np", other), ("np", f"{second} {first}")]
    phrases += [("np", f"{first} and not {PRINT_WORDS[old][0]}")] if old != "plain" else [("np", f"{first} instead of a plain colour")]
    if new != "floral":
        phrases.append(
            ("adj", "striped" if new == "striped" else {"dotted": "dotted", "checked": "checked"}.get(new, "zigzag patterned"))
        )
    return phrases


def exact_phrases(kind: str, name: str, value: str) -> list[Phrase]:
    """Phrases that truly tell the value of an attribute (not of colour and pattern) of a kind of garment."""
    if name == "length" and kind == "trousers" and value == "cropped":
        return [("np", "a cropped length"), ("adj", "cropped above the ankle")]
    if name == "shaft" and value == "knee":
        return [("np", "a knee-high shaft"), ("adj", "knee-high")]
    return EXACT[name, value]


def _phrases(reference: Attributes, target: Attributes, name: str, relative: bool) -> tuple[list[Phrase], int]:
    """Phrases that truly tell the change of one attribute, and the size of the step (0 where degrees make no sense)."""
    old, new = reference[name], target[name]
    if name == "colour":
        gap = abs(lightness(old) - lightness(new))
        if relative and gap >= DARKER_BY:
            return _colour_phrases(old, new, True), 2 if gap > 0.35 else 1
        return _colour_phrases(old, new, False), 0
    if name == "second":
        words = PRINT_WORDS[target["pattern"]][0]
        return [("np", f"{new} {words}"), ("np", f"{new} {words} instead of {old} ones")], 0
    if name == "pattern":
        return _pattern_phrases(old, new, target["second"]), 0
    if relative and name in ORDERED:
        values = values_of(target["kind"], name)
        step = values.index(new) - values.index(old)
        return COMPARATIVES[name][0 if step > 0 else 1], abs(step)
    return exact_phrases(target["kind"], name, new), 0


def _degree(rng: np.random.Generator, step: int, after_article: bool) -> str:
    """A word of degree that is true of the step, and that reads well after an article."""
    if rng.random() < 0.45:
        return ""
    words = DEGREES["much" if step > 1 else "little"]
    return str(words[int(rng.integers(1 if after_article else len(words)))])


def _say(phrase: Phrase, degree: str) -> dict[str, str]:
    """The predicate, attached and short wording of a phrase; an attached wording may be missing."""
    form, words = phrase
    words = words.replace("{d}", degree)
    if form == "np":
        return {"predicate": f"has {words}", "attached": f"with {words}", "short": words}
    if form == "in":
        return {"predicate": f"is {words}", "attached": f"in {words}", "short": words}
    if form == "adj":
        return {"predicate": f"is {words}", "short": words}
    return {"predicate": words, "short": words}


TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("predicate", "{}", " and "),
    ("predicate", "{}", " and "),
    ("predicate", "{}", ", "),
    ("predicate", "it {}", " and "),
    ("predicate", "the {noun} i want {}", " and "),
    ("predicate", "the new one {}", " and it "),
    ("attached", "same {noun} but {}", " and "),
    ("attached", "the same {noun} {}", " and "),
    ("attached", "i would like it {}", " and "),
    ("attached", "looks alike but comes {}", " and "),
    ("attached", "show me this {}", " and "),
    ("short", "{}", ", "),
    ("short", "{}", " and "),
)


def _sentence(
    reference: Attributes, target: Attributes, names: list[str], relative: dict[str, bool], template: int, rng: np.random.Generator
) -> str:
    form, frame, glue = TEMPLATES[template]
    pieces = []
    for place in rng.permutation(len(names)):
        name = names[place]
        phrases, step = _phrases(reference, target, name, relative[name])
        usable = [phrase for phrase in phrases if form in _say(phrase, "")]
        if len(names) > 1:
            # "Sleeves that are shorter and longer" would be read as one wish about the sleeves.
            usable = [phrase for phrase in usable if " that are {d}" not in phrase[1]]
        phrase = usable[int(rng.integers(len(usable)))]
        pieces.append(_say(phrase, _degree(rng, step, "a {d}" in phrase[1]) if step else "")[form])
    text = glue.join(pieces)
    return frame.replace("{noun}", KINDS[target["kind"]].noun).replace("{}", text)


def modification_sentences(reference: Attributes, target: Attributes, rng: np.random.Generator) -> tuple[str, str]:
    """Two differently worded sentences, both true, that lead from one garment to another of the same kind.

    The first names every change. The second does too, or (sometimes, when there are several) leaves one out, as people
    do. Ordered attributes are mostly named by comparison ("is longer"), sometimes by value ("is floor-length").

    Args:
        reference: Attributes of the garment that the customer points at.
        target: Attributes of the garment meant.
        rng: Source of the wording.

    Returns:
        The two sentences, lower case, without final stop. In half of the cases the fuller one comes second.
    """
    names = changed(reference, target)
    vague = {name: bool(rng.random() < (0.3 if name == "colour" else 0.75)) for name in names}
    exact = {name: bool(vague[name] and name != "colour") for name in names}
    first = int(rng.integers(len(TEMPLATES)))
    some = list(names)
    if len(names) > 1 and rng.random() < 0.25:
        some.pop(int(rng.integers(len(some))))
    # "The same but ..." would be a lie where a change is left out.
    frames = [
        place
        for place, (_, frame, _) in enumerate(TEMPLATES)
        if len(some) == len(names) or not frame.startswith(("same", "the same", "looks"))
    ]
    # A colour told by lightness alone would leave several equally good garments: the other sentence names it.
    one = _sentence(reference, target, names, exact, first, rng)
    other = one
    while other == one:
        other = _sentence(reference, target, some, vague, frames[int(rng.integers(len(frames)))], rng)
    return (one, other) if rng.random() < 0.5 else (other, one)


def _attribute_words(attributes: Attributes) -> tuple[list[str], list[str]]:
    """Words before the noun, and things it has, for a full description."""
    kind = attributes["kind"]
    before: list[str] = []
    has: list[str] = []
    length = attributes.get("length", "")
    before += {
        "mini": ["mini"],
        "knee": ["knee-length"],
        "maxi": ["long"],
        "cropped": ["cropped"],
        "hip": ["hip-length"],
        "tunic": ["tunic-length"],
        "short": ["short"],
        "full": ["full-length"],
    }.get(length, [])
    if "fit" in attributes and attributes["fit"]:
        before.append({"slim": "slim", "regular": "regular-fit", "loose": "loose"}[attributes["fit"]])
    if attributes.get("shape"):
        before.append(attributes["shape"])
    if attributes.get("leg"):
        before.append({"slim": "slim", "straight": "straight-leg", "wide": "wide-leg"}[attributes["leg"]])
    if attributes.get("shaft"):
        before.append(f"{attributes['shaft']}-{'top' if kind == 'sneakers' else 'high'}")
    before.append(attributes["colour"])
    if attributes.get("pleats") == "yes":
        before.append("pleated")
    for name in ("neckline", "collar", "sleeve", "heel", "sole", "toe", "closure", "belt", "pocket", "turn-ups", "strap", "bow"):
        value = attributes.get(name, "")
        if value and value != "no":
            phrase = next(words for form, words in EXACT[name, value] if form == "np")
            has.append(phrase)
    if attributes["pattern"] != "plain":
        has.append(f"{attributes['second']} {PRINT_WORDS[attributes['pattern']][0]}")
    return before, has


def description(attributes: Attributes) -> str:
    """One true sentence with everything there is to say about a garment ("a long red dress with short sleeves and white dots")."""
    kind = KINDS[attributes["kind"]]
    before, has = _attribute_words(attributes)
    head = " ".join([*before, kind.noun])
    article = "a pair of" if kind.plural else "an" if head[0] in "aeio" else "a"
    head = f"{article} {head}"
    if not has:
        return head
    return f"{head} with {', '.join(has[:-1])}{' and ' if len(has) > 1 else ''}{has[-1]}"


def tags(attributes: Attributes) -> list[list[str]]:
    """Six lists of lower-case words, as FashionIQ's tag files have: kind, colours, pattern, shape, parts, details."""
    shape = [attributes[name] for name in ("length", "fit", "shape", "leg", "heel", "sole", "shaft") if attributes.get(name)]
    parts = [f"{attributes[name]} {name}" for name in ("sleeve", "neckline", "collar", "toe", "closure") if attributes.get(name)]
    parts = ["sleeveless" if words == "sleeveless sleeve" else words for words in parts]
    details = [name for name in ("belt", "pocket", "turn-ups", "pleats", "strap", "bow") if attributes.get(name) == "yes"]
    colours = [attributes["colour"]] + ([attributes["second"]] if attributes["second"] else [])
    pattern = [] if attributes["pattern"] == "plain" else [attributes["pattern"]]
    return [[attributes["kind"]], colours, pattern, shape, parts, details]
