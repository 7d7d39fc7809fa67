"""The commands that find classes of pixels, and objects: `segment` and `detect`.

`swinv2.predict.segmenting` and `swinv2.predict.detecting` compute and write the results.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swinv2.cli.dense_report import for_classes, for_objects, run_and_print
from swinv2.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Flip,
    Images,
    Scales,
    Stride,
    Window,
    read_dtype,
    read_scales,
)
from swinv2.cli.running import find_or_refuse, quiet_transformers
from swinv2.errors import UsageError
from swinv2.sizes import read_size

if TYPE_CHECKING:
    from swinv2.images import BrokenImage

DenseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Required: a model's folder, which `swinv2 finetune --task ...` writes, or its name on the hub.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="JSON Lines: an object for each image, with the error if it was skipped.")
]


def segment(
    images: Images = None,
    model: DenseModel = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for NAME_classes.png and NAME_overlay.png.",
            show_default="segmented; with --json or --csv, none",
        ),
    ] = None,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Write the class maps only.")] = False,
    window: Window = None,
    stride: Stride = None,
    scales: Scales = None,
    flip: Flip = False,
    device: Device = "auto",
    precision: Dtype = "float32",
    as_json: AsJson = False,
    rle: Annotated[bool, typer.Option("--rle", help="With --json: the mask of each class, as COCO's RLE.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV: image, class, index, pixels, share.")] = False,
) -> None:
    """Find the class of each pixel of images, and draw it.

    A class map is a PNG file whose values are the numbers of the classes. If images have the same name, the files of
    the second one are NAME-2_classes.png and so on.

    Unreadable images are skipped and named on stderr; the exit status is then 1.
    """
    if rle and not as_json:
        raise UsageError("--rle was given without --json, to which it adds the masks; give both.")
    sides, steps = read_size(window, "--window"), read_size(stride, "--stride")
    factors = (1.0,) if scales is None else read_scales(scales)
    if steps is not None and sides is None:
        raise UsageError("--stride was given without --window; give both.")
    folder = _folder(output, as_json or as_csv, "segmented")
    paths, missing = _find(images, model, as_json and as_csv, "segment", "segmentation")
    quiet_transformers()
    from swinv2.dense.answers import Segmenter
    from swinv2.loading import choose_device
    from swinv2.predict.segmenting import segment_files

    segmenter = Segmenter.load(str(model), choose_device(device), read_dtype(precision))
    segmenter.window, segmenter.stride, segmenter.scales, segmenter.flip = sides, steps, factors, flip
    answers = segment_files(segmenter, segmenter.names, paths, folder, overlay=not no_overlay, with_masks=rle)
    run_and_print("segmenting", answers, len(paths), missing, for_classes(), folder, as_json, as_csv)


def detect(
    images: Images = None,
    model: DenseModel = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for NAME_objects.png.",
            show_default="detected; with --json, --csv or --coco, none",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            "-t",
            metavar="SCORE",
            min=0.0,
            max=1.0,
            help="Lowest score of an object.",
            show_default="0.5; with --coco, 0",
        ),
    ] = None,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    precision: Dtype = "float32",
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV: image, label, index, score, left, top, right, bottom.")
    ] = False,
    coco: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write COCO results (JSON), of all scores unless -t is given."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="COCO annotations that have the ids of images (by file name) and classes (by name) for --coco.",
            show_default="ids from 1, written to a second file",
        ),
    ] = None,
) -> None:
    """Find objects in images, and draw them.

    If images have the same name, the file of the second one is NAME-2_objects.png and so on.

    Unreadable images are skipped and named on stderr; the exit status is then 1.
    """
    if annotations is not None and coco is None:
        raise UsageError("--annotations was given without --coco, the file for which it has ids; give both.")
    if coco is not None and (coco.is_dir() or not coco.absolute().parent.is_dir()):
        raise UsageError(f"--coco is {str(coco)!r}; expected the name of a file, in a folder that exists.")
    if threshold is None:
        # Average precision needs the unsure ones too.
        threshold = 0.5 if coco is None else 0.0
    folder = _folder(output, as_json or as_csv or coco is not None, "detected")
    paths, missing = _find(images, model, as_json and as_csv, "detect", "detection")
    quiet_transformers()
    from swinv2.dense.answers import Detector
    from swinv2.loading import choose_device
    from swinv2.predict.coco import CocoIds, write_coco, write_ids
    from swinv2.predict.detecting import detect_files

    ids = None if annotations is None else CocoIds.read(annotations)
    image_ids = {path: number for number, path in enumerate(paths, 1)} if ids is None else ids.of_images(paths)
    detector = Detector.load(str(model), choose_device(device), read_dtype(precision))
    names, written = detector.names, list[Path]()
    numbers = list(range(1, len(names) + 1)) if ids is None else ids.of_classes(names)
    answers = detect_files(detector, names, paths, threshold, batch_size, folder)
    if coco is not None:
        answers, written = write_coco(answers, coco, image_ids, numbers), [coco]
        if ids is None:
            written.append(coco.with_suffix(".images.json"))
            answers = write_ids(answers, written[1], image_ids, dict(zip(names, numbers, strict=True)))
    printed = for_objects(names, threshold)
    run_and_print("detecting", answers, len(paths), missing, printed, folder, as_json, as_csv, written)


def _folder(output: Path | None, is_data: bool, usual: str) -> Path | None:
    """The folder to write to: the given one; if there is none, the usual one, or None if data are printed instead."""
    folder = output or (None if is_data else Path(usual))
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {str(folder)!r} is a file; expected a folder, which may be new.")
    return folder


def _find(
    images: list[str] | None, model: str | None, two_formats: bool, command: str, task: str
) -> tuple[list[Path], "list[BrokenImage]"]:
    """Finds the images of a command, see `find_or_refuse`, after everything else that needs no import is checked."""
    if two_formats:
        raise UsageError("--json and --csv were both given; choose one.")
    example = f"swinv2 {command} photo.jpg --model FOLDER."
    if images and model is None:
        raise UsageError(
            f"no --model was given, and the package has none for this: {example} Train one: swinv2 finetune --task "
            f"{task} --data DATA."
        )
    return find_or_refuse(images, example)
