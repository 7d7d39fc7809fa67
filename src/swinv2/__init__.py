"""Swin Transformer V2: transformers' names and files, exact, at any image size."""

from swinv2.auto import register
from swinv2.config import Swinv2Config
from swinv2.convert import load
from swinv2.heads import Swinv2Backbone, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel

__version__ = "0.1.0"

__all__ = [
    "Swinv2Backbone",
    "Swinv2Config",
    "Swinv2ForImageClassification",
    "Swinv2ForMaskedImageModeling",
    "Swinv2Model",
    "Swinv2PreTrainedModel",
    "load",
    "register",
]
