"""Compiles the CPU kernels when the package is installed: `pip install` and `make` call this.

It makes one library for each kind of processor, so a package that was built on one machine runs on another. The
libraries call neither Python nor torch, so a new version of either needs no new library. Without a C compiler the
package is installed without kernels and runs on torch alone; `swinv2 info` says so. Hatchling does not call this at all
if the environment has `HATCH_BUILD_NO_HOOKS=true`: the wheel is then pure Python, for every system.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/swinv2/ops/cpu")


class KernelsHook(BuildHookInterface):
    """Compiles the folder `sources` to libraries beside it, and adds them to the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatchling calls this before it builds the package."""
        libraries = compile_kernels(Path(self.root) / FOLDER)
        if not libraries:
            return
        for library in libraries:
            relative = library.relative_to(self.root).as_posix()
            build_data["artifacts"].append(relative)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_kernels(folder: Path) -> list[Path]:
    """Compiles the kernels for every level of this machine's architecture.

    Args:
        folder: The folder that contains `sources`; the libraries are written to it.

    Returns:
        The libraries; an empty list if they cannot be compiled here.
    """
    if sys.platform != "linux":
        return _give_up(f"they do not support {sys.platform}")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return _give_up("there is no C compiler; install gcc and then this package again")
    sources = folder / "sources"
    flags, mark = tomllib.loads((sources / "flags.toml").read_text(encoding="utf-8")), fingerprint(sources)
    libraries: list[Path] = []
    for level, more in flags["levels"].get(platform.machine(), {}).items():
        library = folder / f"kernels-{level}.so"
        libraries.append(library)
        if library.exists() and mark.encode() in library.read_bytes():
            continue
        # First under another name: a running program may have the library open.
        made = library.with_suffix(".new")
        with tempfile.TemporaryDirectory() as temporary:
            program = Path(temporary) / "kernels.o"
            wanted = [f'-DSOURCES="{mark}"', "-c", str(sources / "kernels.c"), "-o", str(program)]
            compiling = [*flags["compile"], *more, *wanted]
            linking = [*flags["link"], str(program), *flags["libraries"], "-o", str(made)]
            problem = _call(compiler, compiling) or _call(compiler, linking)
        if problem is not None:
            for each in [*libraries, made]:
                each.unlink(missing_ok=True)
            return _give_up(f"{compiler} failed: {problem}; it must understand gcc's C")
        made.replace(library)
    return libraries or _give_up(f"they do not support {platform.machine()}")


def _call(compiler: str, arguments: list[str]) -> str | None:
    """Runs the compiler, which may have arguments itself. Returns what it says if it fails."""
    run = subprocess.run([*compiler.split(), *arguments], capture_output=True, text=True)
    said = run.stderr.strip() or run.stdout.strip()
    return (said or f"it ended with status {run.returncode}") if run.returncode else None


def fingerprint(sources: Path) -> str:
    """A digest of the sources and flags. The library contains it, and is not used if the sources beside it have another
    one."""
    digest = sha256()
    for source in sorted(sources.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _give_up(reason: str) -> list[Path]:
    print(f"swinv2: installed without its kernels for CPUs: {reason}.", file=sys.stderr)
    return []
