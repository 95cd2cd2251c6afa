"""`llmtrain serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.engine.serve_model import Served


def serve(
    output: Output,
    run: options.Run,
    host: Annotated[
        str,
        typer.Option("--host", help="The address to listen at; one that others reach needs a key."),
    ] = "127.0.0.1",
    port: Annotated[int, options.port("0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="LLMTRAIN_API_KEY",
            help="What clients have to send. In the environment other users do not see it.",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        options.whole_number(
            "--slots", "Texts continued together; default: up to 16, as memory allows.", 1
        ),
    ] = None,
    queue: Annotated[
        int, options.whole_number("--queue", "Texts that may wait for a slot.", 0)
    ] = 256,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
) -> None:
    """Serve a trained model by OpenAI's interface, and a page to try it.

    SIGTERM and Ctrl-C end it once the answers that are being given are complete.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.engine.serve_model import ServeRequest, open_server

    request = ServeRequest(run, host, port, api_key, slots, queue)
    with watching(output) as observe:
        server = open_server(request, options.device_section(device, force_cpu), observe)
    server.run(lambda: _show(output, server.served))


def _show(output: Output, served: Served) -> None:
    from llmtrain.documents.runs import Serve

    if output.json:
        output.document(Serve.of(served))
        return
    output.text(f"serving {served.model} at {served.url}\n")  # at once, for who waits for it
    output.note(f"  page            {served.url}/")
    output.note(f"  OpenAI clients  base_url={served.url}/v1")
    output.note(f"  together        {served.slots} texts ({served.slots_reason})")
    if not served.can_chat:
        output.note("  It was never taught to chat: /v1/completions continues texts.")
