"""What lies elsewhere is here once, whole and in the version it was; or it is said what to do."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources import download
from llmtrain.data.sources.download import FetchOptions, fetch
from llmtrain.data.sources.object_stores import store_of
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.sources.urls import is_remote, without_secrets
from llmtrain.errors import DataError, InterruptedRunError

fsspec = pytest.importorskip("fsspec", reason="needs the extra: pip install 'llmtrain[remote]'")

SECRET = "s3cr3t"


Store = Callable[[str, bytes], None]  # writes a file
Resolve = Callable[..., Corpus]


@pytest.fixture
def memory() -> Iterator[Store]:
    """Writes into a store that is this process's memory, and empties it."""
    store = fsspec.filesystem("memory")
    yield lambda path, data: store.pipe_file(path, data)
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def resolve(cache: Path) -> Resolve:
    return lambda *specs, **work: resolve_sources(
        specs, fetching=FetchOptions(cache, "text", **work)
    )


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def kept(cache: Path) -> list[str]:
    """Names of the entries that a later call would use."""
    found = [*(cache / "remote").glob("files/[!.]*"), *(cache / "remote").glob("trees/[!.]*")]
    return sorted(path.name for path in found)


def assert_data_error(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert SECRET not in said
    for part in parts:
        assert part in said


def test_one_file_is_read_by_its_name(memory: Store, resolve: Resolve) -> None:
    memory("/b/data.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    corpus = resolve("memory://b/data.jsonl")
    assert texts(corpus) == ["one", "two"]
    assert [d.origin for d in corpus.documents()] == [
        "memory://b/data.jsonl:1",
        "memory://b/data.jsonl:2",
    ]
    (record,) = corpus.describe()
    assert record["spec"] == "memory://b/data.jsonl"
    assert record["fetched_bytes"] == 32
    assert "created" in record["version"]


def test_directories_and_globs_are_what_they_are_here(memory: Store, resolve: Resolve) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.txt", "image.png", ".hidden/d.txt", "a/.e.txt"):
        memory(f"/tree/{name}", name.encode())
    corpus = resolve("memory://tree")
    assert texts(corpus) == ["a/b/c.txt", "a/z.md", "b.txt"]
    assert [s.origin for s in corpus.skipped] == ["memory://tree/image.png"]
    assert next(f.origin for f in corpus.sources[0].files) == "memory://tree/a/b/c.txt"
    assert texts(resolve("memory://tree/")) == texts(corpus)
    assert texts(resolve("memory://tree/**/*.txt")) == ["a/b/c.txt", "b.txt"]
    assert texts(resolve("memory://tree/a/?.md", "memory://tree")) == [
        "a/z.md",
        "a/b/c.txt",
        "b.txt",
    ]


def test_what_is_not_wanted_stays_there(memory: Store, resolve: Resolve, cache: Path) -> None:
    for name in ("a.txt", "b.bin", "deep/c.bin"):
        memory(f"/want/{name}", name.encode())

    def against(name: str) -> str | None:
        return "binary" if name.endswith(".bin") else None

    corpus = resolve("memory://want", reason_against=against)
    assert texts(corpus) == ["a.txt"]
    assert [(s.origin, s.reason) for s in corpus.skipped] == [
        ("memory://want/b.bin", "binary"),
        ("memory://want/deep/c.bin", "binary"),
    ]
    assert len(list((cache / "remote" / "files").iterdir())) == 1
    call = partial(resolve, "memory://want/deep", reason_against=against)
    assert_data_error(call, "memory://want/deep", "no text file (1 skipped: binary)")
    named = resolve("memory://want/a.txt", reason_against=lambda name: "any")
    assert texts(named) == ["a.txt"]


def test_a_file_is_brought_once_for_each_version(
    memory: Store, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    opened = fsspec.get_filesystem_class("memory").open

    def counted(self: Any, path: str, *args: Any, **options: Any) -> Any:
        read.extend([path] if "rb" in args else [])
        return opened(self, path, *args, **options)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "open", counted)
    memory("/v/a.txt", b"one")
    memory("/v/b.txt", b"two")
    assert texts(resolve("memory://v")) == texts(resolve("memory://v")) == ["one", "two"]
    assert len(read) == 2
    assert texts(resolve("memory://v/b.txt")) == ["two"]
    assert len(read) == 2
    memory("/v/a.txt", b"new")
    assert texts(resolve("memory://v")) == ["new", "two"]
    assert len(read) == 3


def test_names_stay_where_they_are_put(memory: Store, resolve: Resolve, cache: Path) -> None:
    """A store may call its files anything."""
    store = fsspec.filesystem("memory")
    names = ["a b.txt", "é.txt", "c:d.txt", "x\\..\\y.txt", "..txt", "nul\x01.txt"]
    for name in names:
        memory(f"/odd/{name}", name.encode())
    store.store["/odd/../../../escaped.txt"] = store.store["/odd/é.txt"]
    assert sorted(texts(resolve("memory://odd"))) == sorted(
        name for name in names if not name.startswith(".")
    )
    written = [p for p in cache.parent.rglob("*") if p.is_file()]
    assert all(p.is_relative_to(cache / "remote") for p in written)
    assert not list(cache.parent.parent.glob("escaped*"))


def test_an_interrupted_download_leaves_nothing(
    memory: Store, resolve: Resolve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory("/big/a.txt", b"x" * 10)
    memory("/big/b.txt", b"y" * 20_000_000)
    seen: list[tuple[int, int]] = []
    downloads: list[Any] = []
    bring, read = download._Download.bring, download._next_chunk

    def watched(self: Any, file: Any) -> str:
        downloads.append(self)
        return bring(self, file)

    def slow(source: Any, address: str) -> bytes:
        if source.tell() > 4_000_000:  # the rest comes when it is no longer wanted
            assert downloads[0].is_given_up.wait(60)
        return read(source, address)

    def stop() -> None:
        if seen and seen[-1][0] > 4_000_000:
            raise InterruptedRunError("stop")

    def tell(done: int, total: int) -> None:
        seen.append((done, total))

    with monkeypatch.context() as patch:
        patch.setattr(download._Download, "bring", watched)
        patch.setattr(download, "_next_chunk", slow)
        with pytest.raises(InterruptedRunError):
            resolve("memory://big", on_progress=tell, check_stop=stop)
    assert len(kept(cache)) == 1  # the small one was whole
    assert [p.stat().st_size for p in cache.rglob("*") if p.is_file()] == [10]
    assert [len(text) for text in texts(resolve("memory://big"))] == [10, 20_000_000]
    assert {total for _, total in seen} == {20_000_010}


def test_a_file_that_ends_early_is_not_kept(
    memory: Store, resolve: Resolve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory("/short/a.txt", b"x" * 100)
    kind = fsspec.get_filesystem_class("memory")
    whole = kind.info

    def longer(self: Any, path: str, **options: Any) -> dict[str, Any]:
        return {**whole(self, path, **options), "size": 101}

    monkeypatch.setattr(kind, "info", longer)
    call = partial(resolve, "memory://short/a.txt")
    assert_data_error(call, "memory://short/a.txt", "100 of 101 bytes", "again")
    assert kept(cache) == []


@pytest.mark.parametrize("spec", ["memory://none", "memory://none/a.txt", "memory://none/*.txt"])
def test_what_is_not_there_is_said(resolve: Resolve, memory: Store, cache: Path, spec: str) -> None:
    assert_data_error(partial(resolve, spec), spec, "does not exist")
    assert kept(cache) == []


def test_an_address_with_no_text_is_said(resolve: Resolve, memory: Store) -> None:
    memory("/img/a.png", b"x")
    memory("/hid/.a.txt", b"x")
    assert_data_error(partial(resolve, "memory://img"), "memory://img", "no text file")
    assert_data_error(partial(resolve, "memory://img/a.png"), "memory://img/a.png", "binary")
    assert_data_error(partial(resolve, "memory://hid"), "memory://hid", "no text file")
    assert_data_error(partial(resolve, "s3://a/b::file:///etc/passwd"), "::")


@pytest.mark.parametrize(
    ("spec", "seen"),
    [
        ("https://me:s3cr3t@host/a.txt", "https://host/a.txt"),
        ("https://s3cr3t@host/a.txt", "https://host/a.txt"),
        ("s3://key:s3cr3t@bucket/a.txt", "s3://bucket/a.txt"),
        ("http://host/a.txt?X-Amz-Signature=s3cr3t", "http://host/a.txt?…"),
        ("http://host?token=s3cr3t", "http://host?…"),
        ("https://host/a@b.txt", "https://host/a@b.txt"),
        ("ftp://s3cr3t@host/a.txt", "ftp://host/a.txt"),
        ("hf://me:s3cr3t@owner/name", "hf://owner/name"),
        ("abfs://box:s3cr3t@account.dfs/a", "abfs://account.dfs/a"),
        ("abfs://box@account.dfs/a.txt", "abfs://box@account.dfs/a.txt"),
        ("s3://bucket/what?.txt", "s3://bucket/what?.txt"),
        ("plain@file:name?.txt", "plain@file:name?.txt"),
    ],
)
def test_a_secret_is_not_shown(spec: str, seen: str) -> None:
    assert without_secrets(spec) == seen


@pytest.mark.parametrize(
    "spec", ["https://me:s3cr3t@host/a.txt", "https://s3cr3t@host/", "s3://key:s3cr3t@bucket/a"]
)
def test_a_password_in_an_address_is_refused(resolve: Resolve, spec: str) -> None:
    assert is_remote(spec)
    assert_data_error(partial(resolve, spec), "saved with the run", "~/.netrc")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("s3://bucket/a.txt", "pip install 'llmtrain[remote]'"),
        ("gs://bucket/a.txt", "pip install 'llmtrain[remote]' gcsfs"),
        ("az://box/a.txt", "pip install 'llmtrain[remote]' adlfs"),
    ],
)
def test_a_missing_library_names_the_extra(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch, spec: str, hint: str
) -> None:
    for module in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)
    known = sys.modules["fsspec.registry"].__dict__["_registry"]
    monkeypatch.delitem(known, spec.partition(":")[0], raising=False)
    assert_data_error(partial(resolve, spec), spec, "not installed", hint)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert_data_error(partial(resolve, spec), spec, "not installed", hint)


class Pages(http.server.SimpleHTTPRequestHandler):
    """Files of a directory, and a few that cannot be had."""

    hold = threading.Event()
    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/forbidden"):
            self.send_error(403)
        elif self.path.startswith("/slow"):
            self.send_response(200)
            self.send_header("Content-Length", "2000000")
            self.end_headers()
            self.wfile.write(b"x" * 1_000_000)
            self.wfile.flush()
            self.hold.wait(60)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.path.startswith(("/forbidden", "/slow")):
            self.send_error(403)
        else:
            super().do_HEAD()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server of this machine: its address, and the directory that it serves."""
    pytest.importorskip("aiohttp", reason="needs the extra: pip install 'llmtrain[remote]'")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    directory = tmp_path / "pages"
    directory.mkdir()
    handler = partial(Pages, directory=str(directory))
    Pages.hold.clear()
    Pages.requests.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", directory
        Pages.hold.set()
        server.shutdown()
        thread.join()


def test_addresses_that_differ_in_what_is_not_shown_are_two(
    pages: tuple[str, Path], resolve: Resolve
) -> None:
    address, directory = pages
    (directory / "a.txt").write_text("text")
    twice = resolve(f"{address}/a.txt?page=1", f"{address}/a.txt?page=2", f"{address}/a.txt?page=1")
    assert texts(twice) == ["text", "text"]
    assert [len(source.files) for source in twice.sources] == [1, 1, 0]


@pytest.mark.parametrize("key", ["X-Amz-Signature", "sig", "token", "api_key", "Signature"])
def test_a_signed_address_is_refused_before_anything_is_asked(key: str, resolve: Resolve) -> None:
    spec = f"https://127.0.0.1:1/a.txt?page=1&{key}={SECRET}"
    assert_data_error(partial(resolve, spec), "/a.txt?…", key, "saved with the run", "curl")


def test_a_web_page_is_a_file(pages: tuple[str, Path], resolve: Resolve) -> None:
    address, directory = pages
    (directory / "a b.jsonl").write_bytes(b'{"text": "one"}\n')
    spec = f"{address}/a%20b.jsonl?id={SECRET}"
    assert texts(resolve(spec)) == ["one"]
    assert texts(resolve(spec)) == ["one"]
    assert len([path for path in Pages.requests if path.startswith("/a%20b")]) == 1
    corpus = resolve(spec)
    assert SECRET not in str(corpus.describe())
    assert SECRET not in next(corpus.documents()).origin


def test_a_list_of_the_web_and_a_glob(pages: tuple[str, Path], resolve: Resolve) -> None:
    address, directory = pages
    (directory / "deep").mkdir()
    for name in ("b.txt", "a.md", "deep/c.txt"):
        (directory / name).write_text(name)
    assert texts(resolve(f"{address}/")) == ["a.md", "b.txt", "deep/c.txt"]
    assert texts(resolve(f"{address}/*.txt")) == ["b.txt"]


def test_a_long_file_may_take_long() -> None:
    """The library's own limit is five minutes for a file, however large it is."""
    pytest.importorskip("aiohttp", reason="needs the extra: pip install 'llmtrain[remote]'")
    store, _ = store_of("https://127.0.0.1:1/a.txt")
    timeout = store.client_kwargs["timeout"]  # type: ignore[attr-defined]
    assert timeout.total is None
    assert timeout.sock_read


def test_a_changed_page_is_read_anew(pages: tuple[str, Path], resolve: Resolve) -> None:
    address, directory = pages
    for text, time_s in (("one", 1e9), ("two", 1e9 + 10)):
        (directory / "a.txt").write_text(text)
        os.utime(directory / "a.txt", (time_s, time_s))
        assert texts(resolve(f"{address}/a.txt")) == [text]


def test_pages_that_cannot_be_had(pages: tuple[str, Path], resolve: Resolve, cache: Path) -> None:
    address, _ = pages
    query = f"?id={SECRET}"
    assert_data_error(partial(resolve, f"{address}/none.txt{query}"), "/none.txt?…", "not exist")
    call = partial(resolve, f"{address}/forbidden.txt{query}")
    assert_data_error(call, "/forbidden.txt?…", "may not be read", "~/.netrc")
    nobody = f"http://127.0.0.1:1/a.txt{query}"
    assert_data_error(partial(resolve, nobody), "127.0.0.1:1/a.txt?…", "check the network")
    assert kept(cache) == []


PROGRAM = """
import sys
from pathlib import Path
from llmtrain.data.sources.download import FetchOptions
from llmtrain.data.sources.resolve import resolve_sources

def told(done, total):
    print(done, flush=True)

work = FetchOptions(Path(sys.argv[1]), "text", on_progress=told)
resolve_sources(sys.argv[2:], fetching=work)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_download_leaves_no_entry(
    pages: tuple[str, Path], resolve: Resolve, cache: Path
) -> None:
    address, _ = pages
    command = [sys.executable, "-c", PROGRAM, str(cache), f"{address}/slow.txt"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end_s = time.monotonic() + 60
    scratch: list[Path] = []
    while not scratch and time.monotonic() < end_s:
        assert process.poll() is None, process.communicate()
        found = cache.glob("remote/files/.building-*/*")
        scratch = [path for path in found if path.stat().st_size]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert scratch
    assert kept(cache) == []


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A server that speaks as S3 does, on this machine, and a client of it."""
    pytest.importorskip("s3fs", reason="needs the extra: pip install 'llmtrain[remote]'")
    server_module = pytest.importorskip(
        "moto.server", reason="needs moto with its server: pip install 'moto[s3]' flask flask-cors"
    )
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", host)
        client = boto3.client("s3")
        client.create_bucket(Bucket="box")
        yield client
        client.close()
    server.stop()


def test_s3_is_read_as_files_are(s3: Any, resolve: Resolve, cache: Path) -> None:
    s3.put_object(Bucket="box", Key="d/a.jsonl", Body=b'{"text": "one"}\n')
    s3.put_object(Bucket="box", Key="d/deep/b.txt", Body=b"two")
    s3.put_object(Bucket="box", Key="d/deep/", Body=b"")
    for spec, found in {
        "s3://box/d": ["one", "two"],
        "s3://box/d/": ["one", "two"],
        "s3://box/d/**": ["one", "two"],
        "s3://box/d/*.jsonl": ["one"],
        "s3://box/d/deep/b.txt": ["two"],
    }.items():
        assert texts(resolve(spec)) == found
    assert len(list((cache / "remote" / "files").iterdir())) == 2
    (record,) = resolve("s3://box/d/a.jsonl").describe()
    assert record["version"]["ETag"] == s3.head_object(Bucket="box", Key="d/a.jsonl")["ETag"]
    s3.put_object(Bucket="box", Key="d/a.jsonl", Body=b'{"text": "new"}\n')
    assert texts(resolve("s3://box/d")) == ["new", "two"]


def test_s3_of_several_parts_is_whole(s3: Any, resolve: Resolve) -> None:
    data = b"".join(b"line %d\n" % number for number in range(1_500_000))
    s3.put_object(Bucket="box", Key="long.txt", Body=data)
    assert "".join(texts(resolve("s3://box/long.txt"))).encode() == data


def test_a_strange_name_keeps_its_suffix(memory: Store, resolve: Resolve) -> None:
    memory("/odd/x:y.jsonl", b'{"text": "one"}\n')
    assert texts(resolve("memory://odd/x:y.jsonl")) == texts(resolve("memory://odd")) == ["one"]


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("a b/é.txt", "a b/é.txt"),
        ("..", "%2E%2E"),
        ("../a/./b", "%2E%2E/a/%2E/b"),
        ("/a//b.txt", "a/b.txt"),
        ("c:d\\..\\e", "c%3Ad%5C..%5Ce"),
        ("nul\x00.txt", "nul%00.txt"),
        ("end. ", "end.%20"),
        ("end.", "end%2E"),
    ],
)
def test_a_name_stays_below_where_it_is_put(name: str, here: str) -> None:
    assert download._local_name(name) == here


