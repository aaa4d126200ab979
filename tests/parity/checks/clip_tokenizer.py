"""CLIP's tokeniser on recorded texts, in Python and inside a graph."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.inputs.bpe import CLIPTokenizer

VOCABULARY = "weights/bpe_simple_vocab_16e6.txt.gz"


def find_vocabulary(folder: Path) -> Path:
    """OpenAI's file in the shared folder, or in the `weights` of a folder that holds the fixtures."""
    shared = Path(os.environ.get("TF_FASHION_SHARED") or Path(__file__).resolve().parents[4] / "shared")
    found = [root / VOCABULARY for root in (shared, *folder.resolve().parents) if (root / VOCABULARY).is_file()]
    if not found:
        raise FileNotFoundError(f"{VOCABULARY} is neither in {shared} nor beside {folder}: set TF_FASHION_SHARED to its folder")
    return found[0]


@checks(r"tokenizer\.npz")
def tokenizer(fixture: Fixture) -> None:
    texts = [str(text) for text in fixture.input("texts")]
    rules = CLIPTokenizer.from_file(find_vocabulary(fixture.folder)).vocabulary
    width = fixture.data["ids_original"].shape[1]
    original = CLIPTokenizer(rules, width, "original", "fashionklip")
    default = CLIPTokenizer(rules, width)
    for key, layer in (("ids_original", original), ("ids_openai_truncate", default)):
        fixture.exact(key, layer.encode(texts))
        fixture.exact(key, layer.encode_graph(texts).numpy())
    for ids in (original.encode(texts), original.encode_graph(texts).numpy()):
        fixture.exact("eot_index_original", np.argmax(ids, axis=1))
    # In a row that is wide enough the end marker stands after the last id.
    wide = CLIPTokenizer(rules, 2 + max(len(text.encode()) for text in texts) * 4, "original", "fashionklip").encode(texts)
    lengths = wide.shape[1] - np.argmax(wide[:, ::-1] == original.end_id, axis=1)
    fixture.exact("overlong", lengths > width)
