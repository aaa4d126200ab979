"""Other people's weights -> ours."""

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport
from tf_fashion.checkpoints.convert import convert_weights
from tf_fashion.checkpoints.tf_slim import load_slim, read_checkpoint

__all__ = ["CONVERTERS", "ConversionReport", "convert_weights", "load_slim", "read_checkpoint"]
