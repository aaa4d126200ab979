"""Downloads against a server on this machine that does everything a server can do wrong."""

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import Imaterialist, check_tree
from tf_fashion.datasets.fetch import Download, FetchError, HttpFetcher, download_images, to_jpeg, work_list

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(kind="JPEG", image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(RGB)).save(buffer, kind, **options)
    return buffer.getvalue()


JPEG = encoded(quality=90)
BOMB = encoded("PNG", Image.new("1", (9000, 9000)))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.seen[self.path] += 1
            times = server.seen[self.path]
            server.times.append(time.monotonic())
            server.agents.add(self.headers["User-Agent"])
            server.active += 1
            server.peak = max(server.peak, server.active)
        try:
            self.answer(self.path.split("/")[1], times)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.active -= 1

    def answer(self, what, times):
        if what == "gone":
            self.send(404)
        elif what == "flaky":
            self.send(*((500,) if times == 1 else (200, JPEG)))
        elif what == "busy":
            after = formatdate(time.time() + 1, usegmt=True) if self.path.endswith("date") else "1"
            self.send(*((429, b"", {"Retry-After": after}) if times == 1 else (200, JPEG)))
        elif what == "short":
            self.send(200, JPEG[:200], {"Content-Length": str(len(JPEG))})
        elif what == "mended":
            self.send(200, JPEG[:200] if times == 1 else JPEG, {"Content-Length": str(len(JPEG))})
        elif what == "html":
            self.send(200, b"<!DOCTYPE html><html>no such item</html>")
        elif what == "slow":
            time.sleep(1.5)
            self.send(200, JPEG)
        elif what == "moved":
            self.send(302, b"", {"Location": "/ok/moved"})
        elif what == "circle":
            self.send(302, b"", {"Location": self.path})
        elif what == "file":
            self.send(302, b"", {"Location": "file:///etc/passwd"})
        elif what == "large":
            self.send(200, b"\xff\xd8\xff" + bytes(300_000))
        elif what == "bomb":
            self.send(200, BOMB)
        elif what == "damaged":
            self.send(200, JPEG[:300] + b"\xff\xd9")
        elif what == "png":
            self.send(200, encoded("PNG"))
        else:
            if what == "wait":
                time.sleep(0.05)
            self.send(200, JPEG)

    def send(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.lock, httpd.seen, httpd.times, httpd.agents = threading.Lock(), Counter(), [], set()
        httpd.active = httpd.peak = 0
        httpd.daemon_threads = True
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def fetch_all(server, folder, *paths, **options):
    """Downloads `/what/...` as what.jpg."""
    work = [Download(folder / f"{path.replace('/', '_')}.jpg", f"{server.url}/{path}") for path in paths]
    with contextlib.closing(HttpFetcher(timeout=0.8, total=5, max_bytes=200_000)) as fetcher:
        given = {"fetch": fetcher, "delay": 0, "backoff": 0.01, "retries": 2, "progress": False, **options}
        return download_images(work, folder, **given)


def test_every_kind_of_answer(server, tmp_path):
    good = ["ok", "flaky", "mended", "moved", "png"]
    bad = {
        "gone": "404 Not Found",
        "short": "the answer broke off",
        "html": "no picture (an HTML page)",
        "slow": "no answer within 0.8 s",
        "circle": "more than 5 redirections",
        "file": "an address that cannot be used (InvalidSchema)",
        "large": "more than 0.2 MB",
        "bomb": "9000 x 9000 pixels; at most 50 million are allowed",
        "damaged": "a damaged JPEG file",
    }
    report = fetch_all(server, tmp_path, *good, *bad)
    reasons = {failure.id: failure.reason for failure in report.failed}
    assert set(reasons) == set(bad) and all(reasons[name].startswith(reason) for name, reason in bad.items()), str(reasons)
    assert (report.wanted, report.fetched, report.present, report.known, report.ok) == (14, 5, 0, 0, False)
    assert sorted(path.stem for path in tmp_path.glob("*.jpg")) == sorted(good)
    assert (tmp_path / "ok.jpg").read_bytes() == JPEG
    with Image.open(tmp_path / "png.jpg") as image:
        assert image.format == "JPEG" and np.abs(np.asarray(image).astype(int) - RGB).mean() < 12
    lines = (tmp_path / "failed.csv").read_text().splitlines()
    assert lines[0] == "id,url,reason" and f"gone,{server.url}/gone,404 Not Found" in lines and len(lines) == 10
    assert server.seen["/gone"] == 1 and server.seen["/short"] == 3 and server.seen["/flaky"] == 2
    assert all(agent.startswith("tf-fashion/") for agent in server.agents)
    assert not list(tmp_path.glob(".*.tmp")) and "5 of 14 pictures are there" in report.format()

    # What failed is left alone; asked for, it is tried again, and what was there is not fetched twice.
    again = fetch_all(server, tmp_path, *good, *bad)
    assert (again.present, again.fetched, again.known, again.failed) == (5, 0, 9, []) and server.seen["/gone"] == 1
    assert (tmp_path / "failed.csv").read_text().splitlines() == lines
    assert "--retry-failed" in again.format()
    (tmp_path / "gone.jpg").write_bytes(JPEG)
    third = fetch_all(server, tmp_path, *good, *bad, retry_failed=True)
    assert third.present == 6 and len(third.failed) == 8 and server.seen["/html"] == 2 and server.seen["/gone"] == 1
    assert "gone" not in (tmp_path / "failed.csv").read_text()
    json.dumps(third.to_json())


@pytest.mark.parametrize("how", ["busy/1", "busy/date"])
def test_a_busy_host_is_left_alone_as_long_as_it_asks(server, tmp_path, how):
    started = time.monotonic()
    report = fetch_all(server, tmp_path, how, "ok/1", workers=1)
    assert report.ok and report.fetched == 2
    # Whole seconds in dates: up to one is lost.
    assert time.monotonic() - started > (0.9 if how == "busy/1" else 0.0) and server.seen["/ok/1"] == 1
    assert fetch_all(server, tmp_path, "busy/2", max_wait=0).ok


def test_a_host_gets_few_requests_at_a_time_and_pauses_between_them(server, tmp_path):
    paths = [f"wait/{number}" for number in range(12)]
    assert fetch_all(server, tmp_path / "a", *paths, workers=8, per_host=3).fetched == 12
    assert 2 <= server.peak <= 3
    server.times.clear()
    fetch_all(server, tmp_path / "b", *[f"ok/{number}" for number in range(6)], delay=0.06)
    assert server.times[-1] - server.times[0] > 0.25


def test_a_stopped_download_goes_on_where_it_was(server, tmp_path):
    paths = [f"ok/{number}" for number in range(10)] + ["gone/1"]
    calls = []

    def fetch(url):
        calls.append(url)
        if len(calls) == 7:
            raise KeyboardInterrupt
        if "gone" in url:
            raise FetchError("404")
        return JPEG

    with pytest.raises(KeyboardInterrupt):
        fetch_all(server, tmp_path, *paths[::-1], fetch=fetch, workers=1, per_host=1)
    there = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.jpg")}
    assert 5 <= len(there) < 10 and "gone" in (tmp_path / "failed.csv").read_text()
    report = fetch_all(server, tmp_path, *paths)
    assert (report.present, report.fetched, report.known) == (len(there), 10 - len(there), 1)
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in there.items())


