"""Everything that reads a file of unknown origin, each with a valid file to begin from."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from llmtrain.cli.runs import _last_lines
from llmtrain.data.shards.index import INDEX_NAME
from llmtrain.data.shards.prepared import open_prepared
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.engine.resume_settings import plan_in
from llmtrain.errors import DataError
from llmtrain.machine.facts import MatmulTimes
from llmtrain.machine.measurement_cache import MeasurementKey, load_measurement, save_measurement
from llmtrain.model.huggingface import config_of, shape_from_config, weight_shapes
from llmtrain.plan.inference_memory import predict_generation
from llmtrain.plan.planner import make_plan
from llmtrain.plan.workload import Workload
from llmtrain.profile.convert.read import convert_file, profile_of
from llmtrain.profile.load import load_profile, profile_from_values
from llmtrain.profile.schema import DeviceSection, ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.train.build import RandomState
from llmtrain.train.checkpoint.format import SavedState, load_state
from llmtrain.train.checkpoint.integrity import verify_checkpoint
from llmtrain.train.checkpoint.pretrained import open_pretrained
from llmtrain.train.checkpoint.tensors import read_tensors, write_tensors
from llmtrain.train.divergence.policy import DivergenceState, Jump
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.record import data_key
from llmtrain.untrusted import parse_json, read_json
from tests.data.making import FORMATS
from tests.faults import mutations
from tests.faults.mutations import Reader
from tests.machines import CPU
from tests.shards import prepared_shards

PROFILE = """\
name: mine  # a comment
model: {vocab_size: 400, hidden_size: 32, num_layers: 2, num_heads: 2, context: 32}
data:
  sources: [corpus.txt, "b.jsonl"]
  text_field: text
train: {tokens_per_step: 256, time: 1h30m}
optim:
  learning_rate: 6e-4
eval: {prompts: ["", 'é']}
"""
OLD_YAML = b"""\
device: cpu
model: {vocab_size: 32000, d_model: 64, n_heads: 4, d_ff: 128, max_seq_len: 64, dropout: 0.1}
training:
  batch_size: 2
  learning_rate: 8e-4
  lr_scheduler: cosine
  use_amp: false
data: {dataset_name: wikitext, dataset_config: null, max_length: 32}
"""
OLD_PYTHON = b"n_layer = 6\nbatch_size = 5 * 8\nlearning_rate = 1e-3  # a comment\nx: int = -2\n"
OLD_JSON = b'{"max_steps": 10, "learning_rate": 0.001, "warmup_steps": 0.1, "fsdp": [], "seed": 1}'
RECORD = """\
llmtrain: 0.2.0
profile:
  name: tiny
  model: {vocab_size: 400, hidden_size: 32, num_layers: 2, num_heads: 2}
  data: {sources: [corpus.txt]}
  train: {tokens_per_step: 256, steps: 20}
  device: {kind: cpu, threads: 1}
origins: {name: 'tiny.yaml:1', train.steps: --steps}
plan:
  threads: {value: 1, reason: asked for}
  compile: {value: false, reason: 'eager: the run takes about 0 s'}
