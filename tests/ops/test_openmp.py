"""The compiled kernels and torch share one OpenMP runtime: one file in the process, and one pool of threads."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2.ops.cpu import library, openmp

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))

NOT_OFFERED = """
import ctypes

class Local(ctypes.CDLL):
    def __init__(self, name, mode=0, **others):
        super().__init__(name, mode & ~ctypes.RTLD_GLOBAL, **others)

known, ctypes.CDLL = ctypes.CDLL, Local
import torch
ctypes.CDLL = known
from swinv2.ops.cpu import openmp
assert not hasattr(ctypes.CDLL(None), openmp.ENTRY)
"""
"""As torch's wheels for aarch64 do: its libraries need a runtime, but do not offer it to others."""

WAYS = {
    "torch offers it": "",
    "torch was linked with it": NOT_OFFERED,
    "the process has loaded it": NOT_OFFERED + "openmp.runtime_of = lambda library: None",
}

MEASURED = """
import json, os
import torch
from swinv2.ops.cpu import kernels, library, openmp

x = torch.randn(1000, 1000)

def threads(work):
    work()
    return len(os.listdir("/proc/self/task")) - before

def kernel():
    kernels.gelu(x, torch.empty_like(x))

before = len(os.listdir("/proc/self/task"))
counts = []
for number, works in {1: (kernel,), 3: (kernel, x.exp), 5: (x.exp, kernel)}.items():
    torch.set_num_threads(number)
    counts.append([threads(work) for work in works])
print(json.dumps([library.refuse(), counts, openmp.loaded_runtimes()]))
"""
"""How many threads there are more after a kernel or an operation of torch has run, and the files of the runtimes."""


@needs_kernels
@pytest.mark.parametrize("way", WAYS)
def test_torch_and_the_kernels_share_one_runtime(way: str) -> None:
    """A kernel obeys `torch.set_num_threads`, and what runs second starts no threads of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", WAYS[way] + MEASURED], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    reason, threads, files = json.loads(done.stdout)
    assert reason is None
    assert threads == [[0], [2, 2], [4, 4]]
    assert len(files) == 1, files


class Libraries:
    """A linker of a process: the libraries that it has, those with a runtime, and what was offered."""

    def __init__(self, there: set[Any], with_runtime: set[Any]) -> None:
        self.there, self.with_runtime = there, with_runtime
        self.offered: list[str] = []

    def __call__(self, name: str | None, mode: int = ctypes.DEFAULT_MODE) -> object:
        if name not in self.there:
            raise OSError(f"{name}: no such file")
        if mode == ctypes.RTLD_GLOBAL:
            self.offered.append(str(name))
        return type("Library", (), {openmp.ENTRY: None} if name in self.with_runtime else {})()


@pytest.mark.parametrize(
    ("there", "linked", "loaded", "offered"),
    [
        ({None}, "own", ["other"], []),
        ({"own", "other", "system"}, "own", ["other"], ["own"]),
        ({"other", "system"}, None, ["other"], ["other"]),
        ({"system"}, None, ["other"], ["system"]),
    ],
    ids=["what is offered", "torch's", "another one of the process", "the system's"],
)
def test_the_first_runtime_there_is(
    there: set[Any], linked: str | None, loaded: list[str], offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = Libraries(there | {None}, there)
    monkeypatch.setattr(openmp.ctypes, "CDLL", libraries)
    monkeypatch.setattr(openmp, "SYSTEM", "system")
    monkeypatch.setattr(openmp, "runtime_of", lambda library: linked)
    monkeypatch.setattr(openmp, "loaded_runtimes", lambda: loaded)
    assert openmp.offer() is None
    assert libraries.offered == offered


def test_without_a_runtime_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process has loaded is not enough: it must have the function that the kernels call."""
    monkeypatch.setattr(openmp, "ENTRY", "a_function_of_no_library")
    monkeypatch.setattr(openmp, "SYSTEM", "libmissing.so.9")
    assert openmp.runtime_of(torch._C.__file__) is None
    reason = openmp.offer()
    assert reason is not None
    assert reason.startswith("torch has none, and that of gcc cannot be loaded (libmissing.so.9: ")
    assert reason.endswith("install libmissing.so.9")


MAPS = """\
00400000-00500000 r-xp 00000000 08:01 11 /usr/bin/python3
10000000-10010000 r--p 00000000 08:01 12 /a folder/torch/lib/libgomp.so.1
10010000-10020000 r-xp 00010000 08:01 12 /a folder/torch/lib/libgomp.so.1
20000000-20010000 r-xp 00000000 08:01 13 /other.libs/libgomp-e985bcbb.so.1.0.0
30000000-30010000 r-xp 00000000 08:01 14 /conda/lib/libiomp5.so
40000000-40010000 r-xp 00000000 08:01 15 /llvm/libomp-14.so.5
50000000-50010000 r-xp 00000000 08:01 16 /old/libgomp.so.1 (deleted)
60000000-60010000 r-xp 00000000 08:01 17 /lib/libgomputer.so
7fff0000-7fff1000 rw-p 00000000 00:00 0 [stack]
7fff2000-7fff3000 rw-p 00000000 00:00 0
"""


def test_runtimes_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maps").write_text(MAPS)
    monkeypatch.setattr(openmp, "_MAPS", tmp_path / "maps")
    assert openmp.loaded_runtimes() == [
        "/a folder/torch/lib/libgomp.so.1",
        "/conda/lib/libiomp5.so",
        "/llvm/libomp-14.so.5",
        "/other.libs/libgomp-e985bcbb.so.1.0.0",
    ]
    assert openmp._file_at(0x1001FFFF) == "/a folder/torch/lib/libgomp.so.1"
    assert openmp._file_at(0x10020000) is None
    assert openmp._file_at(0x7FFF0000) is None
