"""Downloads the pictures of a list of addresses: in parallel, politely, and as far as the addresses still work.

report = download_images(Imaterialist("data/imaterialist"), "data/imaterialist")
print(report.format())

A picture is complete when it stands under its name: it is fetched, decoded, written to a temporary name and renamed. So a killed
download is continued by the same call. What cannot be had is written to `failed.csv` in the folder and not asked for again, unless
`retry_failed` says so.
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import io
import os
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from tf_fashion import __version__
from tf_fashion.core import files
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.attributes import SPLIT_NAMES
from tf_fashion.datasets.check import FORMATS, MAX_BYTES, MAX_PIXELS, check_pictures, picture_header
from tf_fashion.datasets.imaterialist import Imaterialist, ListedImage, read_listed_images
from tf_fashion.datasets.records import ImageFolder

FAILED_FILE = "failed.csv"
USER_AGENT = f"tf-fashion/{__version__} (download of a data set's pictures)"
QUALITY = 95
# Answers after which a second try can succeed.
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
# So many addresses in a row without any answer mean that the network is gone, not that the links are dead.
UNREACHABLE = 50
_WINDOW = 1000


class FetchError(Exception):
    """A picture that could not be fetched.

    Args:
        reason: Why, in words for a person.
        retry: Whether a second try can succeed.
        wait: Seconds for which the host asks to be left alone.
        answered: Whether the host answered at all.
    """

    def __init__(self, reason: str, retry: bool = False, wait: float | None = None, answered: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.retry, self.wait, self.answered = reason, retry, wait, answered


class Download(NamedTuple):
    """A picture to fetch: the file that it becomes, and its address."""

    path: Path
    url: str


class FailedDownload(NamedTuple):
    """A picture that could not be had, and why."""

    id: str
    url: str
    reason: str


@dataclass
class FetchReport:
    """What a download did.

    Attributes:
        folders: Where the pictures are.
        wanted: Number of pictures in the list.
        present: How many were there before.
        fetched: How many came.
        failed: Those that did not.
        known: How many were not asked for, since they had failed before.
        seconds: Time taken.
    """

    folders: list[Path] = field(default_factory=list)
    wanted: int = 0
    present: int = 0
    fetched: int = 0
    failed: list[FailedDownload] = field(default_factory=list)
    known: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all wanted pictures are there."""
        return not self.failed and not self.known

    def format(self) -> str:
        """The report as text."""
        lines = [
            f"{', '.join(map(str, self.folders))}: {self.present + self.fetched} of {self.wanted} pictures are there "
            f"({self.fetched} fetched in {self.seconds:.0f} s)."
        ]
        if self.failed:
            reasons = Counter(failure.reason for failure in self.failed).most_common()
            lines.append(f"{len(self.failed)} could not be had; all are listed in {FAILED_FILE} there:")
            lines += [f"  {count} x {reason}" for reason, count in reasons[:5]]
            if len(reasons) > 5:
                lines.append(f"  {sum(count for _, count in reasons[5:])} for other reasons")
        if self.known:
            lines.append(f"{self.known} were not asked for, since they failed before; --retry-failed tries them again.")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {**vars(self), "folders": [str(folder) for folder in self.folders], "failed": [f._asdict() for f in self.failed]}


def work_list(
    source: str | Path | Sequence[ListedImage], folder: str | Path, limit: int | None = None, ratio: float | None = None
) -> list[Download]:
    """What is to be fetched for a list of pictures, in its order.

    Args:
        source: JSON file in iMaterialist's format, or its list of pictures.
        folder: Where the pictures go, as `folder/ID.jpg`.
        limit: Only so many from the beginning.
        ratio: Only this share from the beginning, int(ratio * number of pictures).

    Raises:
        UsageError: a limit or ratio out of range.
        DataError: the file is broken.
    """
    images = read_listed_images(source) if isinstance(source, (str, Path)) else source
    return [Download(Path(folder) / f"{image.id}.jpg", image.url or "") for image in images[: _count(len(images), limit, ratio)]]


