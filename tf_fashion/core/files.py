"""Files written whole or not at all, and ids that never leave their folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tf_fashion.core.errors import DataError, UsageError

ID_PATTERN = re.compile(r"^[\w.-]{1,128}$", re.ASCII)


def check_id(image_id: object, where: str) -> str:
    """Returns `image_id` if it is safe as a file name, else raises.

    Args:
        image_id: The id as read from a file.
        where: File (and row) that the id comes from, for the message.

    Raises:
        DataError: not a string, or with characters outside letters, digits, `_`, `.`, `-` (1 to 128 of them), or `.`/`..`.
    """
    if not isinstance(image_id, str):
        raise DataError(f"{where}: expected an image id (a string), found {image_id!r}.")
    if not ID_PATTERN.fullmatch(image_id) or image_id.endswith("\n") or set(image_id) == {"."}:
        raise DataError(
            f"{where}: the image id {image_id!r} is not usable as a file name. Ids have 1 to 128 letters, digits, '_', '.' or '-'."
        )
    return image_id


def path_inside(root: Path, relative: str, where: str) -> Path:
    """Joins `relative` to `root` and refuses results outside `root`.

    Raises:
        DataError: the joined path, links resolved, is not under `root`.
    """
    root = Path(root)
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{where}: the path {relative!r} leads outside {root}.")
    return path


@contextlib.contextmanager
def locked(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a file, which is made if missing, so that one process at a time is inside; where the system has locks.

    Args:
        path: The lock's file. It stays.
        wait: Whether to wait for another process; otherwise `BlockingIOError` is raised.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w", **open_kwargs: Any) -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block ends well.

    If the block raises, nothing is left behind and the former file stays.

    Raises:
        DataError: the disk is full.
    """
    path = Path(path)
    if "b" not in mode:
        open_kwargs.setdefault("encoding", "utf-8")
        open_kwargs.setdefault("newline", "")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, **open_kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        # NumPy reports a short write without an error number.
        if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)):
            raise DataError(f"The disk is full: {path} was not written. Free some space and run the same command again.") from error
        raise


@contextlib.contextmanager
def replaced_file(path: str | Path, suffix: str) -> Iterator[Path]:
    """Gives a temporary name beside `path` to a library that writes files itself; the file takes its place when the block ends well.

    If the block raises, nothing is left behind and the former file stays.

    Args:
        path: The file.
        suffix: Ending of the temporary name, for libraries that insist on one (".weights.h5").

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}.tmp{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # HDF5 tells its whole state; the system's own words are somewhere inside.
            told = re.search(r"error message = '([^']*)'", str(error))
            reason = told[1] if told else error.strerror or str(error) or type(error).__name__
            raise DataError(f"{path} could not be written: {reason}. Free some space and run the same command again.") from error
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinities are refused (`ValueError`)."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8, or not JSON; the message has line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected a JSON file, found a folder.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected JSON in UTF-8, found other bytes at offset {error.start}.") from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply to be read.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}).") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None


def make_out_folder(path: str | Path) -> Path:
    """Creates the folder for results and proves that it can be written.

    Raises:
        UsageError: it cannot be created or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(f"Cannot write to the folder {path}: {error.strerror}. Give another folder with --out.") from None
    return path


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
