"""The command in a process of its own, whose children can be found: for tests that kill processes."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self


class Command:
    """Runs `swinv2 predict`, and kills it at the end of a `with` block.

    Args:
        arguments: Arguments of the command.
        log: Path of two files, for stdout and stderr; their suffixes are added.
        environment: Further variables.
    """

    def __init__(self, arguments: Sequence[object], log: Path, **environment: str) -> None:
        # Children have it too, so that only processes of this run are found.
        self._mark = f"SWINV2_MARK={uuid.uuid4()}"
        self._out, self._errors = log.with_suffix(".out"), log.with_suffix(".err")
        name, _, value = self._mark.partition("=")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment, name: value}
        with self._out.open("w") as out, self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "swinv2", "predict", *map(str, arguments)],
                env=variables,
                stdout=out,
                stderr=errors,
            )

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float = 300) -> int:
        return self._process.wait(timeout)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def processes(self, command: bytes = b"") -> list[int]:
        """Numbers of its other processes, whose command begins with these bytes."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self._process.pid:
                continue
            try:
                is_mine = self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                if is_mine and (entry / "cmdline").read_bytes().startswith(command):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def lines(self) -> list[dict[str, Any]]:
        """The JSON on stdout."""
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    def errors(self) -> str:
        return self._errors.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
