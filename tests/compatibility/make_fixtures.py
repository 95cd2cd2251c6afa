"""Makes the runs that later versions must still go on with: `python …/make_fixtures.py DIRECTORY`.

Run in a checkout of the version whose runs are wanted. `runs_0_2_0` was made by

    git checkout efc9388
    python tests/compatibility/make_fixtures.py tests/compatibility/runs_0_2_0

DIRECTORY must not exist yet. It then holds

    tiny.yaml, text/, bytes.json   the profile, two texts and a byte-level BPE tokenizer
    <run>/                         run directories, made through the command line; see RUNS
    expected.json                  what that version says of each run, and what its own resume of
                                   a copy of the run comes to

Every path is relative to DIRECTORY, in which the commands ran, so that nothing in it tells of the
machine but the processor's name, the memory that was free and process ids. fp32, one thread a
process, attention and micro-batch are fixed, nothing is compiled: another processor only rounds
otherwise. What is measured all the same is whether bf16 pays, in fp32 products of a training and
in all of `eval` and `generate`: in ENVIRONMENT it never does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CHECKOUT = Path(__file__).parents[2]
PROMPT, MAX_TOKENS = "the ", 24
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # no bf16 but a slow emulation

PROFILE = """\
name: tiny
model: {vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_layers: 1, num_heads: 2,
        context: 32}
