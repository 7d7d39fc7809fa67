"""Prints answers for people and programs: tables, JSON Lines, CSV.

In: answers and descriptions. Out: data on stdout, messages on stderr. In a terminal tables have lines and colours;
elsewhere they are plain text, one unfolded line for each fact. This module computes nothing.
"""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swinv2.console import shown
from swinv2.images import BrokenImage
from swinv2.predict.describe import Description
from swinv2.predict.predictor import Prediction
from swinv2.predict.shipped import Photograph, count_right
from swinv2.sizes import as_typed

Answers = Iterable[tuple[Path, list[Prediction] | BrokenImage]]

_RIGHT: dict[str, Any] = {"justify": "right", "no_wrap": True}


def headed_table(console: Console, **columns: dict[str, Any]) -> Table:
    """A table to print, without rows; each column has its options."""
    is_terminal = console.is_terminal
    table = Table(
        box=box.SIMPLE_HEAD if is_terminal else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if is_terminal else (0, 2, 0, 0),
        header_style="bold",
    )
    for name, options in columns.items():
        table.add_column(name, **options)
    return table


def print_labels(answers: Answers, console: Console, kind: str = "image") -> None:
    """Prints the labels of images, or of files of another kind, as a table."""
    names = {kind: {"overflow": "fold"}, "label": {"overflow": "fold"}}
    table = headed_table(console, **names, probability=_RIGHT)
    for path, answer in answers:
        if isinstance(answer, BrokenImage):
            continue
        for rank, prediction in enumerate(answer):
            # In plain text, which programs read, each line has the name.
            name = shown(path) if rank == 0 or not console.is_terminal else ""
            # Above one half is the first label only, unless an image may have several.
            style = "bold" if rank == 0 or prediction.probability > 0.5 else "dim"
            table.add_row(Text(name), Text(prediction.label, style), Text(f"{prediction.probability:.1%}", style))
        table.add_section()
    if table.row_count:
        console.print(table)


def print_json_lines(answers: Answers, kind: str = "image") -> None:
    """Prints an object for each image (or `kind` of file) as soon as it is ready: its predictions, or the reason why it
    was skipped."""
    for path, answer in answers:
        if isinstance(answer, BrokenImage):
            record: dict[str, Any] = {kind: str(path), "error": answer.reason}
        else:
            record = {kind: str(path), "predictions": [asdict(prediction) for prediction in answer]}
        print(json.dumps(record), flush=True)


