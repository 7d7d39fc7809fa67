"""Writes features to a safetensors or parquet file, atomically.

In: pairs of a path and a tensor. Out: one file. This module knows the two formats and no model.

safetensors: one tensor "features", (images, hidden_size) or (images, channels, height, width), in the type of the
computation; the metadata contain "paths", a JSON list in the same order. parquet: one row for each image, with the
columns `path`, `features` (the flattened tensor, 32-bit floats) and `shape`.
"""

import importlib.util
import json
import os
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from swinv2.disk import whole_file
from swinv2.errors import UsageError

SUFFIXES = (".safetensors", ".parquet")

_ROW_GROUP = 4_000_000
"""Numbers in a group of parquet rows that are written together: about 16 MB."""


def check_output(output: Path) -> None:
    """Checks that the file of features can be written, before any work is done for it.

    Raises:
        UsageError: The suffix is not one of the two, the folder cannot be written to, or pyarrow is not installed.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output is {str(output)!r}; expected a file name that ends in {' or '.join(SUFFIXES)}.")
    if output.is_dir():
        raise UsageError(f"--output {str(output)!r} is a folder; expected the name of a file.")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"--output {str(output)!r}: there is no folder {str(folder)!r}; make it first.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {str(output)!r}: the folder {str(folder)!r} may not be written to.")
    if output.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"--output {str(output)!r}: parquet needs pyarrow, which is not installed; install swinv2[parquet], or "
            "write a .safetensors file."
        )


def write_features(features: Iterable[tuple[Path, Tensor]], output: Path, about: dict[str, str]) -> int:
    """Writes features. An existing file is replaced; without images no file is made.

    Args:
        features: Paths and their features. Parquet writes them group by group; safetensors needs all in memory.
        output: The file; its suffix decides the format.
        about: Further metadata of the file.

    Returns:
        Number of images.

    Raises:
        UsageError: The format is safetensors, and the features have different shapes.
    """
    write = _write_parquet if output.suffix.lower() == ".parquet" else _write_safetensors
    with whole_file(output) as partial:
        return write(features, partial, about)


def _write_safetensors(features: Iterable[tuple[Path, Tensor]], file: Path, about: dict[str, str]) -> int:
    """Writes features as one tensor, with the paths as metadata; returns the number of images."""
    paths: list[str] = []
    tensors: list[Tensor] = []
    for path, tensor in features:
        if tensors and tensor.shape != tensors[0].shape:
            raise UsageError(
                f"the features of {str(path)!r} have the shape {tuple(tensor.shape)}, those of {paths[0]!r} "
                f"{tuple(tensors[0].shape)}: they do not fit into one tensor. Write a .parquet file instead."
            )
        paths.append(str(path))
        tensors.append(tensor)
    if tensors:
        save_file({"features": torch.stack(tensors)}, file, metadata={**about, "paths": json.dumps(paths)})
    return len(paths)


def _write_parquet(features: Iterable[tuple[Path, Tensor]], file: Path, about: dict[str, str]) -> int:
    """Writes features as rows of a table, one for each image; returns the number of images."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    following = iter(features)
    first = next(following, None)
    if first is None:
        return 0
    following = chain([first], following)
    rows_of_group = max(_ROW_GROUP // first[1].numel(), 1)
    schema = pa.schema(
        [("path", pa.string()), ("features", pa.list_(pa.float32())), ("shape", pa.list_(pa.int32()))], metadata=about
    )
    count = 0
    with ParquetWriter(file, schema) as writer:
        while rows := list(islice(following, rows_of_group)):
            columns = [
                # JSON and safetensors keep the bytes of a name that is not valid text; parquet text cannot.
                [os.fsencode(path).decode("utf-8", "replace") for path, _ in rows],
                [tensor.float().flatten().numpy() for _, tensor in rows],
                [list(tensor.shape) for _, tensor in rows],
            ]
            writer.write_table(pa.table(columns, schema=schema))
            count += len(rows)
    return count
