"""The API: what OpenAI's clients send is answered as they expect it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
import torch

from llmtrain.model.decoder import Decoder
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import ChatTemplate
from tests.serve.conftest import CONTEXT, Running, Serve, raw

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def events(client: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_model_is_listed(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["small"]
    assert client.get("/v1/models/small").json() == listed["data"][0]
    assert client.get("/v1/models/other").status_code == 404


def test_a_text_is_continued(client: httpx.Client) -> None:
    body = {"prompt": "def ", "max_tokens": 9, "seed": 3, "temperature": 0.9}
    first, again = (post(client, COMPLETIONS, **body) for _ in range(2))
    assert first["choices"] == again["choices"]
    assert first["object"] == "text_completion"
    (choice,) = first["choices"]
    assert choice["finish_reason"] in ("length", "stop")
    usage = first["usage"]
    assert usage["completion_tokens"] <= 9
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert first["id"] != again["id"]


def test_a_streamed_text_is_the_whole(client: httpx.Client) -> None:
    body = {"prompt": ["def ", "a"], "n": 2, "max_tokens": 12, "seed": 3, "logprobs": 2}
    whole = post(client, COMPLETIONS, **body)
    parts = events(client, COMPLETIONS, **body, stream_options={"include_usage": True})
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == whole["usage"]
    assert len(whole["choices"]) == 4
    for choice in whole["choices"]:
        own = [c for part in parts[:-1] for c in part["choices"] if c["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert all(each["finish_reason"] is None for each in own[:-1])
        tokens = [token for each in own for token in each["logprobs"]["tokens"]]
        assert tokens == choice["logprobs"]["tokens"]
        assert all(len(likely) <= 2 for likely in choice["logprobs"]["top_logprobs"])


def test_ids_are_continued_as_the_text_that_they_are(
    client: httpx.Client, tokenizer: Tokenizer
) -> None:
    ids = [tokenizer.separator_id, *tokenizer.encode("import os\n")]
    body = {"max_tokens": 8, "temperature": 0}
    single = post(client, COMPLETIONS, prompt=ids, **body)
    double = post(client, COMPLETIONS, prompt=[ids, ids], **body)
    assert [each["text"] for each in double["choices"]] == [single["choices"][0]["text"]] * 2
    assert single["usage"]["prompt_tokens"] == len(ids)


def test_a_conversation_is_answered(client: httpx.Client, server: Running) -> None:
    body = {"messages": HELLO, "max_completion_tokens": 10, "seed": 1}
    whole = post(client, CHAT, **body, logprobs=True, top_logprobs=2)
    (choice,) = whole["choices"]
    assert choice["message"]["role"] == "assistant"
    assert whole["object"] == "chat.completion"
    template = ChatTemplate.of(server.service.generator.tokenizer)
    prompt = template.encode(HELLO, add_generation_prompt=True)
    assert whole["usage"]["prompt_tokens"] == len(prompt)
    for token in choice["logprobs"]["content"]:
        assert math.exp(token["logprob"]) <= 1
        assert len(token["top_logprobs"]) == 2
        assert bytes(token["bytes"]).decode(errors="replace")

    parts = events(client, CHAT, **body)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert text == choice["message"]["content"]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_parts_of_a_message_are_its_text(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    found = [
        post(client, CHAT, messages=[{"role": "user", "content": content}], seed=5, max_tokens=5)
        for content in ("Hi", parts)
    ]
    assert found[0]["choices"] == found[1]["choices"]


def test_a_model_that_was_never_taught_to_chat_says_so(serve: Serve) -> None:
    with serve(can_chat=False) as running, running.client() as client:
        response = client.post(CHAT, json={"messages": HELLO})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "not_a_chat_model"
        assert post(client, COMPLETIONS, prompt="a")["choices"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (COMPLETIONS, b"", 400),
        (COMPLETIONS, b"[]", 400),
        (COMPLETIONS, b"{" * 100_000, 400),
        (COMPLETIONS, b'{"a":' * 50_000, 400),
        (COMPLETIONS, b'{"prompt": "\xff"}', 400),
        (COMPLETIONS, b'{"prompt": "\\ud800"}', 400),
        (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400),
        (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}', 400),
        (COMPLETIONS, b'{"prompt": "a", "temperature": "1"}', 400),
        (COMPLETIONS, b'{"prompt": "a", "temperature": -1}', 400),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 0}', 400),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 1.5}', 400),
        (COMPLETIONS, b'{"prompt": "a", "n": 1000000}', 400),
        (COMPLETIONS, b'{"prompt": ["a", "b", "c", "d", "e"], "n": 5}', 400),
        (COMPLETIONS, b'{"prompt": "a", "seed": 99999999999999999999}', 400),
        (COMPLETIONS, b'{"prompt": "a", "stop": ""}', 400),
        (COMPLETIONS, b'{"prompt": "a", "stop": ["a", ""]}', 400),
        (COMPLETIONS, b'{"prompt": "a", "unheard_of": 1}', 400),
        (COMPLETIONS, b'{"prompt": "a", "echo": true}', 400),
        (COMPLETIONS, b'{"prompt": "a", "stream_options": {"include_usage": true}}', 400),
        (COMPLETIONS, b'{"prompt": []}', 400),
        (COMPLETIONS, b'{"prompt": [-1]}', 400),
        (COMPLETIONS, b'{"prompt": [99999999]}', 400),
        (COMPLETIONS, b'{"prompt": [1, "a"]}', 400),
        (COMPLETIONS, b'{"prompt": "a", "model": "other"}', 404),
        (CHAT, b"{}", 400),
        (CHAT, b'{"messages": []}', 400),
        (CHAT, b'{"messages": [{"role": "robot", "content": "a"}]}', 400),
        (CHAT, b'{"messages": [{"role": "user"}]}', 400),
        (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "tools": []}', 400),
        (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}', 400),
        ("/v1/unheard_of", b"{}", 404),
        ("/v1/models", b"{}", 405),
        ("/../etc/passwd", b"{}", 404),
        ("/page.js/../../app.py", b"{}", 404),
    ],
)
def test_what_is_no_request_is_refused(
    client: httpx.Client, path: str, body: bytes, status: int
) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_wrong_key_of_a_request_is_named(client: httpx.Client) -> None:
    error = client.post(COMPLETIONS, json={"prompt": "a", "top_p": 7}).json()["error"]
    assert error["param"] == "top_p"
    assert "less than or equal to 1" in error["message"]


def test_a_prompt_and_its_text_stay_within_the_context(
    client: httpx.Client, tokenizer: Tokenizer
) -> None:
    a = tokenizer.encode("a")
    fits = post(client, COMPLETIONS, prompt=a * (CONTEXT - 3), max_tokens=50, temperature=2)
    assert fits["usage"]["completion_tokens"] <= 3
    for prompt in (a * CONTEXT, "word " * 500, "x" * 900_000):
        response = client.post(COMPLETIONS, json={"prompt": prompt})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
    long = [{"role": "user", "content": "word " * 500}]
    response = client.post(CHAT, json={"messages": long})
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_bodies_that_are_too_large_or_no_json_are_refused(client: httpx.Client) -> None:
    large = b'{"prompt": "' + b"a" * (1 << 20) + b'"}'
    json_type = {"Content-Type": "application/json"}
    assert client.post(COMPLETIONS, content=large, headers=json_type).status_code == 413

    def unending() -> Any:
        for _ in range(40):
            yield b"a" * (1 << 16)

    assert client.post(COMPLETIONS, content=unending(), headers=json_type).status_code == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; a=b"):
        response = client.post(COMPLETIONS, content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 415


def test_only_its_own_names_are_answered_without_a_key(server: Running, serve: Serve) -> None:
    with server.client() as client:
        for host in ("localhost", "127.0.0.1:1234", "[::1]:80"):
            assert client.get("/health", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code in (400, 403)
    answer = raw(server.url, b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    with serve(key="k" * 20) as running, running.client() as client:
        assert client.get("/health", headers={"Host": "my.example"}).status_code == 200


def test_nothing_is_answered_without_the_key(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "a-key-of-twenty-char"
    with serve(key=key) as running, running.client() as client:
        for given in ("", key, f"Bearer {key}x", f"Bearer {key[:-1]}", f"bearer {key}", "Bearer é"):
            headers = [(b"Authorization", given.encode())]
            response = client.post(COMPLETIONS, json={"prompt": "a"}, headers=headers)
            assert response.status_code == 401, given
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == client.get("/").status_code == 200
        right = {"Authorization": f"Bearer {key}"}
        assert client.post(COMPLETIONS, json={"prompt": "a"}, headers=right).status_code == 200
    assert key not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"
        ),
    ],
)
def test_what_is_no_http_is_refused(server: Running, data: bytes) -> None:
    answer = raw(server.url, data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_no_page_elsewhere_is_let_in(client: httpx.Client) -> None:
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = client.options(COMPLETIONS, headers=origin)
    assert preflight.status_code == 405
    answered = client.get("/v1/models", headers=origin)
    for response in (preflight, answered):
        assert not [name for name in response.headers if name.startswith("access-control")]


def wait_until(happens: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> Serve:
    """Starts servers whose every step takes a while."""

    def start(**options: Any) -> AbstractContextManager[Running]:
        context = serve(**options)

        class Slowed(AbstractContextManager[Running]):
            def __enter__(self) -> Running:
                running = context.__enter__()
                generator = running.service.generator
                step = generator.step

                def slow_step() -> Any:
                    time.sleep(0.03)
                    return step()

                monkeypatch.setattr(generator, "step", slow_step)
                return running

            def __exit__(self, *error: Any) -> None:
                context.__exit__(*error)

        return Slowed()

    return start


LONG = {"prompt": "a", "max_tokens": 60, "temperature": 2, "seed": 1}


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(slow: Serve, is_streamed: bool) -> None:
    with slow(slots=1) as running:
        client = running.client()
        scheduler = running.service.scheduler
        if is_streamed:
            with client.stream("POST", COMPLETIONS, json={**LONG, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(COMPLETIONS, json=LONG, timeout=0.3)
        left_s = time.monotonic()
        client.close()
        wait_until(lambda: not scheduler._running)
        assert time.monotonic() - left_s < 1  # of the two seconds that the text would take


def test_more_requests_than_may_wait_are_told_to_come_again(slow: Serve) -> None:
    with slow(slots=1, queue=1) as running, running.client() as client:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post(COMPLETIONS, json=LONG), range(4)))
        codes = sorted(each.status_code for each in answers)
        assert codes[0] == 200
        assert codes[-1] == 429
        refused = next(each for each in answers if each.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"


def test_answers_that_are_being_given_are_finished_at_the_end(slow: Serve) -> None:
    with slow(slots=1, queue=4) as running, running.client() as client:
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(client.post, COMPLETIONS, json=LONG) for _ in range(2)]
            wait_until(lambda: len(running.service.scheduler._waiting) == 1)
            running.serving.stop()
            answers = [each.result() for each in waiting]
        assert [each.status_code for each in answers] == [200, 200]
        with pytest.raises(httpx.ConnectError):
            running.client().get("/health")


def test_requests_together_are_those_alone(server: Running) -> None:
    bodies = [
        {"prompt": prompt, "max_tokens": 20, "seed": seed, "temperature": 1.5}
        for seed in range(3)
        for prompt in ("def ", "import os\nimport ", "")
    ]
    with server.client() as client:
        texts = [post(client, COMPLETIONS, **body)["choices"][0]["text"] for body in bodies]
        with ThreadPoolExecutor(9) as pool:
            together = list(pool.map(lambda body: post(client, COMPLETIONS, **body), bodies))
    assert [each["choices"][0]["text"] for each in together] == texts


def test_a_model_that_computes_nan_fails_the_request_and_not_the_server(
    serve: Serve, model: Decoder
) -> None:
    broken = Decoder(model.shape).eval()
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    with serve(model=broken) as running, running.client() as client:
        for _ in range(2):
            response = client.post(COMPLETIONS, json={"prompt": "a"})
            assert response.status_code == 500
            assert "NaN" in response.json()["error"]["message"]
        (event,) = events(client, COMPLETIONS, prompt="a")
        assert event["error"]["type"] == "server_error"
        assert client.get("/health").status_code == 200


def test_what_was_asked_and_answered_is_counted(serve: Serve) -> None:
    with serve() as running, running.client() as client:
        used = post(client, COMPLETIONS, prompt="def ", max_tokens=5)["usage"]
        client.post(COMPLETIONS, json={"prompt": 3})
        text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["llmtrain_prompt_tokens_total"] == str(used["prompt_tokens"])
    assert values["llmtrain_generated_tokens_total"] == str(used["completion_tokens"])
    assert values['llmtrain_requests_total{status="200"}'] == "1"
    assert values['llmtrain_requests_total{status="400"}'] == "1"
    assert values["llmtrain_answer_seconds_count"] == "1"
    assert values["llmtrain_slots"] == "4"


def test_openais_own_client_completes_streams_and_is_refused(serve: Serve) -> None:
    openai = pytest.importorskip("openai")
    key = "a-key-of-twenty-char"
    with serve(key=key) as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["small"]
            options = {"model": "small", "max_tokens": 8, "seed": 1}
            whole = client.completions.create(prompt="def ", logprobs=2, **options)
            parts = client.completions.create(prompt="def ", stream=True, **options)
            assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
            answer = client.chat.completions.create(messages=HELLO, logprobs=True, **options)
            streamed = client.chat.completions.create(messages=HELLO, stream=True, **options)
            text = "".join(part.choices[0].delta.content or "" for part in streamed)
            assert answer.choices[0].message.content == text
            turn = [HELLO[1], answer.choices[0].message.model_dump(exclude_none=True)]
            turn.append({"role": "user", "content": "?"})
            options["max_tokens"] = 1
            assert client.chat.completions.create(messages=turn, **options).choices
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="other", prompt="a")
            with pytest.raises(openai.BadRequestError, match="context"):
                client.completions.create(model="small", prompt="word " * 500)
            with client.completions.create(
                model="small", prompt="a", stream=True, max_tokens=50, temperature=2
            ) as cancelled:
                next(iter(cancelled))
            wait_until(lambda: not running.service.scheduler._running)
        with (
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
