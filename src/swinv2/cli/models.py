"""The commands about a model itself: `info` and `convert`.

`swinv2.predict.describe`, `swinv2.train.memory` and `swinv2.convert` compute the results.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from swinv2.cli.running import quiet_transformers
from swinv2.console import data_console, message_console, progress_bar, shown
from swinv2.errors import UsageError
from swinv2.sizes import read_learned_windows, read_size, read_windows
from swinv2.zoo import PRESETS

_WINDOWS = "8, 8x16 (height first), or one for each stage: 16,16,16,8"


def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"A preset ({', '.join(PRESETS)}), a model's folder, or its name on the hub."
        ),
    ],
    image_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Describe it for this size: 384, or 384x256 (height first).")
    ] = None,
    window_size: Annotated[
        str | None, typer.Option(metavar="WINDOW", help=f"Describe it for these windows: {_WINDOWS}.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Add the memory of a training, for each process.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="For --memory.")] = 1,
    world_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that share a model by FSDP2, for --memory.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Describe a model: parameters, stages, windows, attention, labels, memory. Weights are not loaded.

    The memory is that of a training in 16 bits with AdamW and weights in fp32.
    """
    if not memory and (batch_size, world_size) != (1, 1):
        raise UsageError("--batch-size and --world-size have no effect without --memory; leave them out.")
    size = read_size(image_size, "--image-size")
    windows = read_windows(window_size, "--window-size")
    quiet_transformers()
    from swinv2.cli import printing
    from swinv2.predict.describe import build_on_meta, describe
    from swinv2.train.memory import ways_to_train

    description = describe(model, size, windows)
    ways = ways_to_train(build_on_meta(model, size, windows), batch_size, world_size) if memory else []
    if as_json:
        typer.echo(json.dumps(asdict(description) | ({"memory_mib": ways} if memory else {}), indent=2))
        return
    printing.print_description(description, data_console())
    if memory:
        printing.print_memory(ways, batch_size, world_size, data_console())


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a folder, or a name on the hub.")],
    output: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder to create.")] = None,
    format: Annotated[
        str,
        typer.Option("--to", metavar="FORMAT", help="swinv2, transformers, timm, torchvision, microsoft, mmpretrain."),
    ] = "swinv2",
    image_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Change the image size: 384, or 384x256 (height first).")
    ] = None,
    window_size: Annotated[
        str | None,
        typer.Option(metavar="WINDOW", help=f"Change the windows and extrapolate the position bias: {_WINDOWS}."),
    ] = None,
    trained_image_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Image size of the training, if the source does not say it.")
    ] = None,
    trained_window_size: Annotated[
        str | None, typer.Option(metavar="WINDOW", help="Windows of the training, if the source does not say them.")
    ] = None,
    pretrained_window_sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N,..", help="Each stage's window in which its position bias was learned; 0: its own."),
    ] = None,
    inflate: Annotated[
        bool, typer.Option("--inflate", help="Make a video model, which gives a still clip the image model's answer.")
    ] = False,
    num_frames: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="For --inflate: frames of a clip.", show_default="32"),
    ] = None,
    tubelet_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="For --inflate: frames of a patch.", show_default="2"),
    ] = None,
    window_frames: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="For --inflate: length of the windows in time, in tokens of one patch's frames.",
            show_default="8",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report, and write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Convert weights of transformers, timm, torchvision, mmpretrain or the authors; optionally for another image size,
    or for videos.

    The folder is written atomically.
    """
    if output is None and not dry_run:
        raise UsageError("no output folder was given; for example: swinv2 convert weights.pth my-model, or --dry-run.")
    lengths = {"num_frames": num_frames, "tubelet_size": tubelet_size, "window_frames": window_frames}
    given = {name: length for name, length in lengths.items() if length is not None}
    if given and not inflate:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise UsageError(f"{option} has no effect without --inflate; leave it out, or add --inflate.")
    size, windows = read_size(image_size, "--image-size"), read_windows(window_size, "--window-size")
    trained_size = read_size(trained_image_size, "--trained-image-size")
    trained_windows = read_windows(trained_window_size, "--trained-window-size")
    learned_windows = read_learned_windows(pretrained_window_sizes, "--pretrained-window-sizes")
    quiet_transformers()
    from swinv2.cli.convert_report import print_conversion
    from swinv2.convert import convert as convert_weights
    from swinv2.convert.conversion import Inflation

    with progress_bar(0, "converting", is_shown=False):
        report = convert_weights(
            source,
            None if dry_run else output,
            format,
            size,
            windows,
            trained_image_size=trained_size,
            trained_window_size=trained_windows,
            pretrained_window_sizes=learned_windows,
            inflation=Inflation(**given) if inflate else None,
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        print_conversion(report, data_console())
    done = f"written: {shown(output)}" if output is not None and not dry_run else "nothing was written (--dry-run)"
    message_console().print(done)
