"""Small reusable Keras layers: normalisation, pooling of maps and of word sequences, projection, attention, graphs, whitening,
standardisation."""

from tf_fashion.layers.graph import Adjacency, GraphConvolution
from tf_fashion.layers.label_correlation import LabelCorrelation, label_probabilities
from tf_fashion.layers.normalization import L2Normalize, ScaledL2Norm, batch_norm, l2_normalize
from tf_fashion.layers.pooling import GeM, SequencePooling, pool_sequence, reverse_sequence
from tf_fashion.layers.projection import PROJECTIONS, ProjectionHead
from tf_fashion.layers.standardize import Standardize
from tf_fashion.layers.visiolinguistic import VisiolinguisticAttention
from tf_fashion.layers.whitening import SCALE_POOLINGS, Whitening, pool_scales

__all__ = [
    "PROJECTIONS",
    "SCALE_POOLINGS",
    "Adjacency",
    "GeM",
    "GraphConvolution",
    "L2Normalize",
    "LabelCorrelation",
    "ProjectionHead",
    "ScaledL2Norm",
    "SequencePooling",
    "Standardize",
    "VisiolinguisticAttention",
    "Whitening",
    "batch_norm",
    "l2_normalize",
    "label_probabilities",
    "pool_scales",
    "pool_sequence",
    "reverse_sequence",
]
