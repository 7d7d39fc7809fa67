"""A model repository for NVIDIA's Triton Inference Server, from an exported folder.

In: the graphs of an export. Out: a folder for each graph, `NAME/config.pbtxt` and `NAME/1/model.onnx`, in Triton's
layout. The text is Triton's `ModelConfig` in protobuf's text format; the tests read it with Triton's own schema.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from swinv2.errors import UsageError
from swinv2.export.formats import Port
from swinv2.exported import ONNX, OPENVINO, TORCH

BACKENDS = {ONNX: ("onnxruntime", "model.onnx"), OPENVINO: ("openvino", "model.xml"), TORCH: ("", "")}
"""Triton's backend, and the name that it expects of the graph's file."""

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}

LARGEST_BATCH = 64
"""Images that the server computes together at most."""

MOST_DELAY = 2000
"""Microseconds that a request waits for others, at most."""


def refuse_triton(format: str) -> None:
    """Raises an error if Triton does not run a format from a file alone."""
    if not BACKENDS[format][0]:
        raise UsageError(f"--for triton is for --to onnx and --to openvino; --to {format} was given.")


def write_model(
    repository: Path,
    name: str,
    graph: Path,
    format: str,
    ports: tuple[Sequence[Port], Sequence[Port]],
    labels: Sequence[str],
    free_batch: bool,
) -> Path:
    """Writes one model of the repository.

    Args:
        repository: The folder of all models.
        name: Name of the model.
        graph: File of the graph; those beside it whose names begin in the same way hold its weights.
        format: The format of the export.
        ports: What the graph takes, and what it gives.
        labels: Names of the classes, for the output "logits".
        free_batch: Whether the first axis of inputs and outputs is free; otherwise it is 1.

    Returns:
        The folder of the model.
    """
    inputs, outputs = ports
    backend, file = BACKENDS[format]
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    for part in graph.parent.glob(f"{graph.stem}.*"):
        # A graph in ONNX names the file of its weights, so that one keeps its name.
        keeps_name = format == ONNX and part != graph
        shutil.copyfile(part, folder / "1" / (part.name if keeps_name else file.replace(".xml", part.suffix)))
    has_labels = bool(labels) and any(port.name == "logits" and port.shape == (len(labels),) for port in outputs)
    if has_labels:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    lines = [
        f"name: {json.dumps(name)}",
        f"backend: {json.dumps(backend)}",
        # 0: the shapes are whole, with the batch, and the server joins no requests.
        f"max_batch_size: {LARGEST_BATCH if free_batch else 0}",
        *(line for port in inputs for line in _block("input", port, free_batch)),
        *(
            line
            for port in outputs
            for line in _block("output", port, free_batch, has_labels and port.name == "logits")
        ),
    ]
    if free_batch:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MOST_DELAY} }}")
    (folder / "config.pbtxt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _block(kind: str, port: Port, free_batch: bool, has_labels: bool = False) -> list[str]:
    """The lines of an input or an output."""
    labels = ['  label_filename: "labels.txt"'] if has_labels else []
    return [
        f"{kind} {{",
        f"  name: {json.dumps(port.name)}",
        f"  data_type: {TYPES[port.dtype]}",
        f"  dims: [ {', '.join(map(str, port.shape if free_batch else (1, *port.shape)))} ]",
        *labels,
        "}",
    ]
