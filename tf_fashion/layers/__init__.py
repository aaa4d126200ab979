"""Small reusable Keras layers: normalisation, pooling of maps and of word sequences, projection, attention, graphs."""

from tf_fashion.layers.graph import Adjacency, GraphConvolution
from tf_fashion.layers.label_correlation import LabelCorrelation, label_probabilities
from tf_fashion.layers.normalization import L2Normalize, ScaledL2Norm, batch_norm, l2_normalize
from tf_fashion.layers.pooling import GeM, SequencePooling, pool_sequence, reverse_sequence
from tf_fashion.layers.projection import PROJECTIONS, ProjectionHead
from tf_fashion.layers.visiolinguistic import VisiolinguisticAttention

__all__ = [
    "PROJECTIONS",
    "Adjacency",
    "GeM",
    "GraphConvolution",
    "L2Normalize",
    "LabelCorrelation",
    "ProjectionHead",
    "ScaledL2Norm",
    "SequencePooling",
    "VisiolinguisticAttention",
    "batch_norm",
    "l2_normalize",
    "label_probabilities",
    "pool_sequence",
    "reverse_sequence",
]
