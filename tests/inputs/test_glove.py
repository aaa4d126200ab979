import gzip

import numpy as np
import pytest

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.glove import glove_filled, glove_table, load_glove

TEXT = "black 1 2 3\nred -0.5 0 1e-3\nat name@domain.com 7 8 9\n"


def test_text_gzip_header_and_npz(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("3 3\n" + TEXT)
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write(TEXT)
    np.savez(tmp_path / "d.npz", words=["black", "red"], vectors=np.array([[1, 2, 3], [-0.5, 0, 1e-3]]))
    for name in ("a.txt", "b.txt", "c.txt.gz", "d.npz"):
        vectors = load_glove(tmp_path / name, ["red", "black", "absent"], progress=False)
        assert sorted(vectors) == ["black", "red"]
        np.testing.assert_allclose(vectors["red"], [-0.5, 0, 1e-3])
    assert "at name@domain.com" in load_glove(tmp_path / "a.txt", ["at name@domain.com"], progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a 1 2\nb 1\n", "line 2"), ("a 1 x\n", "line 1"), ("a 1 nan\n", "NaN"), ("", "empty")],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_glove(tmp_path / "bad.txt", ["a", "b"], progress=False)


def test_missing_and_cut_files(tmp_path):
    with pytest.raises(UsageError, match="nlp.stanford.edu"):
        load_glove(tmp_path / "none.txt", ["a"])
    body = gzip.compress(b"black 1 2 3\n" * 2000)
    (tmp_path / "cut.txt.gz").write_bytes(body[:-20])
    with pytest.raises(DataError, match="line"):
        load_glove(tmp_path / "cut.txt.gz", ["a"], progress=False)
    np.savez(tmp_path / "x.npz", other=[1])
    with pytest.raises(DataError, match="words"):
        load_glove(tmp_path / "x.npz", ["a"])


def test_table():
    rng = np.random.default_rng(0)
    first = {word: rng.normal(0, 3, 40).astype(np.float32) for word in ("a", "b", "c")}
    second = {word: rng.normal(0, 0.1, 20).astype(np.float32) for word in ("b", "c", "d")}
    words = ["[PAD]", "a", "b", "d", *[f"x{i}" for i in range(200)]]
    table = glove_table(words, [first, second], seed=1)
    assert table.dtype == np.float32 and table.shape == (204, 60) and not table[0].any()
    np.testing.assert_array_equal(table[2], np.concatenate([first["b"], second["b"]]))
    np.testing.assert_array_equal(table[1], np.concatenate([first["a"], np.zeros(20)]))
    assert abs(table[4:, :40].std() / np.stack(list(first.values())).std() - 1) < 0.05
    assert abs(table[4:, 40:].std() / np.stack(list(second.values())).std() - 1) < 0.05
    np.testing.assert_array_equal(table, glove_table(words, [first, second], seed=1))
    legacy = glove_table(words, [first, second], "legacy_normal")
    filled = glove_filled(words, [first, second])
    assert filled.tolist()[:4] == [False, False, True, False]
    assert abs(legacy[~filled].std() - 1) < 0.05
    assert not glove_table(words, [first], "zeros")[4:].any()
    for bad in ({"missing": "x"}, {"sources": []}):
        with pytest.raises(UsageError):
            glove_table(**{"words": words, "sources": [first], **bad})
    with pytest.raises(DataError, match="width"):
        glove_table(words, [{"a": np.ones(2), "b": np.ones(3)}])
