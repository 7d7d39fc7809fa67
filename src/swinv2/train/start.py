"""The model that a training of images starts from.

In: settings. Out: a model in fp32 on the CPU. It is new, or it has the weights of another model, possibly with another
image size, window or head. This module knows no data and no trainer.
"""

import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.heads import Swinv2Classifier, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.lengths import as_pair, plain_pair
from swinv2.loading import label_names, load_processor, load_video_processor, read_config
from swinv2.model import Swinv2PreTrainedModel
from swinv2.train.flags import as_flag
from swinv2.train.optim.groups import freeze_stages
from swinv2.train.settings import FinetuneSettings, PretrainSettings, RunSettings
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.models import Swinv2VideoPreTrainedModel
from swinv2.zoo import PRESETS

logger = logging.getLogger(__name__)

NEW = "new"
"""The value of --model if --model-fields describe a new model."""

Model = TypeVar("Model", bound=Swinv2PreTrainedModel)


def model_to_pretrain(settings: PretrainSettings) -> Swinv2ForMaskedImageModeling:
    """Builds the model for masked-image modelling; patch size and stages decide its encoder stride.

    Mean and deviation of the channels become settings, if they are not given.
    """
    choose_normalisation(settings)
    fields = model_fields(settings, norm_targets=settings.norm_targets)
    config = _new_config(settings, fields) if is_new_model(settings) else read_config(settings.model)
    patch, merges = as_pair("patch_size", config.patch_size), 2 ** (config.num_layers - 1)
    fields["encoder_stride"] = plain_pair((patch[0] * merges, patch[1] * merges))
    return build_or_load(Swinv2ForMaskedImageModeling, settings, fields, ("decoder.", "swinv2.embeddings.mask_token"))


def model_to_finetune(settings: FinetuneSettings, names: tuple[str, ...], several: bool = False) -> nn.Module:
    """Builds the classifier for the classes of the data, with LoRA if the settings say so.

    Mean and deviation of the channels become settings, if they are not given.

    Args:
        settings: The settings.
        names: Names of the classes.
        several: Whether an image may have several labels.
    """
    choose_normalisation(settings)
    fields = model_fields(settings)
    fields |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    # Also if the model to start from, whose classifier may fit, was made for another problem.
    fields["problem_type"] = f"{'multi' if several else 'single'}_label_classification"
    model = build_or_load(Swinv2ForImageClassification, settings, fields, ("classifier.",))
    if settings.head_map:
        rows = _classifier_from_rows(settings.model, settings.head_map, names)
        model.classifier.load_state_dict(rows)
    freeze_stages(model, settings.frozen_stages)
    if not settings.lora:
        return model
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )
    return get_peft_model(model, adapters)  # type: ignore[arg-type]


def choose_normalisation(settings: RunSettings) -> None:
    """Sets mean and deviation of each channel if they are not given: those of the image processor of the model to start
    from; ImageNet's for a new model, and for a model without a processor.

    Raises:
        UsageError: Only one of the two is given.
    """
    if bool(settings.image_mean) != bool(settings.image_std):
        raise UsageError("--image-mean and --image-std belong together; give both or neither.")
    if settings.image_mean:
        return
    settings.image_mean, settings.image_std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    if is_new_model(settings):
        return
    config = read_config(settings.model, None)
    channels = config.num_channels
    load = load_video_processor if isinstance(config, Swinv2VideoConfig) else load_processor
    try:
        processor: Any = load(settings.model, channels)
    except UsageError as error:
        # ImageNet's are right for most models of three channels; others need the flags.
        logger.warning(f"{error} Until then, the mean and deviation of ImageNet are used.")
        return
    if processor.do_rescale and processor.do_normalize and len(processor.image_mean) == channels:
        settings.image_mean, settings.image_std = list(processor.image_mean), list(processor.image_std)
    elif processor.do_rescale and not processor.do_normalize:
        settings.image_mean, settings.image_std = [0.0] * channels, [1.0] * channels


def is_new_model(settings: RunSettings) -> bool:
    """Whether `--model` asks for a new model instead of stored weights."""
    return settings.model == NEW or settings.model in PRESETS


def given_fields(settings: RunSettings) -> dict[str, Any]:
    """The fields of `--model-fields`.

    Raises:
        UsageError: They are no JSON object.
    """
    return read_object(settings.model_fields, "--model-fields", '{"embed_dim": 96}')