machine: {cpu: null, isa: [avx2], accelerators: [], torch: 2.13.0}
peak_flops: 1.5e+11
data: {key: 0123456789abcdef0123456789abcdef, sources: []}
sessions:
- {begun: '2030-01-02T03:04:05+00:00', from_step: 0, command: [llmtrain, train]}
result: {stopped: done}
"""
METRICS = b"""\
{"step": 1, "tokens": 256, "loss": 6.0, "lr": 3e-4, "elapsed_s": 3.9}
{"step": 2, "tokens": 512, "loss": 5.9, "lr": 8e-4, "elapsed_s": 4.0, "grad_norm": 0.6}
{"step": 2, "val_loss": 5.5, "val_bpb": 4.03}
{"step": 3, "prompt": "", "text": "a b"}
"""
CORPUS = (
    b'{"text": "a line\\n", "id": 1}\n{"text": "", "meta": {"a": [1, null]}}\n'
    + '{"id": 3, "text": "é\\ud83d\\ude00"}\n'.encode()
    + b'{"text": "the last"}\n'
)
_SHAPE = shape_of(
    ModelSection(
        vocab_size=300, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, context=8
    )
)
_KEY = MeasurementKey("matmul", "cpu", ("avx2",), 2, "2.13", (("hidden_size", 32),))


def readers(place: Path) -> dict[str, Callable[[], Reader]]:
    """Every reader by name, made when it is called for; `place` is an empty directory."""
    return {
        "profile": lambda: Reader(PROFILE.encode(), mutations.yaml_file, _profile),
        "assignment": lambda: Reader(
            b"{steps: 1000, seed: 5, micro_batch: 'auto'}", mutations.any_bytes, _assignment
        ),
        "plan": lambda: Reader(_plan(), mutations.json_file, _load_plan),
        "run.yaml": lambda: Reader(RECORD.encode(), mutations.yaml_file, _run_file),
        "manifest": lambda: _manifest(place),
        "state": lambda: Reader(_state(), mutations.json_file, _load_state),
        "config": lambda: Reader(_config(), mutations.json_file, _load_config),
        "pretrained-config": lambda: _pretrained(place, "config.json", mutations.json_file),
        "pretrained-tensors": lambda: _pretrained(
            place, "model.safetensors", mutations.tensor_file
        ),
        "old-yaml": lambda: Reader(OLD_YAML, mutations.yaml_file, _converted("old.yaml")),
        "old-python": lambda: Reader(OLD_PYTHON, mutations.any_bytes, _converted("old.py")),
        "old-json": lambda: Reader(OLD_JSON, mutations.json_file, _converted("old.json")),
        "metrics": lambda: Reader(METRICS, mutations.json_lines, _metrics),
        "jsonl": lambda: Reader(CORPUS, mutations.json_lines, _corpus("a.jsonl")),
        "jsonl.gz": lambda: Reader(
            gzip.compress(CORPUS, mtime=0),
            mutations.compressed(mutations.json_lines),
            _corpus("a.jsonl.gz"),
        ),
        **{
            name: partial(_made, name, mutate)
            for name, mutate in {
                ".json-array": mutations.json_file,
                ".csv": mutations.any_bytes,
                ".parquet": mutations.any_bytes,
                ".feather": mutations.any_bytes,
                ".arrow-stream": mutations.any_bytes,
                ".zip": mutations.any_bytes,
                ".tar": mutations.any_bytes,
            }.items()
        },
        "text": lambda: Reader("some\n é😀\n".encode() * 9, mutations.any_bytes, _corpus("a.txt")),
        "index": lambda: _index(place),
        "shards": lambda: _shards(place),
        "safetensors": lambda: _tensors(place),
        "tokenizer": lambda: Reader(_tokenizer_model(), mutations.protobuf, _tokenizer),
        "probe": lambda: _probe(place),
        "random": lambda: Reader(_random_state(), mutations.any_bytes, _restore),
    }


def _profile(data: bytes, place: Path) -> None:
    (place / "a.yaml").write_bytes(data)
    load_profile(str(place / "a.yaml"), environment={})


def _assignment(data: bytes, _: Path) -> None:
    text = data.decode("latin-1")
    load_profile(environment={}, assignments=[f"train={text}"])


def _plan() -> bytes:
    plan = make_plan(CPU, DeviceSection(), Workload(_SHAPE, tokens_per_step=256))
    return json.dumps(plan.document()).encode()


def _load_plan(data: bytes, _: Path) -> None:
    try:
        document = parse_json(data)
    except ValueError as error:
        raise DataError(str(error)) from None
    if plan_in({"plan": document}) is None:
        raise DataError("made anew")


def _run_file(data: bytes, place: Path) -> None:
    (place / "run.yaml").write_bytes(data)
    record = RunDirectory(place).read_record()
    profile_from_values(record["profile"], "run.yaml")
    data_key(record, "run.yaml")
    plan_in(record)


def _manifest(place: Path) -> Reader:
    files = {}
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "config.json"):
        (place / name).write_bytes(name.encode())
    (place / "tokenizer.model").write_bytes(b"tokenizer")
    for path in sorted(place.iterdir()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files[path.name] = {"bytes": len(content), "sha256": digest}

    def read(data: bytes, place: Path) -> None:
        (place / "manifest.json").write_bytes(data)
        verify_checkpoint(place)

    valid = json.dumps({"format_version": 1, "files": files}).encode()
    return Reader(valid, mutations.json_file, read)


def _state() -> bytes:
    state = SavedState(
        step=3,
        tokens=768,
        windows=24,
        elapsed_s=1.5,
        horizon_steps=20,
        best_val_loss=1.5,
        torch_rng="c2VlZA==",
        grad_scaler={"scale": 2.0},
        course=DivergenceState(losses=(5.5, 5.4), jumps=(Jump(step=1, windows=16, from_step=2),)),
        numerics={"threads": 1},
    )
    return json.dumps(state.model_dump(mode="json")).encode()


def _load_state(data: bytes, place: Path) -> None:
    (place / "state.json").write_bytes(data)
    load_state(place)


def _config() -> bytes:
    return json.dumps(config_of(_SHAPE, 1, 1)).encode()


def _load_config(data: bytes, place: Path) -> None:
    (place / "config.json").write_bytes(data)
    try:
        config = read_json(place / "config.json")
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from None  # as `load_checkpoint` has it
    shape = shape_from_config(config, "config.json")
    predict_generation(shape, "cpu", half_precision=True)
    sum(len(dims) for _, dims in islice(weight_shapes(shape), 1000))


def _pretrained(place: Path, name: str, mutate: mutations.Mutator) -> Reader:
    (place / "config.json").write_bytes(_config())
    tensors = {name: torch.ones(dims) for name, dims in weight_shapes(_SHAPE)}
    write_tensors(place / "model.safetensors", tensors)

    def read(data: bytes, _: Path) -> None:
        (place / name).write_bytes(data)
        for tensor in open_pretrained(place).read_weights().values():
            tensor.sum().item()

    return Reader((place / name).read_bytes(), mutate, read)


def _converted(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, place: Path) -> None:
        (place / name).write_bytes(data)
        profile_of(convert_file(place / name), place / name)

    return read


def _metrics(data: bytes, place: Path) -> None:
    run = RunDirectory(place)
    run.metrics.write_bytes(data)
    _last_lines(run)
    run.cut_after(2)
    _last_lines(run)


def _corpus(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, place: Path) -> None:
        (place / name).write_bytes(data)
        corpus = resolve_sources([str(place / name)])
        split = plan_split(corpus, corpus.measure(), 0.1)
        for piece in split.assign(corpus.documents()):
            piece.document.text.encode()

    return read


def _made(kind: str, mutate: mutations.Mutator) -> Reader:
    texts = ["a line\n", "", "é😀", "the last"]
    return Reader(FORMATS[kind](texts), mutate, _corpus(f"a{kind.partition('-')[0]}"))


class _Bytes:
    """A token for each byte."""

    vocab_size = 257
    separator_id = 256
    end_id = None
    fingerprint = "bytes"

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()


def _prepared(place: Path) -> Path:
    """A directory of shards."""
    (place / "corpus.txt").write_text("some lines of text\n" * 20)
    corpus = resolve_sources([str(place / "corpus.txt")])
    with prepared_shards(corpus, _Bytes(), place / "cache") as prepared:
        return prepared.directory


def _index(place: Path) -> Reader:
    directory = _prepared(place)

    def read(data: bytes, _: Path) -> None:
        (directory / INDEX_NAME).write_bytes(data)
        with open_prepared(directory) as prepared:
            prepared.verify()
            prepared.train.read(0, prepared.train.num_tokens)

    return Reader((directory / INDEX_NAME).read_bytes(), mutations.json_file, read)


def _shards(place: Path) -> Reader:
    directory = _prepared(place)
    index = json.loads((directory / INDEX_NAME).read_text())

    def read(data: bytes, _: Path) -> None:
        """The index agrees with the size, as a stranger's would."""
        (directory / "train-00000.bin").write_bytes(data)
        index["train"]["shards"][0]["size_bytes"] = len(data)
        index["train"]["tokens"] = len(data) // 2
        (directory / INDEX_NAME).write_text(json.dumps(index))
        with open_prepared(directory) as prepared:
            prepared.train.read(0, prepared.train.num_tokens)

    return Reader((directory / "train-00000.bin").read_bytes(), mutations.any_bytes, read)


