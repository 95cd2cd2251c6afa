"""`llmtrain runs report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.documents.runs import RunsReport

_REFRESH_S = 10


def report(
    output: Output,
    runs: options.Runs,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file; default: report.html in the run, or here for several.",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Serve it on this machine and follow the run; Ctrl-C ends."),
    ] = False,
    port: Annotated[int, options.port("The port of --watch; 0: any free one.")] = 0,
) -> None:
    """Write a report as one HTML file: curves, samples, plan, data; several runs are compared."""
    from llmtrain.documents.runs import RunsReport
    from llmtrain.engine.run_report import REPORT_FILE, report_of
    from llmtrain.files import write_text_atomically
    from llmtrain.train.run_directory.find import find_run
    from llmtrain.units import format_bytes

    directories = [find_run(run).path for run in runs]
    if watch:
        if out is not None:
            raise UsageError(
                "--watch writes no file, and --out names one", hint="leave one of them out"
            )
        _watch(output, runs, port, is_opened=open_)
        return
    path = out or (directories[0] / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE))
    page = report_of(runs)
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no directory {path.parent}")
    write_text_atomically(path, page)
    if open_:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
    document = RunsReport.of(
        runs=directories, report=path, report_bytes=path.stat().st_size, url=None
    )
    output.answer(document, [str(path)], f"{format_bytes(document.report_bytes or 0)}, one file")


def _watch(output: Output, runs: list[str], port: int, *, is_opened: bool) -> None:
    from llmtrain.engine.run_report import Reporter
    from llmtrain.report.live import LivePage, PageServer
    from llmtrain.train.signals import stop_on_signals

    reporter = Reporter(runs)
    page = LivePage(lambda: reporter.report(refresh_s=_REFRESH_S))
    page.get()  # what is wrong is said here, not in the browser
    with stop_on_signals() as stop, PageServer(page, port) as server:
        if output.json:
            output.document(_served(runs, server.url))
        else:
            output.text(f"{server.url}\n")
            output.note("Ctrl-C ends")
        if is_opened:
            import webbrowser

            webbrowser.open(server.url)
        server.serve_until(lambda: stop.is_made)


def _served(runs: list[str], url: str) -> RunsReport:
    from llmtrain.documents.runs import RunsReport
    from llmtrain.train.run_directory.find import find_run

    paths = [find_run(run).path for run in runs]
    return RunsReport.of(runs=paths, report=None, report_bytes=None, url=url)
