"""The commands and the Python of the guide, against a service; its tables, against the command."""

import io
import json
import re
import shlex
import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from serving.bombs import noise
from serving.clients import ROOT, Running, encode
from swinv2.cli import app
from swinv2.serving.app import _STATUSES
from swinv2.serving.settings import ServiceSettings

GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the guide, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(noise("JPEG"))
    Path("other.png").write_bytes(encode(Image.new("RGB", (30, 20), "red")))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.usefixtures("photos")
def test_commands(service: Running) -> None:
    """Each `curl`, with the address of a service that needs no key, and what comes before it."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(("curl", "echo"))]
    assert len([line for line in lines if line.startswith("curl")]) == 5
    for line in lines:
        command = line.replace(ADDRESS, service.url).replace("curl", "curl --silent --noproxy '*'", 1)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
        if line.startswith("curl"):
            records = json.loads(done.stdout)["images"]
            assert not [record for record in records if "error" in record]
            assert records[0]["image"] in ("photo.jpg", "image-1")


@pytest.mark.usefixtures("photos")
def test_python(service: Running) -> None:
    (code,) = blocks("python")
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(code.replace(ADDRESS, service.url), "serve.md", "exec"), {})
    first, second, third = printed.getvalue().splitlines()
    assert first.startswith("photo.jpg ")
    assert second.startswith("broken.jpg not an image in a format that is read here")
    assert re.fullmatch(r"\[\d+\]", third)


def test_commands_that_serve_are_understood() -> None:
    """Without running them."""
    group: Any = typer.main.get_command(app)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("swinv2 serve")]
    yaml = re.search(r"command: \[swinv2, (.*)\]", GUIDE)
    assert yaml is not None
    lines.append(f"swinv2 {yaml[1].replace(',', '')}")
    assert len(lines) == 4
    for line in lines:
        group.commands["serve"].make_context("serve", shlex.split(line)[2:])


def test_limits_are_those_of_the_command() -> None:
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| ([^|]+) \|", GUIDE, re.MULTILINE))
    group: Any = typer.main.get_command(app)
    defaults = {name: parameter.default for parameter in group.commands["serve"].params for name in parameter.opts}
    assert rows.pop("--body-timeout") == "two thirds of `--timeout`"
    assert {name: float(value) for name, value in rows.items()} == {name: float(defaults[name]) for name in rows}
    assert set(rows) == {"--queue", "--timeout", "--max-body", "--max-images", "--max-pixels"}
    settings = ServiceSettings("m")
    assert (settings.queue, settings.max_images, settings.max_pixels) == tuple(
        int(rows[name]) for name in ("--queue", "--max-images", "--max-pixels")
    )
    assert (settings.max_body, settings.timeout) == (int(rows["--max-body"]) * 2**20, float(rows["--timeout"]))


def test_statuses_are_those_of_the_description() -> None:
    listed = {int(status) for row in re.findall(r"^\| ([\d, ]+) \|", GUIDE, re.MULTILINE) for status in row.split(",")}
    assert listed == {*_STATUSES, 404, 405, 414, 421, 431, 500}
