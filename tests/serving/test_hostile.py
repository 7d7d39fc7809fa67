"""Hostile input to a real service: it never crashes, never answers 500, writes no file and runs no program."""

import json
import os
import pickle
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving import bombs
from serving.clients import (
    BOUNDARY,
    Running,
    encode,
    error_of,
    exchange,
    form,
    grey,
    is_complete,
    post,
    status_of,
)
from small_models import LABELS
from swinv2.images import read_image
from swinv2.predict import Classifier

MOST_IMAGES = 8
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="module", autouse=True)
def bytes_before(service: Running) -> float:
    """The memory of the service before all tests."""
    return service.metrics()["process_resident_memory_bytes"]


@pytest.fixture(scope="module")
def expected(service: Running, folder: Path) -> list[dict[str, Any]]:
    """What the model answers for a valid image without the service."""
    classifier = Classifier.load(str(folder / "model"), "cpu")
    prepared = classifier.prepare(read_image(bombs.noise("PNG")))
    return [vars(prediction) for prediction in classifier.label([prepared], 3)[0]]


def answers_as_ever(service: Running, expected: list[dict[str, Any]]) -> None:
    """The service is alive, and its answer for a valid image is that of the model."""
    answer = exchange(service.port, post("/classify", bombs.noise("PNG")))
    (record,) = json.loads(answer.partition(b"\r\n\r\n")[2])["images"]
    for found, right in zip(record["predictions"], expected, strict=True):
        assert (found["index"], found["label"]) == (right["index"], right["label"])
        assert found["probability"] == pytest.approx(right["probability"], abs=1e-5)


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "nothing": bytes,
    "text": lambda: b"hello",
    "truncated png": lambda: bombs.noise("PNG")[:-900],
    "truncated jpeg": lambda: bombs.noise("JPEG")[:400],
    "truncated gif": lambda: bombs.noise("GIF")[:900],
    "truncated webp": lambda: bombs.noise("WEBP")[:90],
    "truncated bmp": lambda: bombs.noise("BMP")[:300],
    "png of four billion pixels": lambda: bombs.png(65000, 65000),
    "png above the limit": lambda: bombs.png(2500, 2500),
    "png of no pixel": lambda: bombs.png(0, 10),
    "png with a wrong checksum": lambda: bombs.noise("PNG").replace(b"IDAT", b"IDAT\1", 1),
    "png with text that expands": lambda: bombs.png(9, 9, (b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))),
    "png with a profile that expands": lambda: bombs.png(
        9, 9, (b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000), 9))
    ),
    "signature of png and noise": lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
    "gif above the limit": lambda: encode(Image.new("P", (5000, 5000)), "GIF"),
    "webp above the limit": lambda: encode(Image.new("RGB", (2100, 2100)), "WEBP"),
    "bmp of two billion pixels": lambda: bombs.bmp(50000, 50000),
    "bmp of negative size": lambda: bombs.bmp(-5, 2**31 - 1),
    "bmp with run lengths": lambda: bombs.bmp(2000, 1900, 1, b"\xff\0" * 100_000),
    "jpeg of four billion pixels": bombs.large_jpeg,
    "jpeg of many scans": bombs.many_scans,
    "thin image": lambda: encode(Image.new("RGB", (1, 4000))),
    "tiff with a large tile": bombs.tiff_with_a_large_tile,
    "avif with a wrong size": bombs.avif_that_lies,
    "icon with a large png": bombs.icon_with_a_large_png,
    "postscript, for which pil runs a program": lambda: encode(Image.new("RGB", (20, 20)), "EPS"),
    "pdf": lambda: b"%PDF-1.7\n1 0 obj << /OpenAction << /S /Launch /F (id) >> >>",
    "svg with a file of the system": lambda: b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "pickle that runs a program": lambda: pickle.dumps(Exploit()),
    "zip": bombs.zip_bomb,
    "plain ppm": lambda: b"P3 1000 1000 255\n" + b"0 " * 100_000,
}
"""Bodies that are no image which the service reads."""


class Exploit:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('touch "$MARK"',)


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_are_no_image(name: str, service: Running) -> None:
    """422, alone; in a request with a valid image an error of its own, and the other one is answered."""
    file = UNREADABLE[name]()
    begun = time.monotonic()
    alone = exchange(service.port, post("/classify", file))
    assert status_of(alone) == 422, alone[:300]
    assert error_of(alone).endswith(".")
    many = form(('name="images"; filename="bad"', file), ('name="images"; filename="good"', grey()))
    records = json.loads(exchange(service.port, post("/classify", many, FORM)).partition(b"\r\n\r\n")[2])["images"]
    assert ["error" in record for record in records] == [True, False]
    assert (records[0].keys(), records[1]["image"]) == ({"image", "error"}, "good")
    assert time.monotonic() - begun < 5


