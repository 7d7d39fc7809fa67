"""The commands that run a model on images: `classify`, `features`, `inspect` and `demo`.

`swinv2.predict` and `swinv2.inspect` compute the results.
"""

import json
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinv2.cli.options import BatchSize, Device, Dtype, Images, Model, read_dtype, read_point
from swinv2.cli.running import find_or_refuse, finish, model_or_shipped, quiet_transformers, watch, writing
from swinv2.cli.videos import classify_videos, find_videos, is_for_videos, refuse_videos, refuse_view_options
from swinv2.console import data_console, message_console, progress_bar, shown
from swinv2.errors import UsageError

if TYPE_CHECKING:
    from swinv2.predict.predictor import Prediction

NumFrames = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Of a video, frames of a clip.", show_default="the model's"),
]
FrameStride = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        min=0.0,
        help="Of a video, the distance of a clip's frames, in its frames; 0: spread over all of it.",
        show_default="the model's",
    ),
]


def classify(
    images: Images = None,
    model: Model = None,
    top_k: Annotated[
        int,
        typer.Option("--top-k", "-k", metavar="N", min=1, help="Labels for each image; all if the model has fewer."),
    ] = 3,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    precision: Dtype = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines: an object for each file, with the error if it was skipped.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV: image or video, rank, label, index, probability.")
    ] = False,
    clips: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of a video, clips over which to average.", show_default="1"),
    ] = None,
    crops: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of a video, crops of each clip, such as 3.", show_default="1"),
    ] = None,
    num_frames: NumFrames = None,
    frame_stride: FrameStride = None,
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the labels of a video over time: the PNG file to write."),
    ] = None,
) -> None:
    """Classify images, or with a video model videos, and print their best labels.

    Unreadable files are skipped and named on stderr; the exit status is then 1.
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv were both given; choose one.")
    if is_for_videos(model):
        classify_videos(
            images,
            str(model),
            top_k=top_k,
            batch_size=batch_size,
            device=device,
            precision=precision,
            as_json=as_json,
            as_csv=as_csv,
            clips=clips,
            crops=crops,
            num_frames=num_frames,
            frame_stride=frame_stride,
            timeline=timeline,
        )
        return
    paths, missing = find_or_refuse(images, "swinv2 classify photo.jpg. To see it at work: swinv2 demo.")
    refuse_videos(paths, model)
    refuse_view_options(
        {
            "--clips": clips,
            "--crops": crops,
            "--num-frames": num_frames,
            "--frame-stride": frame_stride,
            "--timeline": timeline,
        }
    )
    quiet_transformers()
    from swinv2.cli import printing
    from swinv2.predict.predictor import Classifier

    classifier = Classifier.load(model_or_shipped(model), device, read_dtype(precision))
    skipped = list(missing)
    is_data = as_json or as_csv
    # In a terminal, lines of data would overwrite the bar.
    with progress_bar(len(paths), "classifying", is_shown=not (is_data and sys.stdout.isatty())) as progress:
        answers = watch(classifier.classify(paths, top_k, batch_size), progress, skipped)
        if as_json:
            printing.print_json_lines(chain(((image.path, image) for image in missing), answers))
        elif as_csv:
            printing.print_csv(answers)
        else:
            answers = list(answers)
    if not is_data:
        printing.print_labels(answers, data_console())
    finish(len(paths) + len(missing), skipped)


def features(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write: .safetensors or .parquet.")
    ],
    images: Images = None,
    model: Model = None,
    stage: Annotated[
        str,
        typer.Option(metavar="NAME", help="pooled: one vector per image. stem, stage1 ...: this map, before merging."),
    ] = "pooled",
    batch_size: BatchSize = 16,
    device: Device = "auto",
    precision: Dtype = "float32",
) -> None:
    """Write the features of images to a file.

    The file is written atomically; an existing file is replaced.

    Unreadable images are skipped and named on stderr; the exit status is then 1.
    """
    paths, missing = find_or_refuse(images, "swinv2 features photos -o photos.safetensors.")
    quiet_transformers()
    from swinv2.images import BrokenImage
    from swinv2.predict.features import check_output, write_features
    from swinv2.predict.predictor import FeatureExtractor

    check_output(output)
    name = model_or_shipped(model)
    extractor = FeatureExtractor.load(name, stage, device, read_dtype(precision))
    skipped = list(missing)
    with progress_bar(len(paths), "extracting") as progress:
        answers = watch(extractor.extract(paths, batch_size), progress, skipped)
        valid = ((path, answer) for path, answer in answers if not isinstance(answer, BrokenImage))
        with writing(output):
            written = write_features(valid, output, {"model": name, "stage": stage})
    if written:
        message_console().print(f"features of {written} images written to {shown(output)}")
    finish(len(paths) + len(missing), skipped)


def inspect(
    images: Images = None,
    model: Model = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the figures.")] = Path(
        "inspection"
    ),
    token: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Draw the attention of the token at this pixel, counted from the image's top left.",
            show_default="the centre",
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            help="Of a video, the time of the token, with a clip around it.",
            show_default="the middle",
        ),
    ] = None,
    num_frames: NumFrames = None,
    frame_stride: FrameStride = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this stage: stage1, stage2 ...", show_default="all")
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the figures and their numbers.")] = False,
) -> None:
    """Look inside a model: draw the attention of a token, feature maps, the position bias, amplitudes by block.

    With a video model, the figures show a clip of each video: attention and feature maps over its frames.
    Unreadable files are skipped and named on stderr; the exit status is then 1.
    """
    video_model = model if is_for_videos(model) else None
    kind = "image" if video_model is None else "video"
    if video_model is not None:
        example = f"swinv2 inspect clip.mp4 --model {model} --token 120,80."
        paths, missing = find_videos(images, example, video_model)
    else:
        paths, missing = find_or_refuse(images, "swinv2 inspect photo.jpg --token 120,80.")
        refuse_videos(paths, model, "inspect")
        refuse_view_options({"--time": time, "--num-frames": num_frames, "--frame-stride": frame_stride})
    point = read_point(token)
    quiet_transformers()
    from swinv2.images import BrokenImage

    try:
        from swinv2.inspect.clips import VideoInspector
        from swinv2.inspect.gallery import Inspector
    except ModuleNotFoundError as error:
        raise UsageError(
            f"inspect needs {error.name} to draw, which is not installed; install swinv2[figures]."
        ) from error
    name = model_or_shipped(model)
    if video_model is not None:
        inspector = VideoInspector.load(name, stage, device)
        looks = inspector.inspect(paths, output, point, time, num_frames, frame_stride)
    else:
        inspector = Inspector.load(name, stage, device)
        looks = inspector.inspect(paths, output, point)
    skipped = list(missing)
    with progress_bar(len(paths), "inspecting", unit=f"{kind}s") as progress, writing(output):
        answers = [answer for _, answer in watch(looks, progress, skipped)]
        of_model = inspector.draw_model(output)
    of_files: list[dict[str, Any]] = [
        {kind: str(each.path), "error": each.reason} if isinstance(each, BrokenImage) else each
        for each in [*missing, *answers]
    ]
    if as_json:
        typer.echo(json.dumps({"model": name, f"{kind}s": of_files, **of_model}, indent=2))
    for found in [*of_files, of_model]:
        for file in found.get("files", []):
            message_console().print(f"drawn: {shown(Path(file))}")
    finish(len(paths) + len(missing), skipped, kind)


def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Draw a contact sheet: the PNG file to write.")
    ] = None,
) -> None:
    """Classify the package's twenty photographs with the package's model.

    If the model has no label for what a photograph shows, its answer is neither right nor wrong.
    """
    quiet_transformers()
    from swinv2.cli import printing
    from swinv2.images import BrokenImage
    from swinv2.predict.predictor import Classifier
    from swinv2.predict.shipped import shipped_model, shipped_photographs

    photographs = shipped_photographs()
    classifier = Classifier.load(str(shipped_model()), "cpu")
    answers: list[list[Prediction]] = []
    for path, answer in classifier.classify([photograph.path for photograph in photographs]):
        if isinstance(answer, BrokenImage):
            raise UsageError(f"the shipped photograph {path} is {answer.reason}; reinstall the package.")
        answers.append(answer)
    printing.print_demo(photographs, answers, data_console())
    if output is not None:
        try:
            from swinv2.predict.sheet import draw_sheet
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--output needs {error.name} to draw, which is not installed; install swinv2[figures]."
            ) from error
        with writing(output):
            draw_sheet(photographs, answers, output)
        message_console().print(f"drawn: {shown(output)}")
