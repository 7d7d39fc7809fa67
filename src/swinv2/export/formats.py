"""The formats of `swinv2 export`: transformers' exporters, with our settings.

In: a network in the form of `network.py`, and inputs to trace it with. Out: a graph, as transformers' exporters return
it. This module writes no file.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swinv2.errors import UsageError, first_sentence
from swinv2.exported import ONNX, OPENVINO, TORCH, require_packages

OPSET = 20
"""Version of ONNX's operations: the first with GELU, which every runtime of the last years reads."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: Its name in `--to`.
        exporter, config: Names of transformers' classes.
        settings: Fields of the configuration.
        fuses: See `network.prepare`.
        runs_int8: Whether NNCF can reduce it to int8.
    """

    name: str
    exporter: str
    config: str
    settings: dict[str, Any]
    fuses: bool
    runs_int8: bool


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    Attributes:
        name: Its name.
        dtype: Its type, as torch names it.
        shape: Its shape without the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


FORMATS = {
    each.name: each
    for each in (
        Format(OPENVINO, "OpenVINOExporter", "OpenVINOConfig", {}, fuses=True, runs_int8=True),
        Format(ONNX, "OnnxExporter", "OnnxConfig", {"opset_version": OPSET}, fuses=False, runs_int8=True),
        Format(TORCH, "DynamoExporter", "DynamoConfig", {}, fuses=True, runs_int8=False),
    )
}


def make_exporter(format: Format) -> Any:
    """transformers' exporter of a format.

    Raises:
        UsageError: transformers is too old, or a package is missing.
    """
    require_packages(format.name)
    from transformers import exporters

    try:
        with _quietly():
            return getattr(exporters, format.exporter)()
    except ImportError as error:
        raise UsageError(f"--to {format.name}: {first_sentence(error)}; install swinv2[export].") from error


def export_graph(
    exporter: Any, format: Format, network: nn.Module, inputs: dict[str, Tensor], free_batch: bool = True
) -> Any:
    """Exports a network.

    Args:
        exporter: Of `make_exporter`.
        format: The format.
        network: The network.
        inputs: Inputs to trace with; of two images or more for a free batch.
        free_batch: Whether the first axis of each input is free in the graph; the others are fixed.

    Returns:
        transformers' `ExportedComponent`: the graph, and what is known about it.
    """
    from transformers import exporters

    free = {name: {0: torch.export.Dim.AUTO} for name in inputs} if free_batch else None
    config = getattr(exporters, format.config)(dynamic_shapes=free, **format.settings)
    with _quietly(), torch.no_grad():
        exported = exporter.export(network, inputs, config)
    component = next(iter(exported.components.values()))
    if format.name == OPENVINO:
        # OpenVINO's converter leaves all axes free.
        batch = [-1] if free_batch else [1]
        shapes = {each.any_name: [*batch, *inputs[each.any_name].shape[1:]] for each in component.program.inputs}
        component.program.reshape(shapes)
    return component


def ports_of(component: Any, format: Format) -> tuple[list[Port], list[Port]]:
    """The inputs and the outputs of a graph, with their shapes without the batch."""
    graph = component.program
    if format.name == OPENVINO:
        # Some of its shapes are known only for a fixed batch.
        graph = graph.clone()
        graph.reshape({each: [1, *list(each.partial_shape)[1:]] for each in graph.inputs})
        sides = (graph.inputs, graph.outputs)
        names = {"f32": "float32", "u8": "uint8", "boolean": "bool"}
        found = [
            [(each.any_name, names[each.element_type.get_type_name()], each.partial_shape) for each in side]
            for side in sides
        ]
        inputs, outputs = (
            [Port(name, dtype, tuple(axis.get_length() for axis in list(shape)[1:])) for name, dtype, shape in side]
            for side in found
        )
        return inputs, outputs
    names = {"FLOAT": "float32", "UINT8": "uint8", "BOOL": "bool"}
    inputs, outputs = (
        [Port(each.name, names[each.dtype.name], tuple(int(axis) for axis in list(each.shape)[1:])) for each in side]
        for side in (graph.graph.inputs, graph.graph.outputs)
    )
    return inputs, outputs


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' warnings about versions that they were not tested with, torch's about ONNX operations of
    which it knows no signature, and what it prints: every export is compared with its source."""
    names = ("transformers.exporters", "torch.onnx")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