def print_csv(answers: Answers, kind: str = "image") -> None:
    """Prints a line for each label of each image (or `kind` of file) as soon as it is ready; skipped ones have none."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([kind, "rank", "label", "index", "probability"])
    for path, answer in answers:
        for rank, prediction in enumerate([] if isinstance(answer, BrokenImage) else answer, 1):
            probability = f"{prediction.probability:.6f}"
            writer.writerow([shown(path), rank, prediction.label, prediction.index, probability])


def print_demo(photographs: Sequence[Photograph], answers: Sequence[list[Prediction]], console: Console) -> None:
    """Prints what each photograph shows and the most probable label, and how many of the labels are right.

    A photograph whose subject has no label is neither right nor wrong.
    """
    right, wrong = ("✓", "✗") if console.encoding.startswith("utf") else ("right", "wrong")
    marks = {True: Text(right, "green"), False: Text(wrong, "bold red"), None: Text("no label", "dim")}
    table = headed_table(console, photograph={}, predicted={}, probability=_RIGHT, **{"": {"no_wrap": True}})
    for photograph, labels in zip(photographs, answers, strict=True):
        best = labels[0]
        table.add_row(photograph.shows, best.label, f"{best.probability:.1%}", marks[photograph.is_right(best.label)])
    console.print(table)
    counts = count_right(photographs, [[each.label for each in labels] for labels in answers])
    console.print(
        f"\n{counts.right} of {counts.judged} right, {counts.among} among the {len(answers[0])} most probable labels; "
        f"no label fits the other {counts.unjudged} photographs",
        style="bold",
    )


def print_description(description: Description, console: Console) -> None:
    """Prints the facts about a model, and a table of its stages."""
    image, patch, channels = description.image_size, description.patch_size, description.num_channels
    deviating = "" if channels == 3 else f" of {channels} channel{'s' * (channels > 1)}"
    labels = None if description.num_labels is None else str(description.num_labels)
    if description.labels:
        labels = f"{labels}: {', '.join(description.labels[:10])}{', ...' if len(description.labels) > 10 else ''}"
    facts = {
        "model": description.name,
        "is a": description.kind,
        "parameters": f"{description.parameters:,} ({description.model_class})",
        "quoted as": description.quoted,
        "clip": None
        if description.num_frames is None
        else f"{description.num_frames} frames, in patches of {description.tubelet_size}, with a stride of "
        f"{description.frame_stride}",
        "image size": f"{image[0]} x {image[1]} pixels{deviating}, in patches of {patch[0]} x {patch[1]}",
        "labels": labels,
        "top-1": f"{description.top1}% on ImageNet-1k, as published" if description.top1 else None,
        "licence": description.licence,
        "attention": description.attention,
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            grid.add_row(name, Text(value))
    console.print(grid)
    console.print()
    columns = ("blocks", "channels", "heads", "map", "window", "shift", "learned in", "parameters")
    stages = headed_table(console, stage={}, **dict.fromkeys(columns, _RIGHT))
    for stage in description.stages:
        stages.add_row(
            stage.name.removeprefix("stage"),
            *(str(number) for number in (stage.blocks, stage.channels, stage.heads)),
            *(as_typed(pair) for pair in (stage.grid, stage.window, stage.shift, stage.pretrained_window)),
            f"{stage.parameters:,}",
        )
    console.print(stages)


def print_memory(ways: list[dict[str, Any]], batch_size: int, processes: int, console: Console) -> None:
    """Prints the memory of a training on each process, in GiB."""
    images = f"{batch_size} image{'s' * (batch_size > 1)} on each process"
    shared = f", shared by {processes} processes (FSDP2)" if processes > 1 else ""
    console.print(f"\nGiB of memory to train it: 16 bits, AdamW, {images}{shared}")
    kinds = [name for name in ways[0] if name != "checkpointed"]
    table = headed_table(console, blocks={}, **dict.fromkeys(kinds, _RIGHT))
    for way in ways:
        blocks = "computed again" if way["checkpointed"] else "kept"
        table.add_row(blocks, *(f"{way[name] / 1024:.2f}" for name in kinds))
    console.print(table)


def print_evaluation(summary: dict[str, Any], console: Console, things: str = "images") -> None:
    """Prints accuracies, and the recall of each class; of several labels for an image also its average precision.

    Args:
        summary: The scores; see `summary` of their classes.
        console: Where they are printed.
        things: What was evaluated: images or videos.
    """
    facts = headed_table(console, measure={}, value=_RIGHT)
    for name in ("top1", "top5", "mAP", "f1", "exact"):
        if summary.get(name) is not None:
            facts.add_row(name, f"{summary[name]:.2%}")
    if summary["loss"] is not None:
        facts.add_row("loss", f"{summary['loss']:.4f}")
    facts.add_row(things, f"{summary['images']:,}")
    if "neighbours" in summary:
        others = ", without the image itself" if summary["leave_one_out"] else ""
        facts.add_row("neighbours", f"{summary['neighbours']} of {summary['bank']:,} images{others}")
    console.print(facts)
    print_classes(summary, console, things)


def print_class_scores(summary: dict[str, Any], console: Console) -> None:
    """Prints the scores of a segmenter or a detector: of all classes together, and of each class, the worst first;
    classes that occur nowhere are last."""
    facts = headed_table(console, measure={}, value=_RIGHT)
    for name, value in summary.items():
        if isinstance(value, float):
            facts.add_row(name, f"{value:.2%}")
        elif isinstance(value, int):
            facts.add_row(name, f"{value:,}")
    console.print(facts)
    print_scores_of_classes(summary, console)


def print_scores_of_classes(summary: dict[str, Any], console: Console) -> None:
    """Prints the IoU and recall of each class of a segmenter, or the AP and the number of objects of each class of a
    detector, the worst first."""
    titles = {"iou": "IoU", "recall": "recall", "ap": "AP", "ap50": "AP50", "objects_by_class": "objects"}
    names = [name for name in titles if name in summary]
    table = headed_table(console, label={}, **{titles[name]: _RIGHT for name in names})
    scores: dict[str, float | None] = summary[names[0]]
    for label in sorted(scores, key=lambda label: 2 if scores[label] is None else scores[label] or 0):
        values = [summary[name].get(label) for name in names]
        texts = [f"{value:,}" if isinstance(value, int) else f"{value or 0:.1%}" for value in values]
        table.add_row(Text(label), *("" if value is None else text for value, text in zip(values, texts, strict=True)))
    console.print(table)


def print_classes(summary: dict[str, Any], console: Console, things: str = "images") -> None:
    """Prints the recall of each class, and of how many images (or other things); of several labels for an image also
    its average precision. The worst class is first; classes without images are last."""
    names = [name for name in ("average_precision", "recall") if name in summary]
    table = headed_table(console, label={}, **{name.replace("_", " "): _RIGHT for name in (*names, things)})
    for label, score in sorted(summary[names[0]].items(), key=lambda pair: 2 if pair[1] is None else pair[1]):
        values = ("" if score is None else f"{summary[name][label]:.1%}" for name in names)
        table.add_row(Text(label), *values, f"{summary['images_by_class'][label]:,}")
    console.print(table)
