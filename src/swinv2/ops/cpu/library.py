"""The library of compiled kernels for this processor, and the signatures of its functions.

Out: C functions, or the reason why they are missing. `arguments.py` calls them, `hatch_build.py` compiles them, and
`sources` has their code.
"""

import ctypes
import platform
from ctypes import c_double, c_int64, c_long, c_void_p
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from swinv2.ops.cpu import openmp

FOLDER = Path(__file__).parent

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""The numbers of the types in `sources/numbers.h`."""


class Map(ctypes.Structure):
    """A map of tokens: `Map` of `sources/numbers.h`."""

    _fields_ = [("data", c_void_p), ("stride", c_int64), ("type", c_int64)]


class Axis(ctypes.Structure):
    """The windows of maps along one axis: `Axis` of `sources/windows.h`."""

    _fields_ = [(name, c_int64) for name in ("size", "window", "shift")]


class Plan(ctypes.Structure):
    """The windows of maps: `Plan` of `sources/windows.h`."""

    _fields_ = [
        ("images", c_int64),
        *((name, Axis) for name in ("frames", "rows", "columns")),
        *((name, c_int64) for name in ("mask_padding", "heads", "dim")),
    ]


class Numbers(ctypes.Structure):
    """A contiguous vector: `Numbers` of `sources/numbers.h`."""

    _fields_ = [("data", c_void_p), ("type", c_int64)]


class Linear(ctypes.Structure):
    """A linear layer: `Linear` of `sources/numbers.h`."""

    _fields_ = [("data", c_void_p), ("row", c_int64), ("type", c_int64), ("bias", Numbers)]


class Norm(ctypes.Structure):
    """A layer norm and a factor: `Norm` of `sources/numbers.h`."""

    _fields_ = [("weight", Numbers), ("bias", Numbers), ("eps", c_double), ("factor", c_double)]


class Block(ctypes.Structure):
    """A block of the network: `Block` of `sources/numbers.h`."""

    _fields_ = [
        *((name, c_int64) for name in ("shift_frames", "shift_rows", "shift_columns", "hidden")),
        *((name, Linear) for name in ("query", "key", "value", "out_proj")),
        *((name, Numbers) for name in ("table", "scale")),
        ("attention_norm", Norm),
        *((name, Linear) for name in ("fc1", "fc2")),
        *((name, Norm) for name in ("mlp_norm", "extra_norm")),
    ]


class Saved(ctypes.Structure):
    """The tensors saved for backward: `Saved` of `sources/numbers.h`."""

    _fields_ = [(name, Map) for name in ("qkv", "attended", "attention_out", "hidden", "mlp_out")]


class Gradients(ctypes.Structure):
    """The buffers for the gradients of a branch: `Gradients` of `sources/numbers.h`."""

    _fields_ = [
        ("x", Map),
        *((name, c_void_p) for name in ("in_proj", "in_proj_bias", "out_proj", "epilogue", "table", "scale")),
    ]


_PLAN, _MAP = ctypes.POINTER(Plan), ctypes.POINTER(Map)

_CALL = [c_long, c_void_p, c_long]
"""The last arguments of each kernel: number of threads, workspace, bytes of the workspace."""

SIGNATURES = {
    "attend": [_PLAN, *[_MAP] * 3, *[c_void_p] * 3, _MAP, *_CALL],
    "attend_backward": [_PLAN, *[_MAP] * 4, *[c_void_p] * 3, *[_MAP] * 3, *[c_void_p] * 3, *_CALL],
    "add_normalised": [*[c_long] * 2, *[_MAP] * 2, *[c_void_p] * 2, *[c_double] * 2, _MAP, *_CALL],
    "add_normalised_backward": [*[c_long] * 2, *[_MAP] * 2, c_void_p, *[c_double] * 2, _MAP, c_void_p, *_CALL],
    "project": [_PLAN, ctypes.POINTER(Linear), ctypes.POINTER(Norm), c_long, *[_MAP] * 2, *_CALL],
    "run_blocks": [_PLAN, c_long, ctypes.POINTER(Block), *[_MAP] * 2, ctypes.POINTER(Saved), *_CALL],
    "run_backward": [
        *(_PLAN, ctypes.POINTER(Block), *[_MAP] * 2, ctypes.POINTER(Saved), ctypes.POINTER(Gradients)),
        *_CALL,
    ],
    "gelu": [*[c_long] * 2, *[_MAP] * 2, *_CALL],
    "gelu_backward": [*[c_long] * 2, *[_MAP] * 4, c_void_p, *_CALL],
}
"""Arguments of each kernel. A kernel returns 0; if the workspace is too small, it does nothing and returns the bytes
that it needs."""


@cache
def load() -> Any:
    """The library of compiled kernels for this processor; None if `refuse` returns a reason."""
    if refuse() is not None:
        return None
    library = ctypes.CDLL(str(_library_path()))
    for name, arguments in SIGNATURES.items():
        for precision in ("f32", "f64"):
            function = getattr(library, f"{name}_{precision}")
            function.argtypes, function.restype = arguments, c_long
    library.are_equal.argtypes, library.are_equal.restype = [c_long, *[c_void_p] * 3], c_long
    return library


def kernel(name: str, is_double: bool) -> Any:
    """A kernel of the library, for maps in fp64 or for maps in any other dtype."""
    return getattr(load(), f"{name}_f64" if is_double else f"{name}_f32")


@torch.compiler.assume_constant_result
def refuse(dtype: torch.dtype | None = None) -> str | None:
    """The reason why this machine has no compiled kernels, or none for a dtype; None if it has them."""
    return _why_unusable() or (None if dtype is None or dtype in TYPES else f"they have no kernels for {dtype}")


@cache
def _why_unusable() -> str | None:
    """The reason why the compiled kernels of this installation cannot be used, or None."""
    path = _library_path()
    if path is None:
        return f"this package's compiled kernels are not for this processor ({torch.backends.cpu.get_cpu_capability()})"
    if not path.exists():
        return "this package was installed without its compiled kernels; install a C compiler and the package again"
    if _fingerprint_of_sources(FOLDER / "sources").encode() not in path.read_bytes():
        return "this package's compiled kernels were compiled from other sources; install it again"
    reason = openmp.offer()
    if reason is not None:
        return f"this package's compiled kernels find no OpenMP runtime: {reason}"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"this package's compiled kernels cannot be loaded: {error}"
    return None


def _library_path() -> Path | None:
    """The path of the library for this processor, which may not exist; None if this processor is not supported."""
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64":
        level = {"AVX2": "avx2", "AVX512": "avx512"}.get(capability)
    else:
        level = "neon" if platform.machine() == "aarch64" else None
    return None if level is None else FOLDER / f"kernels-{level}.so"


def _fingerprint_of_sources(sources: Path) -> str:
    """A digest of the C sources and their flags, as in `hatch_build.py`, which this package cannot import."""
    digest = sha256()
    for source in sorted(sources.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