data: {sources: [text/prose.txt], validation_fraction: 0.05}
train: {tokens_per_step: 256, micro_batch: 8, steps: 150, log_every_steps: 5}
optim: {learning_rate: 0.02, embedding_learning_rate: 0.02, warmup_steps: 5}
eval: {every_steps: 50, tokens: 1024, sample_every_steps: 50, sample_tokens: 8, prompts: ["the "]}
checkpoint: {every_steps: 50, keep_last: 1, keep_best: false}
device: {kind: cpu, threads: 1, precision: fp32, attention: sdpa, activation_checkpointing: "off",
         compile: false, workers: 1, processes: 1}
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a run is made, and how it goes on."""

    options: tuple[str, ...] = ()
    resume: tuple[str, ...] = ("--steps", "155")  # none: to the end that it was to have
    killed_at: int | None = None  # SIGTERM when this step is told
    has_known_end: bool = True  # under a time the schedule follows the clock


def _set(*assignments: str) -> tuple[str, ...]:
    return tuple(word for each in assignments for word in ("--set", each))


RUNS = {
    "stopped": Recipe(_set("checkpoint.keep_last=2"), resume=(), killed_at=135),
    "finished": Recipe(_set("optim.learning_rate=auto", "optim.embedding_learning_rate=auto")),
    "adamw": Recipe(_set("optim.name=adamw", "optim.schedule=cosine", "optim.learning_rate=0.005")),
    "timed": Recipe(
        ("--time", "16s", *_set("train.log_every_steps=100", "eval.every_steps=500")),
        resume=(),
        killed_at=100,
        has_known_end=False,
    ),
    "mixture": Recipe(
        ("--data", "text/prose.txt", "--weight", "3", "--data", "text/notes.jsonl", "--weight", "1")
    ),
    "masked": Recipe(
        (
            *("--data", "text/notes.jsonl"),
            *_set("data.mask_documents=true", "data.packing=best_fit", "device.attention=blocks"),
        )
    ),
    "two": Recipe(("--nproc", "2", *_set("train.micro_batch=4"))),
    "llama": Recipe(_set("model.qk_norm=false", "model.num_layers=2")),
    "untied": Recipe(
        _set("model.tie_embeddings=false", "model.num_heads=4", "model.num_kv_heads=2")
    ),
    "imported": Recipe(("--tokenizer", "bytes.json")),
}


def main() -> int:
    """0 where all was made."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory.resolve()
    directory.mkdir(parents=True)
    _furnish(directory)
    expected = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, recipe in RUNS.items():
            sys.stderr.write(f"{name}\n")
            expected[name] = Maker(directory, Path(scratch), name, recipe).expected()
        version = Maker(directory, Path(scratch), "", Recipe()).call("--version").split()[-1]
    document = {"llmtrain": version, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "runs": expected}
    (directory / "expected.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes one run in `directory`; caches and copies are in `scratch`."""

    directory: Path
    scratch: Path
    name: str
    recipe: Recipe

    def expected(self) -> dict[str, Any]:
        """What is known of the run, which is made."""
        self._train()
        shown = self.document("runs", "show", self.name)
        planned = shown["record"]["plan"]["matmul_precision"]["value"]
        if planned != "highest":
            raise SystemExit(f"fp32 products are {planned} on this machine; make them on another")
        verified = self.document("runs", "verify", self.name)
        evaluated = self.document("eval", self.name)
        told = ("--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(MAX_TOKENS))
        kept = ("step", "tokens", "train_loss", "val_loss", "checkpoints", "status")
        return {
            **{key: shown[key] for key in kept},
            "good": len(verified["good"]),
            "eval_loss": evaluated["loss_nats_per_token"],
            "eval_tokens": evaluated["tokens"],
            "text": self.document("generate", self.name, *told)["text"],
            "resume": self._resumed(),
        }

    def _train(self) -> None:
        """The run is made, and stopped on the way where the recipe says so."""
        step = self.recipe.killed_at
        words = ("train", "-p", "tiny.yaml", "--out", self.name, *self.recipe.options)
        if step is None:
            self.call(*words)
            return
        told = re.compile(rf"step {step}(/|  tokens)")
        process = subprocess.Popen(
            _command(*words),
            cwd=self.directory,
            env=self._environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if told.match(line):
                process.send_signal(signal.SIGTERM)
        if process.wait() != 75:
            raise SystemExit(f"{self.name} ended with {process.returncode}, not stopped")

    def _resumed(self) -> dict[str, Any]:
        """What a copy of the run comes to when it goes on."""
        copy = self.scratch / "copy"
        shutil.copytree(self.directory, copy)
        other = Maker(copy, self.scratch, self.name, self.recipe)
        words = ("--out", self.name, "--resume", "auto", *self.recipe.resume)
        done = other.document("train", *words)
        shutil.rmtree(copy)
        known = ("steps", "tokens", "train_loss", "val_loss") if self.recipe.has_known_end else ()
        return {"options": list(self.recipe.resume), **{key: done[key] for key in known}}

    def document(self, *words: str) -> dict[str, Any]:
        """What a command answers with `--json`."""
        found: dict[str, Any] = json.loads(self.call(*words, "--json"))
        return found

    def call(self, *words: str) -> str:
        """What a command that succeeds writes to stdout."""
        done = subprocess.run(
            _command(*words),
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith("LLMTRAIN_")}
        cache = {"LLMTRAIN_CACHE_DIR": str(self.scratch / "cache")}
        return own | cache | ENVIRONMENT | {"PYTHONPATH": str(CHECKOUT)}


def _command(*words: str) -> Sequence[str]:
    return [sys.executable, "-m", "llmtrain", *words]


def _furnish(directory: Path) -> None:
    """The profile, the texts and the tokenizer that runs are made from."""
    draw = random.Random(0)
    text = directory / "text"
    text.mkdir()
    prose = "".join(_paragraph(draw) for _ in range(110))
    notes = [_paragraph(draw)[: draw.randint(60, 400)] for _ in range(90)]
    lines = "".join(json.dumps({"text": note}) + "\n" for note in notes)
    (text / "prose.txt").write_bytes(prose.encode())
    (text / "notes.jsonl").write_bytes(lines.encode())
    (directory / "tiny.yaml").write_bytes(PROFILE.encode())
    (directory / "bytes.json").write_bytes(_bytes_tokenizer(prose).encode())


_NOUNS = [
    "river",
    "mill",
    "garden",
    "boat",
    "winter",
    "letter",
    "stone",
    "road",
    "lamp",
    "market",
    "field",
    "bird",
]
_ADJECTIVES = ["old", "quiet", "green", "narrow", "heavy", "bright", "empty", "slow"]
_VERBS = ["holds", "follows", "finds", "leaves", "carries", "hears", "keeps", "crosses"]


def _paragraph(draw: random.Random) -> str:
    def thing() -> str:
        return f"the {draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}"

    sentences = [
        f"{thing()} {draw.choice(_VERBS)} {thing()} of {draw.randint(2, 99)} days"
        for _ in range(draw.randint(4, 7))
    ]
    return ", and ".join(sentences).capitalize() + ".\n\n"


def _bytes_tokenizer(text: str) -> str:
    """A byte-level BPE in Hugging Face's form, trained on `text`."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([text], trainer)
    written: str = made.to_str()
    return written


if __name__ == "__main__":
    sys.exit(main())
