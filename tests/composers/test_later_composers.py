"""RTIC, MRN, FiLM, ComposeAE and the Combiner: what their contract and recorded numbers do not show."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.composers import COMPOSERS
from tf_fashion.core.errors import UsageError
from tf_fashion.testing.contracts import run_composer_test


def features(rows=4, dim=8, text_dim=8, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, dim)).astype(np.float32), random.normal(size=(rows, text_dim)).astype(np.float32)


def test_rtic_options():
    for blocks, slope in ((0, 0.01), (1, 0.2)):
        composer = run_composer_test(COMPOSERS.get("rtic"), {"blocks": blocks, "slope": slope}, dim=6, text_dim=3)
        assert len(composer.encoders) == blocks
    with pytest.raises(UsageError, match="blocks"):
        COMPOSERS.get("rtic")(blocks=-1)


def test_rtic_gate_chooses():
    image, text = features()
    composer = COMPOSERS.get("rtic")(blocks=2)
    composer(image, text)
    composer.gate_out.kernel.assign(np.zeros((8, 8)))
    composer.gate_out.bias.assign(np.full(8, 50.0))
    np.testing.assert_allclose(composer(image, text), image, rtol=1e-6)
    composer.gate_out.bias.assign(np.full(8, -50.0))
    np.testing.assert_allclose(composer(image, text), composer.branches(image, text)[1], rtol=1e-6)


def test_mrn_without_an_image_keeps_the_shortcut():
    image, text = features(text_dim=5)
    composer = COMPOSERS.get("mrn")(dropout=0.3)
    composer(image, text)
    composer.image_out.kernel.assign(np.zeros((8, 8)))
    wanted = text @ composer.shortcut.kernel.numpy() + composer.shortcut.bias.numpy()
    np.testing.assert_allclose(composer(image, text), wanted, rtol=1e-5, atol=1e-6)


def test_film_by_hand():
    random = np.random.default_rng(3)
    maps, text = random.normal(size=(2, 3, 5, 4)).astype(np.float32), random.normal(size=(2, 6)).astype(np.float32)
    composer = COMPOSERS.get("film")(blocks=1)
    composer(maps, text)
    # A 3x3 kernel that only passes its middle on makes the block an affair of single places.
    kernel = np.zeros((3, 3, 4, 4), np.float32)
    kernel[1, 1] = random.normal(size=(4, 4))
    composer.spread[0].kernel.assign(kernel)
    composer.norms[0].set_weights([random.normal(size=4), random.uniform(0.5, 2.0, 4)])
    mean, variance = composer.norms[0].get_weights()
    r = np.maximum(maps @ composer.pointwise[0].kernel.numpy()[0, 0] + composer.pointwise[0].bias.numpy(), 0.0)
    scale, shift = np.split((text @ composer.modulation.kernel.numpy() + composer.modulation.bias.numpy())[:, None, None], 2, axis=-1)
    normed = (r @ kernel[1, 1] - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(composer(maps, text), np.maximum(scale * normed + shift, 0.0) + r, rtol=1e-4, atol=1e-5)


def test_film_options():
    maps, text = np.ones((2, 3, 5, 4), np.float32), np.ones((2, 6), np.float32)
    composer = COMPOSERS.get("film")(blocks=3, legacy_padding=True)
    assert composer(maps, text).shape == composer.compute_output_shape(maps.shape, text.shape) == (2, 9, 11, 4)
    with pytest.raises(UsageError, match="blocks"):
        COMPOSERS.get("film")(blocks=0)


def test_combiner_mixes():
    image, text = features()
    composer = COMPOSERS.get("combiner")()
    composer(image, text)
    assert (composer.text_projection.units, composer.mixture_hidden.units) == (32, 64)
    share, learned = composer.branches(*composer.projections(image, text))
    assert share.shape == (4, 1) and ((share > 0) & (share < 1)).numpy().all()
    np.testing.assert_allclose(composer(image, text), learned + share * text + (1 - share) * image, rtol=1e-5, atol=1e-6)
    run_composer_test(COMPOSERS.get("combiner"), {"projection_width": 3, "hidden_width": 5, "dropout": 0.1})


def compose_ae(**options):
    composer = COMPOSERS.get("compose_ae")(conv_channels=4, dropout=0.0, **options)
    composer.build((None, 8), (None, 5))
    return composer


def test_compose_ae_turns_back():
    image, text = features(text_dim=5)
    composer = compose_ae()
    forward, back = composer(image, text).numpy(), composer.reverse(image, text).numpy()
    assert np.abs(forward - back).max() > 1e-3
    legacy = compose_ae(legacy_conjugate=True)
    legacy.set_weights(composer.get_weights())
    np.testing.assert_allclose(legacy(image, text), back, rtol=1e-6)
    np.testing.assert_allclose(legacy.reverse(image, text), back, rtol=1e-6)
    # An angle and its negative are conjugate.
    for path in ("linear", "conv"):
        angle = getattr(composer, f"{path}_angle").out
        angle.set_weights([-x for x in angle.get_weights()])
    composer.scalars.assign([0.0, 10.0])  # the angle itself is a channel of the convolution
    legacy.scalars.assign([0.0, 10.0])
    np.testing.assert_allclose(composer(image, text), legacy(image, text), rtol=1e-5, atol=1e-5)


def test_compose_ae_reconstructs():
    image, text = features(text_dim=5)
    composer = compose_ae(image_weight=0.5, text_weight=2.0)
    query = composer(image, text, training=True)
    losses = [float(x) for x in composer.losses]
    again = composer.reconstructions(query, training=True)
    wanted = [0.5 * np.mean((again[0] - image) ** 2), 2.0 * np.mean((again[1] - text) ** 2)]
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    composer(image, text, training=False)
    assert composer.losses == []
    bare = compose_ae(image_weight=0.0, text_weight=0.0)
    bare(image, text, training=True)
    assert bare.losses == [] and not [v for v in bare.variables if "decoder" in v.path]
    with pytest.raises(UsageError, match="weight 0"):
        bare.reconstructions(query)
    run_composer_test(COMPOSERS.get("compose_ae"), {"conv_channels": 2, "image_weight": 0.0, "text_weight": 0.0}, dim=6, text_dim=3)


def test_compose_ae_sizes():
    with pytest.raises(UsageError, match="even divisors of 80"):
        COMPOSERS.get("compose_ae")().build((None, 40), (None, 8))
    with pytest.raises(UsageError, match="even number"):
        COMPOSERS.get("compose_ae")(conv_channels=5)
    with pytest.raises(UsageError, match="two numbers"):
        COMPOSERS.get("compose_ae")(initial_scalars=(1.0,))


@keras.saving.register_keras_serializable("tests")
class OnlyAddedLosses(keras.Model):
    def __init__(self):
        super().__init__()
        self.composer = compose_ae()
        self.built = True

    def call(self, inputs, training=None):
        return self.composer(inputs["image"], inputs["text"], training=training)

    def _maybe_symbolic_build(self, *args, **kwargs):
        return

    def compute_loss(self, *args, **kwargs):
        return sum(self._aggregate_additional_loss(loss) for loss in self.losses)


@pytest.mark.slow
def test_added_losses_train_alike_on_two_replicas(mirrored):
    image, text = features(16, text_dim=5)
    losses = []
    for strategy in (None, mirrored):
        keras.utils.set_random_seed(1)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = OnlyAddedLosses()
            model.compile(keras.optimizers.SGD(0.1))
            model.optimizer.build(model.trainable_variables)
        data = tf.data.Dataset.from_tensors(({"image": image, "text": text}, np.zeros(16)))
        losses.append(model.fit(data, epochs=5, verbose=0, shuffle=False).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("name", ["composer_rtic", "composer_mrn", "composer_film", "composer_compose_ae", "clip4cir_combiner"])
def test_recorded_numbers(name):
    import tests.parity.checks.composers_rtic  # noqa: F401

    fixture = run_file(shared(f"golden/fashioniq2020/{name}.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
    assert fixture.uncovered() == {}
