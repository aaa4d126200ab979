"""Pictures of different sizes in one batch."""

import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.padding import pad_batch


@pytest.mark.parametrize("sizes", [[(5, 7), (8, 4), (6, 6)], [(3, 3)], [(1, 9), (9, 1)]])
def test_pictures_lie_in_the_middle(sizes):
    images = [np.random.default_rng(number).normal(size=(*size, 3)).astype(np.float32) for number, size in enumerate(sizes)]
    height, width = np.max(sizes, axis=0)
    expected = np.full((len(sizes), height, width, 3), 0.5, np.float32)
    for place, (rows, columns) in enumerate(sizes):
        top, left = (height - rows) // 2, (width - columns) // 2
        expected[place, top : top + rows, left : left + columns] = images[place]
    np.testing.assert_array_equal(pad_batch(images, 0.5), expected)
    traced = tf.function(lambda *pictures: pad_batch(pictures, 0.5), input_signature=[tf.TensorSpec((None, None, 3))] * len(sizes))
    np.testing.assert_array_equal(traced(*images), expected)


def test_what_are_no_pictures():
    for bad in ([], [np.zeros((2, 3))], [np.zeros((2, 2, 3)), np.zeros((2, 2, 1))]):
        with pytest.raises(UsageError, match="pad_batch: expected pictures"):
            pad_batch(bad)
