"""Verbs for models of every kind: embed, search, export."""

from __future__ import annotations

import argparse
from typing import Any

from tf_fashion.cli.dual import add_pair_data
from tf_fashion.cli.options import call, names, verb
from tf_fashion.core.errors import UsageError
from tf_fashion.core.quiet import import_tensorflow_quietly


def add_embed(verbs: Any) -> None:
    """`embed`."""
    embed = verb(
        verbs,
        "embed",
        "embed photos into an index, or photos and texts into feature files",
        "With a model of `train composed` or a domain adapter: embeds every photo of a folder (or of a catalogue with a CSV) and\n"
        "writes an index that `search` reads. Photos that are in the index already are not embedded again.\n\n"
        "With `dual` and a model of `train dual`: embeds pictures and texts into files that `predict retrieval` and `evaluate dual`\n"
        "read: images.img_feat.npz and texts.txt_feat.npz, or .jsonl in FashionKLIP's format. The same command continues an\n"
        "interrupted one; bad pictures are listed at the end, and what was computed is kept until they are repaired.\n\n"
        "  tf-fashion embed --model runs/first/model.keras --images photos --out index\n"
        "  tf-fashion embed dual --model runs/a/model.keras --data fashion_gen --split val --format jsonl --out features\n"
        "  tf-fashion embed dual --model runs/a/model.keras --images photos --texts shop.csv:description --out features",
    )
    add = embed.add_argument
    add("what", nargs="?", default="composed", choices=("composed", "dual"), help="kind of the model (composed: adapters too)")
    add("--model", required=True, metavar="FILE", help="model.keras of a training run")
    add_pair_data(embed.add_argument_group("what is embedded (composed: --images)").add_argument)
    add("--out", required=True, metavar="DIR", help="folder of the index or of the feature files")
    add("--split", help="dual: only this split of DATA (default: all)")
    add("--texts", metavar="FILE", help="dual: .jsonl with query_id and query_text, CSV[:COLUMN], or .txt with one text per line")
    add("--format", type=names, metavar="A,B", help="dual: npz (default), jsonl, or both as npz,jsonl")
    add("--dtype", default="float32", choices=("float32", "float16"), help="dual: of the .npz files")
    add("--batch-size", type=int, default=32, help="dual: pictures at a time")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures (bad_images.csv lists them)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    embed.set_defaults(run=_embed)


def add_search(verbs: Any) -> None:
    """`search`."""
    search = verb(
        verbs,
        "search",
        "search a folder by words, by a photo, or by a photo and a sentence",
        "With a model of `train composed`, a photo and a sentence that says what should be different:\n"
        '  tf-fashion search --model model.keras --gallery photos --photo dress.jpg --text "is red and longer" --sheet found.png\n\n'
        "With a model of `train dual`, words, a photo, or the sum of both:\n"
        '  tf-fashion search --model dual.keras --gallery photos --text "a red summer dress" --sheet found.png\n\n'
        "With a domain adapter (street to shop), a photo alone:\n"
        "  tf-fashion search --model adapter.keras --gallery shop --photo street.jpg --sheet found.png",
    )
    search.add_argument("--model", required=True, metavar="FILE", help="model.keras of a training run")
    where = search.add_mutually_exclusive_group(required=True)
    where.add_argument("--gallery", metavar="DIR", help="folder of photos to search")
    where.add_argument("--index", metavar="PATH", help="what `tf-fashion embed` wrote (`embed dual`: its file of images)")
    search.add_argument("--photo", metavar="FILE", help="the reference photo (dual and adapter: find alike ones)")
    search.add_argument("--text", default="", help="what should be different (with a model of `train dual`: what is wanted)")
    search.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="TEXT",
        help="what should be different about the best picture found; repeatable: each is one more turn of the search",
    )
    search.add_argument("--memory", type=float, default=0.5, help="weight of a turn relative to the next one; 0 forgets earlier wishes")
    search.add_argument("--top", type=int, default=8, metavar="K", help="how many to find")
    search.add_argument("--sheet", metavar="FILE", help="write a picture of the query and what was found (.png)")
    search.add_argument("--skip-bad-images", action="store_true", help="leave out unusable pictures of the gallery")
    search.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    search.set_defaults(run=_search)


def add_export(verbs: Any) -> None:
    """`export`."""
    export = verb(
        verbs,
        "export",
        "write a SavedModel or an ONNX file for serving",
        "Writes a SavedModel, whose signatures take `image_bytes` (and `text`): decoding, resizing and tokenising are inside. Or the\n"
        "picture side as an ONNX file (extra `onnx`), which takes pixels `images` float32 (batch, side, side, 3), RGB in 0..255, and\n"
        "is compared with the model by onnxruntime before it is written.\n\n"
        "  tf-fashion export --model runs/a/model.keras --out served/1\n"
        "  tf-fashion export --model runs/attributes/model.keras --out attributes.onnx --format onnx",
    )
    add = export.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of a training run")
    add("--out", required=True, metavar="PATH", help="folder of the SavedModel (for TensorFlow Serving: MODEL/1), or the .onnx file")
    add("--format", default="saved_model", choices=("saved_model", "onnx"))
    add(
        "--layout",
        default="pixels",
        choices=("pixels", "original"),
        help="onnx: pixels, or as the published iMaterialist predictor has it: `input` (batch, 3, side, side), already scaled, and "
        "logits as `output`",
    )
    export.set_defaults(run=_export)


def _embed(args: argparse.Namespace) -> int:
    if args.what == "composed":
        given = [f"--{name}" for name in ("data", "split", "texts") if getattr(args, name) is not None]
        if given:
            raise UsageError(f"{', '.join(given)}: only for models of `train dual`. Say: tf-fashion embed dual ...")
        if args.images is None:
            raise UsageError("--images is missing: the folder of photos.")
    import_tensorflow_quietly()
    if args.what == "composed":
        from tf_fashion.training.commands import embed_folder

        index = call(embed_folder, args, model_path=args.model)
        print(f"{len(index)} photos are in the index {args.out}")
        return 0
    from tf_fashion.training.dual_commands import embed_dual

    written = call(embed_dual, args, dataset_name=args.dataset, formats=args.format or ("npz",))
    print("Written:", *map(str, written), sep="\n  ")
    return 0


def _search(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.commands import search_folder

    print(call(search_folder, args, model_path=args.model, index_folder=args.index))
    return 0


def _export(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.commands import export_model

    print(call(export_model, args, model_path=args.model))
    return 0
