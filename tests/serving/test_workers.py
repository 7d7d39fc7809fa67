"""Several processes at one address. The model is a fake."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.clients import ROOT, Running, fake_command, grey, running
from serving.fakes import SLOW

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Running]:
    """Two processes whose model needs 0.2 seconds for up to four images."""
    (folder / "temporary").mkdir()
    with running(fake_command(0.2, workers=2), folder, {"TMPDIR": str(folder / "temporary")}) as found:
        until(lambda: "2 of 2" in found.log.read_text())
        yield found


def until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes(service: Running, count: int = 24) -> list[int]:
    """The processes that answered many requests at the same time, each on a connection of its own."""

    def ask(_: int) -> httpx.Response:
        with service.client() as client:
            return client.post("/classify", content=grey(), headers=PNG)

    with ThreadPoolExecutor(count) as pool:
        responses = list(pool.map(ask, range(count)))
    assert {response.status_code for response in responses} == {200}
    return [response.json()["images"][0]["process"] for response in responses]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and was not waited for.
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def test_all_processes_answer_and_their_numbers_are_added_up(service: Running) -> None:
    name = 'swinv2_requests_total{endpoint="/classify",status="200"}'
    before = service.metrics().get(name, 0)
    seen = processes(service)
    assert len(set(seen)) == 2
    # Whichever process answers.
    assert {service.metrics()[name] - before for _ in range(4)} == {len(seen)}
    assert service.metrics()["swinv2_queue_images"] == 0


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(service: Running) -> None:
    first, second = sorted(set(processes(service)))
    os.kill(first, signal.SIGKILL)
    until(lambda: f"process {first} ended with -9; another one replaces it" in service.log.read_text())
    # Meanwhile the other one answers.
    assert set(processes(service)) <= {second} | set(processes(service))
    until(lambda: service.log.read_text().count("is ready (2 of 2)") == 2)
    assert len(set(processes(service)) - {first}) == 2


@pytest.mark.slow
def test_if_a_replacement_cannot_start_the_others_answer(service: Running, folder: Path) -> None:
    """Until it can."""
    first, second = sorted(set(processes(service)))
    before = service.log.read_text().count("is ready (2 of 2)")
    (folder / "work" / "dies").touch()
    os.kill(first, signal.SIGKILL)
    until(lambda: service.log.read_text().count("ended with 7; another one replaces it") >= 2)
    assert set(processes(service)) == {second}
    (folder / "work" / "dies").unlink()
    until(lambda: service.log.read_text().count("is ready (2 of 2)") == before + 1)
    assert len(set(processes(service)) - {first}) == 2


def test_it_stops_and_leaves_nothing(service: Running, folder: Path) -> None:
    """The last of these tests: accepted requests are answered, all processes end, and their folder is gone."""
    seen = set(processes(service))
    with service.client() as client, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(client.post, "/classify", content=grey(SLOW), headers=PNG) for _ in range(2)]
        time.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 2
    assert service.process.wait(30) == 0
    assert not [process for process in seen if is_alive(process)]
    assert list((folder / "temporary").iterdir()) == []
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("impossible", "error: there is no such fake."),
        pytest.param("dies", "error: a process ended with 7 at its start.", marks=pytest.mark.slow),
    ],
)
def test_if_a_process_cannot_start_all_stop(model: str, sentence: str) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    command, environment = fake_command(model, workers=2), {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, sentence)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    with running(fake_command(workers=2), tmp_path) as service:
        until(lambda: "2 of 2" in service.log.read_text())
        seen = set(processes(service))
        service.process.kill()
        service.process.wait()
        until(lambda: not any(map(is_alive, seen)), 20)
