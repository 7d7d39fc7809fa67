"""Runs an exported model as the one that it came from.

In: a folder that `swinv2 export` wrote, and prepared images. Out: the outputs of the source. transformers'
`ExportedModel` loads the graphs and runs them in OpenVINO, ONNX Runtime or torch; this module knows no image file.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swinv2.errors import UsageError, first_sentence
from swinv2.lengths import Pair

MANIFEST = "export.json"
"""The file of transformers' exporters that lists the graphs of a folder."""

TRUST = "SWINV2_TRUST_PT2"
"""Variable of the environment that must be 1 to load a folder of the format "torch"."""

OPENVINO, ONNX, TORCH = "openvino", "onnx", "torch"

_FORMATS = {"openvino": OPENVINO, "onnx": ONNX, "dynamo": TORCH}
"""Our names of transformers' export formats."""


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of an exported model; None if the folder is something else.

    Raises:
        UsageError: The manifest cannot be read, or its format is not one of ours.
    """
    file = Path(folder).expanduser() / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        known = manifest["export_format"] in _FORMATS and all(
            entry["metadata"]["kwargs"]["pixel_values"]["shape"] for entry in manifest["components"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{str(file)!r} is damaged: {first_sentence(error)}. Export the model again.") from error
    if not known:
        raise UsageError(
            f"{str(file)!r} has the format {manifest['export_format']!r}; expected one of {OPENVINO}, {ONNX}."
        )
    return manifest


class ExportedNetwork:
    """An exported model, called as its source: `network(pixel_values).logits`.

    Attributes:
        config: The configuration of the source.
        architecture: The class of the source, such as "Swinv2ForImageClassification".
        device, dtype: Where images go, and their type.
        sizes: The sizes (height, width) in pixels of images that it takes.
        takes_bytes: Whether its graphs take pixels of eight bits, and normalise them.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Any,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        trusted: bool = False,
    ) -> None:
        """Loads the graphs of a folder.

        Args:
            folder: The folder.
            config: The configuration of the source.
            device: Where the graphs run.
            dtype: Type of the computation: 32 bits, or with OpenVINO bfloat16.
            trusted: Whether a graph of torch may be loaded, which can run any code.

        Raises:
            UsageError: The folder is damaged, its runtime is not installed, or does not know the device or the type.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise UsageError(f"the folder {str(folder)!r} is not an exported model: it has no {MANIFEST}.")
        self.config, self.device, self.dtype = config, device, torch.float32
        self.format = _FORMATS[manifest["export_format"]]
        entries = manifest["components"]
        self.architecture: str = next(iter(entries.values()))["metadata"]["architecture"]
        described = {name: entry["metadata"]["kwargs"]["pixel_values"] for name, entry in entries.items()}
        self.takes_bytes = all(each["dtype"] == "uint8" for each in described.values())
        axes = slice(1, 3) if self.takes_bytes else slice(2, 4)
        names = {tuple(each["shape"][axes]): name for name, each in described.items()}
        runners = _load(Path(folder).expanduser(), self.format, device, dtype, trusted).runners
        self._runners: dict[Pair, Any] = {size: runners[name] for size, name in names.items()}
        self.sizes: list[Pair] = sorted(self._runners)

    def __call__(self, pixel_values: Tensor, **kwargs: Tensor) -> Any:
        """The outputs of the source.

        Args:
            pixel_values: Images (batch, channels, height, width) as the image processor in the folder returns them.
            kwargs: Further inputs of the graph, such as `bool_masked_pos`.

        Raises:
            ValueError: There is no graph for images of this size.
        """
        size = (pixel_values.shape[2], pixel_values.shape[3])
        if size not in self._runners:
            sizes = ", ".join(f"{height} x {width}" for height, width in self.sizes)
            raise ValueError(f"the images are {size[0]} x {size[1]} pixels; this export takes {sizes} (height first).")
        if self.takes_bytes:
            pixel_values = pixel_values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return self._runners[size](pixel_values=pixel_values.contiguous(), **kwargs)


def _load(folder: Path, format: str, device: torch.device, dtype: torch.dtype, trusted: bool) -> Any:
    """Loads a folder by transformers, with its runtime on a device."""
    try:
        from transformers.exporters import ExportedModel
    except ImportError as error:
        raise UsageError(
            f"{str(folder)!r} is an exported model, which needs transformers 5.23 or newer; install swinv2[export]."
        ) from error
    if dtype != torch.float32 and (format, dtype) != (OPENVINO, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"{str(folder)!r} is a model exported to {format}, which does not run in {name} here; use float32"
            f"{' or bfloat16' if format == OPENVINO else ''}."
        )
    options: dict[str, Any] = {}
    if format == OPENVINO:
        # By itself OpenVINO computes in 16 bits where the processor can.
        precision = "bf16" if dtype == torch.bfloat16 else "f32"
        options["config"] = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if format == TORCH:
        if not trusted and os.environ.get(TRUST) != "1":
            raise UsageError(
                f"{str(folder)!r} is a model exported to torch (.pt2); such a file can run any code when it is loaded. "
                f"If you trust it, set {TRUST}=1."
            )
        options["trust_remote_code"] = True
    try:
        if format == ONNX:
            import onnxruntime

            session = onnxruntime.SessionOptions()
            session.intra_op_num_threads, session.log_severity_level = torch.get_num_threads(), 3
            options["session_options"] = session
        with warnings.catch_warnings():
            # transformers reads its manifest by a function of torch that is deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            return ExportedModel.from_pretrained(folder, device=device, local_files_only=True, **options)
    except ImportError as error:
        raise UsageError(
            f"{str(folder)!r} is a model exported to {format}, and its runtime is not installed "
            f"({first_sentence(error)}); install swinv2[export]."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"the exported model {str(folder)!r} cannot be loaded: {first_sentence(error)}.") from error
