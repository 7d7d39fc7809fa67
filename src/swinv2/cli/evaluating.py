"""The command `evaluate`, for classifiers of images and videos, segmenters and detectors.

`swinv2.train` computes the results; most of it is imported only if the command runs.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from swinv2.cli.options import Device, Dtype, Flip, Model, Scales, Stride, Window, read_dtype, read_scales
from swinv2.cli.running import SKIPPED, model_or_shipped, quiet_transformers, writing
from swinv2.console import data_console, message_console, progress_bar, shown
from swinv2.errors import UsageError
from swinv2.sizes import read_size, read_windows


def evaluate(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder of class folders, files, a list, a data set's name.")
    ],
    model: Model = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="The split; evaluation: the first of validation, val, valid, test.")
    ] = "evaluation",
    knn: Annotated[
        bool, typer.Option("--knn", help="By nearest neighbours in the split train, without a classifier.")
    ] = False,
    neighbours: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Neighbours that vote, with --knn.", show_default="20")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Draw the confusion matrix and mistakes.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the images, if it cannot be found automatically.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the labels, if it cannot be found automatically.")
    ] = None,
    mask_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the masks, for segmenters.")
    ] = None,
    label_names_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the classes of masks, or of videos whose labels are numbers."),
    ] = None,
    ignore_index: Annotated[
        int | None,
        typer.Option(metavar="VALUE", help="Value of pixels that do not count.", show_default="255, or by the layout"),
    ] = None,
    reduce_labels: Annotated[
        bool | None, typer.Option(help="Whether 0 in a mask is no class.", show_default="by the layout")
    ] = None,
    window: Window = None,
    stride: Stride = None,
    scales: Scales = None,
    flip: Flip = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Adapt a segmenter to this image size, for --window-size.", show_default="its own"
        ),
    ] = None,
    window_size: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Adapt a segmenter to these windows; the position bias is extrapolated.",
            show_default="its own",
        ),
    ] = None,
    stretch_bias: Annotated[
        bool, typer.Option("--stretch-bias", help="Stretch the position bias over the windows instead.")
    ] = False,
    clips: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Clips of each video, spread evenly.", show_default="1")
    ] = None,
    crops: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Crops of each clip, along its longer side.", show_default="1"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            metavar="N",
            min=1,
            help="Images or videos of a batch.",
            show_default="64; videos: 8; segmenters: 1",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Processes that read images.", show_default="by number of images"),
    ] = None,
    device: Device = "auto",
    precision: Dtype = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Evaluate a classifier on labelled images or videos; with --knn any model of images, by its features. A segmenter
    is evaluated on images with masks (mean IoU), a detector on images with objects (COCO's average precision).

    Unreadable images are skipped and named on stderr; the exit status is then 1.
    """
    if neighbours is not None and not knn:
        raise UsageError("--neighbours has no effect without --knn; give both.")
    of_segmenters = {
        "label_names_file": label_names_file and str(label_names_file),
        "ignore_index": ignore_index,
        "reduce_labels": reduce_labels,
        "mask_column": mask_column,
        "window": read_size(window, "--window"),
        "stride": read_size(stride, "--stride"),
        "scales": scales and read_scales(scales),
        "flip": flip or None,
        "image_size": read_size(image_size, "--image-size"),
        "window_size": read_windows(window_size, "--window-size"),
        "stretch_bias": stretch_bias or None,
    }
    given = {name: value for name, value in of_segmenters.items() if value is not None}
    views = {name: value for name, value in {"clips": clips, "crops": crops}.items() if value is not None}
    quiet_transformers()
    from swinv2.dense.saved import read_dense_config
    from swinv2.loading import is_video_model

    name = model_or_shipped(model)
    common: dict[str, Any] = {"workers": workers, "device": device, "dtype": read_dtype(precision)}
    if not knn and read_dense_config(name) is not None:
        if label_column is not None:
            raise UsageError(f"--label-column is for classifiers, and {name!r} is none; leave it out.")
        columns = {} if image_column is None else {"image_column": image_column}
        _refuse_options(views, name, "models of videos")
        unreadable = _evaluate_dense(
            name, data, split, given | columns | common, batch_size=batch_size or 1, output=output, as_json=as_json
        )
    elif not knn and is_video_model(name):
        names_file = str(given.pop("label_names_file", ""))
        _refuse_options(given, name, "segmenters")
        columns = {"image_column": image_column, "label_column": label_column}
        _refuse_options({each: value for each, value in columns.items() if value is not None}, name, "models of images")
        options = common | views | {"batch_size": batch_size or 8}
        unreadable = _evaluate_videos(name, data, split, names_file, options, output=output, as_json=as_json)
    else:
        _refuse_options(given, name, "segmenters")
        _refuse_options(views, name, "models of videos")
        common |= {"image_column": image_column, "label_column": label_column, "batch_size": batch_size or 64}
        unreadable = _evaluate_classifier(
            name, data, split, common, knn=knn, neighbours=neighbours, output=output, as_json=as_json
        )
    for broken in unreadable:
        message_console().print(Text.assemble(("skipped ", "yellow"), broken))
    if unreadable:
        raise typer.Exit(SKIPPED)


