"""Serve a model until a signal ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING

from llmtrain.engine.inference import Trained, load_trained, text_generator
from llmtrain.errors import UsageError
from llmtrain.machine.probe import read_facts
from llmtrain.plan.decisions import may_use_gpu
from llmtrain.plan.slots import choose_slots
from llmtrain.profile.schema import DeviceSection
from llmtrain.tokenizer.chat_template import ChatTemplate
from llmtrain.train.events import Observer
from llmtrain.train.signals import Handler, handled, stop_signals
from llmtrain.units import HIGHEST_PORT

if TYPE_CHECKING:
    from llmtrain.serve.server import Serving

_SHORTEST_KEY = 16


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """The model to serve, the address, and the limits."""

    run: str
    host: str
    port: int
    key: str | None  # that clients have to send
    slots: int | None  # texts that are continued together; None: as many as suit the machine
    queue: int  # texts that may wait


@dataclass(frozen=True, slots=True)
class Served:
    """The address and the model of a server that answers requests."""

    url: str
    model: str
    context: int
    can_chat: bool
    slots: int
    slots_reason: str
    queue: int


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A server that listens, and answers once it runs."""

    served: Served
    serving: Serving

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until SIGINT or SIGTERM; answers that are being given are finished first.

        A second signal ends them too. `on_ready` is called once requests are answered.
        """
        with handled(_stopping(self.serving)):
            self.serving.run(on_ready)


def open_server(request: ServeRequest, device: DeviceSection, observe: Observer) -> ModelServer:
    """Load the model and listen. Raises UsageError for an address that is not allowed or taken."""
    require_server_packages()
    require_safe(request)
    from llmtrain.serve.server import Address, listen

    listening = listen(Address(request.host, request.port))
    try:
        trained = load_trained(request.run, device, observe)
        return _server_of(trained, request, device, listening, observe)
    except BaseException:
        listening.close()
        raise


def _server_of(
    trained: Trained,
    request: ServeRequest,
    device: DeviceSection,
    listening: socket,
    observe: Observer,
) -> ModelServer:
    from llmtrain.serve.access import LOOPBACK
    from llmtrain.serve.app import Service
    from llmtrain.serve.metrics import Metrics
    from llmtrain.serve.scheduler import Scheduler
    from llmtrain.serve.server import Address, Serving

    slots = choose_slots(
        read_facts(tries_gpus=may_use_gpu(device)),
        trained.model.shape,
        trained.plan.device.value,
        half_precision=trained.plan.precision.value != "fp32",
        requested=request.slots,
    )
    generator = text_generator(trained, slots.value, observe=observe)
    metrics = Metrics(slots.value)
    service = Service(
        name=model_name(trained),
        created_s=int(time.time()),
        generator=generator,
        template=ChatTemplate.of(trained.tokenizer) if can_chat(trained) else None,
        scheduler=Scheduler(generator, request.queue, metrics),
        metrics=metrics,
        # With a key, a page elsewhere that reaches this machine by another name can do nothing.
        hosts=LOOPBACK if request.key is None else None,
        key=request.key,
    )
    served = Served(
        url=Address(request.host, int(listening.getsockname()[1])).url,
        model=service.name,
        context=generator.context,
        can_chat=can_chat(trained),
        slots=slots.value,
        slots_reason=slots.reason,
        queue=request.queue,
    )
    return ModelServer(served, Serving(service, listening, slots.value + request.queue))


def _stopping(serving: Serving) -> dict[int, Handler]:
    """Return handlers of signals to stop: the second one ends answers, too."""
    made = 0

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal made
        made += 1
        serving.stop(at_once=made > 1)

    return dict.fromkeys(stop_signals(always=("SIGINT", "SIGTERM")), on_signal)


def require_server_packages() -> None:
    """Raise UsageError if the server's packages are not installed."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serving needs {' and '.join(missing)}", hint="pip install 'llmtrain[serve]'"
        )


def require_safe(request: ServeRequest) -> None:
    """Raise UsageError for an address that others reach without a key, weak keys, and no port."""
    from llmtrain.serve.server import Address

    key = request.key
    if request.port > HIGHEST_PORT:
        raise UsageError(f"--port {request.port} is above {HIGHEST_PORT}", hint="--port 8000")
    if key is None and not Address(request.host, request.port).is_loopback:
        raise UsageError(
            f"--host {request.host} lets other machines in, and there is no key",
            hint="--api-key KEY; a new one: openssl rand -hex 24",
        )
    if key is None:
        return
    if len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            f"the API key has to have at least {_SHORTEST_KEY} ASCII characters without spaces",
            hint="a new one: openssl rand -hex 24",
        )


def can_chat(trained: Trained) -> bool:
    """Return whether the model was taught to chat: then it came with a chat template."""
    return trained.tokenizer.chat is not None


def model_name(trained: Trained) -> str:
    """Return what clients call the model: its run's name, or its directory's."""
    path = trained.checkpoint
    return path.parent.parent.resolve().name if trained.record is not None else path.resolve().name
