"""Sheets, curves and the HTML report."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.reports.made_up import metrics, picture
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports import curves, sheets
from tf_fashion.reports.html import write_report
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet

HOSTILE = '<script>alert(1)</script> & "quoted" {{ 7 * 7 }} ombré'


@pytest.fixture
def rows(tmp_path):
    blue, red = picture(tmp_path / "blue.jpg", "blue"), picture(tmp_path / "red.png", "red", (90, 60))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>")
    return [
        SheetRow(blue, "is red", [blue, red, broken, None], ["b", "r", "x1", "x2"], [0.9, 0.8, 0.7, 0.6], target=1, note="dress"),
        SheetRow(tmp_path / "gone.jpg", HOSTILE, [red], ["r"], target_rank=57, reference_id="gone"),
        SheetRow(None, "", [], []),
    ]


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg", "sheet.webp"])
def test_sheet_frames_the_target(tmp_path, rows, name):
    path = retrieval_sheet(tmp_path / name, rows, title="T", protocol="p " * 200, tile=64, columns=3)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    green = (np.abs(pixels - [22, 163, 74]).sum(axis=2) < 60).sum()
    assert green > 500
    assert not list(tmp_path.glob(".sheet*"))


def test_sheet_without_target_has_no_green(tmp_path, rows):
    path = retrieval_sheet(tmp_path / "s.png", rows[1:], tile=64, columns=2)
    pixels = np.asarray(Image.open(path)).astype(int)
    assert (np.abs(pixels - [22, 163, 74]).sum(axis=2) < 60).sum() == 0


def test_sheet_refusals(tmp_path, rows):
    with pytest.raises(UsageError, match="sheet.pdf"):
        retrieval_sheet(tmp_path / "sheet.pdf", rows)
    with pytest.raises(UsageError, match="at least one query"):
        retrieval_sheet(tmp_path / "s.png", [])
    with pytest.raises(UsageError, match="column"):
        retrieval_sheet(tmp_path / "s.png", rows, columns=0)
    with pytest.raises(UsageError, match="target position"):
        SheetRow(None, "", [None], ["a"], target=1)
    with pytest.raises(UsageError, match="ids"):
        SheetRow(None, "", [None], [])
    with pytest.raises(UsageError, match="scores"):
        SheetRow(None, "", [None], ["a"], [])


def test_wrap_keeps_every_character_and_the_width():
    font = sheets.load_font(14)
    text = "a dress with " + "very" * 40 + " long words"
    lines = sheets.wrap(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert sheets.wrap("", font, 10) == [""]


def test_a_picture_bomb_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 22000, 22000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(data)
    assert sheets.open_picture(tmp_path / "bomb.png", 64) is None


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert sheets.open_picture(tmp_path / "turned.jpg", 64).size == (32, 64)


def test_history(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss,val_loss,val_R@10,learning_rate\n0,2.0,2.5,,0.1\n1,1.0,nan,10,0.1\n")
    history = curves.read_history(path)
    assert history["loss"] == [2.0, 1.0] and np.isnan(history["val_R@10"][0])
    assert curves.draw_curves(history, tmp_path / "c.png", "title").read_bytes().startswith(b"\x89PNG")
    first = curves.draw_curves(history, tmp_path / "c.svg").read_text()
    assert first == curves.draw_curves(history, tmp_path / "c.svg").read_text(), "the same history gives the same file"
    with pytest.raises(UsageError, match="nothing to draw"):
        curves.draw_curves({"epoch": [0]}, tmp_path / "c.png")
    with pytest.raises(UsageError, match="c.gif"):
        curves.draw_curves(history, tmp_path / "c.gif")


@pytest.mark.parametrize(
    ("content", "message"), [("", "header"), ("a\n", "header"), ("a,b\n1\n", "line 2"), ("a\n1\nx\n", "line 3"), (b"\xff\n", "UTF-8")]
)
def test_bad_histories(tmp_path, content, message):
    path = tmp_path / "history.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        curves.read_history(path)
    with pytest.raises(DataError, match="no such file"):
        curves.read_history(tmp_path / "none.csv")


def test_report_is_self_contained_and_escaped(tmp_path, rows):
    path = write_report(
        tmp_path / "report.html",
        metrics(),
        title="A & B",
        baselines={"<i>image only</i>": metrics(-5)},
        history={"loss": [2.0, 1.0]},
        rows=rows,
    )
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html and "{{ 7 * 7 }}" in html
    assert "<b>tirg</b>" not in html and "<i>image" not in html
    assert "Protocol</b> original: fashion_iq/val" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html) and "http://" not in html and "https://" not in html
    assert html.count('<figure class="target"') == 1 and "target at rank 57" in html
    assert html.count("no picture") == 3
    assert "between 29.00 and 31.00" in html
    for encoded in re.findall(r"data:image/jpeg;base64,([^\"]+)", html):
        assert base64.b64decode(encoded, validate=True).startswith(b"\xff\xd8")


def test_report_of_metrics_alone(tmp_path):
    html = write_report(tmp_path / "r.html", metrics()).read_text(encoding="utf-8")
    assert "What it finds" not in html and "Comparison" not in html and "Training</h2>" not in html


def test_report_refusals(tmp_path):
    with pytest.raises(UsageError, match="different protocols"):
        write_report(tmp_path / "r.html", metrics(), baselines={"x": metrics(protocol="val-split")})
    with pytest.raises(UsageError, match="r.pdf"):
        write_report(tmp_path / "r.pdf", metrics())
    with pytest.raises(DataError):
        write_report(tmp_path / "r.html", {"mean": {}})
    assert not list(tmp_path.iterdir())
