"""Prints what a training is going to do, and its results, for people.

In: a preview or results, as JSON values. Out: text on a console. This module computes nothing.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from swinv2.cli.printing import print_classes, print_scores_of_classes
from swinv2.console import data_console, message_console, shown
from swinv2.errors import few

_NUMBERS = (
    ("eval_top1", "top-1", ".2%"),
    ("eval_top5", "top-5", ".2%"),
    ("eval_mAP", "mAP", ".2%"),
    ("eval_mIoU", "mIoU", ".2%"),
    ("eval_pixel_accuracy", "pixels right", ".2%"),
    ("eval_AP", "AP", ".2%"),
    ("eval_AP50", "AP50", ".2%"),
    ("eval_AP75", "AP75", ".2%"),
    ("eval_f1", "F1", ".2%"),
    ("eval_exact", "exact", ".2%"),
    ("eval_loss", "loss", ".4g"),
    ("loss", "training loss", ".4g"),
    ("penalty", "penalty", ".2g"),
)
"""The results that are printed: their keys, their names, how a number is written."""

MOST_MISTAKES = 3
"""So many of the most confident mistakes are printed; `results.json` and the figure have more."""


def print_results(results: dict[str, Any], run: Path, things: str = "images") -> None:
    """Prints the results of a training in the folder `run`: numbers and the recall of each class on stdout, the rest on
    stderr.

    Args:
        results: The results.
        run: The folder.
        things: What was evaluated: images or videos.
    """
    messages = message_console()
    numbers = [f"{name} {results[key]:{form}}" for key, name, form in _NUMBERS if results.get(key) is not None]
    evaluated = f"{results['eval_images']:,} {things} evaluated: " if "eval_images" in results else ""
    data_console().print(evaluated + ", ".join(numbers))
    if "iou" in results or "ap" in results:
        print_scores_of_classes(results, data_console())
    elif "recall" in results:
        print_classes(results, data_console(), things)
    if "stopped_early_of" in results:
        messages.print(f"stopped early, after {results['step']:,} of {results['stopped_early_of']:,} steps")
    if "kept_step" in results:
        messages.print(f"kept: the model of step {results['kept_step']:,}, the best one")
    for mistake in results.get("mistakes", [])[:MOST_MISTAKES]:
        answer = f"labelled {mistake['label']}, answered {mistake['answer']} ({mistake['probability']:.0%})"
        image = mistake["image"] if "://" in mistake["image"] else shown(Path(mistake["image"]))
        messages.print(Text(f"mistake: {image}: {answer}", "dim"))
    for file in results.get("figures", []):
        messages.print(f"drawn: {shown(Path(file))}")
    final = shown(run / "final")
    uses = {"eval_top1": "classify", "eval_mIoU": "segment", "eval_AP": "detect"}
    command = next((command for name, command in uses.items() if name in results), None)
    file = "photo.jpg" if things == "images" else "video.mp4"
    hint = f" (swinv2 {command} {file} --model {final})" if command else ""
    messages.print(f"the model: {final}{hint}")


def print_start(preview: dict[str, Any], run: Path) -> None:
    """Prints, before the first step, the classes, the steps, the learning rate, the folder `run`, what is chosen."""
    messages, data = message_console(), preview["data"]
    if data["images_by_class"]:
        counted = f"{data['images']:,} {preview['things']}"
        messages.print(Text(f"{counted} of {_list_classes(data['images_by_class'])}", "dim"))
    messages.print(Text(f"{_steps_and_rates(preview)}; {shown(run)}", "dim"))
    chosen = preview["chosen"]
    if chosen:
        some = [f", {name} {chosen[name]['value']}" for name in ("image_size", "num_train_epochs") if name in chosen]
        said = f"{len(chosen)} settings are chosen{''.join(some)}; --dry-run prints each with its reason"
        messages.print(Text(said, "dim"))
    if chosen.get("load_best_model_at_end", {}).get("value") is False:
        messages.print(Text(chosen["load_best_model_at_end"]["reason"], "dim"))


def _list_classes(images: dict[str, int]) -> str:
    """The number of classes, and the first ones with their numbers of training images."""
    return f"{len(images):,} classes: {few([f'{name} {count:,}' for name, count in images.items()], 10)}"


def _steps_and_rates(preview: dict[str, Any]) -> str:
    """Steps, batch size and learning rate of a preview, in words."""
    things, for_512 = preview["things"], preview["learning_rate_for_512_images"]
    steps = f"{preview['steps']:,} steps of {preview['images_a_step']} {things}"
    steps += f", {preview['warmup_steps']} of them warm-up"
    return f"{steps}; learning rate {preview['learning_rate']:g}, which is {for_512:g} for 512 {things}"


def _features_to_compute(preview: dict[str, Any]) -> str:
    """The work of a linear probe, in words."""
    channels, missing = preview["features"]["channels"], preview["features"]["missing"]
    images = " and ".join(f"{count:,} images ({name})" for name, count in missing.items())
    return f"a linear classifier of {channels} features; features of {images} are still to be computed"


def print_preview(preview: dict[str, Any], console: Console) -> None:
    """Prints the preview of `--dry-run` as tables."""
    data, model, memory = preview["data"], preview["model"], preview["memory_mib"]
    things = preview["things"]
    dataset = "streams" if data["images"] is None else f"{data['images']:,} {things}"
    parts = " + ".join(f"{name} {value:,.0f}" for name, value in memory.items())
    facts = {
        "data": f"{data['source']}: {dataset}, {data['classes'] or 'no'} classes",
        **({"classes": _list_classes(data["images_by_class"])} if data["images_by_class"] else {}),
        "evaluated": f"{data['evaluated']:,} {things}" if data["evaluated"] else "nothing",
        "model": f"{model['parameters']:,} parameters, {model['learning']:,} of them learn",
        **({"frames of a clip": model["num_frames"]} if "num_frames" in model else {}),
        "image size, windows": f"{model['image_size']}, {model['windows']}",
        "bias learned in windows": f"{model['pretrained_windows']} (0: the same)",
        "training": _steps_and_rates(preview) if "steps" in preview else _features_to_compute(preview),
        "memory, about": f"{parts} = {sum(memory.values()):,.0f} MiB",
    }
    columns = ("layer", "learning rate", "weight decay", "tensors", "parameters")
    groups = Table(*columns, box=None, pad_edge=False)
    for group in preview.get("groups", ()):
        rate, decay = f"{group['learning_rate']:.4g}", f"{group['weight_decay']:g}"
        groups.add_row(str(group["layer"]), rate, decay, str(group["tensors"]), f"{group['parameters']:,}")
    chosen = Table("chosen", "value", "because", box=None, pad_edge=False)
    for name, choice in preview["chosen"].items():
        chosen.add_row(name, Text(str(choice["value"])), Text(choice["reason"]))
    parts = [_facts_table(facts), *[chosen] * bool(preview["chosen"]), _facts_table(preview["settings"])]
    console.print(*parts, *[groups] * bool(groups.rows), sep="\n")


def _facts_table(facts: dict[str, Any]) -> Table:
    """A table of names and values, for `--dry-run`."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))
    return table
