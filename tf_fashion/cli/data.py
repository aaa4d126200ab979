"""Verbs that look after files: data, weights, list."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tf_fashion.cli.options import (
    verb,
)
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json
from tf_fashion.core.quiet import import_tensorflow_quietly

# Checkpoints that become a model (.keras) and not weights for a backbone.
WHOLE_MODELS = ("imaterialist", "dirtorch")


def add_data(data: Any) -> None:
    """`data check`, `data draw`, `data prepare`."""
    check = verb(
        data,
        "check",
        "what is missing or wrong in a dataset",
        "Reads a dataset's files, opens every picture, and lists what is wrong: missing and unreadable pictures by name, captions of\n"
        "the wrong type, ids that leave the folder, empty categories. Exit code 1 if there are errors.",
    )
    check.add_argument("folder", metavar="DIR")
    check.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not in DIR/images")
    check.add_argument("--kind", default="auto", help="name of the layout (`tf-fashion list datasets`); auto looks")
    check.add_argument("--no-decode", dest="decode", action="store_false", help="read the headers of the pictures only")
    check.add_argument("--limit", type=int, default=10, metavar="N", help="problems of one kind to print")
    check.add_argument("--csv", metavar="FILE", help="write all problems to this file")
    check.set_defaults(run=_data_check)
    draw = verb(
        data,
        "draw",
        "draw a wardrobe: a dataset made on the spot, without downloads",
        "Draws pictures of garments and writes truthful modification sentences, in FashionIQ's layout or another. The same\n"
        "arguments give the same files. An interrupted drawing is continued by the same command.",
    )
    draw.add_argument("folder", metavar="DIR")
    draw.add_argument(
        "--layout",
        default="fashion_iq",
        help="of the files beside the pictures: fashion_iq, fashion200k, shoes, fashion_gen, imaterialist or street_to_shop",
    )
    draw.add_argument("--items", type=int, default=3600, help="pictures over all categories and splits")
    draw.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(run=_data_draw)

    prepare = verb(
        data,
        "prepare",
        "write the intermediate files that the released VAL programs read",
        "Writes caption pairs, tags and ground-truth matrices of FashionIQ, Shoes or Fashion200k as the original's generators do,\n"
        "byte for byte. tf-fashion itself reads the annotations directly and needs none of them.",
    )
    prepare.add_argument("folder", metavar="DIR")
    prepare.add_argument("--out", required=True, metavar="DIR", help="takes the place of the original's folder datasets/")
    prepare.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not in DIR's own place")
    prepare.add_argument("--dataset", default="auto", help="fashion_iq, shoes or fashion200k; auto looks at the files")
    prepare.add_argument("--prefix", default="datasets/", help="what stands before the paths of Shoes")
    prepare.set_defaults(run=_data_prepare)


def add_weights(verbs: Any) -> None:
    """`weights convert`, `weights list`."""
    weights = verb(verbs, "weights", "pretrained weights", "Look after pretrained weights.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    convert = verb(
        weights,
        "convert",
        "a published checkpoint becomes a weights file for --weights",
        "Converts a checkpoint of TensorFlow 1 (TF-slim) or of torchvision (.pth, .pt, .safetensors; PyTorch is not needed and\n"
        "nothing in the file is executed) into a Keras weights file and reports every variable: used, left aside and why, missing.\n"
        "`tf-fashion weights list` says where checkpoints are published; unpack TF-slim's archives first.\n\n"
        "  tf-fashion weights convert resnet50-0676ba61.pth --to torch_resnet50 --out torch_resnet50.weights.h5\n"
        "  tf-fashion weights convert AttrPredModel.ckpt --to imaterialist --out predictor.keras\n"
        "  tf-fashion weights convert mobilenet_v1_1.0_224.ckpt --to slim_mobilenet_v1 --out slim_mobilenet_v1.weights.h5\n"
        "  tf-fashion train composed --backbone slim_mobilenet_v1 --weights slim_mobilenet_v1.weights.h5 --data DIR --out DIR",
    )
    convert.add_argument("source", metavar="SRC", help="the file; of TF-slim's: what precedes .index and .data-00000-of-00001")
    convert.add_argument(
        "--to",
        required=True,
        metavar="NAME",
        help="network of the checkpoint: `weights list` shows them; whole models (.keras): imaterialist, the published attribute "
        "predictor, and dirtorch, Resnet101-TL-GeM and UDMA's checkpoints",
    )
    convert.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="file to write, ending in .weights.h5 (whole models: .keras); an older one is replaced",
    )
    convert.add_argument("--label-map", metavar="CSV", help="imaterialist: its labels (default: the competition's 228)")
    convert.add_argument("--ema", action="store_true", help="take the moving averages of the weights, where the checkpoint has them")
    convert.add_argument("--all", dest="everything", action="store_true", help="print every name, not only the first of each kind")
    convert.set_defaults(run=_weights_convert)
    published = verb(
        weights,
        "list",
        "what is published where",
        "Lists published weights: their address, licence and SHA-256, and how to use them. Nothing is downloaded.",
    )
    published.add_argument("--manifest", metavar="FILE", help="the list to read (default: pretrained/manifest.json)")
    published.set_defaults(run=_weights_list)


def add_list(verbs: Any) -> None:
    """`list`."""
    listing = verb(verbs, "list", "names that other verbs take", "Lists what can be named elsewhere.")
    listing.add_argument(
        "kind", choices=("backbones", "composers", "datasets", "losses", "multilabel-losses", "presets", "protocols", "text-encoders")
    )
    listing.set_defaults(run=_list)


def _data_check(args: argparse.Namespace) -> int:
    from tf_fashion.datasets import check_tree

    report = check_tree(args.folder, args.images, kind=args.kind, decode=args.decode, progress=sys.stderr.isatty())
    print(report.format(limit=args.limit))
    if args.csv:
        report.write(args.csv)
    return 0 if report.ok else 1


def _data_draw(args: argparse.Namespace) -> int:
    from tf_fashion.datasets.wardrobe import draw_wardrobe

    root = draw_wardrobe(args.folder, items=args.items, seed=args.seed, size=args.size, layout=args.layout)
    print(f"The wardrobe is in {root}. Look at it with: tf-fashion data check {root}")
    return 0


def _data_prepare(args: argparse.Namespace) -> int:
    from tf_fashion.core.files import make_out_folder
    from tf_fashion.datasets import open_composed
    from tf_fashion.datasets.val_files import prepare

    dataset = open_composed(args.folder, args.images, name=args.dataset)
    out = make_out_folder(args.out)
    print("\n".join([*prepare(dataset, out, args.prefix), f"The files are in {out}."]))
    return 0


def _weights_convert(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.checkpoints import convert_weights
    from tf_fashion.checkpoints.dirtorch import convert_dirtorch
    from tf_fashion.checkpoints.imaterialist import convert_imaterialist

    if args.to in WHOLE_MODELS and args.ema:
        raise UsageError("--ema: checkpoints of PyTorch hold no moving averages beside the weights. Leave it out.")
    if args.to == "imaterialist":
        report = convert_imaterialist(args.source, args.out, args.label_map)
        use = f"predict attributes PHOTOS --model {args.out}"
    elif args.to == "dirtorch":
        report = convert_dirtorch(args.source, args.out)
        use = "tf_fashion.models.load_adapter"
    else:
        report = convert_weights(args.source, args.to, args.out, args.ema)
        use = f"{'train dual --clip SIZES.json' if args.to == 'clip' else f'--backbone {args.to}'} --weights {args.out}"
    print(report.format(limit=None if args.everything else 8))
    print(f"The weights are in {args.out}. Use them with: {use}")
    return 0


def _weights_list(args: argparse.Namespace) -> int:
    manifest = Path(__file__).resolve().parents[2] / "pretrained" / "manifest.json"
    path = Path(args.manifest) if args.manifest else manifest
    if not args.manifest and not manifest.is_file():
        path = Path("pretrained/manifest.json")
        if not path.is_file():
            raise UsageError("pretrained/manifest.json is not part of this installation. Name the file with --manifest FILE.")
    entries = read_json(path)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError(f"{path}: expected a JSON object of objects (name -> source, licence, sha256, use).")
    for name, entry in entries.items():
        print(name)
        for key, value in entry.items():
            if key == "sha256" and value is None:
                value = "not verified"
            print(f"  {key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.kind == "protocols":
        from tf_fashion.retrieval.dual_protocol import DUAL_PROTOCOLS
        from tf_fashion.retrieval.multi_positive import STREET_PROTOCOLS
        from tf_fashion.retrieval.protocol import PROTOCOLS

        print("\n".join(PROTOCOLS.get(name).describe() for name in PROTOCOLS))
        print("\n".join(DUAL_PROTOCOLS.get(name).describe() for name in DUAL_PROTOCOLS))
        print("\n".join(protocol.describe() for protocol in STREET_PROTOCOLS.values()))
        return 0
    if args.kind == "presets":
        from tf_fashion.training.presets import ADAPT_PRESETS, ATTRIBUTE_PRESETS, DUAL_PRESETS, PRESETS, STREET_PRESETS

        trained = {"composed": PRESETS, "dual": DUAL_PRESETS, "attributes": ATTRIBUTE_PRESETS, "street_to_shop": STREET_PRESETS}
        for verb, presets in (*((f"train {kind}", found) for kind, found in trained.items()), ("adapt", ADAPT_PRESETS)):
            print(f"{verb}:")
            for name, values in presets.items():
                print(f"  {name}: " + ", ".join(f"{key}={value}" for key, value in values.items()))
        return 0
    import importlib

    if args.kind != "datasets":
        import_tensorflow_quietly()
    places = {
        "backbones": ("encoders.image", "BACKBONES"),
        "composers": ("composers", "COMPOSERS"),
        "datasets": ("datasets", "DATASETS"),
        "losses": ("losses", "LOSSES"),
        "multilabel-losses": ("losses", "MULTILABEL_LOSSES"),
        "text-encoders": ("encoders.text", "TEXT_ENCODERS"),
    }
    module, registry = places[args.kind]
    print("\n".join(getattr(importlib.import_module(f"tf_fashion.{module}"), registry)))
    return 0
