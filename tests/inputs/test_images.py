import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tests.inputs.pictures import bomb, encode, photo
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.images import (
    SCALINGS,
    ImageSpec,
    _decode,
    bars_geometry,
    decode_image,
    display_pixels,
    explain_bytes,
    load,
    load_image,
    padded_geometry,
    preprocess,
    resize_image,
    resize_to,
    safe_decode,
    safe_decode_batch,
    scale_pixels,
    unscale_pixels,
)

SPEC = ImageSpec(32, scaling="raw")
SPEC_CROP = ImageSpec(32, "crop", scaling="raw")
BYTES = tf.TensorSpec((), tf.string)
PIXELS = tf.TensorSpec((None, None, 3), tf.uint8)
decoded = tf.function(lambda contents: decode_image(contents, SPEC), input_signature=[BYTES])
safe = tf.function(lambda contents: safe_decode_batch(contents, SPEC), input_signature=[tf.TensorSpec((None,), tf.string)])


def pixels(contents: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(contents)).convert("RGB")).astype(int)


def test_spec_config_hash_and_fingerprint():
    spec = ImageSpec(64, "crop", "bicubic", scaling="clip")
    again = ImageSpec.from_config(json.loads(json.dumps(spec.to_config())))
    assert again == spec and hash(again) == hash(spec) and again.fingerprint() == spec.fingerprint()
    assert ImageSpec(64, "crop", "bicubic", scaling="clip", max_bytes=1).fingerprint() == spec.fingerprint()
    assert ImageSpec(65, "crop", "bicubic", scaling="clip").fingerprint() != spec.fingerprint()


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 2.5}, {"resize": "x"}, {"scaling": "x"}, {"pad_ratio": 0.5}])
def test_spec_refuses(bad):
    with pytest.raises(UsageError):
        ImageSpec(**bad)


