"""Search in several turns."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_fashion.core.errors import UsageError
from tf_fashion.retrieval.index import ExactIndex
from tf_fashion.serving.session import SearchSession

NAMES = ["red", "blue", "long", "short", "mixed"]
VECTORS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0.6, 0, 0.8, 0]], np.float32)
WISHES = {"red": VECTORS[0], "long": VECTORS[2], "short": VECTORS[3]}


def session(memory=0.5, asked=None, photo="elsewhere.jpg"):
    def embed_query(path, text):
        if asked is not None:
            asked.append((path.name, text))
        return WISHES[text]

    paths = {name: Path(f"{name}.jpg") for name in NAMES}
    return SearchSession(embed_query, ExactIndex.build(NAMES, VECTORS), paths, Path(photo), memory)


def test_the_best_found_is_the_next_reference_and_wishes_add_up():
    asked = []
    search = session(asked=asked)
    first = search.ask("red", 2)
    assert first.reference_id is None and first.ids == ["red", "mixed"]
    second = search.ask("long", 3)
    # The red one was the reference, so it is not found again; the mixed one fulfils both wishes.
    assert asked == [("elsewhere.jpg", "red"), ("red.jpg", "long")]
    assert second.reference_id == "red" and second.ids[0] == "mixed" and "red" not in second.ids
    assert session(memory=0.0).fused([WISHES["red"], WISHES["long"]]).tolist() == WISHES["long"].tolist()


def test_choose_and_undo():
    search = session()
    search.ask("red", 2)
    search.choose("short")
    assert search.reference_id == "short"
    turn = search.ask("long")
    assert turn.reference_id == "short"
    search.undo()
    assert search.reference_id == "short" and len(search.turns) == 1
    search.undo()
    assert search.reference_id is None
    with pytest.raises(UsageError, match="no turn"):
        search.undo()
    with pytest.raises(UsageError, match="no picture 'purple'"):
        search.choose("purple")


def test_a_photo_of_the_gallery_is_not_found_itself():
    assert session(photo="red.jpg").ask("red").ids[0] == "mixed"


@given(st.floats(0, 1), st.lists(st.sampled_from(list(WISHES)), min_size=1, max_size=5))
def test_the_fused_query_has_length_one_and_favours_the_last_turn(memory, wishes):
    fused = session(memory).fused([WISHES[wish] for wish in wishes])
    assert abs(float(np.linalg.norm(fused)) - 1) < 1e-5
    last = float(fused @ WISHES[wishes[-1]])
    if memory < 0.5:
        assert all(last >= float(fused @ WISHES[wish]) - 1e-6 for wish in wishes)


def test_out_of_range():
    with pytest.raises(UsageError, match="from 0 to 1"):
        session(memory=1.5)
    with pytest.raises(UsageError, match="at least 1"):
        session().ask("red", 0)
