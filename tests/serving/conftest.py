"""The command `swinv2 serve` with a small model, in a process of its own."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.clients import Running, running
from small_models import make_model

PROGRAM = '#!/bin/sh\ntouch "$MARK"\n'
LIMITS = "--max-body 1 --max-pixels 4000000 --max-images 8 --queue 16 --timeout 8 --body-timeout 1"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the service: its model, its working folder ("work"), its folder for temporary files ("temporary"),
    and a file "mark" if it runs a program that PIL could run."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[Running]:
    """The service. At the end it stops as it should, and has failed nowhere."""
    make_model(folder / "model")
    for name in ("programs", "temporary"):
        (folder / name).mkdir()
    for name in ("gs", "djpeg", "cjpeg", "xdg-open"):
        (folder / "programs" / name).write_text(PROGRAM)
        (folder / "programs" / name).chmod(0o755)
    environment = {
        "PATH": f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}",
        "MARK": str(folder / "mark"),
        "TMPDIR": str(folder / "temporary"),
    }
    command = [
        sys.executable,
        "-m",
        "swinv2",
        "serve",
        "--model",
        str(folder / "model"),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with running([*command, *LIMITS.split()], folder, environment) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.log.read_text()