def _tensors(place: Path) -> Reader:
    path = place / "a.safetensors"
    tensors = {
        "a.weight": torch.arange(24.0).view(4, 6),
        "b": torch.ones(3),
        "step": torch.ones(()),
    }
    write_tensors(path, tensors)

    def read(data: bytes, _: Path) -> None:
        path.write_bytes(data)
        try:
            found = read_tensors(path)
        except (OSError, ValueError) as error:
            raise DataError(str(error)) from None  # as `load_checkpoint` has it
        for tensor in found.values():
            tensor.sum().item()

    return Reader(path.read_bytes(), mutations.tensor_file, read)


def _tokenizer_model() -> bytes:
    texts = ["def f(x):\n    return x + 1\nclass A: pass hello world of text\n" * 50]
    return train_tokenizer(texts, vocab_size=330).tokenizer.model


def _tokenizer(data: bytes, place: Path) -> None:
    (place / "tokenizer.model").write_bytes(data)
    tokenizer = Tokenizer.load(place)
    text = (
        "  def f(x):\r\n\0\te\u0301 \ufb01 ▁ <unk> <|endoftext|> \U0001f469\u200d 中文" + "ab" * 300
    )
    if tokenizer.decode(tokenizer.encode(text)) != text:
        raise AssertionError("the text is another")
    tokenizer.decode(range(tokenizer.vocab_size))
    (place / "saved").mkdir(exist_ok=True)
    tokenizer.save(place / "saved")


def _probe(place: Path) -> Reader:
    names = list(MatmulTimes.__dataclass_fields__)
    save_measurement(place, _KEY, MatmulTimes(**dict.fromkeys(names, 0.5)))
    (path,) = (place / "probe").iterdir()

    def read(data: bytes, place: Path) -> None:
        path.write_bytes(data)
        if load_measurement(place, _KEY, MatmulTimes) is None:
            raise DataError("passed over")

    return Reader(path.read_bytes(), mutations.json_file, read)


def _random_state() -> bytes:
    return RandomState.now().text.encode()


def _restore(data: bytes, _: Path) -> None:
    RandomState(data.decode("latin-1")).restore()
    torch.rand(2000)
    torch.randn(100)