def read_object(said: dict[str, Any] | str | None, flag: str, example: str) -> dict[str, Any]:
    """Reads a setting that is a JSON object, as text or already read; nothing is an empty one.

    Args:
        said: The value.
        flag, example: The flag, and a value of it, for errors.

    Raises:
        UsageError: It is no JSON object.
    """
    given: Any = said or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise UsageError(f"{flag} is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f"{flag} is {given!r}; expected an object such as '{example}'.")
    return given


def model_fields(settings: RunSettings, **decided: Any) -> dict[str, Any]:
    """The fields of --model-fields, and those that other settings decide."""
    given = given_fields(settings)
    decided["num_channels"] = len(settings.image_mean)
    for name, value in decided.items():
        if given.get(name, value) != value:
            flag = as_flag("image_mean" if name == "num_channels" else name)
            raise UsageError(
                f"--model-fields has {name} {given[name]!r}, but {flag} makes it {value}; make them equal."
            )
    for name in ("image_size", "window_size"):
        if name in given and not is_new_model(settings):
            raise UsageError(
                f"--model-fields has {name}, which only new models take; give {as_flag(name)} for an existing one."
            )
    rate = {} if settings.drop_path_rate is None else {"drop_path_rate": settings.drop_path_rate}
    return given | decided | rate


def new_config(settings: RunSettings) -> Swinv2Config:
    """The configuration of a new model without a head of its own."""
    return _new_config(settings, model_fields(settings))


def _new_config(settings: RunSettings, fields: dict[str, Any]) -> Swinv2Config:
    """The configuration of a new model to train."""
    if settings.model in PRESETS:
        fields = PRESETS[settings.model].config_fields() | fields
    given = {"image_size": given_image_size(settings), "window_size": settings.window_size}
    fields = fields | {name: value for name, value in given.items() if value is not None}
    try:
        return Swinv2Config(**fields).checked()
    except (ValueError, TypeError) as error:
        raise UsageError(f"--model-fields are not valid: {error}") from error


def given_image_size(settings: RunSettings) -> Any:
    """The image size of the settings: one length, height and width, or None."""
    return settings.image_size[0] if len(settings.image_size) == 1 else tuple(settings.image_size) or None


def build_or_load(
    kind: type[Model], settings: RunSettings, fields: dict[str, Any], may_be_new: tuple[str, ...]
) -> Model:
    """Builds a new model, or loads one; only parameters with a prefix in `may_be_new` may have new weights."""
    if is_new_model(settings):
        return kind(_new_config(settings, fields))
    model = load_to_train(kind, settings, fields, may_be_new)
    if settings.image_size or settings.window_size is not None:
        size: Any = given_image_size(settings) or model.config.image_size
        windows: Any = settings.window_size
        try:
            model.set_image_size(size, windows, settings.stretch_bias)
        except ValueError as error:
            raise UsageError(f"--image-size or --window-size is impossible: {error}") from error
    return model


def load_to_train(
    kind: type[Model], settings: RunSettings, fields: dict[str, Any], may_be_new: tuple[str, ...]
) -> Model:
    """Loads a model of its own size; see `build_or_load`."""
    config = read_config(settings.model, issubclass(kind, Swinv2VideoPreTrainedModel))
    if config.num_channels != fields["num_channels"]:
        raise UsageError(
            f"{settings.model!r} takes {config.num_channels} channels; --image-mean has {fields['num_channels']}. Give "
            "one mean and one deviation for each of the model's channels."
        )
    model, fresh = _load_pretrained(kind, settings.model, **fields)
    wrong = [name for name in fresh if not name.startswith(may_be_new)]
    if wrong:
        raise UsageError(
            f"--model {settings.model!r} has no fitting weights for {', '.join(wrong[:3])}{' ...' * (len(wrong) > 3)}; "
            "its config.json and its weights do not match."
        )
    # A run that resumes loads its own weights afterwards.
    if fresh and not settings.resume_from_checkpoint:
        is_head = all(name.startswith("classifier.") for name in fresh)
        what = "the classifier, for the classes of the data" if is_head else ", ".join(fresh)
        logger.warning(f"new parameters with random weights: {what}")
    is_classifier = isinstance(model, Swinv2Classifier)
    if is_classifier and "classifier.weight" not in fresh and not getattr(settings, "head_map", None):
        _match_classifier(model, label_names(config))
    return model


def _load_pretrained(kind: type[Model], name: str, **fields: Any) -> tuple[Model, list[str]]:
    """Loads a model; returns it and the names of the parameters without fitting weights."""
    folder = Path(name).expanduser()
    try:
        loaded: Any = kind.from_pretrained(
            str(folder) if folder.is_dir() else name,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **fields,
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UsageError(f"--model {name!r} cannot be loaded: {error}") from error
    model, report = loaded
    return model, sorted({*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])})


