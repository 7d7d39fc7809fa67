"""Where there are no compiled kernels, it is said why, and torch gives the same answers."""

import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.ops.cpu import library, openmp
from swinv2.ops.cpu.linear import uses_kernels

needs_kernels = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))
SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 6}


def forget() -> None:
    """Both remember their answer for as long as a program runs."""
    library._why_unusable.cache_clear()
    library.load.cache_clear()


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the package's sources and libraries."""
    for name in ("sources", *(path.name for path in library.FOLDER.glob("kernels-*.so"))):
        copy = shutil.copytree if (library.FOLDER / name).is_dir() else shutil.copy
        copy(library.FOLDER / name, tmp_path / name)
    return tmp_path


def of_another_processor(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(platform, "machine", lambda: "riscv64")


def of_an_old_processor(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(platform, "machine", lambda: "x86_64")
    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")


def without_libraries(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for path in folder.glob("kernels-*.so"):
        path.unlink()


def of_other_sources(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with (folder / "sources" / "kernels.c").open("a") as source:
        source.write("/* Changed. */\n")


def damaged(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for path in folder.glob("kernels-*.so"):
        path.write_bytes(library._fingerprint_of_sources(folder / "sources").encode())


def without_openmp(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(openmp, "ENTRY", "a_function_of_no_library")
    patch.setattr(openmp, "SYSTEM", "libmissing.so.9")


REASONS = {
    of_another_processor: r"are not for this processor",
    of_an_old_processor: r"are not for this processor \(DEFAULT\)",
    without_libraries: r"was installed without its compiled kernels; install a C compiler and the package again",
    of_other_sources: r"were compiled from other sources; install it again",
    without_openmp: r"find no OpenMP runtime: torch has none, .*; install libmissing\.so\.9",
    damaged: r"cannot be loaded: .*kernels",
}


def results(backend: str) -> dict[str, Tensor]:
    """Answer and gradients of a small network, with drop path, on maps that need padding."""
    config = Swinv2Config(**SMALL, attn_implementation=backend, drop_path_rate=0.5)
    model = peers.draw_weights(Swinv2ForImageClassification(config)).train()
    images = peers.images((50, 70), count=4).requires_grad_()
    torch.manual_seed(0)
    logits = model(images).logits
    logits.square().sum().backward()
    return {"logits": logits.detach(), "images": images.grad} | peers.gradients(model)


@needs_kernels
@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_without_kernels_the_reason_is_said_and_the_answers_are_the_same(
    change: Callable[[Path, pytest.MonkeyPatch], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernels = results("sdpa")
    change(folder, monkeypatch)
    monkeypatch.setattr(library, "FOLDER", folder)
    forget()
    with pytest.raises(AssertionError, match=REASONS[change]):
        raise AssertionError(library.refuse())
    assert library.load() is None
    assert not uses_kernels(torch.float32)
    for name, result in results("sdpa").items():
        assert peers.relative_error(result, with_kernels[name]) < 1e-4, name


@needs_kernels
def test_every_kernel_is_there_in_both_precisions() -> None:
    kernels = library.load()
    for name, arguments in library.SIGNATURES.items():
        for precision in ("f32", "f64"):
            assert len(getattr(kernels, f"{name}_{precision}").argtypes) == len(arguments)


@pytest.mark.parametrize(
    ("machine", "capability", "name"),
    [
        ("x86_64", "AVX2", "kernels-avx2.so"),
        ("x86_64", "AVX512", "kernels-avx512.so"),
        ("x86_64", "DEFAULT", None),
        ("aarch64", "DEFAULT", "kernels-neon.so"),
        ("riscv64", "DEFAULT", None),
    ],
)
def test_each_processor_has_its_library(
    machine: str, capability: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    path = library._library_path()
    assert (path and path.name) == name
