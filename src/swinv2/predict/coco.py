"""Writes what a detector finds as COCO results, which pycocotools reads.

In: for each image, its objects; a file of COCO annotations, for the ids. Out: a file of results and, without
annotations, a file that says which id is which image and class. This module knows no model and compares nothing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2.dense.average_precision import detections_as_coco
from swinv2.disk import whole_file
from swinv2.errors import UsageError, few, first_sentence
from swinv2.images import BrokenImage
from swinv2.predict.detecting import Detected


@dataclass(frozen=True)
class CocoIds:
    """The ids of a file of COCO annotations.

    Attributes:
        file: The file.
        images: The id of each image by its file name.
        categories: The id of each class by its name.
    """

    file: Path
    images: Mapping[str, int]
    categories: Mapping[str, int]

    @classmethod
    def read(cls, file: Path) -> "CocoIds":
        """Reads the ids.

        Raises:
            UsageError: The file cannot be read, or is no file of COCO annotations.
        """
        try:
            contents = json.loads(file.read_text(encoding="utf-8"))
            images = {str(image["file_name"]): int(image["id"]) for image in contents["images"]}
            categories = {str(category["name"]): int(category["id"]) for category in contents["categories"]}
        except OSError as error:
            raise UsageError(f"the annotations {str(file)!r} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{str(file)!r} has no COCO annotations ({type(error).__name__}: {first_sentence(error)}); expected "
                'JSON with "images" (id, file_name) and "categories" (id, name).'
            ) from error
        return cls(file, images, categories)

    def of_images(self, paths: Sequence[Path]) -> dict[Path, int]:
        """The id of each image: that of the longest file name with which its path ends.

        Raises:
            UsageError: The file has no such name, or two images have the same one.
        """
        found: dict[Path, int] = {}
        owners: dict[int, Path] = {}
        for path in paths:
            number = self._of_image(path)
            if number is None:
                raise UsageError(
                    f"{str(self.file)!r} has no image {path.name!r}; its file names are {few(list(self.images))}. Give "
                    "the annotations of these images, or leave out --annotations."
                )
            if owners.setdefault(number, path) != path:
                raise UsageError(
                    f"{str(owners[number])!r} and {str(path)!r} are the same image in {str(self.file)!r}, id {number}; "
                    "give only one of them."
                )
            found[path] = number
        return found

    def _of_image(self, path: Path) -> int | None:
        """The id of an image; None if there is none."""
        parts = path.absolute().parts
        endings = ("/".join(parts[first:]) for first in range(1, len(parts)))
        return next((self.images[ending] for ending in endings if ending in self.images), None)

    def of_classes(self, names: Sequence[str]) -> list[int]:
        """The id of each class.

        Raises:
            UsageError: A class of the model has none.
        """
        lost = [name for name in names if name not in self.categories]
        if lost:
            raise UsageError(
                f"{str(self.file)!r} has no category {few(lost)}, which the model can find; its categories are "
                f"{few(list(self.categories))}. Give annotations with the classes of the model."
            )
        return [self.categories[name] for name in names]


def write_coco(
    answers: Iterable[tuple[Path, Detected | BrokenImage]],
    file: Path,
    image_ids: Mapping[Path, int],
    category_ids: Sequence[int],
) -> Iterator[tuple[Path, Detected | BrokenImage]]:
    """Passes answers on, and writes them to a file of COCO results, which pycocotools' `loadRes` reads. The file gets
    its name after the last answer. The memory does not depend on the number of images.

    Args:
        answers: For each file, what was found.
        file: The file; an existing file is replaced.
        image_ids: The id of each image.
        category_ids: The id of each class.
    """
    with whole_file(file) as partial, partial.open("w", encoding="utf-8") as opened:
        before = "[\n"
        for path, answer in answers:
            if isinstance(answer, Detected):
                for record in detections_as_coco(image_ids[path], answer.found, category_ids):
                    opened.write(before + json.dumps(record))
                    before = ",\n"
            yield path, answer
        opened.write("[]\n" if before == "[\n" else "\n]\n")


def write_ids(
    answers: Iterable[tuple[Path, Detected | BrokenImage]],
    file: Path,
    image_ids: Mapping[Path, int],
    categories: Mapping[str, int],
) -> Iterator[tuple[Path, Detected | BrokenImage]]:
    """Passes answers on, and writes which image and which class has which id, as COCO annotations without objects.

    Args:
        answers: For each file, what was found.
        file: The file; an existing file is replaced.
        image_ids: The id of each image.
        categories: The id of each class by its name.
    """
    images: list[dict[str, Any]] = []
    for path, answer in answers:
        if isinstance(answer, Detected):
            width, height = answer.size
            images.append({"id": image_ids[path], "file_name": str(path), "width": width, "height": height})
        yield path, answer
    classes = [{"id": number, "name": name} for name, number in categories.items()]
    with whole_file(file) as partial:
        partial.write_text(json.dumps({"images": images, "categories": classes, "annotations": []}, indent=1))
