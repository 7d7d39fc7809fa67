"""Serves the page over HTTP.

In: a page, a host and a port. Out: a running server and its address. This module knows no model.
"""

import os
from typing import Any

# Gradio would otherwise record each session's uploads in the browser.
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

import gradio as gr  # pyright: ignore[reportMissingImports]

from swinv2.errors import UsageError
from swinv2.page.layout import CSS, Page

MOST_BYTES = 50 * 2**20
"""Larger files are refused while they are uploaded."""


def serve(
    page: Page, host: str = "127.0.0.1", port: int | None = None, share: bool = False, is_opened: bool = False
) -> tuple[Any, str, str | None]:
    """Starts a server in a thread.

    Args:
        page: The page.
        host: The address to listen at; "0.0.0.0" for all of this machine.
        port: The port; None for the first free one from 7860 on.
        share: Whether Gradio's servers make the page reachable at a public address for some days.
        is_opened: Whether this machine's browser opens the page.

    Returns:
        Gradio's `Blocks`, whose `close()` stops the server; its address; the public address, if there is one.

    Raises:
        UsageError: The host or the port cannot be used.
    """
    blocks = page.build()
    try:
        _, address, public = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=is_opened,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MOST_BYTES,
            footer_links=["settings"],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
    except (OSError, ValueError) as error:
        blocks.close()
        where = f"{host}, port {port}" if port else f"{host}, ports from 7860 on"
        raise UsageError(
            f"the page cannot be served at {where}: the port is in use, or the address is not of this machine. Choose "
            "another --port or --host."
        ) from error
    return blocks, address, public
