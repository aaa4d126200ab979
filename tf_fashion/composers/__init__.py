"""COMPOSE: image features and text features -> query. One file per method; a new file in this folder is found by itself."""

import importlib
import pkgutil

from tf_fashion.composers.base import COMPOSERS, Composer

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["COMPOSERS", "Composer"]
