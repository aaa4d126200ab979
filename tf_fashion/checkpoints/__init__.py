"""Other people's weights -> ours."""

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport
from tf_fashion.checkpoints.clip import build_clip, clip_weights, infer_config, load_clip, read_clip
from tf_fashion.checkpoints.convert import convert_weights
from tf_fashion.checkpoints.dirtorch import DirtorchCheckpoint, convert_dirtorch, load_dirtorch, read_dirtorch
from tf_fashion.checkpoints.tf_slim import load_slim, read_checkpoint
from tf_fashion.checkpoints.torch_files import Foreign, read_onnx, read_safetensors, read_torch, read_weights
from tf_fashion.checkpoints.torch_weights import load_fashion_iq_2020, load_torchvision, read_torchvision_classifier

__all__ = [
    "CONVERTERS",
    "ConversionReport",
    "DirtorchCheckpoint",
    "Foreign",
    "build_clip",
    "clip_weights",
    "convert_dirtorch",
    "convert_weights",
    "infer_config",
    "load_clip",
    "load_dirtorch",
    "load_fashion_iq_2020",
    "load_slim",
    "load_torchvision",
    "read_checkpoint",
    "read_clip",
    "read_dirtorch",
    "read_onnx",
    "read_safetensors",
    "read_torch",
    "read_torchvision_classifier",
    "read_weights",
]
