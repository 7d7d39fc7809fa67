"""Loads weights of any library as a model, and converts them into a folder.

In: a file, a folder or a name on the hub, and the wanted sizes and format. Out: a model (`load`), or a folder and a
report (`convert`).
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.limits import with_equivalent_square
from swinv2.convert.dialects.rules import MODEL
from swinv2.convert.files import CONFIG, PROCESSOR, WEIGHTS, check_learned, open_weights
from swinv2.convert.hints import SizeHints
from swinv2.convert.labels import published_names
from swinv2.convert.processors import describe_processor, make_processor, resize_processor
from swinv2.convert.recognise import Recognised, recognise
from swinv2.convert.write import SWINV2, check_format, check_output, write_folder
from swinv2.errors import UsageError, first_sentence
from swinv2.heads import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.lengths import Lengths, Pair, Windows, as_pair, in_words, plain_windows
from swinv2.loading import EXAMPLE, label_names
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.inflate import NUM_FRAMES, TUBELET_SIZE, WINDOW_FRAMES, inflate
from swinv2.video.processing import make_video_processor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageReport:
    """A stage before and after a change of its sizes.

    Attributes:
        name: "stage1" and so on.
        blocks, channels, heads: Numbers of blocks, channels and heads.
        grid, window, shift: Size (height, width) in tokens of the map, of the windows and of their shift, in training.
        new_grid, new_window, new_shift: The same after the change; of a video model, (frames, height, width).
        learned_window: The window in which the position bias was learned; it does not change.
    """

    name: str
    blocks: int
    channels: int
    heads: int
    grid: Lengths
    window: Lengths
    shift: Lengths
    new_grid: Lengths
    new_window: Lengths
    new_shift: Lengths
    learned_window: Lengths


@dataclass(frozen=True)
class Inflation:
    """How an image model becomes a video model; see `swinv2.video.inflate.inflate`.

    Attributes:
        num_frames: Frames of a clip.
        tubelet_size: Frames of a patch.
        window_frames: Length of the windows in time, in tokens of `tubelet_size` frames.
    """

    num_frames: int = NUM_FRAMES
    tubelet_size: int = TUBELET_SIZE
    window_frames: int = WINDOW_FRAMES


@dataclass
class ConversionReport:
    """The result of a conversion.

    Attributes:
        source: File, folder or name on the hub that was converted.
        dialect: Dialect of the tensors' names.
        model_class: Class of the model.
        parameters: Number of parameters.
        dtype: Type of the parameters.
        left_out: Number of tensors that were left out because they follow from sizes.
        image_size: Image size of the training.
        new_image_size: Image size after the conversion.
        window_size: Windows in tokens of the training, in the notation of the configuration.
        new_window_size: Windows after the conversion.
        sources: Where image size, window and pre-training windows were found.
        num_labels: Number of classes; None without a classifier.
        labels: Names of the first classes.
        processor: The image or video processor, in words.
        stages: One report for each stage.
        format: Format of the folder.
        output: The folder; None if no folder was asked for.
        files: Names of the files in the folder.
        notes: Further notes, in sentences.
        num_frames: Of a video model, frames of a clip.
        tubelet_size: Of a video model, frames of a patch.
    """

    source: str
    dialect: str
    model_class: str
    parameters: int
    dtype: str
    left_out: int
    image_size: Pair
    new_image_size: Pair
    window_size: int | list[Any]
    new_window_size: int | list[Any]
    sources: dict[str, str]
    num_labels: int | None
    labels: list[str]
    processor: str
    stages: list[StageReport]
    format: str = SWINV2
    output: str | None = None
    files: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    num_frames: int | None = None
    tubelet_size: int | None = None


def load(
    name: str | os.PathLike[str],
    image_size: int | Pair | None = None,
    window_size: Windows | None = None,
    *,
    trained_image_size: int | Pair | None = None,
    trained_window_size: Windows | None = None,
    pretrained_window_sizes: Sequence[int | Pair] | None = None,
) -> Swinv2PreTrainedModel:
    """Loads Swin V2 weights of any library as a model of this package.

    It reads transformers' folders and names on the hub, and the files of timm, torchvision, mmpretrain, the authors and
    SimMIM. The library, the sizes and the windows are recognised from the tensors and from the data that is stored with
    them. Assumptions are logged.

    Args:
        name: A file (`.pth`, `.bin`, `.safetensors`), a folder with one, or a name on the hub.
        image_size: Image size in pixels for the windows; None for the image size of the training.
        window_size: Window in tokens, one for all stages or one for each stage; None for the window of the training.
            The position bias is extrapolated from the window in which it was learned.
        trained_image_size: Image size of the training, if no other source shows it.
        trained_window_size: Window of the training, one for all stages or one for each stage, if no other source shows
            it.
        pretrained_window_sizes: For each stage, the window in which its position bias was learned, 0 for the stage's
            own window, if no other source shows it.

    Returns:
        A classifier, a masked-image model or the network without a head, as the weights require, in evaluation mode, on
        the CPU, with the type of the weights.

    Raises:
        UsageError: The weights do not exist, are damaged or are of another network, or a size cannot be found.

    Example:

        >>> import swinv2
        >>> swinv2.load("swin_v2_t.pth")
        Traceback (most recent call last):
        swinv2.errors.UsageError: there is no file or folder 'swin_v2_t.pth' (no such file or directory).
    """
    given = SizeHints(trained_image_size, trained_window_size, pretrained_window_sizes)
    model, _, recognised = _load_source(os.fspath(name), given, image_size, window_size)
    for note in recognised.notes:
        logger.info(note)
    return model


def convert(
    source: str,
    output: str | os.PathLike[str] | None,
    format: str = SWINV2,
    image_size: int | Pair | None = None,
    window_size: Windows | None = None,
    *,
    trained_image_size: int | Pair | None = None,
    trained_window_size: Windows | None = None,
    pretrained_window_sizes: Sequence[int | Pair] | None = None,
    inflation: Inflation | None = None,
) -> ConversionReport:
    """Converts weights into a folder.

    Args:
        source: See `load`.
        output: The folder to make; None to make only the report.
        format: "swinv2" for this package, "transformers", "timm", "torchvision", "microsoft" or "mmpretrain".
        image_size, window_size, trained_image_size, trained_window_size, pretrained_window_sizes: See `load`.
        inflation: To make a video model; None for an image model. It is written in the format "swinv2" only.

    Raises:
        UsageError: See `load`; or the format cannot express the model, or the folder cannot be written. No folder is
            left then.
    """
    if inflation is not None and format != SWINV2:
        raise UsageError(f"the format {format!r} has no video models; leave out --to, or --inflate.")
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output(folder)
    given = SizeHints(trained_image_size, trained_window_size, pretrained_window_sizes)
    model, processor, recognised = _load_source(source, given, image_size, window_size)
    before = recognised.config
    check_format(model, format)
    notes = recognised.notes + _losses(model, format)
    has_labels = isinstance(model, Swinv2ForImageClassification)
    if inflation is not None:
        model, processor, added = _inflate(model, processor, inflation)
        notes += added
    config = model.config
    report = ConversionReport(
        source=source,
        dialect=recognised.reading.dialect.name,
        model_class=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=_type_name(model.dtype),
        left_out=len(recognised.reading.buffers),
        image_size=as_pair("image_size", before.image_size),
        new_image_size=as_pair("image_size", config.image_size),
        window_size=plain_windows(before.stage_windows),
        new_window_size=plain_windows(config.stage_windows),
        sources=recognised.sources,
        num_labels=config.num_labels if has_labels else None,
        labels=label_names(config)[:3] if has_labels else [],
        processor=describe_processor(processor),
        stages=[
            StageReport(
                *(old.name, old.depth, old.dim, old.num_heads, old.grid, old.window, old.shift),
                *(new.grid, new.window, new.shift, new.learned_window),
            )
            for old, new in zip(before.stages(), config.stages(), strict=True)
        ],
        format=format,
        notes=notes,
        num_frames=config.num_frames if isinstance(config, Swinv2VideoConfig) else None,
        tubelet_size=config.tubelet_size if isinstance(config, Swinv2VideoConfig) else None,
    )
    if folder is not None:
        report.files = write_folder(model, processor, folder, format)
        report.output = str(folder)
    return report


def _load_source(
    source: str, given: SizeHints, image_size: int | Pair | None, window_size: Windows | None
) -> tuple[Swinv2PreTrainedModel, dict[str, Any], Recognised]:
    """Makes the model with the wanted sizes, and its image processor; adds further notes to the recognised network."""
    weights = open_weights(_find_source(source))
    if (weights.config or {}).get("model_type") == Swinv2VideoConfig.model_type:
        raise UsageError(
            f"{source!r} is a model of videos already, and only models of images are converted; load it with "
            "Swinv2ForVideoClassification.from_pretrained or Swinv2VideoModel.from_pretrained; its set_clip_size "
            "changes number of frames, image size and windows."
        )
    recognised = recognise(weights, given)
    config, notes, learned = recognised.config, recognised.notes, recognised.reading.tensors
    dtype = check_learned(learned, recognised.reading.their_names)
    stored = sorted({_type_name(tensor.dtype) for tensor in learned.values()})
    stated = _stated_type(weights.config or {})
    of_config = ""
    if stated is not None and torch.promote_types(stated, dtype) != dtype:
        # As transformers loads such a folder: its weights are stored in fewer bits than the model computes with.
        dtype = torch.promote_types(stated, dtype)
        of_config = f", and config.json says {_type_name(stated)}"
    if of_config or len(stored) > 1:
        notes.append(
            f"The weights are of {' and '.join(stored)}{of_config}; all were converted to {_type_name(dtype)}."
        )
    if recognised.model_class is Swinv2ForImageClassification:
        notes += _name_labels(config, weights.config or {})
    with torch.device("meta"):
        model = recognised.model_class(config)
    prefix = MODEL if recognised.model_class is Swinv2Model else ""
    # Copies, which share no memory and are contiguous.
    own = {
        name.removeprefix(prefix): tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in learned.items()
    }
    model.load_state_dict(own, assign=True)
    model.eval()
    model.config.dtype = dtype
    old_size = as_pair("image_size", config.image_size)
    processor = weights.processor
    if processor is None:
        processor = make_processor(recognised.reading.dialect.name, old_size, config.embed_dim, weights.config)
    if image_size is not None or window_size is not None:
        notes += _resize(model, old_size if image_size is None else image_size, window_size)
        new_size = as_pair("image_size", model.config.image_size)
        if new_size != old_size:
            processor = resize_processor(processor, new_size)
    return model, processor, recognised


def _stated_type(config: Mapping[str, Any]) -> torch.dtype | None:
    """The type with which a model computes, as its config.json says it; older ones call it torch_dtype."""
    found = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else None


def _type_name(dtype: torch.dtype) -> str:
    """The name of a type, such as "float16"."""
    return str(dtype).removeprefix("torch.")


def _find_source(source: str) -> Path:
    """The path of a source; the folder of a name on the hub is downloaded."""
    path = Path(source).expanduser()
    if os.path.lexists(path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [CONFIG, PROCESSOR, "model*.safetensors", "model.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UsageError(
            f"{source!r} is not a file or folder, and cannot be loaded from the Hugging Face hub: "
            f"{first_sentence(error)}. Check the name and the network, or give a file; a name on the hub looks like "
            f"{EXAMPLE}."
        ) from error
    if not any((folder / name).exists() for name in WEIGHTS):
        raise UsageError(
            f"the repository {source!r} has no safetensors ({' or '.join(WEIGHTS[:2])}); download the .pth you want "
            "and give its path."
        )
    return folder


def _name_labels(config: Swinv2Config, stated: Mapping[str, Any]) -> list[str]:
    """In every conversion: sets the class names and returns a note on their source; our own models have names."""
    stored = stated.get("label_names")
    if stated.get("model_type") == "swinv2":
        return []
    if isinstance(stored, list) and len(stored) == config.num_labels and len(set(map(str, stored))) == len(stored):
        names, note = [str(name) for name in stored], "The names of its classes are those of config.json."
    else:
        names, note = published_names(config.num_labels or 0)
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in reversed(list(enumerate(names)))}
    return [note]


def _resize(model: Swinv2PreTrainedModel, image_size: int | Pair, window_size: Windows | None) -> list[str]:
    """Changes image size and windows of the converted model, and returns notes on the changes."""
    before = model.config
    try:
        model.set_image_size(image_size, window_size)
    except ValueError as error:
        raise UsageError(f"these sizes are impossible: {error}") from error
    changed = [
        f"stage {new.index + 1} from {in_words(old.window)} to {in_words(new.window)}"
        for old, new in zip(before.stages(), model.config.stages(), strict=True)
        if old.window != new.window
    ]
    learned = ", ".join(in_words(spec.learned_window) for spec in model.config.stages())
    notes = [
        f"Windows: {', '.join(changed) if changed else 'no stage has another one'}. The position bias is extrapolated "
        f"from the windows in which it was learned, {learned}; no weight was changed."
    ]
    if before.use_absolute_embeddings and before.patch_grid != model.config.patch_grid:
        notes.append("The absolute position embeddings were resampled to the new map (bicubic).")
    return notes


def _inflate(
    model: Swinv2PreTrainedModel, processor: Mapping[str, Any], inflation: Inflation
) -> tuple[Swinv2PreTrainedModel, dict[str, Any], list[str]]:
    """The video model of an image model, its video processor, and notes on the change."""
    try:
        inflated = inflate(model, inflation.num_frames, inflation.tubelet_size, inflation.window_frames)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"this video model is impossible: {error}") from error
    tubelet = inflation.tubelet_size
    notes = [
        f"Inflated: the kernel of a patch is repeated for {tubelet} frame{'s' * (tubelet > 1)} and divided by "
        f"{tubelet}, and the position bias does not depend on time. For a still clip the model gives the image model's "
        "answer; it learns time when it is trained."
    ]
    if isinstance(model, Swinv2ForMaskedImageModeling):
        notes.append("The decoder and the mask token of masked-image modelling were left out.")
    return inflated, make_video_processor(processor, inflation.num_frames), notes


def _losses(model: Swinv2PreTrainedModel, format: str) -> list[str]:
    """Notes on data that a format cannot store although outputs do not depend on it, and on required versions."""
    notes: list[str] = []
    if format not in (SWINV2, "transformers", "timm"):
        height, width = as_pair("image_size", model.config.image_size)
        # The masks of the authors' format show it.
        if format != "microsoft" or not any(spec.depth > 1 and any(spec.shift) for spec in model.config.stages()):
            notes.append(
                f"The format {format!r} cannot store the image size: to read the folder back, give "
                f"--trained-image-size {height}x{width}."
            )
        if isinstance(model, Swinv2ForImageClassification):
            notes.append(f"The names of the classes are not in the folder: the format {format!r} cannot store them.")
    if format == "timm" and len(set(with_equivalent_square(model.config).stage_windows)) > 1:
        notes.append("Each stage has its own window: only timm 1.0.31 and later can open the folder.")
    if format == "transformers" and isinstance(model, Swinv2ForMaskedImageModeling) and model.config.norm_targets:
        notes.append(
            "transformers computes the loss on plain pixels instead of normalised pixels (norm_targets is "
            f"{model.config.norm_targets}); the reconstruction is the same."
        )
    return notes
