"""Tables and pictures of pseudo-labels."""

import numpy as np
import pytest

from tf_fashion.clustering.meta_domains import Lists, PseudoLabels
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports.udma import draw_weights, weights_table


def labels(strategy, weights, lists):
    own = Lists.of([[0], [1], [2]])
    return PseudoLabels(strategy, np.zeros(3, int), np.arange(3), own, own, Lists.of(lists), np.array(weights, np.float32))


def test_weights(tmp_path):
    found = {"ws5": labels("ws5", [1, 1, 1], [[4, 5], [], [6]]), "soft": labels("soft", [0.2, 0.7], [[4], [4], []])}
    table = weights_table(found)
    assert table.splitlines()[2].split() == ["ws5", "3", "2", "3", "3", "1.00"] and table.splitlines()[3].split()[-1] == "0.45"
    for name in ("a.png", "a.svg"):
        path = draw_weights(found, tmp_path / name, {"ws5": np.array([0.3, 0.9, -0.1])}, "title")
        again = path.read_bytes()
        assert len(again) > 5000 and draw_weights(found, path, {"ws5": np.array([0.3, 0.9, -0.1])}, "title").read_bytes() == again
    with pytest.raises(UsageError, match=".png or .svg"):
        draw_weights(found, tmp_path / "a.gif")
    with pytest.raises(UsageError, match="nothing to draw"):
        draw_weights({"ws5": labels("ws5", [], [[], [], []])}, tmp_path / "a.png")
    with pytest.raises(DataError, match="no pseudo-labels"):
        weights_table({})