def _count(number: int, limit: int | None, ratio: float | None) -> int:
    """How many of a list of `number` are wanted."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise UsageError(f"limit: expected a number of pictures, found {limit!r}.")
    if ratio is not None and not 0 <= ratio <= 1:
        raise UsageError(f"ratio: expected a share of the pictures from 0 to 1, found {ratio!r}.")
    wanted = number if ratio is None else int(ratio * number)
    return wanted if limit is None else min(wanted, limit)


class HttpFetcher:
    """Gets the content of http and https addresses, one connection pool per thread.

    Args:
        timeout: Seconds to wait for a connection, and for each piece of the answer.
        total: Seconds for a whole answer.
        max_bytes: Larger answers are refused.
        max_redirects: How often an address may point to another.
        user_agent: How we introduce ourselves.
    """

    def __init__(
        self,
        timeout: float = 20.0,
        total: float = 120.0,
        max_bytes: int = MAX_BYTES,
        max_redirects: int = 5,
        user_agent: str = USER_AGENT,
    ) -> None:
        self.timeout, self.total, self.max_bytes = timeout, total, max_bytes
        self.max_redirects, self.user_agent = max_redirects, user_agent
        self._local = threading.local()
        self._sessions: list[Any] = []
        self._closed = False

    def _session(self) -> Any:
        if not hasattr(self._local, "session"):
            import requests

            session = requests.Session()
            session.max_redirects = self.max_redirects
            # Not encoded: a small answer must not unfold into a large one.
            session.headers.update({"User-Agent": self.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"})
            self._local.session = session
            self._sessions.append(session)
        return self._local.session

    def __call__(self, url: str) -> bytes:
        """The content of an address.

        Raises:
            FetchError: there is none, or it is too large, or takes too long.
        """
        import requests

        errors = requests.exceptions
        try:
            with self._session().get(url, stream=True, timeout=self.timeout) as response:
                self._check(response)
                return self._body(response)
        except (errors.InvalidURL, errors.InvalidSchema, errors.MissingSchema, errors.InvalidHeader, UnicodeError) as error:
            raise FetchError(f"an address that cannot be used ({type(error).__name__})") from None
        except errors.TooManyRedirects:
            raise FetchError(f"more than {self.max_redirects} redirections") from None
        except errors.SSLError:
            raise FetchError("no trustworthy certificate") from None
        except (errors.ChunkedEncodingError, errors.ContentDecodingError):
            raise FetchError("the answer broke off", retry=True) from None
        except errors.Timeout:
            raise FetchError(f"no answer within {self.timeout:g} s", retry=True, answered=False) from None
        except errors.ConnectionError as error:
            if "timed out" in str(error):
                raise FetchError(f"no answer within {self.timeout:g} s", retry=True, answered=False) from None
            cause = error.args[0] if error.args else error
            raise FetchError(
                f"cannot be reached ({type(getattr(cause, 'reason', cause)).__name__})", retry=True, answered=False
            ) from None
        except errors.RequestException as error:
            raise FetchError(f"{type(error).__name__}", retry=True) from None

    def _check(self, response: Any) -> None:
        if response.status_code != 200:
            wait = _retry_after(response.headers.get("Retry-After"))
            reason = f"{response.status_code} {response.reason or ''}".strip()
            raise FetchError(reason, retry=response.status_code in RETRIED_STATUS, wait=wait)
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and int(length) > self.max_bytes:
            raise FetchError(self._too_large)

    @property
    def _too_large(self) -> str:
        return f"more than {self.max_bytes / 1e6:g} MB"

    def _body(self, response: Any) -> bytes:
        body = bytearray()
        until = time.monotonic() + self.total
        for piece in response.iter_content(65_536):
            body += piece
            if len(body) > self.max_bytes:
                raise FetchError(self._too_large)
            if time.monotonic() > until:
                raise FetchError(f"not complete after {self.total:g} s", retry=True)
            if self._closed:
                raise FetchError("stopped")
        return bytes(body)

    def close(self) -> None:
        """Closes all connections."""
        self._closed = True
        for session in self._sessions:
            session.close()


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date); None for none, or for nonsense."""
    if not value:
        return None
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return Retry().parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def to_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """A downloaded picture as an RGB JPEG file: a sound JPEG as it is, everything else decoded, turned upright, laid on white, encoded.

    Raises:
        FetchError: the data are no picture, damaged, or of too many pixels.
    """
    header = picture_header(data)
    if header is None:
        start = data[:24].decode("ascii", "replace").strip()
        kind = "an HTML page" if data.lstrip()[:1] == b"<" else f"it begins with {start!r}" if data else "empty"
        raise FetchError(f"no picture ({kind})")
    kind, width, height = header
    if width * height > max_pixels:
        raise FetchError(f"{width} x {height} pixels; at most {max_pixels / 1e6:.0f} million are allowed")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            upright = image.getexif().get(0x0112, 1) in (0, 1)
            if kind == "JPEG" and image.mode == "RGB" and upright and data.rstrip(b"\0").endswith(b"\xff\xd9"):
                return data
            buffer = io.BytesIO()
            _rgb(ImageOps.exif_transpose(image)).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
            return buffer.getvalue()
    except Exception as error:  # decoders raise many types for damaged data
        reason = str(error).rstrip(".") or type(error).__name__
        raise FetchError(f"a damaged {kind} file ({reason})", retry="truncated" in reason.lower()) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def download_images(
    source: Imaterialist | str | Path | Sequence[Download],
    folder: str | Path | None = None,
    *,
    splits: str | Sequence[str] | None = None,
    fetch: Callable[[str], bytes] | None = None,
    limit: int | None = None,
    ratio: float | None = None,
    retry_failed: bool = False,
    verify: bool = False,
    workers: int = 12,
    per_host: int = 8,
    delay: float = 0.05,
    retries: int = 3,
    backoff: float = 1.0,
    max_wait: float = 120.0,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> FetchReport:
    """Fetches pictures that are not there yet. Dead links do not stop it: they are listed in `failed.csv` (id, url, reason).

    Args:
        source: A dataset, whose splits go to `folder/train`, `folder/validation`, ... as its files are called; a JSON file in
            iMaterialist's format; or a work list, whose paths lie below `folder`.
        folder: Where the pictures go. Default: of a dataset its folder of pictures, of a JSON file the folder beside it of the same
            name without `.json`.
        splits: Splits of the dataset ("validation" is "val"); default all.
        fetch: Gives the content of an address or raises `FetchError`; default a `HttpFetcher`.
        limit, ratio: Only so many pictures, or this share of them, from the beginning of each list.
        retry_failed: Whether to ask again for pictures that are listed as failed.
        verify: Whether to decode the pictures that are there and fetch the damaged ones again; else only their ends are looked at.
        workers: Pictures fetched at a time.
        per_host: Pictures fetched at a time from one host.
        delay: Seconds between two requests to one host.
        retries: Further tries after answers like 500 and 429, and after broken connections.
        backoff: Seconds before the first of them; doubled for each.
        max_wait: Seconds that a host's Retry-After is honoured for.
        max_pixels: Larger pictures are refused before decoding.
        progress: Whether to show a progress bar.

    Raises:
        UsageError: a number out of range; a folder that cannot be written, or in which another download is at work.
        DataError: a broken list; no http or https address in it; a path outside `folder`; a full disk; no network.
    """
    for name, value, low in (("workers", workers, 1), ("per_host", per_host, 1), ("retries", retries, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UsageError(f"{name}: expected a whole number of at least {low}, found {value!r}.")
    for name, seconds in (("delay", delay), ("backoff", backoff), ("max_wait", max_wait)):
        if not 0 <= seconds < float("inf"):
            raise UsageError(f"{name}: expected seconds of at least 0, found {seconds!r}.")
    lists = _work_lists(source, folder, splits, limit, ratio)
    started = time.monotonic()
    report = FetchReport()
    own = HttpFetcher() if fetch is None else None
    manners = _Manners(workers, per_host, delay, retries, backoff, max_wait, max_pixels)
    try:
        for place, work in lists:
            _download(work, place, fetch or own, manners, retry_failed, verify, progress, report)  # type: ignore[arg-type]
    finally:
        if own is not None:
            own.close()
    report.seconds = time.monotonic() - started
    return report


def _work_lists(
    source: Any, folder: str | Path | None, splits: str | Sequence[str] | None, limit: int | None, ratio: float | None
) -> list[tuple[Path, list[Download]]]:
    """Folders and what goes there."""
    if isinstance(source, Imaterialist):
        base = Path(folder) if folder is not None else source.images_root
        wanted = [splits] if isinstance(splits, str) else splits
        names = source._names_of(wanted and [SPLIT_NAMES.get(split, split) for split in wanted])
        places = [base / source.folder_of(split) for split in names]
        return [(p, work_list(source.listed_images(s), p, limit, ratio)) for p, s in zip(places, names, strict=True)]
    if splits is not None:
        raise UsageError("splits: only a dataset has splits; give it as the source.")
    if isinstance(source, (str, Path)):
        place = Path(folder) if folder is not None else Path(source).with_suffix("")
        return [(place, work_list(source, place, limit, ratio))]
    if folder is None:
        raise UsageError("folder: expected the folder of the pictures beside a work list.")
    place = Path(folder)
    work = [Download(Path(path), url) for path, url in source]
    for item in work:
        files.check_id(item.path.stem, "the work list")
        if not item.path.resolve().is_relative_to(place.resolve()):
            raise DataError(f"The work list: {item.path} leads outside {place}.")
    return [(place, work[: _count(len(work), limit, ratio)])]


@dataclass(frozen=True)
class _Manners:
    workers: int
    per_host: int
    delay: float
    retries: int
    backoff: float
    max_wait: float
    max_pixels: int


def _download(
    work: list[Download],
    folder: Path,
    fetch: Callable[[str], bytes],
    manners: _Manners,
    retry_failed: bool,
    verify: bool,
    progress: bool,
    report: FetchReport,
) -> None:
    """One work list into one folder; the results are added to `report`."""
    if work and not any("://" in item.url for item in work):
        raise DataError(
            f"{folder}: none of the {len(work)} urls is an address (the first is {work[0].url!r}). If they are paths, the pictures "
            "are files already: give their folder with --images."
        )
    files.make_out_folder(folder)
    report.folders.append(folder)
    report.wanted += len(work)
    with _alone(folder):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        there = _present(work, folder, verify, progress)
        report.present += len(there)
        failures = _Failures(folder / FAILED_FILE, there)
        todo = [item for item in work if item.path not in there]
        if not retry_failed:
            asked = [item for item in todo if not failures.knows(item)]
            report.known += len(todo) - len(asked)
            todo = asked
        run = _Run(fetch, manners, failures)
        with tqdm(total=len(todo), desc=folder.name, unit="pic", mininterval=0.5, disable=not (progress and todo)) as bar:
            try:
                run.fetch_all(iter(todo), bar)
            finally:
                report.fetched += run.fetched
                report.failed += run.failed
                failures.finish()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one download at a time work in a folder, where the system has locks."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder / ".download.lock", wait=False))
        except BlockingIOError:
            raise UsageError(f"{folder}: another download is at work here. Wait for its end, or stop it.") from None
        yield


def _present(work: Sequence[Download], folder: Path, verify: bool, progress: bool) -> set[Path]:
    """The wanted files that are there and complete."""
    found: dict[Path, Path] = {}
    listings: dict[Path, ImageFolder] = {}
    for parent in {item.path.parent for item in work}:
        if parent.is_dir():
            listings[parent] = ImageFolder(parent)
    for parent, listing in listings.items():
        wanted = {item.path.stem: item.path for item in work if item.path.parent == parent}
        found.update({wanted[stem]: path for stem, path in listing.find_all(wanted).items() if path is not None})
    if verify:
        reasons, _ = check_pictures({str(wanted): path for wanted, path in found.items()}, True, None, progress)
        return {wanted for wanted in found if str(wanted) not in reasons}
    return {wanted for wanted, path in found.items() if _looks_complete(path)}


def _looks_complete(path: Path) -> bool:
    """Whether a file is not empty, and a JPEG has its end."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            end = file.read()
    except OSError:
        return False
    return b"\xff\xd9" in end if path.suffix.lower() in (".jpg", ".jpeg") else size > 0


class _Failures:
    """`failed.csv`: a line as soon as something fails, and the whole list anew at the end.

    Args:
        path: The file.
        there: Files that are there now, whatever was said about them before.
    """

    def __init__(self, path: Path, there: set[Path]) -> None:
        self.path = path
        self.rows: dict[str, FailedDownload] = {}
        got = {"id", *(item.stem for item in there)}
        lines = path.read_text("utf-8", "replace").replace("\0", "").splitlines() if path.is_file() else []
        # A killed run may leave half a line.
        for line in lines:
            with contextlib.suppress(csv.Error):
                row = next(csv.reader([line]), [])
                if len(row) == 3 and row[0] not in got:
                    self.rows[row[0]] = FailedDownload(*row)
        self._file: Any = None

    def knows(self, item: Download) -> bool:
        """Whether this address has failed before."""
        row = self.rows.get(item.path.stem)
        return row is not None and row.url == " ".join(item.url.split())

    def add(self, failure: FailedDownload) -> None:
        """Notes a failure on disk at once."""
        self.rows[failure.id] = failure
        if self._file is None:
            fresh = not self.path.exists()
            # An address may hold half a Unicode character.
            self._file = open(self.path, "a", encoding="utf-8", errors="backslashreplace", newline="")  # noqa: SIM115
            if fresh:
                self._file.write(",".join(FailedDownload._fields) + "\n")
        csv.writer(self._file, lineterminator="\n").writerow(failure)
        self._file.flush()

    def forget(self, image_id: str) -> None:
        """What was fetched, or shall be asked for again."""
        self.rows.pop(image_id, None)

    def finish(self) -> None:
        """Writes the list as it is now, or removes the file if nothing is left."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        with files.atomic_write(self.path, errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(FailedDownload._fields)
            writer.writerows(self.rows.values())


@dataclass
class _Task:
    item: Download
    tries: int = 0


@dataclass
class _Host:
    """What waits for a host, how many requests are on their way, and when the next may start."""

    waiting: deque[_Task] = field(default_factory=deque)
    active: int = 0
    free_at: float = 0.0


class _Run:
    """One pass over a work list. Only the calling thread decides; the workers fetch, decode and write."""

    def __init__(self, fetch: Callable[[str], bytes], manners: _Manners, failures: _Failures) -> None:
        self.fetch, self.manners, self.failures = fetch, manners, failures
        self.fetched = 0
        self.failed: list[FailedDownload] = []
        self._hosts: dict[str, _Host] = {}
        self._later: list[tuple[float, int, _Task]] = []
        self._waiting = 0
        self._number = 0
        # Consecutive pictures whose host did not answer.
        self._silent: list[FailedDownload] = []

    def fetch_all(self, work: Iterator[Download], bar: Any) -> None:
        """Fetches everything, or raises `DataError` where that has become pointless."""
        running: dict[Future[None], tuple[_Host, _Task]] = {}
        pool = ThreadPoolExecutor(self.manners.workers)
        # Set here, once: the filters of `warnings` belong to the process, not to a thread.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                while True:
                    self._refill(work, bar)
                    pause = self._start(pool, running)
                    if not running and pause is None:
                        break
                    if running:
                        done, _ = wait(running, pause, FIRST_COMPLETED)
                    else:
                        time.sleep(pause or 0)
                        done = set()
                    for future in done:
                        host, task = running.pop(future)
                        host.active -= 1
                        self._finished(task, host, future, bar)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _refill(self, work: Iterator[Download], bar: Any) -> None:
        """Takes from the list what keeps the hosts busy."""
        while self._waiting < _WINDOW:
            item = next(work, None)
            if item is None:
                return
            problem = _url_problem(item.url)
            if problem is not None:
                self._fail(item, problem, bar)
            else:
                self._queue(_Task(item))

    def _queue(self, task: _Task, due: float | None = None) -> None:
        self._waiting += 1
        if due is None:
            self._hosts.setdefault(urlsplit(task.item.url).netloc.lower(), _Host()).waiting.append(task)
        else:
            self._number += 1
            heapq.heappush(self._later, (due, self._number, task))

    def _start(self, pool: ThreadPoolExecutor, running: dict[Future[None], tuple[_Host, _Task]]) -> float | None:
        """Starts what may start now. Returns seconds until more may, None if nothing waits for a time."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._waiting -= 1
            self._queue(heapq.heappop(self._later)[2])
        times = [self._later[0][0]] if self._later else []
        for name, host in list(self._hosts.items()):
            if not host.waiting:
                if not host.active and host.free_at <= now:
                    del self._hosts[name]
                continue
            while host.waiting and host.active < self.manners.per_host and host.free_at <= now and len(running) < self.manners.workers:
                task = host.waiting.popleft()
                self._waiting -= 1
                host.active += 1
                host.free_at = now + self.manners.delay
                running[pool.submit(self._work, task.item)] = host, task
            if host.waiting and host.active < self.manners.per_host and len(running) < self.manners.workers:
                times.append(host.free_at)
        return max(0.0, min(times) - now) if times else None

    def _work(self, item: Download) -> None:
        """What a worker does."""
        jpeg = to_jpeg(self.fetch(item.url), self.manners.max_pixels)
        temporary = item.path.with_name(f".{item.path.name}.{os.getpid()}.tmp")
        try:
            item.path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(jpeg)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, item.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise DataError(
                f"{item.path} could not be written: {error.strerror}. Free some space and run the same command again."
            ) from error

    def _finished(self, task: _Task, host: _Host, future: Future[None], bar: Any) -> None:
        error = future.exception()
        if error is None:
            self.fetched += 1
            self._silent.clear()
            self.failures.forget(task.item.path.stem)
            bar.update()
            return
        if isinstance(error, DataError) or not isinstance(error, Exception):
            raise error
        if not isinstance(error, FetchError):
            error = FetchError(f"{type(error).__name__}: {error}")
        now = time.monotonic()
        if error.wait is not None:
            # The host as a whole asks to be left alone, not this picture.
            host.free_at = max(host.free_at, now + min(error.wait, self.manners.max_wait))
        if error.retry and task.tries < self.manners.retries:
            pause = self.manners.backoff * 2**task.tries
            task.tries += 1
            self._queue(task, now + min(pause, self.manners.max_wait))
            return
        failure = self._fail(task.item, error.reason, bar)
        if error.answered:
            self._silent.clear()
            return
        self._silent.append(failure)
        if len(self._silent) >= UNREACHABLE:
            for silent in self._silent:
                self.failures.forget(silent.id)
            raise DataError(
                f"{len(self._silent)} addresses in a row gave no answer, the last one {failure.url}: {failure.reason}. Check the "
                "network and run the same command again; what was fetched is kept."
            )

    def _fail(self, item: Download, reason: str, bar: Any) -> FailedDownload:
        failure = FailedDownload(item.path.stem, " ".join(item.url.split()), " ".join(reason.split()))
        self.failed.append(failure)
        self.failures.add(failure)
        bar.update()
        bar.set_postfix(failed=len(self.failed), refresh=False)
        return failure


def _url_problem(url: str) -> str | None:
    if not url:
        return "no address"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    return None if usable else "not an http or https address"
