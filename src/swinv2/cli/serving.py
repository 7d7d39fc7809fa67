"""The command that answers requests over HTTP: `serve`.

`swinv2.serving` does it.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from swinv2.cli.options import Device, Dtype, Model, check_dtype
from swinv2.cli.running import model_or_shipped, quiet_transformers
from swinv2.console import message_console
from swinv2.errors import UsageError

if TYPE_CHECKING:
    from swinv2.serving.endpoints import Served
    from swinv2.serving.settings import ServiceSettings

_NETWORK, _LIMITS = "Who can use it", "Limits of each process"


def serve(
    model: Model = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen. Any other address than this machine's own, such as 0.0.0.0, needs --api-key.",
            rich_help_panel=_NETWORK,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="0: any free port.", rich_help_panel=_NETWORK)
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="SWINV2_API_KEY",
            show_envvar=True,
            help="Requests must have the header `Authorization: Bearer KEY`. Other users of this machine see the "
            "options of commands, but not the environment variable.",
            show_default="none",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes, each with a model and a queue of its own.")
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Threads that the model of a process uses.",
            show_default="an equal share of the cores",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            metavar="N",
            min=1,
            help="Most images in a batch; they may be of several requests.",
            show_default="16; detect 4, segment always 1",
        ),
    ] = None,
    batch_wait: Annotated[
        float,
        typer.Option(
            metavar="MS", min=0.0, max=1000.0, help="Milliseconds in which an idle model waits for more images."
        ),
    ] = 2.0,
    queue: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Images that wait or are computed; requests beyond are refused (429).",
            rich_help_panel=_LIMITS,
        ),
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            max=3600.0,
            help="A request that has no answer by then gets none, and is not computed (504).",
            rich_help_panel=_LIMITS,
        ),
    ] = 30.0,
    body_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            max=3600.0,
            help="Of these, the time in which the body of a request must arrive (408).",
            show_default="two thirds of --timeout",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_body: Annotated[
        float,
        typer.Option(
            metavar="MIB", min=0.001, help="Largest body of a request, in MiB (413).", rich_help_panel=_LIMITS
        ),
    ] = 32.0,
    max_images: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most images of a request (413).", rich_help_panel=_LIMITS)
    ] = 32,
    max_pixels: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Most pixels of an image; larger ones are refused by their header (422).",
            rich_help_panel=_LIMITS,
        ),
    ] = 50_000_000,
    device: Device = "auto",
    precision: Dtype = "float32",
) -> None:
    """Answer requests for images over HTTP, until SIGTERM or Ctrl+C.

    The endpoints are what the model can do: POST /classify and /features, or /segment, or /detect.
    GET /docs describes them, /healthz and /readyz are for Kubernetes, /metrics is for Prometheus. Try it:

    curl --form images=@photo.jpg http://127.0.0.1:8000/classify

    Told to stop, it answers the requests that it has accepted, and exits with status 0.
    """
    check_dtype(precision)
    try:
        from swinv2.serving.server import bind, serve
        from swinv2.serving.settings import MEBIBYTE, ServiceSettings
        from swinv2.serving.workers import serve_with_workers
    except ModuleNotFoundError as error:
        raise UsageError(f"serve needs {error.name}, which is not installed; install swinv2[serve].") from error
    settings = ServiceSettings(
        model_or_shipped(model),
        host,
        port,
        api_key,
        workers,
        threads,
        device,
        precision,
        batch_size,
        batch_wait / 1000,
        queue,
        timeout,
        timeout * 2 / 3 if body_timeout is None else body_timeout,
        int(max_body * MEBIBYTE),
        max_images,
        max_pixels,
    )
    say = message_console().print

    def on_listening(about: str, names: list[str], seconds: float) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        paths = " and ".join(f"POST /{name}" for name in names)
        address = f"http://{host}:{bound.getsockname()[1]}"
        say(f"listening on {address}: {paths}, described on /docs; the model is {about}", markup=False)
        if seconds > settings.timeout:
            say(f"a small image takes {seconds:.0f} s here, longer than --timeout {settings.timeout:g}", style="yellow")

    with bind(settings.host, settings.port) as bound:
        if settings.workers > 1:
            raise typer.Exit(serve_with_workers(settings, bound, load, on_listening, say))
        serve(settings, bound, load, lambda model, each: on_listening(model.about, list(model.endpoints), each))


def load(settings: "ServiceSettings") -> "Served":
    """Loads the model of a service; a process that only starts others does not import torch."""
    quiet_transformers()
    from swinv2.serving.models import load_served

    return load_served(settings)
