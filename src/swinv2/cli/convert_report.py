"""Prints the report of a conversion for people.

In: a `ConversionReport`. Out: text on a console: the facts, a table of stages, and notes about assumptions. This
module computes nothing.
"""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swinv2.convert.conversion import ConversionReport
from swinv2.lengths import Lengths, Windows, as_windows
from swinv2.sizes import as_typed


def _typed_windows(window_size: Windows, stages: int, axes: int = 2) -> str:
    """Windows of a converted model, in the notation of --window-size; of a video model, frames first."""
    windows = as_windows("window_size", window_size, stages, axes=axes)
    sizes = [str(window[0]) if axes == 2 and len(set(window)) == 1 else as_typed(window) for window in windows]
    return ",".join(sizes[:1] if len(set(sizes)) == 1 else sizes)


def _size_change(before: Lengths, after: Lengths) -> str:
    """A size of the converted model; if it changed, the old and the new size."""
    return as_typed(before) if before == after else f"{as_typed(before)} -> {as_typed(after)}"


def print_conversion(report: ConversionReport, console: Console) -> None:
    """Prints the report of a conversion: the recognised sizes and the changes."""
    window = _typed_windows(report.window_size, len(report.stages))
    if report.new_window_size != report.window_size:
        axes = 2 if report.num_frames is None else 3
        window += f" -> {_typed_windows(report.new_window_size, len(report.stages), axes)}"
    facts = {
        "weights of": report.dialect,
        "class": report.model_class,
        "parameters": f"{report.parameters:,} ({report.dtype})",
        "image size": f"{_size_change(report.image_size, report.new_image_size)} (from {report.sources['image size']})",
        "window": f"{window} (from {report.sources['window']})",
        "bias learned in": (
            f"{', '.join(as_typed(stage.learned_window) for stage in report.stages)} (from "
            f"{report.sources['pre-training windows']})"
        ),
        # The first name of each class, which may have several.
        "classes": "none"
        if report.num_labels is None
        else f"{report.num_labels}: {', '.join(label.partition(',')[0] for label in report.labels)} ...",
        "images": report.processor,
        "left out": f"{report.left_out} tensors that follow from sizes",
    }
    if report.num_frames is not None:
        facts["frames"] = f"{report.num_frames} of a clip, {report.tubelet_size} of a patch"
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        console.print(Text.assemble((name.ljust(width), "bold"), fact), soft_wrap=True)
    console.print()
    is_terminal = console.is_terminal
    table = Table(box=box.SIMPLE_HEAD if is_terminal else None, show_edge=False, pad_edge=False, header_style="bold")
    for name in ("stage", "blocks", "channels", "heads", "map", "window", "shift", "learned in"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in report.stages:
        table.add_row(
            stage.name,
            str(stage.blocks),
            str(stage.channels),
            str(stage.heads),
            _size_change(stage.grid, stage.new_grid),
            _size_change(stage.window, stage.new_window),
            _size_change(stage.shift, stage.new_shift),
            as_typed(stage.learned_window),
        )
    console.print(table)
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(Text(f"- {note}"), soft_wrap=not is_terminal)
