"""Prints what `segment` and `detect` find: tables, JSON Lines, CSV; and the names of the files that they write.

In: answers, one by one. Out: data on stdout, messages on stderr. This module computes nothing.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rich.text import Text

from swinv2.cli.running import finish, watch, writing
from swinv2.console import data_console, message_console, progress_bar, shown

if TYPE_CHECKING:
    from swinv2.images import BrokenImage
    from swinv2.predict.detecting import Detected
    from swinv2.predict.segmenting import Segmented

Answer = TypeVar("Answer")

_MOST_NAMED = 6
"""Files that are named one by one; of more, the number and the folder."""

_RIGHT: dict[str, Any] = {"justify": "right", "no_wrap": True}


class Printed(NamedTuple):
    """How the answers of a command are printed.

    Attributes:
        record: The fields of an answer, for JSON.
        header, lines: CSV: the names of the values beside the image, and the values, a line for each thing found.
        columns, rows: The table: the columns beside the image with their options, and the texts.
    """

    record: Callable[[Any], dict[str, Any]]
    header: Sequence[str]
    lines: Callable[[Any], Iterable[Sequence[Any]]]
    columns: dict[str, dict[str, Any]]
    rows: Callable[[Any], Sequence[Sequence[str]]]


def for_classes() -> Printed:
    """How the answers of `segment` are printed."""

    from swinv2.predict.segmenting import as_records

    def record(answer: "Segmented") -> dict[str, Any]:
        files = [str(file) for file in answer.files]
        return {"size": answer.size, "classes": as_records(answer.classes), "files": files}

    return Printed(
        record,
        ("class", "index", "pixels", "share"),
        lambda answer: [(each.label, each.index, each.pixels, f"{each.share:.6f}") for each in answer.classes],
        {"class": {"overflow": "fold"}, "share": _RIGHT},
        lambda answer: [(each.label, f"{each.share:.1%}") for each in answer.classes],
    )


def for_objects(names: Sequence[str], threshold: float) -> Printed:
    """How the answers of `detect` are printed.

    Args:
        names: Names of the classes.
        threshold: The lowest score of an object.
    """
    from swinv2.predict.detecting import as_records

    def record(answer: "Detected") -> dict[str, Any]:
        files = [str(file) for file in answer.files]
        return {"size": answer.size, "objects": as_records(answer.found, names), "files": files}

    def lines(answer: "Detected") -> list[tuple[Any, ...]]:
        objects = as_records(answer.found, names)
        return [(each["label"], each["index"], each["score"], *each["box"]) for each in objects]

    def rows(answer: "Detected") -> list[tuple[str, ...]]:
        found = [
            (each["label"], f"{each['score']:.1%}", ", ".join(f"{edge:.0f}" for edge in each["box"]))
            for each in as_records(answer.found, names)
        ]
        return found or [(f"no object with a score of at least {threshold:g}", "", "")]

    columns = {"label": {"overflow": "fold"}, "score": _RIGHT, "left, top, right, bottom": _RIGHT}
    return Printed(record, ("label", "index", "score", "left", "top", "right", "bottom"), lines, columns, rows)


def run_and_print(
    verb: str,
    answers: "Iterator[tuple[Path, Segmented | Detected | BrokenImage]]",
    total: int,
    missing: "list[BrokenImage]",
    printed: Printed,
    folder: Path | None,
    as_json: bool,
    as_csv: bool,
    written: Sequence[Path] = (),
) -> None:
    """Runs a command to its end: prints the answers, and names the files.

    Args:
        verb: The activity.
        answers: For each of `total` images, what was found.
        missing: Images that do not exist.
        printed: How answers are printed.
        folder: The folder to write to; None if nothing is drawn.
        as_json, as_csv: Whether to print JSON or CSV; a table if neither.
        written: Files that are written besides those of images.
    """
    from swinv2.images import BrokenImage

    skipped, files = list(missing), list[Path]()
    # In a terminal, lines of data would overwrite the bar.
    with progress_bar(total, verb, is_shown=not ((as_json or as_csv) and sys.stdout.isatty())) as progress:
        valid: list[tuple[Path, Any]] = []
        if as_json:
            for image in missing:
                _print_json(image.path, {"error": image.reason})
        elif as_csv:
            _print_csv(["image", *printed.header])
        for path, answer in watch(_written(answers, folder), progress, skipped):
            if isinstance(answer, BrokenImage):
                if as_json:
                    _print_json(path, {"error": answer.reason})
                continue
            files += answer.files
            if as_json:
                _print_json(path, printed.record(answer))
            elif as_csv:
                for line in printed.lines(answer):
                    _print_csv([shown(path), *line])
            else:
                valid.append((path, printed.rows(answer)))
    if valid:
        _print_table(printed.columns, valid)
    _name_files(files, folder, written)
    finish(total + len(missing), skipped)


def _written(answers: Iterable[Answer], folder: Path | None) -> Iterator[Answer]:
    """The answers. If a file cannot be written while one is computed, the error becomes a sentence."""
    if folder is None:
        yield from answers
        return
    with writing(folder):
        yield from answers


def _print_json(path: Path, fields: dict[str, Any]) -> None:
    """Prints an object of JSON Lines as soon as it is ready."""
    print(json.dumps({"image": str(path), **fields}), flush=True)


def _print_csv(values: Sequence[Any]) -> None:
    """Prints a line of CSV as soon as it is ready."""
    csv.writer(sys.stdout, lineterminator="\n").writerow(values)


def _print_table(columns: dict[str, dict[str, Any]], rows: Sequence[tuple[Path, Sequence[Sequence[str]]]]) -> None:
    """Prints what was found in images as a table."""
    from swinv2.cli import printing

    console = data_console()
    table = printing.headed_table(console, image={"overflow": "fold"}, **columns)
    for path, texts in rows:
        for number, row in enumerate(texts):
            # In plain text, which programs read, each line has the name.
            name = shown(path) if number == 0 or not console.is_terminal else ""
            table.add_row(Text(name), *map(Text, row))
        table.add_section()
    console.print(table)


def _name_files(files: Sequence[Path], folder: Path | None, written: Sequence[Path]) -> None:
    """Names the files that were written, on stderr."""
    console = message_console()
    if folder is not None and len(files) > _MOST_NAMED:
        console.print(f"drawn: {len(files):,} files in {shown(folder)}")
    else:
        for file in files:
            console.print(f"drawn: {shown(file)}")
    for file in written:
        console.print(f"written: {shown(file)}")
