"""mmzoo: one zoo for ViT, CLIP, ViLT, ALBEF, BLIP and BLIP-2 over one shared transformer backbone.

Importing the package loads no torch; the first use of a public name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "create_model",
    "create_processor",
    "get_config",
    "list_models",
    "load",
    "save",
]

if TYPE_CHECKING:
    from mmzoo.zoo import create_model, create_processor, get_config, list_models, load, save

_ZOO = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> Any:
    if name in _ZOO:
        return getattr(importlib.import_module("mmzoo.zoo"), name)
    raise AttributeError(f"module 'mmzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
