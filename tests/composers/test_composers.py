"""All composers against the contract; the parity checks compare their numbers with the originals'."""

import keras
import numpy as np
import pytest

from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.composers import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.testing.contracts import run_composer_test

EQUAL_WIDTHS = {"sum", "text_only", "combiner"}
OPTIONS = {"compose_ae": {"conv_channels": 4}}


@pytest.mark.parametrize("name", sorted(COMPOSERS))
def test_contract(name):
    run_composer_test(COMPOSERS.get(name), OPTIONS.get(name), text_dim=None if name in EQUAL_WIDTHS else 5)


def test_scalars():
    composer = run_composer_test(COMPOSERS.get("tirg"), {"initial_scalars": (0.5, 2.0), "trainable_scalars": False})
    np.testing.assert_allclose(composer.scalars, [0.5, 2.0])
    assert all("scalars" not in v.path for v in composer.trainable_variables)
    with pytest.raises(UsageError, match="two numbers"):
        COMPOSERS.get("tirg")(initial_scalars=(1.0,))


def test_val_options_and_levels():
    val = COMPOSERS.get("val")
    options = {"activation": "relu6", "gate_activation": False, "spatial_kernel": 3, "heads": 4, "initial_weights": [0.0, 1.0]}
    run_composer_test(val, {"attention": options}, text_dim=5)
    maps = [np.ones((2, 4, 4, 8), np.float32), np.ones((2, 2, 3, 16), np.float32)]
    composer = val()
    composer.build([x.shape for x in maps], (2, 5))
    assert [x.shape for x in composer(maps, np.ones((2, 5), np.float32))] == [x.shape for x in maps]
    with pytest.raises(UsageError, match="feature maps"):
        val()(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match="heads"):
        val({"heads": 3})(maps[0], np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("name", sorted(EQUAL_WIDTHS))
def test_unequal_widths(name):
    with pytest.raises(UsageError, match="Set the text encoder's `dim` to 4"):
        COMPOSERS.get(name)()(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("name", ["tirg_lastconv", "film"])
def test_spatial_composers_need_a_map(name):
    with pytest.raises(UsageError, match="feature maps"):
        COMPOSERS.get(name)()(np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32))


def test_contract_catches_a_broken_composer():
    @COMPOSERS.register("broken_for_a_test")
    @keras.saving.register_keras_serializable("tests")
    class Broken(Composer):
        def call(self, image, text, training=None):
            return image * keras.ops.mean(text)

    try:
        with pytest.raises(AssertionError, match="depends on its batch"):
            run_composer_test(Broken)
    finally:
        del COMPOSERS._entries["broken_for_a_test"]


@pytest.mark.parametrize("name", ["tirg", "tirg_nashory", "tirg_lastconv", "concat"])
def test_recorded_numbers(name):
    import tests.parity.checks.composers  # noqa: F401

    fixture = run_file(shared(f"golden/fashioniq2020/composer_{name}.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
    assert fixture.uncovered() == {}
