"""Swin Transformer V2: transformers' names and files, exact, at any image size."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swinv2.auto import register
    from swinv2.config import Swinv2Config
    from swinv2.convert import load
    from swinv2.heads import Swinv2Backbone, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
    from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
    from swinv2.video.config import Swinv2VideoConfig
    from swinv2.video.inflate import inflate
    from swinv2.video.models import Swinv2ForVideoClassification, Swinv2VideoModel

__version__ = "0.1.0"

__all__ = [
    "Swinv2Backbone",
    "Swinv2Config",
    "Swinv2ForImageClassification",
    "Swinv2ForMaskedImageModeling",
    "Swinv2ForVideoClassification",
    "Swinv2Model",
    "Swinv2PreTrainedModel",
    "Swinv2VideoConfig",
    "Swinv2VideoModel",
    "inflate",
    "load",
    "register",
]

_HOMES = {
    "Swinv2Backbone": "heads",
    "Swinv2Config": "config",
    "Swinv2ForImageClassification": "heads",
    "Swinv2ForMaskedImageModeling": "heads",
    "Swinv2ForVideoClassification": "video.models",
    "Swinv2Model": "model",
    "Swinv2PreTrainedModel": "model",
    "Swinv2VideoConfig": "video.config",
    "Swinv2VideoModel": "video.models",
    "inflate": "video.inflate",
    "load": "convert",
    "register": "auto",
}
"""The module of each name. It is imported, with torch and transformers, when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        # A submodule: other packages import theirs together with the package.
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
