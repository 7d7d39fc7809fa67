"""Builds what is published, and checks that each file, installed into an empty environment, gives the same answers.

    python scripts/dist.py                     # or `make dist`: writes dist/
    python scripts/dist.py --check manylinux   # install only this one; or `sdist`, `any`, or `none`

| kind | file | for |
| --- | --- | --- |
| sdist | the sources | systems with a C compiler, which compile the kernels |
| manylinux | a wheel with the kernels | Linux on this machine's architecture; pip prefers it there |
| any | a wheel without kernels | all other systems |

Both wheels are built from the unpacked sdist, so a file that it lacks is noticed. auditwheel gives the manylinux wheel
its tag, and refuses if a library needs a newer glibc, or anything but the C library. Nothing is written unless all
checks pass. An empty environment takes minutes and, with torch for CUDA, about 6 GB in the temporary folder
(`TMPDIR`); there is one at a time, deleted after its check. pip's variables are obeyed: `PIP_CONSTRAINT` chooses
another torch.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from swinv2.cli.printing import headed_table
from swinv2.console import data_console, message_console
from swinv2.disk import whole_folder

ROOT = Path(__file__).parent.parent
KINDS = ("sdist", "manylinux", "any")

MANYLINUX = f"manylinux_2_17_{platform.machine()}"
"""The tag of the wheel with kernels: they need nothing newer than glibc 2.17. torch's own wheels need 2.28."""

OTHERS = ("macosx_14_0_arm64", "win_amd64", "musllinux_1_2_x86_64")
"""Systems that get the wheel without kernels."""

FACTS = """
import json
from contextlib import redirect_stdout
from io import StringIO
from swinv2.cli import app
from swinv2.ops.cpu import library, openmp

with redirect_stdout(StringIO()):
    app(["demo"], standalone_mode=False)
print(json.dumps([library.refuse(), openmp.loaded_runtimes()]))
"""
"""Prints why there are no kernels, and the files of OpenMP in a process that has classified the photographs."""


@dataclass(frozen=True)
class Installed:
    """What an installed package does.

    Attributes:
        answers: The output of `swinv2 demo`.
        reason: The reason why it runs without kernels; None if it has them.
        runtimes: The files of all OpenMP runtimes in the process of the demo.
    """

    answers: str
    reason: str | None
    runtimes: list[str]


def main(
    output: Annotated[Path, typer.Option(help="Folder to write; what it has is replaced.")] = Path("dist"),
    check: Annotated[
        str, typer.Option(help="What to install into an empty environment: sdist, manylinux, any, or none.")
    ] = ",".join(KINDS),
) -> None:
    chosen = [] if check == "none" else check.split(",")
    unknown = sorted(set(chosen) - set(KINDS))
    if unknown:
        raise SystemExit(f"--check {check}: there is no {unknown[0]!r}; give some of {', '.join(KINDS)}, or none.")
    console = message_console()
    with tempfile.TemporaryDirectory(prefix="swinv2-dist-") as temporary:
        folder = Path(temporary) / "dist"
        folder.mkdir()
        console.print("building the sdist and the wheels")
        files = build(ROOT, folder)
        run(sys.executable, "-m", "twine", "check", "--strict", *files.values())
        check_choice(folder, files)
        installed: dict[str, Installed] = {}
        if chosen:
            console.print("asking this environment for its answers")
            expected = ask(Path(sys.executable))
            for kind in chosen:
                console.print(f"installing {files[kind].name} into an empty environment")
                installed[kind] = install(files[kind], Path(temporary))
                check_installed(kind, installed[kind], expected)
        with whole_folder(output, replace=True) as published:
            for file in files.values():
                shutil.copy(file, published)
        print_table(files, installed)


