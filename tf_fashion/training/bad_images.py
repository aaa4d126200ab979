"""What every command does about pictures that cannot be used: list them, and stop or go on without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tf_fashion.core.errors import DataError
from tf_fashion.inputs.audit import BadImage, write_bad_images

SHOWN = 10


def refuse_or_report(bad: Sequence[BadImage], listed_in: Path, skip: bool, say: Callable[[str], None] = print) -> None:
    """Writes `bad_images.csv` and either stops or says what is left out; does nothing if there are none.

    Args:
        bad: The unusable pictures.
        listed_in: The CSV file.
        skip: Whether to go on without them.
        say: Prints a message.

    Raises:
        DataError: `skip` is off.
    """
    if not bad:
        return
    write_bad_images(listed_in, bad)
    lines = "\n".join(f"  {image.path}: {image.reason}" for image in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    message = f"Pictures that cannot be used: {len(bad)} (all are listed in {listed_in}):\n{lines}{more}"
    if not skip:
        raise DataError(f"{message}\nRepair or replace them, or pass --skip-bad-images to go on without them; the result will say so.")
    say(message)
