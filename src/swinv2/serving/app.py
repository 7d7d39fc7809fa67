"""The endpoints of a service, as FastAPI knows them.

In: a service. Out: an application of ASGI with the endpoints that its model has, their description (`/openapi.json`,
`/docs`), probes and metrics. Every error is JSON: {"error": "a sentence"}.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import swinv2
from swinv2.serving import metrics
from swinv2.serving.endpoints import DOES
from swinv2.serving.gate import METRICS, OPEN, PROBES, Gate
from swinv2.serving.refusals import Refusal
from swinv2.serving.service import Service
from swinv2.serving.settings import ServiceSettings

_LOST = 499
"""Counted for a client that closed its connection; nobody gets it."""

_FACTS: dict[str, tuple[str, Any]] = {
    "classify": (
        "Labels of images, the most probable first.",
        {"predictions": [{"index": 1, "label": "goldfish", "probability": 0.973}]},
    ),
    "features": (
        "A vector for each image: the mean of the last tokens, after the last norm.",
        {"features": [0.12, -1.3, 0.7], "shape": [3]},
    ),
    "segment": (
        "The classes of the pixels of images, the largest share first.",
        {"size": [640, 480], "classes": [{"label": "sky", "index": 1, "pixels": 76800, "share": 0.25}]},
    ),
    "detect": (
        "The objects in images, the highest score first. A box is left, top, right and bottom in pixels.",
        {
            "size": [640, 480],
            "objects": [{"label": "cell", "index": 0, "score": 0.93, "box": [10.5, 20.0, 60.25, 71.0]}],
        },
    ),
}
"""A summary, and an example of the fields of an answer."""

_STATUSES = {
    400: "The body is damaged.",
    401: "The key is missing or wrong (a service with a key).",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many images.",
    415: "The body is of a kind that the service does not read.",
    422: "A parameter is wrong, there is no image, or no image can be used.",
    429: "The queue is full; Retry-After says when to try again.",
    503: "The service is about to stop, or has too little memory for an image.",
    504: "There was no answer in time.",
}

_IMAGE = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _IMAGE}}}
        },
        "image/*": {"schema": _IMAGE},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "additionalProperties": False,
                "properties": {
                    "images": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["data"],
                            "additionalProperties": False,
                            "properties": {
                                "name": {"type": "string"},
                                "data": {"type": "string", "contentEncoding": "base64"},
                            },
                        },
                    }
                },
            },
            "example": {
                "images": [{"name": "dot.gif", "data": "R0lGODdhAQABAIEAAHiCjAAAAAAAAAAAACwAAAAAAQABAAAIBAABBAQAOw=="}]
            },
        },
    },
}
"""What an endpoint takes, for its description. The example is an image of one pixel."""


class Json(JSONResponse):
    """A response of JSON in ASCII: a name that a client sent may have characters that UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content).encode("ascii")


def build_app(service: Service, settings: ServiceSettings, counters: metrics.Metrics) -> Gate:
    """Builds the application.

    Args:
        service: The service.
        settings: Its settings.
        counters: Its metrics.

    Returns:
        The gate in front of the application.
    """
    names = list(service.served.endpoints)
    app = FastAPI(
        title="swinv2",
        version=swinv2.__version__,
        description=_description(settings, names),
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI adds a page for signing in with OAuth otherwise.
        swagger_ui_oauth2_redirect_url=None,
    )
    gate = Gate(app, settings, counters, [*(f"/{name}" for name in names), *OPEN, METRICS])

    for name, handler in _handlers(service).items():
        if name in names:
            summary, example = _FACTS[name]
            described: dict[str, Any] = {"requestBody": _BODY}
            if settings.api_key is not None:
                described["security"] = [{"key": []}]
            app.add_api_route(
                f"/{name}",
                handler,
                methods=["POST"],
                summary=summary,
                name=name,
                response_class=Json,
                responses=_responses(example),
                openapi_extra=described,
            )
    _add_probes(app, gate, service, counters)
    _add_errors(app, service)
    if settings.api_key is not None:
        _describe_key(app)
    return gate


