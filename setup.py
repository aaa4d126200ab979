"""Packaging. Version ranges are what the tests have been run with; the exact tested set is in requirements-lock.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "tf_fashion/__init__.py").read_text()).group(1)

TUNE = [
    "keras-tuner>=1.4.8,<2",
    "tensorboard>=2.20",
    "scikit-learn>=1.5",
    "filelock>=3.13",
    "threadpoolctl>=3.2",
]
HUB = ["tensorflow-hub>=0.16.1"]
WEIGHTS = ["safetensors>=0.4"]
CLIP = ["keras-hub>=0.32,<0.33", "ftfy>=6.3,<6.4", "regex>=2024.5", *WEIGHTS]
CONCEPTS = ["textblob>=0.20,<1"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "tf2onnx>=1.17"]
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"]
DEV = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.14",
    "mypy>=1.13",
    "faiss-cpu>=1.9",
    *CLIP,
    *CONCEPTS,
    *NOTEBOOKS,
    *ONNX,
    *TUNE,
]

setup(
    name="tf-fashion",
    version=VERSION,
    description="Fashion retrieval by photo, words, both, attributes, and from street to shop; on Keras 3",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["tf_fashion", "tf_fashion.*"]),
    package_data={"tf_fashion": ["datasets/data/*", "inputs/data/*", "reports/templates/*"]},
    install_requires=[
        "tensorflow>=2.20,<2.22",
        "keras>=3.13.2,<4",
        "numpy>=1.26,<3",
        "pillow>=10.3",
        "h5py>=3.11",
        "requests>=2.31",
        "scipy>=1.13",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require={
        "tune": TUNE,
        "weights": WEIGHTS,
        "clip": CLIP,
        "concepts": CONCEPTS,
        "onnx": ONNX,
        "notebooks": NOTEBOOKS,
        "hub": HUB,
        "tensorboard": ["tensorboard>=2.20"],
        "faiss": ["faiss-cpu>=1.9"],
        "umap": ["umap-learn>=0.5.6"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["tf-fashion=tf_fashion.cli:main"]},
)
