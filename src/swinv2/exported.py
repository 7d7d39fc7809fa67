"""Runs an exported model as the one that it came from.

In: a folder that `swinv2 export` wrote, and prepared images. Out: the outputs of the source. transformers' exporters
and runners load a graph and run it in OpenVINO, ONNX Runtime or torch; this module knows no image file.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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

PACKAGES = {OPENVINO: ("openvino",), ONNX: ("onnx", "onnxscript", "onnxruntime"), TORCH: ()}
"""What a format needs, to export and to run."""


def require_packages(format: str) -> None:
    """Checks that a format can be exported and run.

    Raises:
        UsageError: transformers is too old, or a package is missing.
    """
    try:
        importlib.import_module("transformers.exporters").ExportedModel  # noqa: B018  (imported at its first use)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the format {format} needs transformers 5.23 or newer; install swinv2[export], which asks for it."
        ) from error
    missing = [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the format {format} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed; install swinv2[export]."
        )


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
        format, entries = manifest["export_format"], [*manifest["components"].values()]
        shapes = [entry["metadata"]["kwargs"]["pixel_values"]["shape"] for entry in entries]
        is_whole = bool(entries) and all(len(shape) == 4 for shape in shapes)
        # A name alone: a folder may come from anywhere, and must not name files elsewhere.
        is_whole &= all(Path(entry["file"]).name == entry["file"] for entry in entries)
        is_whole &= all(isinstance(entry["metadata"]["architecture"], str) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{str(file)!r} is damaged: {first_sentence(error)}. Export the model again.") from error
    if format not in _FORMATS:
        raise UsageError(f"{str(file)!r} has the format {format!r}; expected one of {', '.join(_FORMATS)}.")
    if not is_whole:
        raise UsageError(f"{str(file)!r} is damaged: it describes no graph for images. Export the model again.")
    return manifest


def device_of_export(folder: str | Path, name: str) -> torch.device:
    """The device on which an exported model runs.

    Args:
        folder: Its folder.
        name: "auto", or torch's name of a device.

    Raises:
        UsageError: Its runtime does not run there.
    """
    manifest = read_manifest(folder)
    format = TORCH if manifest is None else _FORMATS[manifest["export_format"]]
    require_packages(format)
    possible = {"cpu"}
    if format == OPENVINO:
        possible.add("xpu")
    elif format == ONNX:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available():
            possible.add("cuda")
    if name == "auto":
        return torch.device("cuda" if "cuda" in possible else "cpu")
    kind = name.split(":")[0]
    if kind not in possible:
        raise UsageError(
            f"{str(folder)!r} is a model exported to {format}, which runs on {', '.join(sorted(possible))} here, not "
            f"on {name!r}. Use --device cpu."
        )
    return torch.device(name)


class ExportedNetwork:
    """An exported model, called as its source: `network(pixel_values).logits`.

    Args:
        folder: The folder.
        config: The configuration of the source.
        device: Where the graphs run, see `device_of_export`.
        dtype: Type of the computation: 32 bits, or with OpenVINO bfloat16.
        trusted: Whether a graph of torch may be loaded, which can run any code.

    Attributes:
        config: The configuration of the source.
        architecture: The class of the source, such as "Swinv2ForImageClassification".
        format: "openvino", "onnx" or "torch".
        device, dtype: Where images go, and their type.
        sizes: The sizes (height, width) in pixels of images that it takes. A graph is loaded when the first image of
            its size comes; that of the first size at once.
        takes_bytes: Whether its graphs take pixels of eight bits, and normalise them.

    Raises:
        UsageError: The folder is damaged, its runtime is not installed, or does not know the type.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Any,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        trusted: bool = False,
    ) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise UsageError(f"the folder {str(folder)!r} is not an exported model: it has no {MANIFEST}.")
        self.config, self.device, self.dtype = config, device, torch.float32
        self.format = _FORMATS[manifest["export_format"]]
        require_packages(self.format)
        self._folder, self._computation, self._manifest = Path(folder).expanduser(), dtype, manifest
        self._refuse(trusted)
        entries = manifest["components"]
        self.architecture: str = next(iter(entries.values()))["metadata"]["architecture"]
        described = {name: entry["metadata"]["kwargs"]["pixel_values"] for name, entry in entries.items()}
        self.takes_bytes = all(each["dtype"] == "uint8" for each in described.values())
        axes = slice(1, 3) if self.takes_bytes else slice(2, 4)
        self._names: dict[Pair, str] = {tuple(each["shape"][axes]): name for name, each in described.items()}
        self.sizes: list[Pair] = [*self._names]
        self._runners: dict[Pair, Any] = {self.sizes[0]: self._load(self.sizes[0])}

    def __call__(self, pixel_values: Tensor, **kwargs: Tensor) -> Any:
        """The outputs of the source.

        Args:
            pixel_values: Images (batch, channels, height, width) as the image processor in the folder returns them.
            kwargs: Further inputs of the graph, such as `bool_masked_pos`.

        Raises:
            ValueError: There is no graph for images of this size.
            UsageError: The graph does not run.
        """
        size = (pixel_values.shape[2], pixel_values.shape[3])
        if size not in self._names:
            sizes = ", ".join(f"{height} x {width}" for height, width in self.sizes)
            raise ValueError(f"the images are {size[0]} x {size[1]} pixels; this export takes {sizes} (height first).")
        if size not in self._runners:
            self._runners[size] = self._load(size)
        if self.takes_bytes:
            pixel_values = pixel_values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        with _sentences(f"the exported model {str(self._folder)!r} does not run"):
            return self._runners[size](pixel_values=pixel_values.contiguous(), **kwargs)

    def fingerprint(self) -> str:
        """A hash of the files of its graphs."""
        found = hashlib.blake2b(digest_size=16)
        stems = {Path(self.file(size)).stem for size in self.sizes}
        for file in sorted(each for each in self._folder.iterdir() if each.name.split(".")[0] in stems):
            found.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(2**24):
                    found.update(block)
        return found.hexdigest()

    def file(self, size: Pair) -> str:
        """The name of the file of the graph for a size."""
        return self._manifest["components"][self._names[size]]["file"]

    def _refuse(self, trusted: bool) -> None:
        """Raises an error if the graph cannot be loaded in this type, or is not trusted."""
        if self._computation != torch.float32 and (self.format, self._computation) != (OPENVINO, torch.bfloat16):
            name = str(self._computation).removeprefix("torch.")
            raise UsageError(
                f"{str(self._folder)!r} is a model exported to {self.format}, which does not run in {name} here; use "
                f"float32{' or bfloat16' if self.format == OPENVINO else ''}."
            )
        if self.format == TORCH and not trusted and os.environ.get(TRUST) != "1":
            raise UsageError(
                f"{str(self._folder)!r} is a model exported to torch (.pt2); such a file can run any code when it is "
                f"loaded. If you trust it, set {TRUST}=1."
            )

    def _load(self, size: Pair) -> Any:
        """transformers' runner of the graph for a size."""
        from transformers.exporters import ExportedComponent, ExportedModel, ExportMetadata
        from transformers.exporters.auto import get_exporter_class

        options: dict[str, Any] = {}
        if self.format == OPENVINO:
            # By itself OpenVINO computes in 16 bits where the processor can.
            precision = "bf16" if self._computation == torch.bfloat16 else "f32"
            threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()} if self.device.type == "cpu" else {}
            options["config"] = {"INFERENCE_PRECISION_HINT": precision, **threads}
        elif self.format == ONNX:
            import onnxruntime

            session = onnxruntime.SessionOptions()
            session.intra_op_num_threads, session.log_severity_level = torch.get_num_threads(), 3
            options["session_options"] = session
        name, format = self._names[size], self._manifest["export_format"]
        entry = self._manifest["components"][name]
        with _sentences(f"the exported model {str(self._folder)!r} cannot be loaded"), warnings.catch_warnings():
            # transformers reads its manifest by a function of torch that is deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            # Not ExportedModel.from_pretrained, which reads config.json by transformers' class, without our fields.
            program = get_exporter_class(format).load_program(self._folder / entry["file"])
            component = ExportedComponent(program, ExportMetadata.from_dict(entry["metadata"]))
            return ExportedModel({name: component}, format).to(self.device, **options).runners[name]


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turns any error of a runtime into a sentence; each runtime has exceptions of its own."""
    try:
        yield
    except (torch.OutOfMemoryError, UsageError):
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_sentence(error)}.") from error
