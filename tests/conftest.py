"""Two logical CPU devices for the whole suite, so that distribution is tested on every machine."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line has it

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    """The strategy with one replica on each of the two logical CPUs.

    One for the whole process: a second one would number its collective operations from 1 again, and TensorFlow refuses them.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    import keras

    keras.utils.set_random_seed(7)
