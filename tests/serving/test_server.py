"""Limits of a process that serves, and how it stops. The model is a fake, whose time is known."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.clients import (
    Running,
    error_of,
    exchange,
    fake_command,
    grey,
    is_complete,
    post,
    running,
    status_of,
)
from serving.fakes import BLACK, SLOW, SLOW_SECONDS, WHITE
from swinv2.errors import UsageError
from swinv2.serving.server import bind

QUEUE, LARGEST = 12, 100_000
LIMITS = {"HEADER_SECONDS": 0.7, "SENDING_SECONDS": 0.7}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service whose model needs 0.02 seconds for up to four images, for which it waits as long."""
    fields = {"queue": QUEUE, "timeout": 1.0, "body_timeout": 0.8, "max_images": 4, "max_body": LARGEST}
    fields["batch_wait"] = 0.02
    with running(fake_command(0.02, LIMITS, **fields), tmp_path_factory.mktemp("server")) as found:
        yield found


def together(service: Running, count: int, path: str = "/classify", value: int = 100) -> list[httpx.Response]:
    """The responses to equal requests at the same time."""
    with service.client(limits=httpx.Limits(max_connections=None)) as client, ThreadPoolExecutor(count) as pool:
        send = lambda _: client.post(path, content=grey(value), headers={"Content-Type": "image/png"})  # noqa: E731
        return list(pool.map(send, range(count)))


def batches(service: Running) -> tuple[float, float]:
    """Number of batches, and of the images in them."""
    numbers = service.metrics()
    names = (f'swinv2_batch_images_{kind}{{endpoint="/classify"}}' for kind in ("count", "sum"))
    first, second = (numbers[name] for name in names)
    return first, second


def requests_of(service: Running, status: int) -> float:
    """Number of requests with a status."""
    return service.metrics().get(f'swinv2_requests_total{{endpoint="/classify",status="{status}"}}', 0)


def begin(service: Running, value: int = SLOW, path: str = "/classify") -> socket.socket:
    """A connection on which a request was sent."""
    connection = socket.create_connection(("127.0.0.1", service.port), 20)
    connection.sendall(post(path, grey(value)))
    return connection


@pytest.fixture(autouse=True)
def idle(service: Running) -> None:
    """The model has nothing to do when a test begins."""
    while together(service, 1)[0].status_code != 200:
        time.sleep(0.05)


def rest_of(connection: socket.socket) -> bytes:
    """The response on a connection."""
    with connection:
        return response_on(connection)


