"""Small rules about captions that datasets and tokenisers share."""

from __future__ import annotations

MARKS = {".": "dotmark", "?": "questionmark", "&": "andmark", "*": "starmark"}


def spell_out_marks(text: str) -> str:
    """TIRG's and VAL's clean-up: outer blanks go, and each of . ? & * becomes a word without blanks around it, so that "sleeves."
    is "sleevesdotmark"."""
    text = text.strip()
    for mark, word in MARKS.items():
        text = text.replace(mark, word)
    return text


def differing_words(source: str, target: str) -> tuple[str, str]:
    """The first word of each caption that the other has not; a caption without such a word gives its last one.

    Args:
        source, target: Captions with at least one word each.
    """
    first, second = source.split(), target.split()
    return next((w for w in first if w not in second), first[-1]), next((w for w in second if w not in first), second[-1])


def replacement_text(source: str, target: str) -> str:
    """The modification text of Fashion200k (TIRG, VAL): "replace SOURCE_WORD with TARGET_WORD"."""
    return "replace {} with {}".format(*differing_words(source, target))
