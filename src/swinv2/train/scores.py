"""The scores of a classifier on labelled images.

In: the answers for each image. Out: accuracies, the recall of each class, the confusion matrix, the most confident
mistakes; their figures. `evaluate.py` and the trainer of `finetune.py` compute the answers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL
from swinv2.train.drawing.confusion import count_answers, draw_confusion
from swinv2.train.drawing.mistakes import MOST_MISTAKES, Mistake, draw_mistakes

BEST_CLASSES = 5
"""Number of most probable classes that are stored for each image."""


def best_classes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable classes of each image, the best first (images, classes), and the probability of the first one
    (images,)."""
    best = logits.topk(min(BEST_CLASSES, logits.shape[-1])).indices
    return best, logits.float().softmax(-1).amax(-1)


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation. Accuracies are shares of the readable images."""

    top1: float
    top5: float | None
    """None with fewer than six classes."""
    loss: float | None
    """Mean cross entropy; None if the answers have no probabilities of all classes."""
    images: int
    """Number of readable images."""
    unreadable: list[str]
    """Names of unreadable images, each with the reason."""
    truths: np.ndarray
    """The class of each readable image."""
    answers: np.ndarray
    """The most probable class of each readable image."""
    names: tuple[str, ...]
    worst: list[tuple[int, int, int, float]]
    """Index, truth, answer and probability of the most confident mistakes, the most confident first."""

    @classmethod
    def of(
        cls,
        truths: np.ndarray,
        best: np.ndarray,
        probabilities: np.ndarray,
        loss: float | None,
        names: tuple[str, ...],
        unreadable: list[str],
    ) -> Self:
        """Counts answers.

        Args:
            truths: The class of each image; `IGNORED_LABEL` for an image that does not count. At least one counts.
            best, probabilities: See `best_classes`.
            loss: Mean cross entropy, if it is known.
            names: Names of the classes.
            unreadable: Names of unreadable images.
        """
        counted = truths != IGNORED_LABEL
        answers = best[:, 0]
        wrong = np.flatnonzero(counted & (answers != truths))
        worst = wrong[np.argsort(-probabilities[wrong], kind="stable")[:MOST_MISTAKES]]
        return cls(
            top1=float((answers == truths)[counted].mean()),
            top5=float((best == truths[:, None]).any(1)[counted].mean()) if len(names) > BEST_CLASSES else None,
            loss=loss,
            images=int(counted.sum()),
            unreadable=unreadable,
            truths=truths[counted],
            answers=answers[counted],
            names=names,
            worst=[(int(i), int(truths[i]), int(answers[i]), float(probabilities[i])) for i in worst],
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What the log of a training has: accuracies and the number of readable images."""
        top5 = {} if self.top5 is None else {"top5": self.top5}
        return {"top1": self.top1, **top5, "images": self.images}

    @property
    def confusion(self) -> np.ndarray:
        """The confusion matrix: numbers of images (true class, answer). That of ImageNet-22K has 3.8 GB."""
        return count_answers(self.truths, self.answers, np.arange(len(self.names)), len(self.names))

    def summary(self) -> dict[str, Any]:
        """The results as plain values, for JSON; the recall of a class without images is None."""
        right = self.truths[self.truths == self.answers]
        hits, counts = (np.bincount(column, minlength=len(self.names)).tolist() for column in (right, self.truths))
        recalls = [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "images": self.images,
            "unreadable": self.unreadable,
            "recall": dict(zip(self.names, recalls, strict=True)),
            "images_by_class": dict(zip(self.names, counts, strict=True)),
        }

    def mistakes(self, dataset: ImageDataset) -> list[dict[str, Any]]:
        """The most confident mistakes as plain values, for JSON, the most confident first."""
        return [
            {"image": dataset[i].name, "label": self.names[truth], "answer": self.names[answer], "probability": sure}
            for i, truth, answer, sure in self.worst
        ]

    def draw(self, dataset: ImageDataset, folder: Path) -> list[Path]:
        """Draws the confusion matrix and, if there are any, the most confident mistakes; returns the files."""
        files = [folder / "confusion.png"]
        draw_confusion(self.truths, self.answers, self.names, files[0], dataset.things)
        if self.worst:
            files.append(folder / "mistakes.png")
            drawn = [
                Mistake(
                    dataset.pixels_of(index),
                    self.names[truth],
                    self.names[answer],
                    probability,
                    Path(dataset[index].name).name,
                )
                for index, truth, answer, probability in self.worst
            ]
            draw_mistakes(drawn, files[1])
        return files
