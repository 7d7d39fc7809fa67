"""What every test stands on: no network, kernels that run without a GPU, and shapes in signatures that are checked.

Annotations of shapes cost nothing in use; here each call of a function of the package is held to them. Set
SWINV2_TYPECHECK=0 to run without.
"""

import importlib.util
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CHECKS_SIGNATURES = os.environ.get("SWINV2_TYPECHECK", "1") != "0" and importlib.util.find_spec("beartype") is not None

# torch.compile cannot trace through the checks; test_ecosystem.py runs these in a process of their own.
collect_ignore = ["tracing"] if CHECKS_SIGNATURES else []

if CHECKS_SIGNATURES:
    import jaxtyping

    # Not the configuration: its fields are checked by itself, with a sentence, and the tests are about the sentence.
    # Nor kernels: Triton reads their source.
    ops = [f"swinv2.ops.{name}" for name in ("cpu", "backends", "coordinates", "reference", "sdpa", "windows")]
    ops += [f"swinv2.ops.triton.{name}" for name in ("launch", "programs", "residual", "table")]
    jaxtyping.install_import_hook([*ops, "swinv2.layers", "swinv2.model", "swinv2.heads"], "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Has kernels run on the CPU, before anything imports them, unless the tests are those for a GPU."""
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Turns the checks of signatures off: a wrong argument then meets the package's own refusal, as in use."""
    import jaxtyping

    was_off = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_off)