def response_on(connection: socket.socket) -> bytes:
    """The next response on a connection, which stays open."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while not is_complete(received) and (chunk := connection.recv(65536)):
            received += chunk
    return received


def test_requests_at_the_same_time_share_batches(service: Running) -> None:
    count, images = batches(service)
    responses = together(service, 8)
    assert [response.status_code for response in responses] == [200] * 8
    assert {record["mean"] for response in responses for record in response.json()["images"]} == {100}
    after, all_images = batches(service)
    assert all_images - images == 8
    assert after - count < 8


def test_a_full_queue_refuses_and_says_when_to_come_again(service: Running) -> None:
    with begin(service) as slow:
        time.sleep(0.2)
        responses = together(service, 2 * QUEUE, "/classify?top_k=2")
        refused = [response for response in responses if response.status_code == 429]
        assert len(refused) >= QUEUE + 1
        assert {response.status_code for response in responses} <= {200, 429, 504}
        assert all(1 <= int(response.headers["retry-after"]) <= 60 for response in refused)
        assert refused[0].json()["error"].startswith("the queue is full; try again in ")
        assert status_of(rest_of(slow)) == 504
    assert service.metrics()["swinv2_queue_images"] == 0
    assert together(service, 1)[0].status_code == 200


@pytest.mark.slow
def test_a_request_of_many_images_needs_a_place_for_each(service: Running) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(begin(service)) for _ in range(QUEUE - 3)]
        time.sleep(0.2)
        files = [("images", (str(index), grey())) for index in range(4)]
        with service.client() as client:
            assert client.post("/classify", files=files).status_code == 429
        for connection in slow:
            assert status_of(rest_of(connection)) in (200, 504)


def test_a_request_ends_at_its_time_and_is_not_computed(service: Running) -> None:
    """The model is busy with a slow image; the others wait for it, and give up."""
    with begin(service) as slow:
        time.sleep(0.2)
        count, images = batches(service)
        begun = time.monotonic()
        responses = together(service, 3, "/classify?top_k=7")
        assert [response.status_code for response in responses] == [504] * 3
        assert responses[0].json()["error"] == "there was no answer within 1 s, the limit."
        assert 0.9 < time.monotonic() - begun < SLOW_SECONDS + 0.5
        rest_of(slow)
    together(service, 1)
    after, all_images = batches(service)
    # The slow one, although its own request had ended, and the one behind it.
    assert (after - count, all_images - images) == (2, 2)


def test_a_client_that_goes_away_is_not_computed(service: Running) -> None:
    with begin(service) as slow:
        time.sleep(0.2)
        count, lost = batches(service)[0], requests_of(service, 499)
        for _ in range(3):
            begin(service, 100, "/classify?top_k=9").close()
        rest_of(slow)
    together(service, 1)
    assert batches(service)[0] - count == 2
    assert requests_of(service, 499) - lost == 3
    assert service.metrics()["swinv2_queue_images"] == 0


def test_an_error_of_the_model_is_one_of_its_request(service: Running) -> None:
    for value, status in ((BLACK, 500), (WHITE, 503), (100, 200)):
        assert [response.status_code for response in together(service, 2, value=value)] == [status] * 2
    assert together(service, 1, value=BLACK)[0].json() == {"error": "an error of the service; its log says more."}
    assert "RuntimeError: a black image" in service.log.read_text()


def test_bodies_that_are_held_at_once_are_bounded(service: Running) -> None:
    """Eight of the largest size, announced or not, although the queue has more places."""
    announced = post("/classify", b"", length=LARGEST)
    chunked = (
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for head in (announced, chunked):
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 20))
                connection.sendall(head)
            time.sleep(0.3)
            assert status_of(exchange(service.port, announced)) == 429
        time.sleep(0.3)
        assert together(service, 1)[0].status_code == 200


class TestSlowClients:
    """Time limits of a connection."""

    def test_headers_that_do_not_end(self, service: Running) -> None:
        """Whether nothing comes or a byte now and then."""
        for pieces in ([b""], [b"G", b"E", b"T", b" ", b"/", b" "] * 2):
            begun = time.monotonic()
            assert exchange(service.port, *pieces, pause=0.1) == b""
            assert 0.6 < time.monotonic() - begun < 5

    @pytest.mark.slow
    def test_a_connection_is_kept_for_the_next_request_but_not_for_half_of_it(self, service: Running) -> None:
        with socket.create_connection(("127.0.0.1", service.port), 20) as connection:
            for _ in range(2):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert status_of(response_on(connection)) == 200
                # Longer than headers may take.
                time.sleep(0.9)
            begun = time.monotonic()
            connection.sendall(b"GET /healthz")
            assert connection.recv(65536) == b""
            assert 0.5 < time.monotonic() - begun < 5

    def test_a_body_that_does_not_arrive(self, service: Running) -> None:
        answer = exchange(service.port, post("/classify", b"x", length=50))
        assert (status_of(answer), error_of(answer)) == (408, "the body did not arrive within 0.8 s, the limit.")

    @pytest.mark.slow
    def test_an_answer_that_is_not_taken(self, service: Running) -> None:
        """The connection is closed, and its buffer freed."""
        files = service.metrics()["process_open_fds"]
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        with connection:
            connection.sendall(post("/classify?top_k=20000", grey()))
            deadline = time.monotonic() + 20
            while service.metrics()["process_open_fds"] <= files and time.monotonic() < deadline:
                time.sleep(0.02)
            while service.metrics()["process_open_fds"] > files and time.monotonic() < deadline:
                time.sleep(0.1)
            assert service.metrics()["process_open_fds"] <= files


class TestStop:
    """SIGTERM, and Ctrl+C."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
    def test_accepted_requests_are_answered_and_others_refused(self, number: int, tmp_path: Path) -> None:
        with running(fake_command(timeout=20.0, body_timeout=15.0), tmp_path) as service:
            with service.client() as client:
                # It keeps its connection.
                assert client.get("/readyz").status_code == 200
                slow = begin(service)
                late = socket.create_connection(("127.0.0.1", service.port), 20)
                request = post("/classify", grey())
                late.sendall(request[:-10])
                time.sleep(0.2)
                service.process.send_signal(number)
                time.sleep(0.2)
                assert client.get("/healthz").status_code == 200
                ready = client.get("/readyz")
                assert (ready.status_code, ready.json()) == (503, {"status": "about to stop"})
                refused = status_of(exchange(service.port, post("/classify", grey())))
                late.sendall(request[-10:])
                assert [status_of(rest_of(each)) for each in (slow, late)] == [200, 200]
                assert refused == 503
            assert service.process.wait(20) == 0
            assert "Traceback" not in service.log.read_text()

    @pytest.mark.slow
    def test_without_requests_it_stops_at_once(self, tmp_path: Path) -> None:
        with running(fake_command(), tmp_path) as service:
            begun = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - begun < 5
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", service.port), 5)


def test_an_address_that_cannot_be_used() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use; give"
        ):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"cannot listen on no\.such\.host\.invalid port 80: .*; give another --port"):
        bind("no.such.host.invalid", 80)
    with bind("::1", 0) as bound:
        assert bound.family == socket.AF_INET6
