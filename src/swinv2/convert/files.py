"""Opens files of weights without running code from them.

In: a file or a folder. Out: the tensors under the names in the file, and the contents of `config.json` and
`preprocessor_config.json`. A pickle is opened with `weights_only=True`; if it needs more than tensors and plain
settings, an error says why. A file that is incomplete, damaged or has NaN or infinite weights raises an error too. This
module knows no network and no dialect.
"""

import collections
import functools
import hashlib
import json
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from swinv2.errors import UsageError, first_sentence

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "model.pth")
"""Files of weights in a folder; the first that exists is opened."""

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "network", "net")
"""Keys under which training scripts store the network; the first that exists is used."""
_OUTER = ("module.", "_orig_mod.", "model.")
"""Prefixes that DistributedDataParallel, torch.compile and trainers put before every name."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_SETTINGS: list[Any] = [(collections.OrderedDict, "yacs.config.CfgNode")]
"""Class of the settings in the authors' checkpoints. They are opened as a plain dictionary: no code of yacs runs, and
yacs need not be installed."""

_CODE = ("auto_map", "custom_pipelines")
"""Keys under which transformers' configurations name code to download and run; they are not used and are removed."""

_SAVE_ANEW = (
    "It is not opened: a pickle can run anything. Open it where you trust it, keep the tensors only, and convert that: "
    "torch.save({'model': checkpoint['model']}, 'weights.pth')."
)


@dataclass(frozen=True)
class Weights:
    """The contents of a file or folder.

    Attributes:
        tensors: By their names in the file.
        name: Name of the file without its suffix; name of the folder if a folder was given.
        config: Contents of `config.json` in the folder; None without one.
        processor: Contents of `preprocessor_config.json` in the folder; None without one.
        notes: Sentences that say what was left out.
    """

    tensors: dict[str, Tensor]
    name: str
    config: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list[str])


def open_weights(source: Path) -> Weights:
    """Opens a file of weights, or a folder with one.

    Args:
        source: A file of torch.save or safetensors, whatever its suffix; or a folder.

    Raises:
        UsageError: The file does not exist, may not be read, is damaged, can only be opened by running code, or is not
            a network.
    """
    try:
        mode = os.stat(source).st_mode
        inside = os.listdir(source) if stat.S_ISDIR(mode) else None
    except OSError as error:
        raise UsageError(_why_not_opened(source, error)) from error
    if inside is not None:
        name = next((name for name in WEIGHTS if name in inside), None)
        if name is None:
            raise UsageError(
                f"the folder {str(source)!r} has no weights: none of {', '.join(WEIGHTS)}. Name the file itself."
            )
        file = source / name
    elif stat.S_ISREG(mode):
        file = source
    else:
        raise UsageError(f"{str(source)!r} is neither a file nor a folder; expected a file of weights.")
    notes: list[str] = []
    config = _read_json(source / CONFIG) if file is not source else None
    processor = _read_json(source / PROCESSOR) if file is not source else None
    content = _read_shards(source) if file.name == INDEX else _read_weights(file)
    tensors = _check_only_tensors(_unwrap_network(content, file, notes), file)
    return Weights(tensors, source.stem if file is source else source.resolve().name, config, processor, notes)


def _why_not_opened(source: Path, error: OSError) -> str:
    """A sentence that says why a file of weights cannot be opened."""
    if os.path.islink(source) and not os.path.exists(source):
        return f"{str(source)!r} is a link to {os.readlink(source)!r}, which does not exist."
    if isinstance(error, PermissionError):
        return f"{str(source)!r} may not be read: {(error.strerror or str(error)).lower()}."
    return f"there is no file or folder {str(source)!r} ({(error.strerror or str(error)).lower()})."


def _read_json(path: Path) -> dict[str, Any] | None:
    """The fields of a JSON file beside weights, without those that name code; None if the file does not exist."""
    if not os.path.lexists(path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{str(path)!r} contains {type(content).__name__}; expected an object with fields.")
    return {name: value for name, value in content.items() if name not in _CODE}


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """Reads weights that are stored in several safetensors files with an index."""
    index = _read_json(folder / INDEX) or {}
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in where.values()
    ):
        raise UsageError(f"{str(folder / INDEX)!r} does not name the file of each tensor (weight_map).")
    content: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        content |= _read_weights(folder / name)
    wrong = sorted(set(where) ^ set(content))
    if wrong:
        raise UsageError(f"{str(folder)!r}: {INDEX} and the files beside it differ in {', '.join(map(repr, wrong))}.")
    return content


