"""The feature cache: complete, resumable, never stale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_fashion.core.errors import DataError
from tf_fashion.inputs import feature_cache
from tf_fashion.inputs.feature_cache import FeatureCache
from tf_fashion.inputs.images import ImageSpec

SPEC = ImageSpec(size=8, scaling="raw")


def encode(images: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(images, axis=(1, 2))


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for number in range(10):
        paths[f"p{number}"] = tmp_path / f"p{number}.png"
        Image.new("RGB", (12, 9), (number * 20, 100, 50)).save(paths[f"p{number}"])
    return paths


def test_features_belong_to_their_photos(photos: dict[str, Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", "f" * 20, (3,))
    assert cache.fill(photos, SPEC, encode, batch_size=3, progress=False) == []
    table = cache.table(dict(reversed(photos.items())))
    assert table.ids == list(reversed(photos))
    np.testing.assert_allclose(table.values[:, 0], np.arange(9, -1, -1) * 20, atol=0.6)


def test_an_interrupted_fill_goes_on_where_it_stopped(photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SHARD_ROWS", 4)
    calls = []

    def failing(images: tf.Tensor) -> tf.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    cache = FeatureCache(tmp_path / "cache", "f" * 20, (3,))
    with pytest.raises(KeyboardInterrupt):
        cache.fill(photos, SPEC, failing, batch_size=4, progress=False)
    again = FeatureCache(tmp_path / "cache", "f" * 20, (3,))
    assert len(again.missing(photos)) == 6
    again.fill(photos, SPEC, encode, progress=False)
    np.testing.assert_allclose(again.table(photos).values[:, 0], np.arange(10) * 20, atol=0.6)


def test_a_new_photo_under_an_old_name_is_encoded_anew(photos: dict[str, Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", "f" * 20, (3,))
    cache.fill(photos, SPEC, encode, progress=False)
    Image.new("RGB", (12, 9), (7, 7, 7)).save(photos["p3"])
    assert cache.missing(photos) == ["p3"]
    cache.fill(photos, SPEC, encode, progress=False)
    np.testing.assert_allclose(cache.table(photos).values[3], 7, atol=0.6)


def test_bad_photos_and_damaged_caches_are_named(photos: dict[str, Path], tmp_path: Path) -> None:
    photos["p4"].write_text("<html>")
    cache = FeatureCache(tmp_path / "cache", "f" * 20, (3,))
    assert [image.id for image in cache.fill(photos, SPEC, encode, progress=False)] == ["p4"]
    with pytest.raises(DataError, match="p4"):
        cache.table(photos)
    (cache.folder / "00000.npy").write_bytes(b"short")
    with pytest.raises(DataError, match="Delete the folder"):
        FeatureCache(tmp_path / "cache", "f" * 20, (3,))


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path / "cache", "f" * 20, (3,))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("30 requested and 8 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="disk is full"):
        cache.fill(photos, SPEC, encode, progress=False)
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_two_processes_fill_one_cache(photos: dict[str, Path], tmp_path: Path) -> None:
    ids = list(photos)
    parts = [{image_id: photos[image_id] for image_id in half} for half in (ids[:4], ids[4:])]
    # Both have read the empty manifest before either has written.
    one, other = (FeatureCache(tmp_path / "cache", "f" * 20, (3,)) for _ in range(2))
    for cache, part in zip((one, other), parts, strict=True):
        assert cache.fill(part, SPEC, encode, progress=False) == []
        np.testing.assert_allclose(cache.table(part).values[:, 0], [20 * ids.index(image_id) for image_id in part], atol=0.6)
    again = FeatureCache(tmp_path / "cache", "f" * 20, (3,))
    assert again.missing(photos) == []
    np.testing.assert_allclose(again.table(photos).values[:, 0], np.arange(10) * 20, atol=0.6)
