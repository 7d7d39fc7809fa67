"""Sources for `swinv2 predict`: images in folders, archives and parquet files; and what is in its output."""

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BROKEN = b"not an image"


def image_bytes(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    """A PNG file of noise; each seed gives another one."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def images_of(count: int, first: int = 0, broken: Iterable[int] = ()) -> dict[str, bytes]:
    """Files of images by name; some of them broken."""
    broken = set(broken)
    return {
        f"{number:04d}.png": BROKEN if number in broken else image_bytes(number)
        for number in range(first, first + count)
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files into a folder; their names may have folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(file: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """Writes an archive as webdataset does: beside each image a member with its label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            for member, data in ((name, content), (f"{Path(name).stem}.cls", b"3")):
                about = tarfile.TarInfo(member)
                about.size = len(data)
                archive.addfile(about, io.BytesIO(data))
    return file


def write_parquet(file: Path, columns: Mapping[str, Any], row_group_size: int | None = None) -> Path:
    """Writes columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), file, row_group_size=row_group_size)
    return file


def read_answers(output: Path) -> list[dict[str, Any]]:
    """All rows of all files of answers, in the order of the files' names."""
    return [row for file in sorted((output / "shards").iterdir()) for row in pq.read_table(file).to_pylist()]


def keys_of(output: Path) -> list[str | None]:
    """The keys of all answers."""
    return [row["key"] for row in read_answers(output)]


def files_of(output: Path) -> dict[str, bytes]:
    """The files of answers, by name."""
    return {file.name: file.read_bytes() for file in sorted((output / "shards").iterdir())}


def in_order(values: Sequence[Any]) -> bool:
    """Whether values are sorted and different."""
    return list(values) == sorted(set(values))