def test_names_that_cannot_be_here_together(s3: Any, resolve: Resolve, cache: Path) -> None:
    for key in ("both/x/y.txt", "both/x//y.txt"):
        s3.put_object(Bucket="box", Key=key, Body=key.encode())
    call = partial(resolve, "s3://box/both")
    assert_data_error(call, "s3://box/both has x/", "y.txt and another name")
    assert list(cache.glob("remote/trees/*")) == []


def test_s3_that_cannot_be_had(
    s3: Any, resolve: Resolve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spec in ("s3://box/none.txt", "s3://box/none/*.txt", "s3://none", "s3://none/a.txt"):
        assert_data_error(partial(resolve, spec), spec, "does not exist")
    s3.put_object(Bucket="box", Key="a.txt", Body=b"a")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(cache))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(cache / "none"))
        patch.setenv("AWS_CONFIG_FILE", str(cache / "none"))
        assert_data_error(
            partial(resolve, "s3://box/a.txt"), "s3://box/a.txt", "AWS_ACCESS_KEY_ID", "ANON"
        )
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        call = partial(resolve, "s3://box/a.txt")
        assert_data_error(call, "s3://box/a.txt", "check the network")
    assert kept(cache) == []


def test_fetching_is_what_the_words_say(memory: Store, cache: Path) -> None:
    memory("/one/a.txt", b"a")
    found = fetch("memory://one/a.txt", FetchOptions(cache, "text"))
    assert found.path.read_bytes() == b"a"
    assert found.path.name == "a.txt"
    assert found.address == "memory://one/a.txt"
