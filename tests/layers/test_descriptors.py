"""Descriptors of colour, layout and texture: what they tell apart, what they ignore, and the contract of layers."""

import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.layers import descriptors
from tf_fashion.layers.descriptors import DESCRIPTORS, ColourLayout, SurfaceContrast, rgb_to_lab
from tf_fashion.testing.contracts import run_layer_test


def _photo(colour: tuple, ground: tuple = (250, 250, 250), side: int = 96, top: float = 0.2, bottom: float = 0.8) -> np.ndarray:
    picture = np.empty((side, side, 3), "float32")
    picture[:] = ground
    picture[int(top * side) : int(bottom * side), int(0.25 * side) : int(0.75 * side)] = colour
    return picture


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second))


@pytest.mark.parametrize("name", ["colour", "colour_layout", "shape", "texture"])
def test_keeps_the_contract_of_layers(name: str) -> None:
    generator = np.random.default_rng(5)
    pictures = generator.integers(0, 256, (3, 80, 80, 3)).astype("float32")
    pictures[2] = _photo((30, 40, 90), side=80)
    layer_cls = DESCRIPTORS.get(name)
    run_layer_test(layer_cls, {}, [pictures], (3, layer_cls.width), "float32")


@pytest.mark.parametrize("name", ["colour_layout", "texture"])
def test_hardly_depends_on_resolution_and_is_finite_in_float16(name: str) -> None:
    layer = DESCRIPTORS.get(name)()
    cases = [((130, 20, 60), (250, 250, 250)), ((0, 0, 0), (255, 255, 255)), ((9, 9, 9), (9, 9, 9))]
    large = np.stack([_photo(colour, ground, 256) for colour, ground in cases])
    small = large.reshape(3, 128, 2, 128, 2, 3).mean((2, 4))
    found = np.asarray(layer(large))
    assert np.isfinite(found.astype(np.float16)).all()
    np.testing.assert_allclose(found, np.asarray(layer(small)), atol=1e-4)


def test_grid_holds_the_colours_of_srgb() -> None:
    kept = descriptors._grid_in_gamut()
    assert ColourLayout.width == 2 * len(kept) + 64
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 5000, 3)).astype("float32")
    compressed = descriptors._compressed(rgb_to_lab(pixels))[0]
    axes = [descriptors._shares(compressed[:, 0], descriptors._LIGHTNESSES)]
    axes += [descriptors._shares(compressed[:, axis], descriptors._CHROMAS) for axis in (1, 2)]
    for shares in axes:
        np.testing.assert_allclose(np.asarray(shares).sum(-1), 1.0, atol=1e-5)
    places = np.einsum("pl,pa,pb->plab", *axes).reshape(len(compressed), -1)
    assert places[:, kept].sum() / places.sum() > 0.97


def test_background_is_the_frame_whatever_its_colours() -> None:
    two_grounds = _photo((200, 30, 30))
    two_grounds[48:, :24] = two_grounds[48:, 72:] = two_grounds[80:] = (60, 90, 60)
    flat = _photo((120, 120, 120), (120, 120, 120))
    found = np.asarray(descriptors._foreground(rgb_to_lab(descriptors._small(np.stack([_photo((200, 30, 30)), two_grounds, flat])))))
    for mask in found[:2]:
        assert mask[20:44, 24:40].min() > 0.95
        assert mask[:8].max() < 0.05 and mask[-8:].max() < 0.05 and mask[:, :8].max() < 0.05
    assert found[2].max() < 0.05


def test_background_matters_less_than_the_garment() -> None:
    layer = ColourLayout()
    red, other_ground, navy, black = np.asarray(
        layer(np.stack([_photo((200, 30, 30)), _photo((200, 30, 30), (170, 180, 190)), _photo((25, 30, 60)), _photo((25, 25, 27))]))
    )
    assert _distance(red[:868], other_ground[:868]) < 0.5 * _distance(navy[:868], black[:868])


def test_layout_knows_above_from_below() -> None:
    shirt_over_jeans = _photo((220, 40, 40))
    shirt_over_jeans[48:76, 24:72] = (40, 60, 120)
    jeans_over_shirt = _photo((40, 60, 120))
    jeans_over_shirt[48:76, 24:72] = (220, 40, 40)
    first, second = np.asarray(ColourLayout()(np.stack([shirt_over_jeans, jeans_over_shirt])))
    assert _distance(first[868:], second[868:]) > 2.0


def test_texture_parts_stripes_from_plain() -> None:
    plain, striped = _photo((90, 90, 140)), _photo((90, 90, 140))
    striped[20:76:8, 24:72] = striped[21:76:8, 24:72] = striped[22:76:8, 24:72] = (230, 230, 230)
    flat, stripes = np.asarray(SurfaceContrast()(np.stack([plain, striped])))
    assert flat[0] < 0.5 and stripes[0] > 1.5
    assert flat[3] < 0.2 and stripes[3] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour_layout", "texture"])
def test_xla_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Resizing by area has no XLA kernel: the pictures are small already.
    monkeypatch.setattr(descriptors, "_small", lambda images: images)
    layer = DESCRIPTORS.get(name)()
    pictures = np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    compiled = tf.function(lambda images: layer.call(images), jit_compile=True)
    np.testing.assert_allclose(np.asarray(compiled(tf.constant(pictures))), np.asarray(layer(pictures)), atol=1e-3)
