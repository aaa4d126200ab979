"""Checkpoints of dirtorch and UDMA: every array bit for bit, the network that they make, its analysis of components."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.dirtorch import DirtorchCheckpoint, load_dirtorch, load_network, read_dirtorch


@checks(r"ckpt")
def ckpt(fixture: Fixture) -> None:
    with np.load(fixture.path / "tiny_arrays.npz", allow_pickle=False) as archive:
        fixture.data = {key: archive[key] for key in archive.files}
    whole = [read_dirtorch(path) for path in sorted(fixture.path.glob("*.pt"))]
    fixture.equal("formats", sorted("zip" in file.path.stem for file in whole), [False, True])
    trained = next(file for file in map(read_dirtorch, sorted(fixture.path.glob("*.t7"))) if file.has_network)
    for file in whole:
        _arrays(fixture, file, trained)
        _network(fixture, file)
    for path in sorted(fixture.path.glob("*.t7")):
        file = read_dirtorch(path)
        part = "df_bl_ckpt" if file.has_network else "mlp_ckpt"
        found = re.search(r"_(\d+)_ckpt$", path.stem)
        assert found is not None
        fixture.equal(f"{part} epoch", file.counters["epoch"], int(found[1]))
        for key in [key for key in fixture.data if key.startswith(f"{part}/")]:
            fixture.exact(key, file.state[key.removeprefix(f"{part}/")], note=path.name)
        if file.has_network:
            network, _ = load_network(file)
            fixture.exact(f"{part}/adpool.p", np.reshape(network.get_layer("adpool").p, (1,)), note="in the network")
        else:
            model, _ = load_dirtorch(path)
            fixture.exact(f"{part}/fc.weight", np.transpose(model.fc.kernel), note="in the adapter")
            fixture.exact(f"{part}/fc.bias", model.fc.bias, note="in the adapter")


def _arrays(fixture: Fixture, file: DirtorchCheckpoint, trained: DirtorchCheckpoint) -> None:
    recorded = [key.removeprefix("state_dict/") for key in fixture.data if key.startswith("state_dict/")]
    fixture.equal("names", list(file.state), recorded)
    for name in recorded:
        key, after = f"state_dict/{name}", trained.state[name]
        if name.startswith("fc.") and not np.array_equal(after, file.state[name]):
            # Recorded after the step of Adam (rate 1e-4) that precedes the second file, and not before it as `out` is.
            fixture.exact(key, after, note=trained.path.name)
            fixture.compare(key, file.state[name], rtol=0, atol=1.01e-4, note=f"{file.path.name}, a step before")
        else:
            fixture.exact(key, file.state[name], note=file.path.name)
        fixture.equal(f"type of {name}", file.state[name].dtype, fixture.data[f"state_dict/{name}"].dtype)
    for name in sorted({key.split("/")[1] for key in fixture.data if key.startswith("pca/")}):
        for part, array in zip(("mean_", "components_", "explained_variance_"), _analysis(file, name), strict=True):
            fixture.exact(f"pca/{name}/{part}", array, note=file.path.name)
    fixture.exact("blocks_per_stage", file.kind.units)
    fixture.exact("stage_planes", file.kind.planes)


def _analysis(file: DirtorchCheckpoint, name: str) -> tuple[np.ndarray, ...]:
    entry = file.pca[name]
    return entry.mean, entry.components, entry.variance


def _network(fixture: Fixture, file: DirtorchCheckpoint) -> None:
    network, _ = load_network(file)
    out = network(tf.transpose(fixture.input("x"), (0, 2, 3, 1)), training=False)["embedding"]
    fixture.compare("out", out, rtol=0, atol=2e-6, note=file.path.name)
    (analysis,) = file.pca.values()
    for key in [key for key in fixture.data if key.startswith("out_whiten_p")]:
        layer = analysis.layer(power=float(key.removeprefix("out_whiten_p")))
        fixture.compare(key, layer(out), rtol=1e-5, atol=2e-6, note=file.path.name)