READABLE: dict[str, Callable[[], bytes]] = {
    "one pixel": lambda: encode(Image.new("RGB", (1, 1))),
    "a hundred to one": lambda: encode(Image.new("RGB", (100, 1))),
    "circular exif": bombs.circular_exif,
    "animation": bombs.long_animation,
    "sixteen bits": lambda: encode(Image.new("I;16", (20, 20), 40000)),
    "cmyk": lambda: encode(Image.new("CMYK", (20, 20)), "JPEG"),
    "bytes behind the image": lambda: grey() + b"<?php system('id') ?>" * 100,
}


@pytest.mark.parametrize("name", READABLE)
def test_unusual_images_are_answered(name: str, service: Running) -> None:
    answer = exchange(service.port, post("/classify?top_k=99", READABLE[name]()))
    assert status_of(answer) == 200, answer
    (record,) = json.loads(answer.partition(b"\r\n\r\n")[2])["images"]
    assert len(record["predictions"]) == len(LABELS)


NAMES = ["../../../etc/cron.d/x", "/etc/passwd", "C:\\\\windows\\\\x", "a\0b", "x" * 10_000, "\u202egnp.exe", "CON",
         "$(id).png", "; rm -rf ~", ".", "%2e%2e%2f", "<script>alert(1)</script>", "a\nb"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_of_files_are_names_only(name: str, service: Running) -> None:
    """As the name of a file of a form, where a control character may end the header; and in JSON."""
    parts = exchange(service.port, post("/classify", form((f'name="images"; filename="{name}"', grey())), FORM))
    assert status_of(parts) in (200, 400, 413)
    contents = {"images": [{"name": name, "data": "R0lGODdhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="}]}
    answer = exchange(service.port, post("/classify", json.dumps(contents).encode(), "application/json"))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["images"][0]["image"] == name[:255]


IMAGE = 'name="images"; filename="a.png"'

FORMS: dict[str, tuple[str, bytes, int]] = {
    "no boundary": ("multipart/form-data", form((IMAGE, grey())), 400),
    "empty boundary": ("multipart/form-data; boundary=", form((IMAGE, grey())), 400),
    "another boundary": ("multipart/form-data; boundary=other", form((IMAGE, grey())), 400),
    "a boundary of strange bytes": ('multipart/form-data; boundary="\xff\x01\x80"', form((IMAGE, grey())), 400),
    "a long boundary": (f"multipart/form-data; boundary={'b' * 5000}", form((IMAGE, grey()), boundary="b" * 5000), 400),
    "no last boundary": (FORM, form((IMAGE, grey()))[:-20], 400),
    "no part": (FORM, form(), 422),
    "an empty body": (FORM, b"", 422),
    "a field": (FORM, form(('name="top_k"', b"5")), 422),
    "a part without headers": (
        FORM,
        f"--{BOUNDARY}\r\n\r\n".encode() + grey() + f"\r\n--{BOUNDARY}--\r\n".encode(),
        422,
    ),
    "a part without a disposition": (FORM, f"--{BOUNDARY}\r\nA: b\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(), 422),
    "too many images": (FORM, form(*[(IMAGE, grey())] * (MOST_IMAGES + 1)), 413),
    "thousands of empty parts": (FORM, form(*[(IMAGE, b"")] * 5000), 413),
    "a long header": (FORM, form((f'name="{"n" * 100_000}"; filename="a"', grey())), 400),
    "many headers": (FORM, f"--{BOUNDARY}\r\n{'a: b' * 5}\r\n".encode() + b"x: y\r\n" * 20_000, 400),
    "a form in a form": (FORM, form((IMAGE + "\r\nContent-Type: multipart/mixed; boundary=x", b"--x--")), 422),
    "a body that is no form": (FORM, grey(), 400),
}


@pytest.mark.parametrize("name", FORMS)
def test_damaged_forms(name: str, service: Running) -> None:
    kind, body, status = FORMS[name]
    header = (
        f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = exchange(service.port, header.encode("latin-1") + body)
    assert status_of(answer) == status, answer[:300]
    assert error_of(answer)


BODIES: dict[str, tuple[bytes, int]] = {
    "no json": (b"{", 400),
    "nothing": (b"", 400),
    "deeply nested": (b"[" * 200_000, 413),
    "nested less deeply": (b"[" * 5000, 400),
    "deeply nested objects": (b'{"images":' * 50_000, 413),
    "a large list of lists": (b'{"images":[' + b"[]," * 300_000 + b"[]]}", 413),
    "a large list in a list": (b'{"images":[[' + b"{}," * 300_000 + b"{}]]}", 413),
    "a list in a list": (b'{"images":[[' + b"{}," * 3000 + b"{}]]}", 422),
    "a number of many digits": (b'{"images":' + b"9" * 100_000 + b"}", 400),
    "nan": (b'{"images": NaN}', 422),
    "invalid utf-8": (b'{"images": ["\xff\xfe"]}', 400),
    "utf-16": ('{"images": []}'.encode("utf-16"), 422),
    "null": (b"null", 422),
    "a list": (b"[]", 422),
    "a number": (b'{"images": 5}', 422),
    "a list of numbers": (b'{"images": [5]}', 422),
    "a list of null": (b'{"images": [null]}', 422),
    "data that is a number": (b'{"images": [{"data": 5}]}', 422),
    "a name that is a list": (b'{"images": [{"data": "", "name": []}]}', 422),
    "no data": (b'{"images": [{"name": "a"}]}', 422),
    "a path": (b'{"images": [{"path": "/etc/passwd"}]}', 422),
    "an address": (b'{"images": ["http://169.254.169.254/latest/meta-data"]}', 422),
    "other fields": (b'{"images": [], "__class__": "os.system"}', 422),
    "no images": (b'{"images": []}', 422),
    "too many images": (json.dumps({"images": ["AAAA"] * (MOST_IMAGES + 1)}).encode(), 413),
    "invalid base64": (b'{"images": ["not base64!"]}', 422),
    "base64 of other letters": ('{"images": ["\u00e4\u00f6\u00fc\u00df"]}'.encode(), 422),
    "empty base64": (b'{"images": [""]}', 422),
    "half a surrogate": (b'{"images": [{"name": "\\ud800", "data": "AAAA"}]}', 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_damaged_json(name: str, service: Running) -> None:
    body, status = BODIES[name]
    answer = exchange(service.port, post("/classify", body, "application/json"))
    assert status_of(answer) == status, answer[:300]
    assert error_of(answer)


PARAMETERS = ["top_k=0", "top_k=-1", "top_k=nan", "top_k=inf", "top_k=1e99", "top_k=1.5", "top_k=", "top_k=%00",
              "top_k=" + "9" * 5000, "top_k=__import__('os')", "topk=3", "threshold=0.5", "top_k=1&debug=true",
              "top_k[]=1", "%ff=1"]  # fmt: skip


@pytest.mark.parametrize("query", PARAMETERS, ids=range(len(PARAMETERS)))
def test_wrong_parameters(query: str, service: Running) -> None:
    answer = exchange(service.port, post(f"/classify?{query}", grey()))
    assert (status_of(answer), bool(error_of(answer))) == (422, True)


KINDS: list[tuple[str | None, tuple[str, ...], int]] = [
    (None, (), 415),
    ("", (), 415),
    ("text/plain", (), 415),
    ("application/x-www-form-urlencoded", (), 415),
    ("application/x-python-pickle", (), 415),
    ("multipart/mixed; boundary=x", (), 415),
    ("a" * 5000, (), 415),
    ("image/png", ("Content-Encoding: gzip",), 415),
    ("image/png", ("Content-Encoding: br, gzip",), 415),
    ("image/png; charset=\x01", (), 200),
    ("IMAGE/PNG; q=1; q=2", (), 200),
]


@pytest.mark.parametrize(("kind", "headers", "status"), KINDS, ids=range(len(KINDS)))
def test_wrong_kinds_of_bodies(kind: str | None, headers: tuple[str, ...], status: int, service: Running) -> None:
    assert status_of(exchange(service.port, post("/classify", grey(), kind, *headers))) == status


CHUNK = b"10000\r\n" + bytes(65536) + b"\r\n"
HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"

EXCHANGES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n", (400,)),
    "a length that is no number": (HEAD + b"Content-Length: many\r\n\r\n", (400,)),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", (400,)),
    "a length of a terabyte": (HEAD + b"Content-Length: 1000000000000\r\n\r\n", (413,)),
    "a length of many digits": (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", (400,)),
    "a length above the limit": (HEAD + b"Content-Length: 1048577\r\n\r\n", (413,)),
    "a length and chunks": (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, 422)),
    "chunks of no length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (400,)),
    "a chunk of negative length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", (400,)),
    "a chunk of an endless length": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 400 + b"\r\n", (400,)),
    "another encoding": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", (400, 501)),
    "chunks that are too many": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 20, (413,)),
    "a long header": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 500_000, (431, 0)),
    "a header above the limit": (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        (431,),
    ),
    "many headers": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", (431, 400)),
    "a long address": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (414,)),
    "a header with a control character": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", (400,)),
    "a header over two lines": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", (200, 400)),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", (400,)),
    "another host": (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", (421,)),
    "a host of numbers": (b"GET /healthz HTTP/1.1\r\nHost: 2130706433\r\n\r\n", (421,)),
    "a host of brackets": (b"GET /healthz HTTP/1.1\r\nHost: [[[::1\r\n\r\n", (421,)),
    "garbage": (b"\x00\x01\x02\x03 hello\r\n\r\n", (400,)),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", (400, 0)),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n", (400,)),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 421)),
    "an unknown version": (b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n", (400, 200, 505)),
    "an unknown method": (b"BREW /classify HTTP/1.1\r\nHost: localhost\r\n\r\n", (405,)),
    "trace": (b"TRACE /classify HTTP/1.1\r\nHost: localhost\r\n\r\n", (405,)),
    "connect": (b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", (404, 405, 400)),
    "a proxy's address": (b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    "a websocket": (
        b"GET /classify HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: YQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        (405,),
    ),
    "a path of the system": (b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    "an encoded path": (b"GET /docs/%2e%2e/%2e%2e/etc/passwd%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    "a path of strange bytes": (b"GET /%ff%fe%c0%af HTTP/1.1\r\nHost: localhost\r\n\r\n", (404,)),
    "a slash at the end": (b"POST /classify/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", (404,)),
    "expect too much": (HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", (413,)),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_bad_http(name: str, service: Running) -> None:
    data, statuses = EXCHANGES[name]
    # Some of them never end: the client then says that nothing more comes.
    answer = exchange(service.port, data, half_close=name == "another protocol")
    assert status_of(answer) in statuses, answer[:300]
    assert status_of(answer) == 0 or status_of(answer) < 400 or error_of(answer)


class TestSlowAndRudeClients:
    """Clients that keep a connection, or drop it."""

    def test_a_body_that_does_not_arrive(self, service: Running) -> None:
        begun = time.monotonic()
        answer = exchange(service.port, post("/classify", b"abc", length=1000))
        assert status_of(answer) == 408
        assert "within 1 s" in error_of(answer)
        assert 0.9 < time.monotonic() - begun < 8

    def test_chunks_without_an_end(self, service: Running) -> None:
        pieces = [b"1\r\na\r\n"] * 7
        answer = exchange(service.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *pieces, pause=0.2)
        assert status_of(answer) == 408

    def test_a_body_that_ends_early(self, service: Running) -> None:
        assert exchange(service.port, post("/classify", b"abc", length=1000), half_close=True) in (b"",)

    def test_a_client_that_ends_its_side_after_the_request(self, service: Running) -> None:
        assert status_of(exchange(service.port, post("/classify", grey()), half_close=True)) in (0, 200)

    def test_a_client_that_says_nothing(self, service: Running) -> None:
        assert exchange(service.port, b"", half_close=True) == b""

    def test_clients_that_reset_their_connection(self, service: Running) -> None:
        for body in (b"", HEAD, post("/classify", grey()), post("/classify", grey(), length=5000)):
            connection = socket.create_connection(("127.0.0.1", service.port))
            connection.sendall(body)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def test_garbage_behind_a_request(self, service: Running) -> None:
        with socket.create_connection(("127.0.0.1", service.port), 20) as connection:
            connection.sendall(post("/classify", grey()) + b"\x00\xff garbage\r\n\r\n" * 50)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        first, _, second = received.partition(b"HTTP/1.1 400")
        assert status_of(first) == 200
        assert second

    def test_requests_one_behind_the_other(self, service: Running) -> None:
        with socket.create_connection(("127.0.0.1", service.port), 20) as connection:
            connection.sendall(post("/classify", grey()) * 20)
            received = b""
            while received.count(b"HTTP/1.1 200") < 20 or not is_complete(received[received.rindex(b"HTTP/1.1") :]):
                received += connection.recv(65536)

    def test_the_rest_of_a_refused_body_does_not_hide_the_answer(self, service: Running) -> None:
        """A client that sends everything before it reads, on a connection that it closes, gets the refusal."""
        body = bytes(30_000_000)
        answer = exchange(service.port, post("/classify", body, "image/png", "Connection: close"))
        assert status_of(answer) == 413


def test_nothing_was_written_or_run_and_nothing_failed(
    service: Running, folder: Path, expected: list[dict[str, Any]], bytes_before: float
) -> None:
    """After everything above, in the same process."""
    answers_as_ever(service, expected)
    assert not (folder / "mark").exists()
    assert list((folder / "work").iterdir()) == list((folder / "temporary").iterdir()) == []
    numbers = service.metrics()
    assert not [name for name in numbers if 'status="500"' in name]
    assert numbers["swinv2_queue_images"] == 0
    assert numbers["process_resident_memory_bytes"] < bytes_before + 200e6
    assert service.process.poll() is None