def _read_weights(file: Path) -> Any:
    """Reads one file of torch.save or safetensors, without running code from it."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            beginning = opened.read(16)
    except OSError as error:
        raise UsageError(_why_not_opened(file, error)) from error
    if not size:
        raise UsageError(f"{str(file)!r} is empty.")
    _check_digest_in_name(file)
    is_safetensors = size > 8 and beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 100_000_000
    is_archive = beginning[:4] == b"PK\x03\x04"
    if not is_safetensors and not is_archive and beginning[:1] != b"\x80":
        raise UsageError(f"{str(file)!r} is not a file of torch.save or safetensors: it begins with {beginning[:8]!r}.")
    try:
        if is_safetensors:
            return load_file(file)
        if is_archive:
            # torch does not verify the checksums of its archives.
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise UsageError(f"{str(file)!r} is a TorchScript program, which is code. {_SAVE_ANEW}")
                broken = archive.testzip()
            if broken is not None:
                raise UsageError(f"{str(file)!r} is damaged: the checksum of {broken!r} in it is wrong.")
        # torch warns about files for which an error is raised, here or by later checks.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SETTINGS):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed is not None:
            raise UsageError(f"{str(file)!r} needs {needed[1]} to be opened, which is code. {_SAVE_ANEW}") from error
        raise UsageError(f"{str(file)!r} is damaged, or a pickle that needs more than tensors. {_SAVE_ANEW}") from error
    # For a damaged file, the readers raise almost any exception.
    except Exception as error:
        raise UsageError(f"{str(file)!r} is incomplete or damaged: {first_sentence(error)}.") from error


def _check_digest_in_name(file: Path) -> None:
    """Checks the digest in a name: torchvision and mmpretrain end the name with the first digits of the SHA-256."""
    published = re.fullmatch(r"swin_v2_[tsb]-([0-9a-f]{8})|swinv2-.*_\d{8}-([0-9a-f]{8})", file.stem)
    if published is None:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    expected = published[1] or published[2]
    if not digest.startswith(expected):
        raise UsageError(
            f"{str(file)!r} is not the file that was published under this name: its SHA-256 begins with "
            f"{digest[:8]}, not {expected}. It is incomplete, changed or renamed; download it again, or rename it."
        )


def _unwrap_network(content: Any, file: Path, notes: list[str]) -> Mapping[str, Any]:
    """Takes the network out of what training scripts put around it, and adds notes on that."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{str(file)!r} contains {type(content).__name__}; expected tensors by name.")
    tensors: Mapping[str, Any] = content
    inner = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    if inner is not None:
        tensors = content[inner]
        unread = [str(name) for name in content if name != inner]
        if unread:
            notes.append(f"Only {inner!r} was read from the file; not read: {', '.join(map(repr, unread))}.")
    while tensors and all(isinstance(name, str) for name in tensors):
        outer = next((prefix for prefix in _OUTER if all(name.startswith(prefix) for name in tensors)), None)
        if outer is None:
            break
        notes.append(f"Every name began with {outer!r}, which was removed.")
        tensors = {name.removeprefix(outer): tensor for name, tensor in tensors.items()}
    return tensors


def _check_only_tensors(tensors: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Raises an error unless a file of weights has tensors only, each with a name and numbers."""
    if not tensors:
        raise UsageError(f"{str(file)!r} contains no tensor.")
    odd = [
        name
        for name, tensor in tensors.items()
        if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, Tensor)
    ]
    if odd:
        raise UsageError(f"{str(file)!r} contains more than tensors by name: {', '.join(map(repr, odd))}.")
    wrong: list[str] = []
    for name, tensor in tensors.items():
        if tensor.is_meta:
            wrong.append(f"{name} (a shape without numbers)")
        elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            wrong.append(f"{name} (sparse, quantised or complex)")
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            wrong.append(f"{name} (its shape has more numbers than the file)")
    if wrong:
        raise UsageError(f"{str(file)!r} contains tensors that are not plain numbers: {', '.join(wrong)}.")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def check_learned(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> torch.dtype:
    """Checks that learned tensors are finite floating-point numbers.

    Args:
        tensors: Learned tensors, by our names.
        names: The name in the file, by our names.

    Returns:
        The type of the tensors; if they differ, the type that can store all their values.

    Raises:
        UsageError: A tensor has another type, or is NaN or infinite; the message names all such tensors.
    """
    odd = [f"{names[name]} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in _FLOATS]
    if odd:
        raise UsageError(
            f"weights are not of a floating-point type of 16 to 64 bits: {', '.join(odd)}. Quantised weights cannot be "
            "converted; use the weights before quantisation."
        )
    broken = [names[name] for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UsageError(
            f"weights are NaN or infinite: {', '.join(broken)}. The file is damaged, or its training failed."
        )
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
