"""Finds what the package contains: a small model for Tiny-ImageNet, and twenty photographs.

Out: paths, what is known about each photograph, and how many answers about them are right. This module runs no model.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from swinv2.errors import UsageError

FOLDER = Path(__file__).parent.parent / "checkpoints" / "tiny_imagenet"


@dataclass(frozen=True)
class Photograph:
    """A photograph of the package.

    Attributes:
        path: The file.
        shows: What is in it, in plain words.
        label: The model's label for that; None if the model has none.
        source: Package or repository that it is from, and the file there.
        author: Photographer, or holder of the rights.
        licence: Licence of the photograph, or "public domain".
    """

    path: Path
    shows: str
    label: str | None
    source: str
    author: str
    licence: str

    def is_right(self, answer: str) -> bool | None:
        """Whether a label is the photograph's; None if the model has no label for what the photograph shows."""
        return None if self.label is None else answer == self.label


class Counts(NamedTuple):
    """How many photographs a model recognises.

    Attributes:
        right: Those whose most probable label is right.
        among: Those whose label is among the most probable ones.
        judged: Those that have a label.
        unjudged: The others.
    """

    right: int
    among: int
    judged: int
    unjudged: int


def count_right(photographs: Sequence[Photograph], answers: Sequence[Sequence[str]]) -> Counts:
    """Counts right answers.

    Args:
        photographs: The photographs.
        answers: For each photograph the most probable labels, the most probable first.
    """
    verdicts = [[each.is_right(label) for label in labels] for each, labels in zip(photographs, answers, strict=True)]
    judged = sum(each.label is not None for each in photographs)
    right = sum(verdict[0] is True for verdict in verdicts)
    return Counts(right, sum(True in verdict for verdict in verdicts), judged, len(photographs) - judged)


def shipped_model() -> Path:
    """The folder of the shipped model.

    Raises:
        UsageError: The installation has none.
    """
    if not (FOLDER / "config.json").is_file():
        raise UsageError(
            f"this installation of swinv2 has no model in {FOLDER}; reinstall the package, or give another model with "
            "--model."
        )
    return FOLDER


def shipped_photographs() -> list[Photograph]:
    """The photographs, in the order of their table, `samples/photographs.csv`.

    Raises:
        UsageError: The installation has none.
    """
    table = FOLDER / "samples" / "photographs.csv"
    if not table.is_file():
        raise UsageError(f"this installation of swinv2 has no photographs in {table.parent}; reinstall it.")
    with table.open(newline="", encoding="utf-8") as file:
        return [
            Photograph(table.parent / row.pop("file"), label=row.pop("label") or None, **row)
            for row in csv.DictReader(file)
        ]