def _handlers(service: Service) -> dict[str, Callable[..., Any]]:
    """The function of each endpoint, with its parameters."""

    async def classify(
        request: Request,
        top_k: Annotated[int, Query(ge=1, description="Labels for each image; all if the model has fewer.")] = 3,
    ) -> Response:
        return await service.answer(request, "classify", top_k=top_k)

    async def features(request: Request) -> Response:
        return await service.answer(request, "features")

    async def segment(
        request: Request,
        rle: Annotated[bool, Query(description="Add the mask of each class, in COCO's compressed notation.")] = False,
    ) -> Response:
        return await service.answer(request, "segment", rle=rle)

    async def detect(
        request: Request,
        threshold: Annotated[float, Query(ge=0, le=1, description="Lowest score of an object.")] = 0.5,
    ) -> Response:
        return await service.answer(request, "detect", threshold=threshold)

    return {"classify": classify, "features": features, "segment": segment, "detect": detect}


def _add_probes(app: FastAPI, gate: Gate, service: Service, counters: metrics.Metrics) -> None:
    """Adds what other programs watch a service by."""

    async def healthz() -> Json:
        return Json({"status": "alive"}) if service.is_running else Json({"status": "computes no more"}, 503)

    async def readyz() -> Json:
        if gate.is_draining or not service.is_running:
            return Json({"status": "about to stop" if gate.is_draining else "computes no more"}, 503)
        return Json({"status": "ready"})

    async def numbers() -> PlainTextResponse:
        return PlainTextResponse(counters.as_text(), media_type=metrics.CONTENT_TYPE)

    summaries = ("Whether the process is alive.", "Whether it takes requests; 503 before it stops.")
    for path, handler, summary in zip(PROBES, (healthz, readyz), summaries, strict=True):
        app.add_api_route(path, handler, methods=["GET"], summary=summary)
    app.add_api_route(METRICS, numbers, methods=["GET"], summary="Numbers for Prometheus.", response_class=Response)


def _add_errors(app: FastAPI, service: Service) -> None:
    """Makes every error JSON with a sentence."""

    def refused(_: Request, error: Any) -> Json:
        return Json(error.contents, error.status, error.headers)

    def unknown(request: Request, error: Any) -> Json:
        return Json({"error": _why_not(request, error, service)}, error.status_code, error.headers)

    def invalid(_: Request, error: Any) -> Json:
        first = error.errors()[0]
        name, given = first["loc"][-1], str(first.get("input"))[:40]
        return Json({"error": f"the parameter {name} is {given!r}: {first['msg']}."}, 422)

    def lost(_: Request, __: Any) -> Response:
        return Response(status_code=_LOST)

    def failed(_: Request, __: Any) -> Json:
        return Json({"error": "an error of the service; its log says more."}, 500)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, lost)
    app.add_exception_handler(Exception, failed)


def _why_not(request: Request, error: HTTPException, service: Service) -> str:
    """Why there is no such endpoint or method."""
    path, names = request.url.path, list(service.served.endpoints)
    has = f"it has {' and '.join(f'POST /{name}' for name in names)}"
    if error.status_code == 405:
        return f"{path[:40]} does not take {request.method}; {has}, and /docs describes them."
    if error.status_code == 404:
        if path.strip("/") in DOES and path.strip("/") not in names:
            does = " and ".join(DOES[name] for name in names)
            return f"there is no {path[:40]}: the model is {service.served.about}, which {does}; {has}."
        return f"there is no {path[:40]!r}; {has}, and /docs describes them."
    return str(error.detail)


def _responses(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The responses of an endpoint, for its description."""
    records = [{"image": "photo.jpg", **example}, {"image": "broken.jpg", "error": "the file is empty"}]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"images": {"type": "array", "items": {"type": "object"}}},
        "required": ["images"],
    }
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "A record for each image, in their order: an answer, or the error of this image.",
            "content": {"application/json": {"schema": schema, "example": {"images": records}}},
        }
    }
    error = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    for status, meaning in _STATUSES.items():
        found[status] = {"description": meaning, "content": {"application/json": {"schema": error}}}
    return found


def _description(settings: ServiceSettings, names: list[str]) -> str:
    """What the service is, for its page."""
    does = " and ".join(DOES[name] for name in names)
    return (
        f"Swin Transformer V2. This service {does}. A request has at most {settings.max_images} images, of at most "
        f"{settings.max_pixels:,} pixels, and {settings.max_body:,} bytes; it is answered within {settings.timeout:g} "
        "seconds. Images are BMP, GIF, JPEG, PNG or WebP files: parts of a form, one as it is, or base64 in JSON."
    )


def _describe_key(app: FastAPI) -> None:
    """Adds the key to the description."""
    plain = app.openapi

    def with_key() -> dict[str, Any]:
        description = plain()
        schemes = description.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer"}
        return description

    app.openapi = with_key
