"""The kernels are compiled when the package is installed; where that is impossible, it is installed without them."""

import platform
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest

from swinv2.ops.cpu import library

sys.path.insert(0, str(Path(__file__).parent.parent))
import hatch_build

FLAGS = library.FOLDER / "sources" / "flags.toml"
LEVELS = tomllib.loads(FLAGS.read_text())["levels"].get(platform.machine(), {})
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not LEVELS or not (shutil.which("gcc") or shutil.which("cc")),
    reason="there is no compiler that makes kernels for this machine",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package with a tiny source, and the flags of the real one."""
    (tmp_path / "sources").mkdir()
    shutil.copy(FLAGS, tmp_path / "sources")
    (tmp_path / "sources/kernels.c").write_text("const char swinv2_sources[] = SOURCES;\n")
    return tmp_path


def test_both_sides_have_one_fingerprint_of_the_sources(folder: Path) -> None:
    for sources in (folder / "sources", library.FOLDER / "sources"):
        assert hatch_build.fingerprint(sources) == library._fingerprint_of_sources(sources)
    before = hatch_build.fingerprint(folder / "sources")
    (folder / "sources/more.h").touch()
    more = hatch_build.fingerprint(folder / "sources")
    (folder / "sources/flags.toml").write_text(FLAGS.read_text().replace('"-shared"', '"-shared", "-lgomp"'))
    assert len({before, more, hatch_build.fingerprint(folder / "sources")}) == 3


@needs_compiler
def test_each_level_of_this_machine_gets_a_library_of_these_sources(folder: Path) -> None:
    libraries = hatch_build.compile_kernels(folder)
    assert [path.name for path in libraries] == [f"kernels-{level}.so" for level in LEVELS]
    for path in libraries:
        assert hatch_build.fingerprint(folder / "sources").encode() in path.read_bytes()
    assert not list(folder.glob("*.new"))


@needs_compiler
def test_what_is_up_to_date_is_not_compiled_again(folder: Path) -> None:
    times = [path.stat().st_mtime_ns for path in hatch_build.compile_kernels(folder)]
    again = hatch_build.compile_kernels(folder)
    assert [path.stat().st_mtime_ns for path in again] == times
    with (folder / "sources/kernels.c").open("a") as source:
        source.write("int changed;\n")
    assert all(
        path.stat().st_mtime_ns > time for path, time in zip(hatch_build.compile_kernels(folder), times, strict=True)
    )


def install(folder: Path) -> dict[str, Any]:
    """What the hook tells hatchling when it packs a project of this folder."""
    project = folder / "project"
    shutil.copytree(folder / "sources", project / hatch_build.FOLDER / "sources")
    data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hatch_build.KernelsHook(str(project), {}, None, None, "", "wheel").initialize("standard", data)
    return data


@needs_compiler
def test_the_libraries_are_packed_for_this_machine(folder: Path) -> None:
    data = install(folder)
    assert data["artifacts"] == [f"{hatch_build.FOLDER.as_posix()}/kernels-{level}.so" for level in LEVELS]
    assert data["pure_python"] is False
    assert data["tag"] == f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


class TestWithoutKernels:
    """Pure Python is installed, and the reason is said."""

    @staticmethod
    def holds(folder: Path, capsys: pytest.CaptureFixture[str], reason: str) -> bool:
        is_pure = install(folder) == {"artifacts": [], "pure_python": True}
        said = capsys.readouterr().err
        return is_pure and "swinv2: installed without its kernels for CPUs: " in said and reason in said

    def test_no_compiler(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(folder))
        assert self.holds(folder, capsys, "there is no C compiler; install gcc and then this package again")

    @needs_compiler
    def test_a_compiler_that_refuses(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "sources/kernels.c").write_text("#error too old\n")
        assert self.holds(folder, capsys, "too old")
        assert not list((folder / "project").rglob("*.so"))

    def test_another_system(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert self.holds(folder, capsys, "they do not support darwin")

    @needs_compiler
    def test_another_processor(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        assert self.holds(folder, capsys, "they do not support riscv64")


@needs_compiler
def test_the_compiler_may_be_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that others take too; with arguments."""
    compiler = folder / "chosen"
    compiler.write_text(f'#!/bin/sh\ntouch "{folder}/called"\nshift\nexec "{shutil.which("cc")}" "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} --mine")
    assert hatch_build.compile_kernels(folder)
    assert (folder / "called").exists()


@needs_compiler
def test_clang_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It calls functions of LLVM's OpenMP runtime. A compiler that calls itself clang is enough to see it."""
    shutil.copytree(library.FOLDER / "sources", tmp_path / "sources")
    monkeypatch.setenv("CC", "gcc -D__clang__ -Wfatal-errors")
    assert hatch_build.compile_kernels(tmp_path) == []
    assert "compile the kernels with gcc: clang calls functions of OpenMP" in capsys.readouterr().err


TEAM = """
#include <omp.h>
const char swinv2_sources[] = SOURCES;
void count(long *team) {
#pragma omp parallel
    *team = omp_get_num_threads();
}
"""


@needs_compiler
def test_a_library_names_no_openmp_runtime(folder: Path) -> None:
    """Although it calls one: the process that loads it offers torch's."""
    (folder / "sources/kernels.c").write_text(TEAM)
    for path in hatch_build.compile_kernels(folder):
        compiled = path.read_bytes()
        assert b"GOMP_parallel" in compiled
        assert b"libgomp" not in compiled
