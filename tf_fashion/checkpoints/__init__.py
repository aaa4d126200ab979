"""Other people's weights -> ours."""

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport

__all__ = ["CONVERTERS", "ConversionReport"]
