"""As much of an MLflow server as a run needs: it counts what it is sent, until it goes away."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llmtrain.files import Closing

_RUN = {"info": {"run_id": "r", "experiment_id": "1", "status": "RUNNING"}, "data": {}}
_ANSWERS: dict[str, dict[str, Any]] = {
    "experiments/create": {"experiment_id": "1"},
    "runs/create": {"run": _RUN},
    "runs/search": {},
    "runs/update": {"run_info": _RUN["info"]},
    "runs/get": {"run": _RUN},
    "runs/log-batch": {},
}


class MlflowServer(Closing):
    """Answers MLflow's client on a free port of this machine."""

    def __init__(self) -> None:
        self.metrics = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._is_open = True

    @property
    def url(self) -> str:
        """For MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Go away: later requests are refused."""
        if self._is_open:
            self._is_open = False
            self._server.shutdown()
            self._server.server_close()


def _handler_of(server: MlflowServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = "/".join(self.path.partition("?")[0].rsplit("/", 2)[-2:])
            if name == "runs/log-batch":
                server.metrics += len(json.loads(body).get("metrics", []))
            found = _ANSWERS.get(name)
            missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": name}
            data = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    return Handler
