"""What several verbs share: kinds of options, groups of options, and how a command is run."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tf_fashion.core.errors import TfFashionError

EPILOG = """\
exit codes: 0 done; 1 something is wrong with the data or a file; 2 the command was used wrongly; 130 interrupted
"""


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps line breaks of descriptions and shows defaults where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def verb(subparsers: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """A parser of one verb, with its summary for the list of verbs and its description for --help."""
    return subparsers.add_parser(name, help=summary, description=description, formatter_class=Help, epilog=EPILOG)


class Option(argparse.Action):
    """Collects NAME=VALUE arguments into a dictionary."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, equals, text = str(values).partition("=")
        if not equals or not name:
            parser.error(f"{option_string}: expected NAME=VALUE, found {values!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


def names(text: str) -> tuple[str, ...]:
    """A,B as a tuple."""
    return tuple(part for part in text.split(",") if part)


def numbers(text: str) -> tuple[float, ...]:
    """1,2 as a tuple of numbers."""
    return tuple(float(part) for part in text.split(",") if part)


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--data`, `--images`, `--categories`."""
    parser.add_argument(
        "--data", required=required, metavar="DIR", help="folder in the layout of FashionIQ, Fashion200k or Shoes, or a catalogue"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not in DATA/images")
    parser.add_argument("--dataset", default="auto", help="how DATA is read (`tf-fashion list datasets`); auto looks at its files")
    parser.add_argument("--categories", type=names, metavar="A,B", help="only these categories (default: all that are found)")


def add_backbone(group: Any) -> None:
    """The image network of a run."""
    add = group.add_argument
    add(
        "--backbone",
        help="image network; `tf-fashion list backbones` names them; saved_model:DIR takes a TF-Hub model or another SavedModel",
    )
    add(
        "--weights",
        metavar="FILE",
        help="pretrained weights of the backbone: a Keras weights file, or 'imagenet' to let Keras fetch its own",
    )
    add("--freeze-backbone", action="store_true", help="do not train the backbone; its features are computed once and cached")
    add("--image-size", type=int, metavar="PIXELS", help="side of the squares that the backbone sees")
    add("--resize", help="how photos become squares: squash (default), pad, crop, target_pad, square_pad")
    add("--interpolation", help="bilinear (default), bicubic, nearest, or bilinear_tf1 as TensorFlow 1 resized")
    add("--taps", type=names, metavar="A,B", help="feature maps that are used: stage1 (fine) ... stage5 (deep), or low, mid, high")
    add("--pooling", help="avg, max, gem or avg_max")
    add(
        "--descriptors",
        type=names,
        metavar="A,B",
        help="weight-free descriptors beside the backbone: colour, shape, colour_layout, texture ('' for none)",
    )


def add_optimizer(group: Any) -> None:
    """Options of optimizer and schedule."""
    add = group.add_argument
    for kind in ("optimizer", "schedule"):
        add(
            f"--{kind}-option",
            dest=f"{kind}_options",
            action=Option,
            metavar="NAME=VALUE",
            help=f"argument of the {kind}'s class, VALUE as JSON or plain text; repeatable",
        )
    add("--ema", type=float, metavar="DECAY", help="use the moving average of the weights, with this decay per step (such as 0.999)")


def add_batches(group: Any) -> None:
    """Steps, rates and augmentation."""
    add = group.add_argument
    add("--steps-per-epoch", type=int, help="shorten the epochs, so that the state is saved more often")
    add("--learning-rate", type=float, help="highest learning rate")
    add("--weight-decay", type=float)
    add("--backbone-factor", type=float, help="factor of the backbone's learning rate")
    add("--flip", action="store_true", default=None, help="mirror training photos at random")
    add(
        "--augment",
        nargs="?",
        const="fashion_iq_2020",
        help="change training photos at random: fashion_iq_2020 (mirror, turn, shift, scale; _legacy: nearest neighbour), clip "
        "(random resized crop), val (mirror, random crop) or val_mirror",
    )


def add_devices(group: Any) -> None:
    """Seed, choice of weights, devices, precision."""
    add = group.add_argument
    add("--seed", type=int, default=0)
    add("--select", default="last", help="which weights are kept: last, or best on the evaluated split (then its number is optimistic)")
    add("--patience", type=int, help="stop after this many epochs without improvement on the evaluated split")
    add("--strategy", default="none", help="none, or mirrored to spread each batch over all GPUs")
    add("--devices", type=names, metavar="A,B", help="devices of the mirrored strategy, such as gpu:0,gpu:1 or cpu:0,cpu:1")
    add("--precision", default="auto", help="auto, float32, mixed_float16, mixed_bfloat16; auto is mixed on GPUs")
    add("--deterministic", action="store_true", help="only operations with repeatable results (slower)")


def add_files(group: Any) -> None:
    """Evaluation during a run, and what it writes."""
    add = group.add_argument
    add("--split", help="split to evaluate (default: val, or test where there is no val)")
    add("--evaluate-every", type=int, default=1, metavar="N", help="evaluate after every Nth epoch")
    add("--cache", metavar="DIR", help="where features of frozen backbones are kept (default: ~/.cache/tf-fashion/features)")
    add(
        "--skip-bad-images",
        action="store_true",
        help="leave out pictures that are missing or unreadable instead of stopping; the result says so",
    )
    add("--overwrite", action="store_true", help="replace another run in --out")
    add("--tensorboard", action="store_true", help="write TensorBoard logs (pip install 'tf-fashion[tensorboard]')")
    add("--no-report", dest="report", action="store_false", help="no sheet.png and report.html")
    add("--no-export", dest="export", action="store_false", help="no SavedModel")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")


def config_of(kind: type, args: argparse.Namespace) -> Any:
    """A configuration (a dataclass) from parsed arguments of the same names."""
    names = {field.name for field in dataclasses.fields(kind)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(args).items() if key in names}
    return kind(**values)


def call(function: Callable[..., Any], args: argparse.Namespace, **renamed: Any) -> Any:
    """Calls what a verb does with its options: each parameter takes the option of its name, or the value given here."""
    wanted = inspect.signature(function).parameters
    unknown = [name for name in renamed if name not in wanted]
    if unknown:
        raise TypeError(f"{function.__name__} has no parameter {unknown[0]!r}")
    given = {name: getattr(args, name) for name in wanted if hasattr(args, name)}
    return function(**{**given, **renamed})


def run_and_explain(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command; turns errors into one readable message and an exit code."""
    try:
        return int(command(args))
    except TfFashionError as error:
        print(f"tf-fashion: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tf-fashion: interrupted. The same command continues where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(
                f"tf-fashion: the disk is full ({error.filename or 'while writing'}). Free some space and run the same command again.",
                file=sys.stderr,
            )
            return 1
        if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            print(f"tf-fashion: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        raise
