"""The command `page`.

`swinv2.page` computes and serves.
"""

import signal
from threading import Event
from typing import Annotated

import typer

from swinv2.cli.options import Device, Model
from swinv2.cli.running import model_or_shipped, quiet_transformers
from swinv2.console import message_console
from swinv2.errors import UsageError


def page(
    model: Model = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen. 0.0.0.0: everybody in your network reaches the page."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help="The port.", show_default="the first free one from 7860 on"),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Ask Gradio's servers for a public address, which anybody can open.")
    ] = False,
    is_opened: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
    device: Device = "auto",
) -> None:
    """Serve a web page: drop an image and see labels, objects or classes, attention and feature maps.

    The page takes classifiers, segmenters, detectors and exported classifiers. Ctrl+C stops it.
    """
    quiet_transformers()
    try:
        from swinv2.page.layout import Page
        from swinv2.page.model import PageModel
        from swinv2.page.server import serve
    except ModuleNotFoundError as error:
        raise UsageError(f"page needs {error.name}, which is not installed; install swinv2[demo].") from error
    from swinv2.predict.shipped import shipped_photographs

    loaded = PageModel.load(model_or_shipped(model), device)
    examples = [(photograph.path, photograph.shows) for photograph in shipped_photographs()]
    console, stop = message_console(), Event()
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        blocks, address, public = serve(Page(loaded, examples), host, port, share, is_opened)
        console.print(f"the page is at {address} (Ctrl+C stops it)")
        if public:
            console.print(f"and, for everybody, at {public}")
        stop.wait()
        blocks.close(verbose=False)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
