"""Processes that serve, and clients that speak to them, well or badly."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
BOUNDARY = "----boundary"


@dataclass
class Running:
    """A process that serves.

    Attributes:
        process: The process.
        port: Its port.
        log: The file that has its stderr.
    """

    process: "subprocess.Popen[str]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        """A client that takes no proxy from the environment."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tells the process to stop, and returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def metrics(self) -> dict[str, float]:
        """The numbers of the service."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


@contextlib.contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Iterator[Running]:
    """Runs a service in a folder, from the moment at which it listens."""
    log = folder / "log.txt"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    usual = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    work = folder / "work"
    work.mkdir()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=work, env={**usual, **(environment or {})}, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        yield Running(process, _port(process, log), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _port(process: "subprocess.Popen[str]", log: Path) -> int:
    """The port of a service, when it listens."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = re.search(r"listening on http://[^ ]*:(\d+):", log.read_text().replace("\n", " "))
        if found:
            return int(found[1])
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}: {log.read_text()}")
        time.sleep(0.02)
    raise RuntimeError(f"the service does not listen: {log.read_text()}")


def fake_command(seconds: float | str = 0.0, limits: dict[str, float] | None = None, **settings: Any) -> list[str]:
    """The command of a service of `serving.fakes`."""
    options = {"seconds": seconds, "limits": limits or {}, "settings": settings}
    return [sys.executable, "-c", "from serving.fakes import main; main()", json.dumps(options)]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(value: int = 100, size: tuple[int, int] = (12, 10)) -> bytes:
    """A file of a grey image."""
    return encode(Image.new("RGB", size, (value, value, value)))


def form(*parts: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    """The body of a form: for each part the rest of the header Content-Disposition, and the data."""
    body = b""
    for header, data in parts:
        body += f"--{boundary}\r\nContent-Disposition: form-data; {header}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def post(path: str, body: bytes, kind: str | None = "image/png", *headers: str, length: int | None = None) -> bytes:
    """A request as it is sent."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body) if length is None else length}"]
    lines += [] if kind is None else [f"Content-Type: {kind}"]
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + body


def exchange(
    port: int, data: bytes, *more: bytes, pause: float = 0.0, half_close: bool = False, seconds: float = 30.0
) -> bytes:
    """Sends bytes, piece by piece, and returns everything that comes back until the connection is closed, or a whole
    response is there."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        received = b""
        try:
            for piece in (data, *more):
                connection.sendall(piece)
                time.sleep(pause)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            # The service has closed the connection; what it said before is read.
            pass
        with contextlib.suppress(ConnectionError):
            while not is_complete(received):
                chunk = connection.recv(65536)
                if not chunk:
                    break
                received += chunk
        return received


def is_complete(received: bytes) -> bool:
    """Whether a response is there as a whole."""
    head, separator, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(separator) and length is not None and len(body) >= int(length[1])


def status_of(received: bytes) -> int:
    """The status of a response; 0 if the connection was closed without one."""
    return int(received.split()[1]) if received.startswith(b"HTTP/1.1 ") else 0


def error_of(received: bytes) -> str:
    """The sentence of a refusal."""
    # Behind it may be the answer to what the server took for the next request.
    found, _ = json.JSONDecoder().raw_decode(received.partition(b"\r\n\r\n")[2].decode())
    return found["error"]