def _refuse_options(given: dict[str, Any], model: str, things: str) -> None:
    """Raises an error if options are given that are for other things than the model."""
    from swinv2.train.flags import as_flag

    if given:
        raise UsageError(f"{', '.join(map(as_flag, given))}: for {things}, and {model!r} is none; leave it out.")


def _evaluate_classifier(
    name: str,
    data: str,
    split: str,
    common: dict[str, Any],
    *,
    knn: bool,
    neighbours: int | None,
    output: Path | None,
    as_json: bool,
) -> list[str]:
    """Evaluates a classifier, or any model by its nearest neighbours, and prints the results; returns the unreadable
    images with reasons."""
    from swinv2.train import evaluate as evaluation
    from swinv2.train.neighbours import NEIGHBOURS, evaluate_neighbours

    by_neighbours = partial(evaluate_neighbours, neighbours=neighbours or NEIGHBOURS)
    with progress_bar(0, "evaluating") as progress:
        run = by_neighbours if knn else evaluation.evaluate
        found, dataset = run(name, data, split, advance=progress.update, **common)
    return _print_found(found, dataset, output, as_json)


def _evaluate_videos(
    name: str, data: str, split: str, names_file: str, options: dict[str, Any], *, output: Path | None, as_json: bool
) -> list[str]:
    """Evaluates a classifier of videos and prints the results; returns the unreadable videos with reasons."""
    from swinv2.train.running import read_names
    from swinv2.train.video.evaluate import evaluate_videos

    with progress_bar(0, "evaluating", unit="videos") as progress:
        found, dataset = evaluate_videos(
            name, data, split, names=read_names(names_file), advance=progress.update, **options
        )
    return _print_found(found, dataset, output, as_json)


def _print_found(found: Any, dataset: Any, output: Path | None, as_json: bool) -> list[str]:
    """Prints and draws the results of a classifier; returns what is unreadable, with reasons."""
    from swinv2.cli.printing import print_evaluation

    _say_what(found.images, dataset)
    files: list[Path] = []
    if output is not None:
        with writing(output):
            files = found.draw(dataset, output)
    if as_json:
        typer.echo(json.dumps(found.summary() | {"mistakes": found.mistakes(dataset)}, indent=2))
    else:
        print_evaluation(found.summary(), data_console(), dataset.things)
    _say_drawn(files)
    return found.unreadable


def _evaluate_dense(
    name: str,
    data: str,
    split: str,
    options: dict[str, Any],
    *,
    batch_size: int,
    output: Path | None,
    as_json: bool,
) -> list[str]:
    """Evaluates a segmenter or a detector, and prints its scores; returns the unreadable images with reasons."""
    from swinv2.cli.printing import print_class_scores
    from swinv2.train.dense.evaluate import evaluate_dense
    from swinv2.train.running import read_names

    if "label_names_file" in options:
        options = {**options, "names": read_names(options["label_names_file"])}
        del options["label_names_file"]
    with progress_bar(0, "evaluating") as progress:
        scores, dataset, unreadable, files = evaluate_dense(
            name, data, split, batch_size=batch_size, output=output, advance=progress.update, **options
        )
    summary = scores.summary()
    _say_what(summary["images"], dataset)
    if as_json:
        typer.echo(json.dumps(summary | {"unreadable": unreadable}, indent=2))
    else:
        print_class_scores(summary, data_console())
    _say_drawn(files)
    return unreadable


def _say_what(images: int, dataset: Any) -> None:
    """Names the images that were evaluated."""
    of_split = "" if dataset.split is None else f", split {dataset.split!r}"
    message_console().print(Text(f"evaluated: {images:,} {dataset.things} of {dataset.source}{of_split}", "dim"))


def _say_drawn(files: Sequence[Path]) -> None:
    """Names the figures."""
    for file in files:
        message_console().print(f"drawn: {shown(file)}")
