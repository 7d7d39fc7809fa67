"""The OpenMP runtime that the compiled kernels share with torch.

Two runtimes in a process would have their own threads each, twice as many as cores. So the libraries of the kernels
name no runtime: the linker gives them the functions that the process offers to all its libraries. Out: torch's runtime
is offered, or the reason why there is none. This module does not know the kernels.
"""

import ctypes
import re
from pathlib import Path

import torch

ENTRY = "GOMP_parallel"
"""The function by which a runtime is known. LLVM's and Intel's have it too, beside their own."""

SYSTEM = "libgomp.so.1"
"""gcc's runtime."""

_MAPS = Path("/proc/self/maps")
_RUNTIME = re.compile(r"lib(gomp|iomp5|omp)\b.*\.so[.\d]*")


def offer() -> str | None:
    """Offers a runtime to all libraries that are loaded from now on.

    It is torch's; if torch has none, another one that this process has loaded; if there is none, the system's.

    Returns:
        The reason if there is none; None if a runtime is offered.
    """
    # torch uses what is offered, because the linker looks there first. torch's wheels for x86-64 offer their own, those
    # for aarch64 do not.
    if hasattr(ctypes.CDLL(None), ENTRY):
        return None
    own = runtime_of(torch._C.__file__)
    problems: list[str] = []
    for path in [*([own] if own else loaded_runtimes()), SYSTEM]:
        try:
            if hasattr(ctypes.CDLL(path, ctypes.RTLD_GLOBAL), ENTRY):
                return None
        except OSError as error:
            problems.append(str(error))
    return f"torch has none, and that of gcc cannot be loaded ({'; '.join(problems)}); install {SYSTEM}"


def runtime_of(library: str) -> str | None:
    """The file of the runtime that a library and those it needs were linked with; None if they have none.

    Args:
        library: The path of the library, which this process has loaded.
    """
    entry = getattr(ctypes.CDLL(library), ENTRY, None)
    return None if entry is None else _file_at(ctypes.cast(entry, ctypes.c_void_p).value or 0)


def loaded_runtimes() -> list[str]:
    """The files of all OpenMP runtimes that this process has loaded, by their names."""
    files = {file for _, file in _mappings() if _RUNTIME.fullmatch(Path(file).name)}
    return sorted(files)


def _file_at(address: int) -> str | None:
    """The file that this process has loaded to an address."""
    return next((file for place, file in _mappings() if address in place), None)


def _mappings() -> list[tuple[range, str]]:
    """The addresses and the path of each file in the memory of this process."""
    found: list[tuple[range, str]] = []
    for line in _MAPS.read_text().splitlines():
        place, _, _, _, _, *file = line.split(maxsplit=5)
        start, end = place.split("-")
        if file and file[0].startswith("/"):
            found.append((range(int(start, 16), int(end, 16)), file[0]))
    return found
