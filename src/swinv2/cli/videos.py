"""What commands for images do with videos, and `swinv2 classify` for videos.

`swinv2.predict.videos` computes the labels, `swinv2.predict.timeline` draws them over time.
"""

import json
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinv2.cli.options import read_dtype
from swinv2.cli.running import find_or_refuse, finish, quiet_transformers, watch, writing
from swinv2.console import data_console, message_console, progress_bar, shown
from swinv2.errors import UsageError

if TYPE_CHECKING:
    from swinv2.images import BrokenImage

VIDEO_MODEL = "swinv2_video"
"""The model type of video models."""


def is_for_videos(model: str | None) -> bool:
    """Whether `--model` is a video model; False if there is no such model, of which its loader complains."""
    if model is None:
        return False
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.exists() or "/" not in model:
            return False
        quiet_transformers()
        from swinv2.loading import is_video_model

        return is_video_model(model)
    try:
        fields: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("model_type") == VIDEO_MODEL


def find_videos(videos: list[str] | None, example: str, model: str) -> "tuple[list[Path], list[BrokenImage]]":
    """Finds videos for a video model; see `find_or_refuse`.

    Raises:
        UsageError: No file was given, or an image.
    """
    from swinv2.images import is_image_name
    from swinv2.video.files import is_video_name

    paths, missing = find_or_refuse(videos, example, kind="video", is_named=is_video_name)
    wrong = [path for path in paths if is_image_name(path.name) and path.suffix.lower() != ".gif"]
    if wrong:
        raise UsageError(
            f"{shown(wrong[0])} is an image, and the model {model!r} is for videos; give it a video such as clip.mp4, "
            "or choose a model for images."
        )
    return paths, missing


def refuse_videos(paths: list[Path], model: str | None, command: str = "classify") -> None:
    """Raises an error if videos were given to an image model.

    Args:
        paths: The files.
        model: The value of `--model`.
        command: The command, for the message.

    Raises:
        UsageError: The message says how to make a video model of it.
    """
    from swinv2.video.files import is_video_name

    wrong = [path for path in paths if is_video_name(path.name)]
    if wrong:
        from swinv2.predict.shipped import shipped_model

        name, source = ("the shipped model", shipped_model()) if model is None else (f"the model {model!r}", model)
        raise UsageError(
            f"{shown(wrong[0])} is a video, and {name} is for images. Make a video model of it: swinv2 convert "
            f"{source} video-model --inflate; and then: swinv2 {command} {shown(wrong[0])} --model video-model."
        )


def refuse_view_options(options: dict[str, Any]) -> None:
    """Raises an error if options for videos were given with an image model.

    Args:
        options: The value of each option, None if it was not given.

    Raises:
        UsageError: One was.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} is for videos, and the model is for images; leave it out.")


def classify_videos(
    videos: list[str] | None,
    model: str,
    *,
    top_k: int,
    batch_size: int,
    device: str,
    precision: str,
    as_json: bool,
    as_csv: bool,
    clips: int | None,
    crops: int | None,
    num_frames: int | None,
    frame_stride: float | None,
    timeline: Path | None,
) -> None:
    """Classifies videos and prints their best labels; the arguments are the options of `classify`."""
    paths, missing = find_videos(videos, f"swinv2 classify clip.mp4 --model {model}.", model)
    if timeline is not None and len(paths) > 1:
        raise UsageError(f"--timeline draws one video, but {len(paths)} were given; give one.")
    quiet_transformers()
    from swinv2.cli import printing
    from swinv2.predict.videos import VideoClassifier

    if timeline is not None:
        _check_drawing()
    classifier = VideoClassifier.load(model, device, read_dtype(precision))
    views = classifier.views(clips or 1, crops or 1, num_frames, frame_stride)
    # A batch of images needs as much memory as a clip of as many frames.
    of_views = max(batch_size // (num_frames or classifier.model.config.num_frames), 1)
    skipped = list(missing)
    is_data = as_json or as_csv
    is_shown = not (is_data and sys.stdout.isatty())
    with progress_bar(len(paths), "classifying", is_shown, unit="videos") as progress:
        answers = watch(classifier.classify(paths, top_k, views, of_views), progress, skipped)
        if as_json:
            printing.print_json_lines(chain(((video.path, video) for video in missing), answers), "video")
        elif as_csv:
            printing.print_csv(answers, "video")
        else:
            answers = list(answers)
    if not is_data:
        printing.print_labels(answers, data_console(), "video")
    if timeline is not None and not skipped:
        _draw(classifier, paths[0], views, of_views, timeline)
    finish(len(paths) + len(missing), skipped, "video")


def _check_drawing() -> None:
    """Raises an error unless timelines can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--timeline needs matplotlib to draw, which is not installed; install swinv2[figures].")


def _draw(classifier: Any, path: Path, views: Any, batch_size: int, output: Path) -> None:
    """Draws the labels of a video over time.

    Raises:
        UsageError: The video cannot be used any more.
    """
    from swinv2.predict.timeline import draw_timeline

    with writing(output):
        draw_timeline(classifier.follow(path, views, batch_size), classifier.labels, output)
    message_console().print(f"drawn: {shown(output)}")