def test_a_killed_process_leaves_whole_pictures_only(server, tmp_path):
    images = [{"imageId": str(number), "url": f"{server.url}/{'gone' if number == 0 else 'wait'}/{number}"} for number in range(60)]
    (tmp_path / "validation.json").write_text(json.dumps({"images": images}))
    program = f"""
        from tf_fashion.datasets.fetch import download_images
        download_images({str(tmp_path / "validation.json")!r}, workers=2, delay=0, progress=False)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    folder = tmp_path / "validation"
    try:
        for _ in range(600):
            time.sleep(0.05)
            if folder.is_dir() and len(list(folder.glob("[!.]*.jpg"))) >= 5:
                break
    finally:
        process.kill()
        process.wait()
    there = list(folder.glob("[!.]*.jpg"))
    assert 5 <= len(there) < 60 and all(path.read_bytes() == JPEG for path in there)
    (folder / ".59.jpg.123.tmp").write_bytes(JPEG[:50])
    with open(folder / "failed.csv", "a") as file:
        file.write('58,"http://half')
    report = download_images(tmp_path / "validation.json", workers=8, delay=0, progress=False)
    assert report.present == len(there) and report.present + report.fetched == 59 and report.known == 1
    assert not list(folder.glob(".*.tmp")) and (folder / "failed.csv").read_text().count("\n") == 2


def test_damaged_files_that_are_there_are_fetched_again(server, tmp_path):
    (tmp_path / "ok_1.jpg").write_bytes(JPEG[:200])
    (tmp_path / "ok_2.jpg").write_bytes(b"")
    (tmp_path / "ok_3.jpg").write_bytes(JPEG[:300] + bytes(9) + b"\xff\xd9")
    (tmp_path / "ok_4.png").write_bytes(encoded("PNG"))
    report = fetch_all(server, tmp_path, "ok/1", "ok/2", "ok/3", "ok/4")
    assert (report.present, report.fetched) == (2, 2)
    report = fetch_all(server, tmp_path, "ok/1", "ok/2", "ok/3", "ok/4", verify=True)
    assert (report.present, report.fetched) == (3, 1) and (tmp_path / "ok_3.jpg").read_bytes() == JPEG


def test_only_addresses_of_the_web(tmp_path):
    asked = []
    urls = ["file:///etc/passwd", "ftp://host/x", "http://", "javascript:alert(1)", "http://[::1", "", "http://host/ok"]
    work = [Download(tmp_path / f"{number}.jpg", url) for number, url in enumerate(urls)]
    report = download_images(work, tmp_path, fetch=lambda url: asked.append(url) or JPEG, delay=0, progress=False)
    assert asked == ["http://host/ok"] and report.fetched == 1
    assert {failure.reason for failure in report.failed} == {"not an http or https address", "no address"}


def test_nothing_leaves_the_folder(tmp_path):
    for path in (tmp_path / "a/../../x.jpg", tmp_path.parent / "y.jpg", tmp_path / "a" / "..jpg"):
        with pytest.raises(DataError):
            download_images([Download(path, "http://host/x")], tmp_path / "a", fetch=lambda url: JPEG, progress=False)
    (tmp_path / "train.json").write_text(json.dumps({"images": [{"imageId": "../../x", "url": "http://host/x"}]}))
    with pytest.raises(DataError, match="not usable as a file name"):
        download_images(tmp_path / "train.json", fetch=lambda url: JPEG, progress=False)


def test_pictures_that_are_files_already(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"images": [{"imageId": "1", "url": "images/1.jpg"}]}))
    with pytest.raises(DataError, match="none of the 1 urls is an address.*--images"):
        download_images(tmp_path / "train.json", fetch=lambda url: JPEG, progress=False)


def test_other_errors_are_failures_too_and_no_network_ends_it(tmp_path):
    work = [Download(tmp_path / f"{number}.jpg", f"http://host/{number}") for number in range(120)]

    def broken(url):
        if url.endswith("/1"):
            raise RuntimeError("what\nelse")
        return JPEG

    report = download_images(work[:3], tmp_path, fetch=broken, delay=0, progress=False)
    assert report.fetched == 2 and report.failed[0].reason == "RuntimeError: what else"

    def silent(url):
        raise FetchError("cannot be reached", retry=True, answered=False)

    with pytest.raises(DataError, match="50 addresses in a row gave no answer"):
        download_images(work, tmp_path, fetch=silent, delay=0, retries=0, progress=False)
    # They are asked for next time.
    assert (tmp_path / "failed.csv").read_text().splitlines()[1:] == ["1,http://host/1,RuntimeError: what else"]
    assert download_images(work, tmp_path, fetch=lambda url: JPEG, delay=0, progress=False).fetched == 117


def test_a_full_disk_ends_it(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    work = [Download(tmp_path / f"{number}.jpg", f"http://host/{number}") for number in range(5)]
    with monkeypatch.context() as patched:
        patched.setattr("tf_fashion.datasets.fetch.os.replace", full)
        with pytest.raises(DataError, match="No space left on device"):
            download_images(work, tmp_path, fetch=lambda url: JPEG, delay=0, progress=False)
    assert not list(tmp_path.glob(".*.tmp"))


def test_one_download_at_a_time(tmp_path):
    def inner(url):
        with pytest.raises(UsageError, match="another download is at work"):
            download_images([Download(tmp_path / "2.jpg", "http://host/2")], tmp_path, fetch=lambda url: JPEG, progress=False)
        return JPEG

    assert download_images([Download(tmp_path / "1.jpg", "http://host/1")], tmp_path, fetch=inner, progress=False).ok


def test_work_lists_and_datasets(tmp_path):
    content = {"images": [{"imageId": str(n), "url": f"http://host/{n}"} for n in (3, 1, 2)], "annotations": [{"bad": "entry"}]}
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    expected = [(tmp_path / "OUT" / f"{n}.jpg", f"http://host/{n}") for n in (3, 1, 2)]
    assert work_list(tmp_path / "train.json", tmp_path / "OUT") == expected
    assert work_list(tmp_path / "train.json", tmp_path / "OUT", limit=2) == expected[:2]
    assert work_list(tmp_path / "train.json", tmp_path / "OUT", ratio=0.5) == expected[:1]
    assert work_list(tmp_path / "train.json", tmp_path / "OUT", ratio=0.9, limit=1) == expected[:1]
    for options in ({"limit": -1}, {"limit": True}, {"ratio": 1.5}, {"ratio": -0.1}):
        with pytest.raises(UsageError):
            work_list(tmp_path / "train.json", tmp_path, **options)
    content["annotations"] = [{"imageId": str(n), "labelId": ["66"]} for n in (1, 2, 3)]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    dataset = Imaterialist(tmp_path)
    report = download_images(dataset, limit=2, fetch=lambda url: JPEG, delay=0, progress=False)
    assert report.folders == [tmp_path / "train", tmp_path / "validation"] and report.fetched == 4
    assert (tmp_path / "validation/3.jpg").is_file() and not (tmp_path / "train/2.jpg").exists()
    download_images(dataset, splits=["validation"], fetch=lambda url: JPEG, delay=0, progress=False)
    missing = check_tree(tmp_path, progress=False).errors
    assert len(missing) == 1 and "train__2" in str(missing[0])
    for options in ({"workers": 0}, {"per_host": 0}, {"retries": -1}, {"delay": -1}, {"backoff": float("nan")}):
        with pytest.raises(UsageError):
            download_images(dataset, fetch=lambda url: JPEG, progress=False, **options)
    with pytest.raises(UsageError, match="folder: expected"):
        download_images([Download(tmp_path / "1.jpg", "http://host/1")], fetch=lambda url: JPEG)
    with pytest.raises(UsageError, match="splits: only a dataset"):
        download_images(tmp_path / "train.json", splits="val", fetch=lambda url: JPEG)


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (encoded("PNG", Image.fromarray(RGB).convert("L")), "grey"),
        (encoded("JPEG", Image.fromarray(RGB).convert("CMYK")), "CMYK"),
        (encoded("PNG", Image.new("RGBA", (16, 12), (255, 0, 0, 0))), "transparent"),
        (encoded("GIF", Image.fromarray(RGB).convert("P")), "palette"),
        (encoded("PNG", Image.fromarray(np.full((12, 16), 200 * 256, np.uint16))), "16 bit"),
        (encoded("WEBP"), "WebP"),
    ],
)
def test_everything_becomes_an_rgb_jpeg(data, mode):
    with Image.open(io.BytesIO(to_jpeg(data))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (16, 12))
        level = np.asarray(image).mean()
    assert mode != "transparent" or level > 250
    assert mode != "16 bit" or 195 < level < 205


def test_turned_pictures_are_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(to_jpeg(encoded("JPEG", exif=exif)))) as image:
        assert image.size == (12, 16) and image.getexif().get(0x0112, 1) == 1
    assert to_jpeg(JPEG) == JPEG
    for bad in (b"", b"<html>", b"\xff\xd8\xff", b"GIF89a", os.urandom(50)):
        with pytest.raises(FetchError):
            to_jpeg(bad)