def test_spec_unknown_field():
    with pytest.raises(UsageError, match="colour"):
        ImageSpec.from_config({"size": 3, "colour": 1})


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"bits": 2}),
        ("PNG", "1", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "L", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_decoding_equals_pillow(kind, mode, options):
    picture = photo().quantize(4) if "bits" in options else photo().convert(mode)
    contents = encode(picture, kind, **options)
    np.testing.assert_allclose(decoded(contents), pixels(contents), atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x010E] = "a description that comes first"
    exif[0x0112] = orientation
    contents = encode(photo(), "JPEG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(contents))))
    np.testing.assert_array_equal(decoded(contents), upright)


def test_exif_little_endian_after_jfif():
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    contents = encode(photo(), "JPEG")
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    turned = contents[:20] + segment + contents[20:]
    np.testing.assert_array_equal(decoded(turned), np.rot90(pixels(contents), -1))
    assert not safe([turned[:end] for end in range(21, 20 + len(segment))])[1].numpy().any()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(kind):
    picture = photo().convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    contents = encode(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    np.testing.assert_allclose(decoded(contents), np.asarray(white.convert("RGB")).astype(int), atol=1)


def test_cmyk_sixteen_bits_animation_and_one_pixel():
    cmyk = encode(photo().convert("CMYK"), "JPEG")
    assert decoded(cmyk).shape == (90, 60, 3)
    deep = encode(Image.fromarray((np.arange(90 * 60).reshape(90, 60) * 12).astype(np.uint16)), "PNG")
    np.testing.assert_array_equal(decoded(deep)[..., 0], np.arange(90 * 60).reshape(90, 60) * 12 // 256)
    frames = [photo(seed=seed).convert("P") for seed in range(3)]
    np.testing.assert_array_equal(decoded(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])), frames[0].convert("RGB"))
    with pytest.raises(DataError, match="moving WebP"):
        load_image(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), SPEC)
    dot = decoded(encode(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"))
    for mode in ("squash", "pad", "crop", "target_pad", "square_pad"):
        np.testing.assert_allclose(preprocess(dot, ImageSpec(8, mode, scaling="raw")), np.full((8, 8, 3), [10, 20, 30]))


REFUSED = {
    "empty file": b"",
    "an HTML page, not a picture": b"<!DOCTYPE html><html></html>",
    "a PDF, not": b"%PDF-1.4 ......................",
    "an HEIC, AVIF or video": b"\0\0\0\x18ftypavif0000000000000000",
    "starts with bytes 78": b"x",
    "22000 x 22000 pixels, limit 50 megapixels": bomb(),
    "truncated JPEG": encode(photo(), "JPEG")[:-300],
    "JPEG without a readable header": encode(photo(), "JPEG")[:30],
    "truncated PNG": encode(photo(), "PNG")[:-300],
    "damaged PNG": encode(photo(), "PNG").replace(b"IDAT", b"IDAT\0", 1),
    "truncated GIF": encode(photo(), "GIF")[:-300],
    "truncated WebP": encode(photo(), "WEBP")[:-30],
    "truncated BMP": encode(photo(), "BMP")[:-30],
    "90000 x 2 pixels, limit 65535 a side": encode(Image.new("RGB", (90_000, 2)), "PNG"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_with_a_reason(reason):
    with pytest.raises(DataError, match=reason):
        load_image(REFUSED[reason], SPEC)


def test_refused_by_size_and_missing(tmp_path):
    contents = encode(photo(), "PNG")
    assert "limit 0.001 MB" in explain_bytes(contents, ImageSpec(max_bytes=1000))
    with pytest.raises(DataError, match="missing"):
        load_image(tmp_path / "none.jpg", SPEC)
    with pytest.raises(DataError, match=r"60 x 90 pixels \(90 x 90 with its bars\)"):
        load_image(contents, ImageSpec(32, "square_pad", max_pixels=7000))
    (tmp_path / "some.jpg").write_bytes(contents)
    assert load_image(tmp_path / "some.jpg", SPEC).shape == (32, 32, 3)


def test_one_bad_picture_does_not_spoil_the_batch():
    good = encode(photo(), "JPEG")
    images, valid = safe([*REFUSED.values(), good])
    assert valid.numpy().tolist() == [False] * len(REFUSED) + [True]
    assert not images[:-1].numpy().any()
    np.testing.assert_array_equal(images[-1], load_image(good, SPEC))
    images, valid = safe(tf.constant([], tf.string))
    assert images.shape == (0, 32, 32, 3) and valid.shape == (0,)
    image, flag = safe_decode(good, SPEC)
    assert bool(flag) and image.shape == (32, 32, 3)


def test_random_damage_never_fails():
    rng = np.random.default_rng(3)
    damaged = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        source = encode(photo(), kind)
        for _ in range(25):
            contents = bytearray(source)
            for _ in range(rng.integers(1, 20)):
                contents[rng.integers(len(contents))] = rng.integers(256)
            damaged += [bytes(contents), source[: rng.integers(len(source))]]
    images, valid = safe(damaged)
    assert np.isfinite(images.numpy()).all()
    assert not valid.numpy()[1::2].any()
    for contents, flag in zip(damaged, valid.numpy(), strict=True):
        assert flag or explain_bytes(contents, SPEC)


def test_exported_model_takes_bytes(tmp_path):
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", safe_decode_function(), input_signature=[tf.TensorSpec((None,), tf.string)])
    archive.write_out(str(tmp_path / "model"), verbose=False)
    good = encode(photo(), "JPEG")
    result = tf.saved_model.load(str(tmp_path / "model")).serve(tf.constant([b"junk", good]))
    assert result["valid"].numpy().tolist() == [False, True]
    np.testing.assert_array_equal(result["images"][1], load_image(good, SPEC))


def safe_decode_function():
    def serve(contents):
        images, valid = safe_decode_batch(contents, SPEC)
        return {"images": images, "valid": valid}

    return serve


def test_same_pixels_in_tf_data_and_eagerly():
    contents = [encode(photo(seed=seed), "JPEG") for seed in range(3)]
    data = tf.data.Dataset.from_tensor_slices(contents).map(lambda element: load(element, SPEC)).batch(3)
    expected = np.stack([load_image(element, SPEC) for element in contents])
    np.testing.assert_array_equal(next(iter(data)), expected)
    np.testing.assert_array_equal(safe(contents)[0], expected)


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_resizing_equals_pillow(mode, kind):
    spec = ImageSpec(48, mode, kind, scaling="raw")
    run = tf.function(lambda image: preprocess(image, spec), input_signature=[PIXELS])
    rng = np.random.default_rng(0)
    filter_ = Image.Resampling[kind.upper()]
    for height, width in [(90, 60), (37, 200), (64, 640), (48, 48), (30, 20)]:
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        short = min(height, width)
        full_w, full_h = (48, 48) if mode == "squash" else (48 * width // short, 48 * height // short)
        # Two steps fix the order of the passes, which Pillow 13 chooses by the shape.
        expected = Image.fromarray(array).resize((full_w, height), filter_).resize((full_w, full_h), filter_)
        left, top = round((full_w - 48) / 2), round((full_h - 48) / 2)
        expected = np.asarray(expected.crop((left, top, left + 48, top + 48))).astype(float)
        np.testing.assert_allclose(run(array), expected, atol=0 if kind == "nearest" else 1)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_crop_of_a_strip_equals_pillow(kind):
    run = tf.function(lambda image: resize_image(image, ImageSpec(48, "crop", kind)), input_signature=[PIXELS])
    rng = np.random.default_rng(0)
    for height, width in [(9, 1300), (1700, 13), (30, 2656)]:
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        short = min(height, width)
        full_w, full_h = 48 * width // short, 48 * height // short
        filter_ = Image.Resampling[kind.upper()]
        expected = Image.fromarray(array).resize((full_w, height), filter_).resize((full_w, full_h), filter_)
        left, top = round((full_w - 48) / 2), round((full_h - 48) / 2)
        np.testing.assert_allclose(run(array), np.asarray(expected.crop((left, top, left + 48, top + 48))).astype(float), atol=1.001)


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["squash", "crop", "square_pad"])
def test_a_picture_of_the_right_size_stays_as_it_is(mode, kind):
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for antialias in (True, False):
        np.testing.assert_array_equal(resize_image(array, ImageSpec(32, mode, kind, antialias=antialias)), array)


def test_padding_mirrors_and_geometry_agrees():
    spec = ImageSpec(40, "pad", "nearest", scaling="raw")
    run = tf.function(lambda image: resize_image(image, spec), input_signature=[PIXELS])
    rng = np.random.default_rng(1)
    for height, width in [(90, 60), (37, 200), (187, 187), (7, 300), (40, 40), (3, 1000)]:
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        inner_w, inner_h, left, right, top, bottom = padded_geometry(height, width, 40)
        inner = np.asarray(Image.fromarray(array).resize((inner_w, inner_h), Image.Resampling.NEAREST))
        expected = np.pad(inner, ((top, bottom), (left, right), (0, 0)), mode="symmetric")
        np.testing.assert_array_equal(run(array), expected)


def test_padded_geometry_truncates():
    assert padded_geometry(187, 187, 224) == (224, 223, 0, 0, 0, 1)
    assert padded_geometry(10_000, 3, 224)[:2] == (1, 224)


def test_bars():
    assert bars_geometry(90, 60, ImageSpec(resize="square_pad")) == (15, 0)
    assert bars_geometry(90, 60, ImageSpec(resize="target_pad")) == (6, 0)
    assert bars_geometry(90, 80, ImageSpec(resize="target_pad")) == (0, 0)


def test_scalings():
    grey = tf.fill((2, 2, 3), 127.5)
    assert scale_pixels(grey, "raw").numpy().max() == 127.5
    np.testing.assert_allclose(scale_pixels(grey, "unit"), 0.5 * np.ones((2, 2, 3)))
    np.testing.assert_allclose(scale_pixels(grey, "tf"), np.zeros((2, 2, 3)), atol=1e-7)
    np.testing.assert_allclose(scale_pixels(grey, "torch")[0, 0], (0.5 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-5)
    for scaling, ours in (("caffe", "caffe"), ("tf", "tf"), ("torch", "torch")):
        image = np.random.default_rng(0).uniform(0, 255, (4, 4, 3)).astype(np.float32)
        expected = keras.applications.imagenet_utils.preprocess_input(image.copy(), mode=ours)
        np.testing.assert_allclose(scale_pixels(image, scaling), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError):
        scale_pixels(grey, "other")


def test_a_long_strip_needs_no_memory():
    assert resize_image(tf.zeros((10, 60_000, 3), tf.uint8), ImageSpec(64, "crop")).shape == (64, 64, 3)


def test_fast_decode_is_close():
    contents = encode(photo(1200, 900), "JPEG", quality=95)
    fast, exact = (load_image(contents, ImageSpec(64, scaling="raw", fast_decode=flag)).numpy() for flag in (True, False))
    assert 0 < np.abs(fast - exact).mean() < 3


def in_two_steps(spec):
    return tf.function(lambda contents: preprocess(decode_image(contents, spec), spec), input_signature=[BYTES])


def in_part(spec):
    return tf.function(lambda contents: load(contents, spec), input_signature=[BYTES])


def random_jpeg(rng):
    if rng.random() < 0.25:
        sides = int(rng.integers(1, 40)), int(rng.integers(500, 3000))
    else:
        sides = tuple(int(2 ** rng.uniform(0, 9.5)) for _ in range(2))
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    smooth = rng.random() < 0.5
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    picture = photo(height, width, int(rng.integers(1000))) if smooth else noise
    options: dict = {"quality": int(rng.integers(30, 98)), "subsampling": int(rng.integers(3))}
    mode = rng.choice(["RGB", "RGB", "RGB", "L", "CMYK"])
    if mode != "RGB":
        del options["subsampling"]
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    if rng.random() < 0.3:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = int(rng.integers(1, 9))
    return encode(picture.convert(mode), "JPEG", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "kind", "options"),
    [
        (48, "bilinear", {}),
        (16, "bilinear", {"antialias": False}),
        (48, "nearest", {}),
        (16, "bicubic", {}),
        (16, "bilinear", {"fast_decode": True}),
    ],
)
def test_decoding_in_part_changes_nothing(size, kind, options):
    spec = ImageSpec(size, "crop", kind, scaling="raw", **options)
    fused, plain = in_part(spec), in_two_steps(spec)
    rng = np.random.default_rng(size + len(kind))
    for _ in range(50):
        contents = random_jpeg(rng)
        np.testing.assert_array_equal(fused(contents), plain(contents))


@pytest.mark.slow
def test_decoding_in_part_saves_pixels():
    count = tf.function(lambda contents: tf.size(_decode(contents, SPEC_CROP, cut=True)[0]) // 3, input_signature=[BYTES])
    for height, width in [(400, 100), (100, 400), (900, 600)]:
        picture, exif = photo(height, width), Image.Exif()
        exif[0x0112] = 1
        assert int(count(encode(picture, "JPEG"))) < 0.8 * height * width
        assert int(count(encode(picture, "JPEG", exif=exif))) < 0.8 * height * width
        exif[0x0112] = 6
        assert int(count(encode(picture, "JPEG", exif=exif))) == height * width
    # Several scans, and rows below the part: it would go unnoticed if one were cut short.
    assert int(count(encode(photo(400, 100), "JPEG", progressive=True))) == 400 * 100
    assert int(count(encode(photo(100, 110), "JPEG"))) == 100 * 110


@pytest.fixture(scope="module")
def fused_and_whole():
    return in_part(SPEC_CROP), in_two_steps(SPEC_CROP)


@pytest.mark.parametrize(("height", "width"), [(400, 100), (100, 400)])
def test_decoding_in_part_refuses_the_same_files(height, width, fused_and_whole):
    rng = np.random.default_rng(height)
    good = encode(photo(height, width), "JPEG")
    scan = good.index(b"\xff\xda") + 14

    def spoilt(number):
        at, kind = int(rng.integers(scan, len(good) - 4)), number % 5
        if kind == 0:
            return good[:at]
        if kind == 1:
            return good[:at] + b"\xff\xd9"
        if kind == 2:
            return good[:at] + bytes([0xFF, rng.integers(256)]) + good[at + 2 :]
        if kind == 3:
            return good[:at] + good
        return good[:at] + rng.bytes(4) + good[at + 4 :]

    files = [good[:-1], good[:-2], good[:-10], good[: len(good) * 3 // 4], good + b"rest", *map(spoilt, range(200))]

    def result(function, contents):
        try:
            return function(contents).numpy()
        except tf.errors.InvalidArgumentError:
            return None

    found = []
    for contents in files:
        fused, plain = (result(function, contents) for function in fused_and_whole)
        assert (plain is None) == (fused is None)
        if plain is not None:
            np.testing.assert_array_equal(fused, plain)
        found.append(plain is not None)
    assert found[:5] == [False] * 4 + [True] and 40 < sum(found) < 180


def test_resizing_to_any_height_and_width():
    image = np.asarray(photo(50, 70))
    for kind, filter_ in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        for height, width in ((20, 40), (64, 30), (50, 70), (1, 5)):
            spec = ImageSpec(9, interpolation=kind)
            theirs = np.asarray(Image.fromarray(image).resize((width, height), filter_))
            ours = resize_to(image, height, width, spec)
            np.testing.assert_allclose(ours, theirs, atol=1.01)
    run = tf.function(lambda height, width: resize_to(image, height, width, SPEC))
    assert run(tf.constant(20), tf.constant(40)).shape == (20, 40, 3)
    np.testing.assert_array_equal(resize_to(image, 32, 32, SPEC), resize_image(image, SPEC))
    with pytest.raises(UsageError, match="squares only"):
        resize_to(image, 4, 4, ImageSpec(interpolation="bilinear_tf1"))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_pixels_come_back(scaling):
    levels = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    scaled = scale_pixels(levels, scaling)
    np.testing.assert_allclose(unscale_pixels(scaled, scaling), levels, atol=1e-3)
    np.testing.assert_array_equal(display_pixels(scaled, scaling), levels)
    darker = levels.astype(int) - display_pixels(scaled, scaling, legacy_truncate=True)
    assert set(np.unique(darker)) <= {0, 1}
    assert display_pixels([[[1e9, -1e9, 0.0]]], "unit").numpy().tolist() == [[[255, 0, 0]]]
    with pytest.raises(UsageError, match="Unknown scaling"):
        unscale_pixels(scaled, "none")