def build(tree: Path, folder: Path, isolated: bool = True) -> dict[str, Path]:
    """Builds all three files.

    Args:
        tree: The folder of the project.
        folder: Where to write the files.
        isolated: Whether to install what building needs into an environment of its own, as pip does, or to use what is
            installed here.

    Returns:
        The files, by their kind.

    Raises:
        SystemExit: A file cannot be built, or is not what it should be; with the reason.
    """
    how = () if isolated else ("--no-isolation",)
    with tempfile.TemporaryDirectory() as temporary:
        run(sys.executable, "-m", "build", "--sdist", *how, "--outdir", folder, tree)
        sdist = only_file(folder, "*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        unpacked = Path(temporary) / sdist.name.removesuffix(".tar.gz")
        wheel = [sys.executable, "-m", "build", "--wheel", *how, unpacked, "--outdir"]

        run(*wheel, folder, HATCH_BUILD_NO_HOOKS="true")
        pure = only_file(folder, "*-none-any.whl")

        # An installer that finds no compiler must come to the same wheel.
        (nothing := Path(temporary) / "nothing").mkdir()
        run(*wheel, nothing / "out", PATH=str(nothing), CC="")
        if only_file(nothing / "out", "*").name != pure.name:
            raise SystemExit("without a compiler, the sdist must give a wheel without kernels.")

        run(*wheel, nothing / "linux")
        platform_wheel = only_file(nothing / "linux", "*")
        if platform_wheel.name == pure.name:
            raise SystemExit("the kernels were not compiled: this needs gcc, on Linux, on x86_64 or aarch64.")
        return {"sdist": sdist, "manylinux": tag_as_manylinux(platform_wheel, folder), "any": pure}


def tag_as_manylinux(wheel: Path, folder: Path) -> Path:
    """Gives a wheel the tag `MANYLINUX`, if it is true.

    Args:
        wheel: A wheel for this machine.
        folder: Where to write the wheel with the new tag.

    Raises:
        SystemExit: A library in the wheel needs a newer glibc, or a library that not all systems have.
    """
    auditwheel = (sys.executable, "-m", "auditwheel")
    needed = json.loads(run(*auditwheel, "show", "--json", wheel))["external_libs"]
    if needed:
        raise SystemExit(f"the kernels need {', '.join(sorted(needed))}; they must need the C library alone.")
    # Without a patcher it cannot change the libraries, only the tag.
    run(*auditwheel, "repair", "--patcher", "none", "--plat", MANYLINUX, "--wheel-dir", folder, wheel)
    return only_file(folder, f"*{MANYLINUX}*.whl")


def check_choice(folder: Path, files: dict[str, Path]) -> None:
    """Checks that pip chooses the wheel with kernels on this machine, and the other one on all other systems.

    Raises:
        SystemExit: pip chooses another file.
    """
    for system in (None, *OTHERS):
        found, expected = choose(folder, system), files["manylinux" if system is None else "any"].name
        if found != expected:
            raise SystemExit(f"pip chooses {found} for {system or 'this machine'}, not {expected}.")


def choose(folder: Path, system: str | None = None) -> str:
    """The file that pip chooses among those in a folder: for this machine, or for another system, by its tag."""
    with tempfile.TemporaryDirectory() as temporary:
        where = ["--isolated", "download", "--no-index", "--no-deps", "--find-links", folder, "--dest", temporary]
        other = [] if system is None else ["--platform", system, "--only-binary", ":all:"]
        run(sys.executable, "-m", "pip", *where, *other, "swinv2")
        return only_file(Path(temporary), "*").name


def install(file: Path, folder: Path) -> Installed:
    """Installs a file into an empty environment inside a folder, asks it, and deletes the environment."""
    with tempfile.TemporaryDirectory(dir=folder) as environment:
        venv.create(environment, with_pip=True)
        python = Path(environment) / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", file)
        return ask(python)


def ask(python: Path) -> Installed:
    """Asks the package in the environment of an interpreter."""
    with tempfile.TemporaryDirectory() as empty:
        answers = run(python.with_name("swinv2"), "demo", cwd=Path(empty))
        reason, runtimes = json.loads(run(python, "-c", FACTS, cwd=Path(empty)))
    return Installed(answers, reason, runtimes)


def check_installed(kind: str, found: Installed, expected: Installed) -> None:
    """Checks what an installed package does.

    Args:
        kind: What was installed.
        found: What it does.
        expected: What the working tree does.

    Raises:
        SystemExit: It gives other answers, has no kernels or should not have them, or has two OpenMP runtimes.
    """
    if found.answers != expected.answers:
        raise SystemExit(f"{kind}: `swinv2 demo` gives\n{found.answers}\nbut the working tree\n{expected.answers}")
    if kind != "any" and found.reason is not None:
        raise SystemExit(f"{kind}: it runs without kernels: {found.reason}.")
    if kind == "any" and found.reason is None:
        raise SystemExit("any: it has kernels, which run on one system only.")
    if len(found.runtimes) != 1:
        raise SystemExit(f"{kind}: expected one OpenMP runtime in the process, found {found.runtimes}.")


def print_table(files: dict[str, Path], installed: dict[str, Installed]) -> None:
    """Prints each file with its tags and size, and what it does where it is installed."""
    console = data_console()
    table = headed_table(console, file={}, tags={}, size={"justify": "right"}, kernels={}, OpenMP={}, demo={})
    for kind, file in files.items():
        found = installed.get(kind)
        facts = ["not checked"] * 3
        if found is not None:
            runtime = "/".join(Path(found.runtimes[0]).parts[-3:])
            facts = ["none" if found.reason else "run", runtime, "same answers"]
        table.add_row(file.name, ", ".join(tags(file)), f"{file.stat().st_size / 1e6:.1f} MB", *facts)
    console.print(table)


def tags(file: Path) -> list[str]:
    """The tags of a wheel, as written inside it; none of an sdist."""
    if file.suffix != ".whl":
        return []
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        lines = archive.read(name).decode().splitlines()
    return [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]


def only_file(folder: Path, pattern: str) -> Path:
    """The one file in a folder that matches a pattern.

    Raises:
        SystemExit: There is none, or there are several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one file {pattern} in {folder}, found {[path.name for path in found]}.")
    return found[0]


def run(*command: object, cwd: Path | None = None, **variables: str) -> str:
    """Runs a program, and returns its stdout.

    Args:
        command: The program and its arguments.
        cwd: The folder to run it in.
        variables: Variables of the environment to set. `PYTHONPATH` and hatch's are not passed on, because they change
            what is imported and built.

    Raises:
        SystemExit: It fails; with all it says.
    """
    dropped = ("PYTHONPATH", "HATCH_BUILD_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | variables
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    typer.run(main)
