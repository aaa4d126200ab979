"""What the street-to-shop verbs do, beside training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import hash_file, make_out_folder, write_json
from tf_fashion.datasets.street_lists import ProductPhoto
from tf_fashion.datasets.street_to_shop import open_street_to_shop
from tf_fashion.models.adapter import load_adapter
from tf_fashion.models.base import load_path
from tf_fashion.reports.udma import original_lines as published_lines
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.embedding import usable
from tf_fashion.training.runs import versions
from tf_fashion.training.street_data import StreetPhotos
from tf_fashion.training.street_evaluation import AdapterEmbedder, measure_tests, open_tests, refresh, summarise_street
from tf_fashion.training.street_results import tests_table, write_street_results


def evaluate_street(
    model_path: str,
    data: str,
    out: str,
    images: str | None = None,
    test: tuple[str, ...] | None = None,
    protocol: str | None = None,
    ap: str | None = None,
    name: str | None = None,
    report: str | None = None,
    original_lines: bool = False,
    batch_size: int = 32,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> str:
    """Measures a `DomainAdapter` with its encoder on test lists, and writes the JSON. See `tf-fashion evaluate street_to_shop --help`.

    Returns:
        The tables, as text.

    Raises:
        UsageError: a model without encoder, no test lists, or a protocol that does not fit them.
        DataError: lists or photos that cannot be read.
    """
    if batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, found {batch_size}.")
    load_path(model_path)
    photos = StreetPhotos(open_street_to_shop(data, images))
    tests = open_tests(photos, test, protocol, ap)
    if not tests:
        raise UsageError(f"{data}: no test lists with consumer and shop photos, so there is nothing to measure.")
    model = load_adapter(model_path)
    if model.image_encoder is None:
        raise UsageError(f"--model {model_path}: it has no image encoder. Take a model of `train street_to_shop` or `adapt`.")
    target = Path(out)
    make_out_folder(target.parent)
    embedder = AdapterEmbedder(model, batch_size)
    paths, bad = photos.paths(["test"], progress)
    table, unreadable = embedder.features_or_problems(paths, progress)
    bad += unreadable
    if bad:
        refuse_or_report(bad, target.parent / "bad_images.csv", skip_bad_images, lambda text: print(text, flush=True))
        photos = photos.without_images([image.id for image in bad])
        tests = refresh(tests, photos)
    paths = usable(paths, bad)

    def embed(entries: list[ProductPhoto]) -> Any:
        return embedder.features(table.values[table.rows([photo.image_id for photo in entries])])

    results = measure_tests(tests, embed)
    shown = name or target.stem
    run = {
        "name": shown,
        "model": str(model_path),
        "model_sha256": hash_file(model_path),
        "data_hash": photos.data_hash(),
        "versions": versions(),
        "left_out": len(bad),
    }
    metrics = summarise_street(results, run)
    write_json(target, metrics)
    if report:
        write_street_results(make_out_folder(report), metrics, tests, embed, paths, shown, f"Measured on {data}.")
    parts = [tests_table(metrics)]
    if original_lines:
        parts += ["\n".join(published_lines(result)) for result in results.values()]
    return "\n\n".join([*parts, f"Written to {target}"])
