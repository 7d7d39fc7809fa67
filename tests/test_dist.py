"""`scripts/dist.py`: what is built to be published, and what is refused. `make dist` itself is run by hand."""

import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swinv2.ops.cpu import library

pytest.importorskip("auditwheel")
pytest.importorskip("build")

ROOT = Path(__file__).parent.parent
CPU = Path("src/swinv2/ops/cpu")
LEVELS = tomllib.loads((ROOT / CPU / "sources/flags.toml").read_text())["levels"].get(platform.machine(), {})
KERNELS = {f"swinv2/ops/cpu/kernels-{level}.so" for level in LEVELS}

TINY = """
#include <math.h>
#include <string.h>
#include <omp.h>
void copy(void *to, const void *from, long bytes) { memcpy(to, from, bytes); }
double half(double x) {
#pragma omp parallel
    x = omp_get_num_threads();
    return EXPRESSION;
}
const char swinv2_sources[] = SOURCES;
"""
"""Kernels that are compiled in no time, and call the C library and OpenMP."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not LEVELS or not shutil.which("gcc"),
    reason="there is no compiler that makes kernels for this machine",
)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        import dist

        yield dist
    sys.modules.pop("dist")


def make_tree(tree: Path, expression: str = "x / 2") -> Path:
    """A project that is built as this one, with tiny kernels and little else."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    (tree / CPU / "sources").mkdir(parents=True)
    shutil.copy(ROOT / "src/swinv2/__init__.py", tree / "src/swinv2")
    shutil.copy(ROOT / CPU / "sources/flags.toml", tree / CPU / "sources")
    (tree / CPU / "sources/kernels.c").write_text(TINY.replace("EXPRESSION", expression))
    (tree / "notes").mkdir()
    shutil.copy(ROOT / "README.md", tree / "notes")
    return tree


def pack(tree: Path, kind: str = "wheel") -> Path:
    """The wheel or the sdist of a project, by what is installed here."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tree / "packed")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (packed,) = (tree / "packed").iterdir()
    return packed


@pytest.fixture(scope="module")
def files(script: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three files of a small project."""
    tree, folder = make_tree(tmp_path_factory.mktemp("project")), tmp_path_factory.mktemp("dist")
    return script.build(tree, folder, isolated=False)


def names_in(file: Path) -> set[str]:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            return {name for name in archive.namelist() if ".dist-info" not in name and not name.endswith("/")}
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_what_is_in_the_three_files(script: Any, files: dict[str, Path]) -> None:
    modules = {"swinv2/__init__.py", "swinv2/ops/cpu/sources/kernels.c", "swinv2/ops/cpu/sources/flags.toml"}
    assert names_in(files["any"]) == modules
    assert names_in(files["manylinux"]) == modules | KERNELS
    top = {"pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", "PKG-INFO"}
    assert names_in(files["sdist"]) == top | {f"src/{name}" for name in modules}
    assert {path.parent for path in files.values()} == {files["any"].parent}
    assert len(list(files["any"].parent.iterdir())) == 3


def test_tags(script: Any, files: dict[str, Path]) -> None:
    assert script.tags(files["sdist"]) == []
    assert script.tags(files["any"]) == ["py3-none-any"]
    assert f"py3-none-manylinux_2_17_{platform.machine()}" in script.tags(files["manylinux"])
    assert "linux_" not in files["manylinux"].name.replace("manylinux_", "")


def test_pip_prefers_the_wheel_with_kernels(script: Any, files: dict[str, Path], tmp_path: Path) -> None:
    folder = files["any"].parent
    script.check_choice(folder, files)
    for name in (files["any"].name, files["sdist"].name):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(SystemExit, match=r"pip chooses swinv2.*-any\.whl for this machine, not swinv2.*manylinux"):
        script.check_choice(tmp_path, files)


@pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))
def test_the_real_kernels_need_nothing_but_an_old_c_library(script: Any, tmp_path: Path) -> None:
    """Those that are installed get the tag, and are not changed."""
    shutil.rmtree(make_tree(tmp_path) / CPU)
    shutil.copytree(library.FOLDER, tmp_path / CPU, ignore=shutil.ignore_patterns("__pycache__"))
    wheel = pack(tmp_path)
    tagged = script.tag_as_manylinux(wheel, tmp_path)
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(tagged) as after:
        assert set(after.namelist()) >= KERNELS
        for name in KERNELS:
            assert after.read(name) == before.read(name) == (library.FOLDER / Path(name).name).read_bytes()


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 29),
    reason="this glibc has no newer exp",
)
def test_a_newer_glibc_is_refused(script: Any, tmp_path: Path) -> None:
    """As the kernels asked for, before they chose the first version of exp."""
    with pytest.raises(SystemExit, match="too-recent versioned symbols"):
        script.tag_as_manylinux(pack(make_tree(tmp_path, "exp(x)")), tmp_path)
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.parametrize("library_name", ["gomp", "other"])
def test_a_library_that_not_all_systems_have_is_refused(script: Any, library_name: str, tmp_path: Path) -> None:
    """auditwheel would copy it into the wheel: of gomp, a second runtime."""
    (tmp_path / "other.c").write_text("int other;\n")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "libother.so", tmp_path / "other.c"], check=True)
    more = f'"-Wl,--no-as-needed", "-L{tmp_path}", "-Wl,-rpath,{tmp_path}", "-l{library_name}", "-lm"'
    flags = make_tree(tmp_path) / CPU / "sources/flags.toml"
    flags.write_text(flags.read_text().replace('"-lm"', more))
    with pytest.raises(
        SystemExit, match=rf"the kernels need lib{library_name}\.so[.\d]*; they must need the C library"
    ):
        script.tag_as_manylinux(pack(tmp_path), tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def test_without_kernels_nothing_is_built(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "dist").mkdir()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(SystemExit, match="the kernels were not compiled: this needs gcc"):
        script.build(make_tree(tmp_path / "tree"), tmp_path / "dist", isolated=False)


def test_the_sdist_has_every_file_of_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = tmp_path.iterdir()
    found = {name for name in names_in(sdist) if name.startswith("src/swinv2/")}
    files = {path for path in (ROOT / "src/swinv2").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".so")}
    assert found == {path.relative_to(ROOT).as_posix() for path in files}


RUNTIME = "/env/torch/lib/libgomp.so.1"
WRONG = {
    "other answers": (
        "any",
        ("other", "no kernels", [RUNTIME]),
        "any: `swinv2 demo` gives\nother\nbut the working tree",
    ),
    "no kernels": ("sdist", ("answers", "no compiler", [RUNTIME]), "sdist: it runs without kernels: no compiler."),
    "kernels": ("any", ("answers", None, [RUNTIME]), "any: it has kernels, which run on one system only."),
    "two runtimes": ("manylinux", ("answers", None, [RUNTIME, "/usr/lib/libomp.so"]), "expected one OpenMP runtime"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_an_installed_package_must_not_do(script: Any, case: str) -> None:
    kind, found, message = WRONG[case]
    expected = script.Installed("answers", None, ["/development/libgomp.so.1", "/development/libomp.so"])
    with pytest.raises(SystemExit, match=message):
        script.check_installed(kind, script.Installed(*found), expected)
    for good, reason in {"sdist": None, "manylinux": None, "any": "no kernels"}.items():
        script.check_installed(good, script.Installed("answers", reason, [RUNTIME]), expected)


@pytest.mark.slow
def test_this_environment_is_asked(script: Any) -> None:
    """As an empty one is, but for what is installed beside."""
    if not Path(sys.executable).with_name("swinv2").exists():
        pytest.skip("the package is not installed here")
    found = script.ask(Path(sys.executable))
    assert "African elephant" in found.answers
    assert any(Path(file).name.startswith("libgomp") for file in found.runtimes)


def test_the_table(script: Any, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    script.print_table(files, {"any": script.Installed("answers", "no kernels", [RUNTIME])})
    header, *rows = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert header.split() == ["file", "tags", "size", "kernels", "OpenMP", "demo"]
    assert len(rows) == 3
    assert rows[0].startswith(files["sdist"].name)
    assert rows[1].split()[-6:] == ["not", "checked"] * 3
    described = "py3-none-any 0.0 MB none torch/lib/libgomp.so.1 same answers"
    assert rows[2].split() == [files["any"].name, *described.split()]


@pytest.mark.parametrize("check", ["wheel", "any,wheel", ""])
def test_an_unknown_kind_is_named(script: Any, check: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="give some of sdist, manylinux, any, or none"):
        script.main(tmp_path / "dist", check)
