"""Pictures of clusters."""

import sys

import numpy as np
import pytest
from PIL import Image

from tf_fashion.clustering.finch import finch
from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.reports import clusters as module
from tf_fashion.reports.clusters import draw_cluster_tree, draw_clusters, project


@pytest.fixture(scope="module")
def two_domains():
    random = np.random.default_rng(0)
    features = random.normal(size=(15, 6))[random.integers(0, 15, 200)] + 0.2 * random.normal(size=(200, 6))
    return features, np.where(random.uniform(size=200) < 0.4, "street $a$", "studio")


@pytest.mark.parametrize("shape", [(50, 6), (6, 50), (5, 1), (1, 4), (2, 2)])
def test_principal_directions(shape):
    features = np.random.default_rng(1).normal(size=shape) * np.linspace(1, 3, shape[1])
    found = project(features)
    left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    expected = np.zeros((shape[0], 2))
    known = min(2, len(values))
    expected[:, :known] = (left * values)[:, :known]
    assert found.shape == (shape[0], 2)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)
    np.testing.assert_array_equal(found, project(features))


def test_clusters_are_drawn(tmp_path, two_domains, monkeypatch):
    features, domains = two_domains
    result = finch(features)
    path = draw_clusters(tmp_path / "a.png", features, result.partition(0), domains, title="$", protocol="two domains")
    with Image.open(path) as image:
        wide = image.size
    with Image.open(draw_clusters(tmp_path / "b.png", features, np.zeros(200, int))) as image:
        assert image.size[0] < wide[0]
    monkeypatch.setattr(module, "_POINTS", 50)
    draw_clusters(tmp_path / "c.svg", features, result.partition(0), domains)
    first = (tmp_path / "c.svg").read_bytes()
    draw_clusters(tmp_path / "c.svg", features, result.partition(0), domains)
    assert (tmp_path / "c.svg").read_bytes() == first


def test_tree_is_drawn(tmp_path, two_domains):
    features, domains = two_domains
    result = finch(features)
    for name, given in (("a.png", domains), ("b.svg", None)):
        assert draw_cluster_tree(tmp_path / name, result.labels, given, title="tree", protocol="p").stat().st_size > 1000
    draw_cluster_tree(tmp_path / "one.png", np.zeros((1, 1), int))


def test_bad_arguments(tmp_path, two_domains, monkeypatch):
    features, domains = two_domains
    labels = np.zeros(200, int)
    with pytest.raises(UsageError, match="not to 'a.pdf'"):
        draw_clusters(tmp_path / "a.pdf", features, labels)
    with pytest.raises(UsageError, match="not to 'a.jpg'"):
        draw_cluster_tree(tmp_path / "a.jpg", labels[:, None])
    with pytest.raises(UsageError, match="one entry per row"):
        draw_clusters(tmp_path / "a.png", features, labels[:5])
    with pytest.raises(UsageError, match="one entry per row"):
        draw_clusters(tmp_path / "a.png", features, labels, domains[:5])
    with pytest.raises(UsageError, match="200 rows"):
        draw_cluster_tree(tmp_path / "a.png", labels[:, None], domains[:5])
    for wrong in (labels, np.zeros((4, 0), int), np.zeros((4, 2))):
        with pytest.raises(UsageError, match="hierarchy must be"):
            draw_cluster_tree(tmp_path / "a.png", wrong)
    with pytest.raises(UsageError, match="Unknown projection 'tsne'"):
        project(features, "tsne")
    with pytest.raises(UsageError, match="must be a matrix"):
        project(labels)
    with pytest.raises(DataError, match="finite"):
        project(np.full((3, 3), np.nan))
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match="umap-learn"):
        project(features, "umap")
    assert list(tmp_path.iterdir()) == []
