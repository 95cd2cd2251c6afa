"""A server of a small model that can chat, in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import httpx
import pytest
import torch

from llmtrain.generate.generator import TextGenerator
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.serve.access import LOOPBACK
from llmtrain.serve.app import Service
from llmtrain.serve.metrics import Metrics
from llmtrain.serve.scheduler import Scheduler
from llmtrain.serve.server import Address, Serving, listen
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import CHAT_PIECES, ChatTemplate, default_source
from llmtrain.tokenizer.of_model import with_reserved_pieces
from tests.data.fixed import TOKENIZER

CONTEXT = 64


@dataclass(frozen=True)
class Running:
    """A server that answers, and what is behind it."""

    url: str
    service: Service
    serving: Serving

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)  # type: ignore[arg-type]


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """What is computed here is too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    tokenizer = with_reserved_pieces(Tokenizer.load(TOKENIZER), CHAT_PIECES)
    return tokenizer.with_chat(default_source(tokenizer))


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Decoder:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    section = ModelSection(vocab_size=tokenizer.vocab_size, context=CONTEXT, **sizes)
    return Decoder(shape_of(section)).eval()


@pytest.fixture(scope="session")
def serve(model: Decoder, tokenizer: Tokenizer) -> Serve:
    """Starts a server; `key`, `queue`, `slots`, `can_chat` are as the options."""

    @contextmanager
    def start(
        *,
        key: str | None = None,
        queue: int = 8,
        slots: int = 4,
        can_chat: bool = True,
        model: Decoder = model,
        clients: int = 50,
    ) -> Iterator[Running]:
        generator = TextGenerator(model, tokenizer, "fp32", slots)
        metrics = Metrics(slots)
        service = Service(
            name="small",
            created_s=1,
            generator=generator,
            template=ChatTemplate.of(tokenizer) if can_chat else None,
            scheduler=Scheduler(generator, queue, metrics),
            metrics=metrics,
            hosts=LOOPBACK if key is None else None,
            key=key,
        )
        listening = listen(Address("127.0.0.1", 0))
        serving, ready = Serving(service, listening, clients), threading.Event()
        thread = threading.Thread(target=serving.run, args=(ready.set,))
        thread.start()
        try:
            assert ready.wait(20)
            port = listening.getsockname()[1]
            yield Running(f"http://127.0.0.1:{port}", service, serving)
        finally:
            serving.stop()
            thread.join(40)
        assert not thread.is_alive()

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """A server with the usual options."""
    with serve() as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def raw(url: str, data: bytes) -> bytes:
    """What a server answers to these bytes until it closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                answer += part
        return answer
