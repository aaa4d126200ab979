import csv

from tests.inputs.pictures import bomb, encode, photo
from tf_fashion.inputs.audit import audit_images, write_bad_images
from tf_fashion.inputs.images import ImageSpec


def test_audit_lists_every_bad_picture_with_its_reason(tmp_path):
    contents = {
        "good": encode(photo(), "JPEG"),
        "cut": encode(photo(), "JPEG")[:-200],
        "page": b"<html><body>404</body></html>",
        "bomb": bomb(),
        "webp": encode(photo(), "WEBP"),
        "empty": b"",
        "grey": encode(photo().convert("L"), "PNG"),
    }
    paths = {name: tmp_path / f"{name}.jpg" for name in [*contents, "gone"]}
    for name, body in contents.items():
        paths[name].write_bytes(body)
    paths["folder"] = tmp_path
    bad = audit_images(paths, ImageSpec(32), progress=False)
    assert {image.id: image.reason for image in bad} == {
        "cut": "truncated JPEG",
        "page": "an HTML page, not a picture",
        "bomb": "22000 x 22000 pixels, limit 50 megapixels",
        "empty": "empty file",
        "gone": "missing",
        "folder": "a folder, not a file",
    }
    assert [image.id for image in bad] == [name for name in paths if name in {image.id for image in bad}]
    write_bad_images(tmp_path / "bad_images.csv", bad)
    rows = list(csv.DictReader((tmp_path / "bad_images.csv").read_text().splitlines()))
    assert rows[0] == {"id": "cut", "path": str(paths["cut"]), "reason": "truncated JPEG"} and len(rows) == 6


def test_audit_of_nothing(tmp_path):
    assert audit_images({}, progress=False) == []
    write_bad_images(tmp_path / "bad.csv", [])
    assert (tmp_path / "bad.csv").read_text() == "id,path,reason\n"
