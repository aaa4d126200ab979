"""FashionKLIP's evaluation programs: feature files, predictions in both directions, score files and their failures."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.parity.harness import Fixture, checks
from tf_fashion.retrieval.feature_files import read_feature_file, write_feature_file
from tf_fashion.retrieval.predictions import score_files, score_files_original, write_predictions, write_scores

_SIDES = (("text", "query_id"), ("image", "image_id"))


@checks(r"eval")
def clip_eval(fixture: Fixture) -> None:
    features = {
        side: next((fixture.path / "features").glob(f"*.{short}_feat.jsonl")) for side, short in (("text", "txt"), ("image", "img"))
    }
    files = {side: read_feature_file(features[side], key) for side, key in _SIDES}  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        for side, key in _SIDES:
            path = write_feature_file(Path(folder) / "again.jsonl", files[side].ids, files[side].values, key)  # type: ignore[arg-type]
            fixture.equal(f"features/{features[side].name}", _lines(path), _lines(features[side]))
        for case in sorted(p for p in fixture.path.iterdir() if p.is_dir() and p.name != "features"):
            _case(fixture, case, files, Path(folder))


def _case(fixture: Fixture, case: Path, files: dict[str, Any], folder: Path) -> None:
    args = json.loads((case / "args.json").read_text())
    for (side, key), other in zip(_SIDES, ("image", "text"), strict=True):
        path = folder / "predictions.jsonl"
        found = write_predictions(
            path,
            key,  # type: ignore[arg-type]
            files[side],
            files[other],
            args["top_k"],
            block=args["eval_batch_size"],
        )
        recorded = case / f"{side}_predictions.jsonl"
        if recorded.exists():
            fixture.equal(f"{case.name}/{recorded.name}", _lines(path), _lines(recorded))
        truth = case / f"{side}_standard.jsonl"
        output = case / f"{side}_output.json"
        scores = score_files_original(truth, found, key)  # type: ignore[arg-type]
        write_scores(folder / "output.json", scores)
        expected = json.loads(output.read_text())
        _same_output(fixture, f"{case.name}/{output.name}", json.loads((folder / "output.json").read_text()), expected)
        readable, _ = score_files(truth, path, key, original_ids=True)  # type: ignore[arg-type]
        _same_numbers(fixture, f"{case.name}/{output.name} with readable errors", readable, expected)


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _same_output(fixture: Fixture, key: str, ours: dict[str, Any], recorded: dict[str, Any]) -> None:
    fixture.equal(f"{key} (keys)", [list(ours), list(ours["scoreJson"])], [list(recorded), list(recorded["scoreJson"])])
    _same_numbers(fixture, key, ours, recorded)
    # The words of the JSON parser's messages change with the Python version.
    if "errorMsg" in recorded and "line" not in str(recorded["errorMsg"]):
        fixture.equal(f"{key} (message)", [ours["errorMsg"], ours["errorDetail"]], [recorded["errorMsg"], recorded["errorDetail"]])


def _same_numbers(fixture: Fixture, key: str, ours: dict[str, Any], recorded: dict[str, Any]) -> None:
    fixture.equal(f"{key} (success)", ours["success"], recorded["success"])
    numbers = [[value["score"], *value["scoreJson"].values()] for value in (ours, recorded)]
    fixture.close(key, *numbers, rtol=0.0, atol=1e-9)
