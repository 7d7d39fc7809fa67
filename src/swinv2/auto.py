"""Makes transformers' Auto classes and `pipeline()` resolve "swinv2" to this package."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from swinv2.config import Swinv2Config
from swinv2.heads import Swinv2Backbone, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.model import Swinv2Model


def register() -> None:
    """Makes `AutoModel...from_pretrained`, `AutoBackbone` and `pipeline` build this package's models for every
    checkpoint of the model type "swinv2", until the process ends. A second call does nothing.

    Example:

        >>> import swinv2
        >>> from transformers import AutoConfig
        >>> swinv2.register()
        >>> type(AutoConfig.for_model("swinv2")).__module__
        'swinv2.config'
    """
    AutoConfig.register("swinv2", Swinv2Config, exist_ok=True)
    for auto_class, model_class in (
        (AutoModel, Swinv2Model),
        (AutoModelForImageClassification, Swinv2ForImageClassification),
        (AutoModelForMaskedImageModeling, Swinv2ForMaskedImageModeling),
        (AutoBackbone, Swinv2Backbone),
    ):
        auto_class.register(Swinv2Config, model_class, exist_ok=True)
