"""Descriptions of the drawn wardrobe in varied wordings, and the concepts in them. All are true, most leave something out.

A description is worded from the facts that it states (`stated_facts`), so whatever has the same facts is described by it too.
"""

from __future__ import annotations

import numpy as np

from tf_fashion.datasets.wardrobe_garments import COLOURS, KINDS, Attributes
from tf_fashion.datasets.wardrobe_sentences import PRINT_WORDS, exact_phrases

# How likely a description says what there is, and what there is not.
STATED = {"colour": 0.92, "pattern": 0.85, "second": 0.6, "plain": 0.25, "no": 0.15}
STATED_OTHERS = 0.6
SYNONYMS = {
    "t-shirt": ("t-shirt", "t-shirt", "tee"),
    "sweater": ("sweater", "sweater", "jumper"),
    "trousers": ("trousers", "trousers", "pants"),
    "sneakers": ("sneakers", "sneakers", "trainers"),
}
# What a kind of garment is a kind of.
_ABOVE_KIND = {"dress": "clothing", "top": "top", "bottom": "bottom wear", "shoes": "shoes"}
_ABOVE_CATEGORY = {"top": "clothing", "bottom wear": "clothing", "clothing": "", "shoes": ""}
_FRAMES = (
    ("{Head} with {parts}.", "{Head}."),
    ("{Head}. {It} {parts}.", "{Head}."),
    ("{This} {bare} {has} {parts}.", "{This} {bare}."),
    ("{bare}, {list}", "{bare}"),
    ("{Parts} on {head}.", "simply {head}."),
    ("Colour: {colour}. {Uncoloured} with {parts}.", "Colour: {colour}. {Uncoloured}."),
    ("looking for {head}? here with {parts}", "looking for {head}?"),
    ("{list} - {bare}", "new: {bare}"),
)


def stated_facts(attributes: Attributes, rng: np.random.Generator) -> Attributes:
    """The attributes that a description states: the kind, and most of the others. A second colour comes with its pattern only."""
    facts = {"kind": attributes["kind"]}
    for name in ("colour", "pattern", *KINDS[attributes["kind"]].values):
        value = attributes[name]
        chance = STATED.get(value, STATED.get(name, STATED_OTHERS))
        if rng.random() < chance:
            facts[name] = value
    if facts.get("pattern", "plain") != "plain" and rng.random() < STATED["second"]:
        facts["second"] = attributes["second"]
    if len(facts) < 2:
        facts["colour"] = attributes["colour"]
    return facts


def _modifier(kind: str, name: str, value: str) -> str:
    """The attribute as one word before the noun, or ""."""
    if (name, value) == ("length", "mini"):
        return "mini"
    return next((words for form, words in exact_phrases(kind, name, value) if form == "adj" and " " not in words), "")


def _own(facts: Attributes) -> list[tuple[str, str]]:
    return [(name, value) for name, value in facts.items() if name not in ("kind", "colour", "pattern", "second")]


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def varied_description(facts: Attributes, rng: np.random.Generator) -> str:
    """One true text that says the facts and nothing else.

    Args:
        facts: What `stated_facts` gave.
        rng: Source of the wording.
    """
    kind = KINDS[facts["kind"]]
    before: list[str] = []
    parts: list[str] = []
    for place in rng.permutation(len(_own(facts))):
        name, value = _own(facts)[place]
        modifier = _modifier(facts["kind"], name, value)
        if modifier and len(before) < 2 and rng.random() < 0.5:
            before.append(modifier)
        else:
            parts.append(_pick([words for form, words in exact_phrases(facts["kind"], name, value) if form == "np"], rng))
    pattern = facts.get("pattern", "")
    adjective = ""
    if pattern and ("second" in facts or pattern == "floral" or (pattern != "plain" and rng.random() < 0.5)):
        words = f"{facts['second']} {PRINT_WORDS[pattern][0]}" if "second" in facts else _pick(PRINT_WORDS[pattern], rng)
        parts.insert(int(rng.integers(len(parts) + 1)), words)
    elif pattern:
        adjective = pattern
    noun = _pick(list(SYNONYMS.get(kind.noun, (kind.noun,))), rng)
    uncoloured = " ".join([*before, *([adjective] if adjective else []), noun])
    colour = facts.get("colour", "")
    bare = " ".join([*before, *([colour] if colour else []), *([adjective] if adjective else []), noun])
    usable = [frame for frame in _FRAMES if colour or "{colour}" not in frame[0]]
    long, short = usable[int(rng.integers(len(usable)))]
    fills = {
        "{head}": _with_article(bare, kind.plural),
        "{bare}": bare,
        "{Uncoloured}": _capital(_with_article(uncoloured, kind.plural)),
        "{colour}": colour,
        "{This}": "These" if kind.plural else "This",
        "{has}": "have" if kind.plural else "has",
        "{It}": "They have" if kind.plural else "It has",
        "{parts}": _joined(parts) if parts else "",
        "{list}": ", ".join(parts),
    }
    fills |= {"{Head}": _capital(fills["{head}"]), "{Parts}": _capital(fills["{parts}"])}
    text = long if parts else short
    for place, value in fills.items():
        text = text.replace(place, value)
    return text


def _with_article(words: str, plural: bool) -> str:
    return f"{'a pair of' if plural else 'an' if words[0] in 'aeio' else 'a'} {words}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def concepts_of(category: str, facts: Attributes) -> dict[str, str]:
    """The concepts of a described garment with their fathers, from narrow to wide, down to its kind and category; "" at the root."""
    noun = KINDS[facts["kind"]].noun
    colour, pattern = facts.get("colour", ""), facts.get("pattern", "")
    if pattern == "plain":
        pattern = ""
    found: dict[str, str] = {}
    modifiers = [pattern] if pattern else []
    modifiers += [modifier for name, value in _own(facts) if (modifier := _modifier(facts["kind"], name, value))]
    if colour:
        found |= {f"{colour} {modifier} {noun}": f"{modifier} {noun}" for modifier in modifiers}
    found |= {f"{modifier} {noun}": noun for modifier in modifiers}
    if colour:
        found[f"{colour} {noun}"] = noun
    parts = [
        next(words for form, words in exact_phrases(facts["kind"], name, value) if form == "np")
        for name, value in _own(facts)
        if value not in ("no", "sleeveless")
    ]
    if "second" in facts:
        parts.append(f"{facts['second']} {PRINT_WORDS[facts['pattern']][0]}")
    garments = {kind.noun for kind in KINDS.values()}
    for part in parts:
        words = part.removeprefix("a ").removeprefix("an ").split()
        # The skirt of a dress is not the garment of this name.
        if len(words) <= 3 and words[-1] not in garments:
            found[" ".join(words)] = words[-1] if len(words) > 1 else ""
            found.setdefault(words[-1], "")
    above = _ABOVE_KIND[category]
    found[noun] = above
    while above:
        found[above] = _ABOVE_CATEGORY[above]
        above = found[above]
    return found


def is_common(phrase: str) -> bool:
    """Whether a concept is so common that a knowledge base has it: a garment, a category, or a garment of a colour."""
    nouns = {kind.noun for kind in KINDS.values()}.union(_ABOVE_CATEGORY)
    first, _, rest = phrase.partition(" ")
    return phrase in nouns or (first in COLOURS and rest in nouns)
