"""mmzoo: one zoo for ViT, CLIP, ViLT, ALBEF, BLIP and BLIP-2 over one shared transformer backbone.

Importing the package loads no torch; the first use of a public name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "convert",
    "create_model",
    "create_processor",
    "get_config",
    "list_models",
    "load",
    "save",
]

if TYPE_CHECKING:
    from mmzoo.conversion import convert
    from mmzoo.zoo import create_model, create_processor, get_config, list_models, load, save

_HOME = {name: "mmzoo.zoo" for name in __all__ if name != "__version__"} | {"convert": "mmzoo.conversion"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mmzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
