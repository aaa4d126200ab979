"""Small reusable Keras layers: normalisation with a learned scale, pooling of maps and of word sequences."""

from tf_fashion.layers.normalization import L2Normalize, ScaledL2Norm, batch_norm, l2_normalize
from tf_fashion.layers.pooling import GeM, SequencePooling, pool_sequence, reverse_sequence

__all__ = [
    "GeM",
    "L2Normalize",
    "ScaledL2Norm",
    "SequencePooling",
    "batch_norm",
    "l2_normalize",
    "pool_sequence",
    "reverse_sequence",
]
