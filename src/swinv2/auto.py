"""Makes transformers' Auto classes and `pipeline()` resolve "swinv2" to this package."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from swinv2.config import Swinv2Config
from swinv2.heads import Swinv2Backbone, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.model import Swinv2Model
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.models import Swinv2ForVideoClassification, Swinv2VideoModel
from swinv2.video.processing import Swinv2VideoProcessor


def register() -> None:
    """Makes `AutoModel...from_pretrained`, `AutoBackbone` and `pipeline` build this package's models for every
    checkpoint of the model types "swinv2" and "swinv2_video", until the process ends. A second call does nothing.

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
    AutoConfig.register(Swinv2VideoConfig.model_type, Swinv2VideoConfig, exist_ok=True)
    AutoModel.register(Swinv2VideoConfig, Swinv2VideoModel, exist_ok=True)
    AutoModelForVideoClassification.register(Swinv2VideoConfig, Swinv2ForVideoClassification, exist_ok=True)
    AutoVideoProcessor.register(Swinv2VideoConfig, Swinv2VideoProcessor, exist_ok=True)
