"""The page in a browser: an upload, an example, a click, a broken file; on a desktop's and a phone's width.

Needs gradio, playwright and a Chromium; `make page-tests` sets up an environment with the first two. The command runs
in a process of its own, as a user starts it. Screenshots are left in pytest's temporary folder.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import page_models
from export_models import draw_photos, needs_exporters
from export_models import save_model as save_exportable
from swinv2 import Swinv2ForImageClassification

BROWSER = os.environ.get("SWINV2_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if BROWSER else ["a browser (SWINV2_BROWSER)"]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"there is no {', no '.join(MISSING)}; run `make page-tests`"),
    pytest.mark.timeout(120),
]

DESKTOP, PHONE = (1280, 900), (390, 844)
SECONDS = 60_000
"""Milliseconds until something must be seen."""


@contextmanager
def served(*arguments: object) -> Iterator[str]:
    """The address of a page, served by the command until the end of the block; it then ends by itself on SIGTERM."""
    command = [sys.executable, "-m", "swinv2", "page", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"the page is at (http://127\.0\.0\.1:\d+/)", line):
                    yield found[1]
                    break
            else:
                pytest.fail("".join(lines))
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page of the shipped model."""
    with served("--device", "cpu") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens an address in a window of a size; the page must ask nobody else for anything, and report no error."""
    contexts, problems = [], []

    def open_page(address: str, size: tuple[int, int] = DESKTOP) -> Any:
        contexts.append(browser.new_context(viewport={"width": size[0], "height": size[1]}, has_touch=size == PHONE))
        page = contexts[-1].new_page()
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda each: problems.append(each.url) if not _is_own(each.url, address) else None)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def wait_for(page: Any, place: str, text: str) -> str:
    """Waits until a part of the page has a text, and returns all of its text."""
    page.wait_for_function(
        "([place, text]) => (document.querySelector(place)?.innerText ?? '').includes(text)", arg=[place, text]
    )
    return page.inner_text(place)


def screenshot(page: Any, path: Path) -> np.ndarray:
    """The whole page as it is shown, written to a file."""
    page.wait_for_timeout(500)
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_shows_the_first_example(size: tuple[int, int], address: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(address, size)
    labels = wait_for(page, "#labels", "African elephant")
    assert len(re.findall(r"\d+%", labels)) == 5
    assert "row 4 of 6, column 4 of 6" in wait_for(page, "#numbers", "Last block of stage 3")
    page.wait_for_selector("#attention img")
    page.wait_for_function("document.querySelectorAll('#maps figure img').length === 5")
    # Nothing is wider than the window, and nothing is cut off at its side.
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for place in ("#drop", "#examples", "#shown", "#labels", "#stage", "#head", "#attention", "#numbers", "#maps"):
        box = page.locator(place).bounding_box()
        assert box["x"] >= 0, place
        assert box["x"] + box["width"] <= size[0], place
    tops = [page.locator(place).bounding_box()["x"] for place in ("#shown", "#attention")]
    assert (tops[0] == pytest.approx(tops[1], abs=1)) == (size == PHONE)
    pixels = screenshot(page, tmp_path / "page.png")
    assert pixels.shape[1] == size[0]
    # Red and yellow, of the token and its window.
    for colour in ((255, 45, 45), (255, 212, 0)):
        assert (np.abs(pixels.astype(int) - colour).max(-1) < 40).sum() > 100


def test_an_upload(address: str, visit: Visit, tmp_path: Path) -> None:
    """A file, with the other answers of the page."""
    from swinv2.predict.shipped import shipped_photographs

    (lion,) = (each for each in shipped_photographs() if each.path.stem == "lion")
    with Image.open(lion.path) as image:
        image.save(tmp_path / "photo.bmp")
        # A small image is enlarged by an integer.
        size = [side * (768 // max(image.size)) for side in image.size]
    page = visit(address)
    wait_for(page, "#labels", "African elephant")
    page.set_input_files("#drop input[type=file]", tmp_path / "photo.bmp")
    wait_for(page, "#labels", "lion")
    page.wait_for_function(
        "([width, height]) => { const image = document.querySelector('#shown img');"
        " return image.naturalWidth === width && image.naturalHeight === height }",
        arg=size,
    )
    # A second file can be dropped at once.
    page.wait_for_selector("#drop input[type=file]", state="attached")
    page.set_input_files("#drop input[type=file]", lion.path.with_name("cat.jpg"))
    wait_for(page, "#labels", "tabby cat")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_an_example_and_clicks(size: tuple[int, int], address: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(address, size)
    wait_for(page, "#labels", "African elephant")
    page.locator("#examples .grid-container > *").nth(4).click()
    wait_for(page, "#labels", "tabby cat")
    wait_for(page, "#numbers", "row 4 of 6, column 4 of 6")
    before = page.get_attribute("#attention img", "src")
    for column, row in ((0.05, 0.05), (0.95, 0.05), (0.3, 0.7)):
        box = page.locator("#shown img").bounding_box()
        page.click("#shown img", position={"x": column * box["width"], "y": row * box["height"]})
        wait_for(page, "#numbers", f"row {int(6 * row) + 1} of 6, column {int(6 * column) + 1} of 6")
    page.wait_for_function(
        "before => document.querySelector('#attention img').getAttribute('src') !== before", arg=before
    )
    # A click on the figure itself: near its lower right corner.
    box = page.locator("#attention img").bounding_box()
    page.click("#attention img", position={"x": 0.95 * box["width"], "y": 0.95 * box["height"]})
    wait_for(page, "#numbers", "row 6 of 6, column 6 of 6")
    # Stage 4 has more heads than stage 3, which was chosen at first.
    page.locator("#stage").get_by_text("4", exact=True).click()
    wait_for(page, "#numbers", "Last block of stage 4, mean of heads")
    page.click("#head input")
    page.locator("[role=option]").last.click()
    wait_for(page, "#numbers", "Last block of stage 4, head 16")
    page.locator("#stage").get_by_text("1", exact=True).click()
    wait_for(page, "#numbers", "Last block of stage 1, mean of heads")
    page.click("#head input")
    page.click("[role=option]:has-text('head 2')")
    wait_for(page, "#numbers", "Last block of stage 1, head 2")
    page.locator("#map").get_by_text("2", exact=True).click()
    wait_for(page, "#maps", "component 3")
    assert page.locator("#maps figure").count() == 4
    screenshot(page, tmp_path / "page.png")


@pytest.mark.parametrize("content", [b"not an image <img src=x>", b"", b"\x89PNG\r\n\x1a\n\0\0"])
def test_a_broken_file_is_a_sentence(content: bytes, address: str, visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    page = visit(address, PHONE)
    wait_for(page, "#labels", "African elephant")
    page.set_input_files("#drop input[type=file]", tmp_path / "broken.png")
    message = wait_for(page, "#message", "The image cannot be shown")
    assert message.endswith(".")
    assert "Traceback" not in page.inner_text("body")
    assert "African elephant" not in page.inner_text("body")
    # The next image is shown again.
    page.locator("#examples .grid-container > *").nth(0).click()
    wait_for(page, "#labels", "African elephant")
    page.wait_for_selector("#message", state="hidden")


def test_an_image_of_too_many_pixels_is_a_sentence(address: str, visit: Visit, tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    page = visit(address)
    wait_for(page, "#labels", "African elephant")
    page.set_input_files("#drop input[type=file]", tmp_path / "large.png")
    message = wait_for(page, "#message", "The image cannot be shown")
    assert "pixels" in message
    assert "make it smaller" in message


def test_a_file_of_too_many_bytes_is_a_sentence(address: str, visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(51 * 2**20))
    page = visit(address)
    wait_for(page, "#labels", "African elephant")
    page.set_input_files("#drop input[type=file]", tmp_path / "large.jpg")
    wait_for(page, "body", "exceed the maximum allowed size of 50")


@needs_exporters
def test_an_exported_model_says_that_it_has_labels_only(visit: Visit, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="there is no OpenVINO to export a model to")
    from swinv2.export.exporting import export_model
    from swinv2.export.report import ExportSettings

    source = save_exportable(tmp_path / "model", Swinv2ForImageClassification, id2label=dict(enumerate("abcde")))
    photos = draw_photos(tmp_path / "photos", 4)
    export_model(str(source), tmp_path / "exported", ExportSettings(format="openvino", images=photos))
    with served("--model", tmp_path / "exported", "--device", "cpu") as address:
        page = visit(address, PHONE)
        wait_for(page, "#labels", "%")
        assert "exported model, which returns labels only" in page.inner_text("body")
        assert page.locator("#attention, #stage, #maps, #found").filter(visible=True).count() == 0
        screenshot(page, tmp_path / "page.png")
        page.context.close()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("head", "word"), [("upernet", "%"), ("mask_rcnn", "objects"), ("rt_detr", "objects")])
def test_segmenters_and_detectors(head: str, word: str, visit: Visit, tmp_path: Path) -> None:
    """The figure of what is found, its legend, and attention; names are not markup."""
    folder = page_models.save_model(tmp_path, head)
    with served("--model", folder, "--device", "cpu") as address:
        page = visit(address, PHONE)
        wait_for(page, "#found-text", word)
        page.wait_for_selector("#found img")
        page.wait_for_selector("#attention img")
        assert page.locator("#labels").count() == 0 or not page.is_visible("#labels")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        if head == "upernet":
            assert page.locator("#found-text .swatch").count() >= 1
            assert any(name in page.inner_text("#found-text") for name in page_models.CLASSES)
        else:
            # Random weights find no object of a score of 0.5.
            before = page.get_attribute("#found img", "src")
            page.locator("#threshold input[type=range]").fill("0")
            page.locator("#threshold input[type=range]").dispatch_event("pointerup")
            wait_for(page, "#found-text", "%")
            assert page.get_attribute("#found img", "src") != before
        screenshot(page, tmp_path / "page.png")
        page.context.close()


def test_a_port_in_use_is_a_sentence(address: str) -> None:
    port = re.findall(r"\d+", address)[-1]
    command = [sys.executable, "-m", "swinv2", "page", "--port", port, "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 2
    assert f"port {port}" in result.stderr
    assert "Choose another --port or --host" in result.stderr
    assert "Traceback" not in result.stderr