def _match_classifier(model: Swinv2Classifier, old: list[str]) -> None:
    """Gives each class the row of the loaded classifier that had its name; classes that were not among the old ones get
    new weights. Warns of new weights, and of old classes that have only numbers, whose rows keep their order."""
    names, classifier = label_names(model.config), model.classifier
    if names == old or not isinstance(classifier, nn.Linear):
        return
    known = [index for index, name in enumerate(names) if name in old]
    if not known and all(re.fullmatch(r"(LABEL_)?\d+", name) for name in old):
        logger.warning(
            f"the classes of the model have numbers instead of names; its classifier is kept in their order: 0 becomes "
            f"{names[0]!r} ..."
        )
        return
    fresh = nn.Linear(classifier.in_features, classifier.out_features, classifier.bias is not None)
    model._init_weights(fresh)
    rows = [old.index(names[index]) for index in known]
    with torch.no_grad():
        for parameter, value in zip(classifier.parameters(), fresh.parameters(), strict=True):
            value[known] = parameter[rows]
            parameter.copy_(value)
    new = [name for name in names if name not in old]
    if new:
        logger.warning(
            f"new classes with random weights, which the model does not have: {', '.join(new[:5])}"
            f"{' ...' * (len(new) > 5)}"
        )


def check_resumed_classes(checkpoint: str, names: tuple[str, ...]) -> None:
    """Raises an error unless a checkpoint has exactly these classes.

    Raises:
        UsageError: It has others, or in another order.
    """
    trained = label_names(read_config(checkpoint, None))
    if trained != list(names):
        differing = sorted(set(trained) ^ set(names))[:5]
        raise UsageError(
            f"{checkpoint} was trained with other classes than the data has now: {differing or 'another order'}. "
            "Restore the data, or begin a new run in another --output-dir with --model and this folder."
        )


def _classifier_from_rows(model: str, table: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Weight and bias of a new classifier: rows of a pre-trained one, for example 1k of its 22k classes."""
    try:
        lines = [line.split(maxsplit=1) for line in Path(table).read_text().splitlines() if line.strip()]
        numbers = [int(number) for number, *_ in lines]
    except (OSError, ValueError) as error:
        raise UsageError(f"--head-map {table!r} cannot be read: {error}. Expected a number on each line.") from error
    given = {name.strip(): number for number, (_, *words) in zip(numbers, lines, strict=True) for name in words}
    if given:
        missing = [name for name in names if name not in given]
        if missing:
            raise UsageError(f"--head-map {table!r} has no line with a number and the class {missing[0]!r}.")
        numbers = [given[name] for name in names]
    elif len(numbers) != len(names):
        raise UsageError(
            f"--head-map {table!r} has {len(numbers)} lines; expected one for each of the {len(names)} classes, "
            f"{names[0]!r} to {names[-1]!r}. With a class's name after each number, more lines do no harm."
        )
    else:
        logger.warning(
            f"--head-map {table!r} names no classes; its lines are those of {names[0]!r} to {names[-1]!r} in this order"
        )
    rows = torch.tensor(numbers)
    is_new = model == NEW or model in PRESETS
    loaded, fresh = (None, ["classifier."]) if is_new else _load_pretrained(Swinv2ForImageClassification, model)
    if loaded is None or any(name.startswith("classifier.") for name in fresh):
        raise UsageError(f"--head-map takes rows of a trained classifier; {model!r} has none.")
    old = loaded.classifier
    if not isinstance(old, nn.Linear) or int(rows.min()) < 0 or int(rows.max()) >= old.out_features:
        raise UsageError(
            f"--head-map {table!r} has classes {int(rows.min())} to {int(rows.max())}; {model!r} has "
            f"{getattr(old, 'out_features', 0)}, counted from 0."
        )
    return {name: values[rows] for name, values in old.state_dict().items()}
