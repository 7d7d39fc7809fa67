"""The endpoints: which there are, how they are described, probes, metrics, and the sentences of errors."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.clients import grey
from serving.fakes import fake_served
from serving.inside import inside
from swinv2.serving.endpoints import Endpoint, Served
from swinv2.serving.gate import Gate
from swinv2.serving.metrics import Metrics
from swinv2.serving.settings import ServiceSettings

KEY = "0123456789abcdef-key"
PNG = {"Content-Type": "image/png"}

Conversation = Callable[[httpx.AsyncClient, Gate, Metrics], Awaitable[Any]]


def talk(conversation: Conversation, served: Served | None = None, **settings: Any) -> Any:
    """What a conversation with a fake service returns."""

    async def run() -> Any:
        fields = ServiceSettings("m", **settings)
        async with inside(served or fake_served(fields), **settings) as (client, gate, metrics):
            return await conversation(client, gate, metrics)

    return asyncio.run(run())


def get(path: str, method: str = "GET", headers: dict[str, str] | None = None, **settings: Any) -> httpx.Response:
    """The response for a path."""
    return talk(lambda client, *_: client.request(method, path, headers=headers), **settings)


def other(name: str) -> Served:
    """A fake with another endpoint."""
    endpoint = fake_served(ServiceSettings("m")).endpoints["classify"]

    def answer(images: Any, **parameters: Any) -> list[dict[str, Any]]:
        return [{"got": parameters} for _ in images]

    return Served("a fake", {name: Endpoint(name, 1, endpoint.prepare, answer)}, lambda number: None, 1)


@pytest.mark.parametrize(
    ("name", "query", "parameters"),
    [
        ("features", "", {}),
        ("segment", "", {"rle": False}),
        ("segment", "?rle=true", {"rle": True}),
        ("detect", "", {"threshold": 0.5}),
        ("detect", "?threshold=0.25", {"threshold": 0.25}),
    ],
)
def test_parameters_reach_the_model(name: str, query: str, parameters: dict[str, Any]) -> None:
    def ask(client: httpx.AsyncClient, *_: Any) -> Awaitable[httpx.Response]:
        return client.post(f"/{name}{query}", content=grey(), headers=PNG)

    assert talk(ask, other(name)).json() == {"images": [{"image": "image-1", "got": parameters}]}


@pytest.mark.parametrize("query", ["threshold=nan", "threshold=-0.1", "threshold=1.1", "threshold=inf", "threshold=a"])
def test_a_threshold_is_from_0_to_1(query: str) -> None:
    def ask(client: httpx.AsyncClient, *_: Any) -> Awaitable[httpx.Response]:
        return client.post(f"/detect?{query}", content=grey(), headers=PNG)

    response = talk(ask, other("detect"))
    assert response.status_code == 422
    assert response.json()["error"].startswith("the parameter threshold is ")


def test_an_endpoint_that_the_model_does_not_have() -> None:
    """The sentence says what it does instead."""
    for path in ("/segment", "/detect", "/features"):
        response = get(path, "POST")
        assert response.status_code == 404
        assert response.json()["error"] == (
            f"there is no {path}: the model is a fake, which finds labels; it has POST /classify."
        )
    assert get("/nothing").json() == {
        "error": "there is no '/nothing'; it has POST /classify, and /docs describes them."
    }
    wrong = get("/classify")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"].startswith("/classify does not take GET; it has POST /classify")


def test_the_description_has_what_the_model_has() -> None:
    found = get("/openapi.json").json()
    assert set(found["paths"]) == {"/classify", "/healthz", "/readyz", "/metrics"}
    post = found["paths"]["/classify"]["post"]
    (parameter,) = post["parameters"]
    assert (parameter["name"], parameter["schema"]["minimum"], parameter["schema"]["default"]) == ("top_k", 1, 3)
    assert set(post["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert set(post["responses"]) == {"200", *map(str, (400, 401, 408, 413, 415, 422, 429, 503, 504))}
    assert "security" not in post
    assert "32 images" in found["info"]["description"]
    page = get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text


def test_the_example_of_the_description_works() -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> httpx.Response:
        described = (await client.get("/openapi.json")).json()["paths"]["/classify"]["post"]
        example = described["requestBody"]["content"]["application/json"]["example"]
        answer = described["responses"]["200"]["content"]["application/json"]["example"]
        assert [set(record) for record in answer["images"]] == [{"image", "predictions"}, {"image", "error"}]
        return await client.post("/classify", json=example)

    (record,) = talk(ask).json()["images"]
    assert (record["image"], "error" in record) == ("dot.gif", False)


def test_a_broken_image_among_others_has_an_error_of_its_own() -> None:
    def ask(files: list[bytes]) -> httpx.Response:
        parts = [("images", (str(index), file)) for index, file in enumerate(files)]
        return talk(lambda client, *_: client.post("/classify", files=parts))

    mixed = ask([b"text", grey(70), b""])
    assert mixed.status_code == 200
    assert [record.get("error") for record in mixed.json()["images"]] == [
        "not an image in a format that is read here: BMP, GIF, JPEG, PNG or WebP", None, "the file is empty",
    ]  # fmt: skip
    assert mixed.json()["images"][1]["mean"] == 70
    broken = ask([b"text", b""])
    assert broken.status_code == 422
    assert broken.json()["error"].startswith("none of the 2 images can be used; '0' cannot be used: not an image")
    assert [set(record) for record in broken.json()["images"]] == [{"image", "error"}] * 2
    assert ask([b""]).json()["error"] == "'0' cannot be used: the file is empty."


def test_numbers_that_json_does_not_have_are_an_error_of_their_image() -> None:
    def answer(images: Any, **_: Any) -> list[dict[str, Any]]:
        return [{"features": [float("nan") if image.mean() < 50 else 1.0]} for image in images]

    served = Served(
        "a fake", {"features": Endpoint("features", 4, other("x").endpoints["x"].prepare, answer)}, print, 1
    )
    parts = [("images", (str(value), grey(value))) for value in (20, 90)]
    found = talk(lambda client, *_: client.post("/features", files=parts), served).json()["images"]
    assert [record.get("error") for record in found] == ["the model answered with NaN or infinite numbers", None]


def test_probes() -> None:
    async def ask(client: httpx.AsyncClient, gate: Gate, _: Metrics) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for _ in range(2):
            responses = [await client.get("/healthz"), await client.get("/readyz")]
            responses.append(await client.post("/classify", content=grey(), headers=PNG))
            found.append((responses[0].status_code, responses[1].status_code, responses[2].status_code))
            gate.is_draining = True
        assert responses[2].headers["retry-after"] == "1"
        assert responses[2].headers["connection"] == "close"
        return found

    assert talk(ask) == [(200, 200, 200), (200, 503, 503)]


def test_a_service_that_computes_no_more_says_so() -> None:
    """An error of the service itself: Kubernetes then starts another process."""

    def answer(images: Any, **_: Any) -> list[dict[str, Any]]:
        return [{} for _ in images]

    async def run() -> list[int]:
        served = Served("a fake", {"features": Endpoint("features", 4, lambda data: np.zeros(1), answer)}, print, 1)
        async with inside(served) as (client, _, metrics):
            metrics.batches = None  # type: ignore[assignment]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.post("/features", content=b"x", headers=PNG)
            return [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]

    assert asyncio.run(run()) == [503, 503]


class TestKey:
    """A service with a key."""

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            KEY,
            f"Basic {KEY}",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY}x",
            "Bearer \u00e4\u00f6",
        ],
    )
    def test_requests_without_it(self, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        for path, method in (("/classify", "POST"), ("/metrics", "GET"), ("/nothing", "GET")):
            response = get(path, method, headers, host="0.0.0.0", api_key=KEY)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert KEY not in response.text

    @pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "])
    def test_requests_with_it(self, header: str) -> None:
        def ask(client: httpx.AsyncClient, *_: Any) -> Awaitable[httpx.Response]:
            headers = {**PNG, "Authorization": header, "Host": "service.example"}
            return client.post("/classify", content=grey(), headers=headers)

        assert talk(ask, host="0.0.0.0", api_key=KEY).status_code == 200

    def test_probes_and_the_description_need_none(self) -> None:
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert get(path, headers={"Host": "10.0.0.7:8000"}, api_key=KEY).status_code == 200

    def test_the_description_says_so(self) -> None:
        found = get("/openapi.json", api_key=KEY).json()
        assert found["paths"]["/classify"]["post"]["security"] == [{"key": []}]
        assert found["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
        assert KEY not in json.dumps(found)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200), ("[::1]", 200),
     ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421), ("10.0.0.1", 421), ("", 421)],
)  # fmt: skip
def test_without_a_key_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    """A page in a browser could otherwise reach the service by a name that its owner points to 127.0.0.1."""
    assert get("/healthz", headers={"Host": host}).status_code == status


def test_metrics() -> None:
    async def ask(client: httpx.AsyncClient, *_: Any) -> str:
        parts = [("images", (str(value), grey(value))) for value in (20, 90)]
        for _ in range(2):
            await client.post("/classify", files=[*parts, ("images", ("bad", b""))])
        await client.post("/classify", content=b"")
        await client.get("/a/secret")
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        return response.text

    text = talk(ask)
    assert "secret" not in text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    numbers = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert numbers["swinv2_requests_total", ("/classify", "200")] == 2
    assert numbers["swinv2_requests_total", ("/classify", "415")] == 1
    assert numbers["swinv2_requests_total", ("other", "404")] == 1
    assert numbers["swinv2_images_total", ("/classify", "answered")] == 4
    assert numbers["swinv2_images_total", ("/classify", "broken")] == 2
    assert numbers["swinv2_request_seconds_count", ("/classify",)] == 2
    # With the two images at the start.
    assert numbers["swinv2_batch_images_sum", ("/classify",)] == 6
    assert numbers["swinv2_queue_images", ()] == 0
    assert numbers["process_resident_memory_bytes", ()] > 1e6
