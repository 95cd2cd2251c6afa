"""Tokens a second and peak memory of fine-tuning, beside transformers' Trainer with PEFT.

    python -m tests.benchmarks.finetuning                 # LoRA of a model of SmolLM-135M's shape
    python -m tests.benchmarks.finetuning --full          # all weights of one of cpu-small's
    python -m tests.benchmarks.finetuning --checkpointing full    # the least memory of ours

Both train the same model of random weights in bf16 on the same made conversations with the same
number of tokens a step, each in a process of its own, one after the other. Trainer gets the
conversations as this package packs them, in windows without a mask of documents, which spares it
the padding: it is given the best case. One line of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.process import run_measured
from tests.checkout import ROOT
from tests.programs import program_parser

_WORDS = ("the", "answer", "is", "in", "a", "list", "of", "items", "that", "it", "returns")
_OURS, _THEIRS = "llmtrain", "Trainer"


def main(arguments: Sequence[str]) -> int:
    """Print what each took, or be the process of Trainer."""
    options = _parser().parse_args(arguments)
    if options.trainer is not None:
        _train_by_trainer(options, options.trainer)
        return 0
    if options.make is not None:
        _make_model(options, options.make / "model")
        return 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-finetuning-") as scratch:
        for line in _compared(options, Path(scratch), arguments):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 0


def _compared(
    options: argparse.Namespace, scratch: Path, arguments: Sequence[str]
) -> Iterator[dict[str, Any]]:
    python, ourselves = sys.executable, "tests.benchmarks.finetuning"
    # This process stays small: the kernel counts its peak as that of what it starts.
    making = [python, "-m", ourselves, *arguments, "--make", str(scratch)]
    subprocess.run(making, check=True, cwd=ROOT)
    _make_rows(scratch / "chat.jsonl")
    ours = [python, "-m", "llmtrain", "finetune", "model", "--data", "chat.jsonl", "--out", "run"]
    ours += ["--steps", str(options.steps), "--set", f"model.context={options.context}"]
    ours += ["--set", f"train.tokens_per_step={options.tokens_per_step}"]
    ours += ["--set", "eval.sample_every_steps=null", "--set", "eval.tokens=2048"]
    ours += [] if options.full else ["--lora", f"r={options.rank}"]
    ours += ["--set", f"device.activation_checkpointing={options.checkpointing}"]
    ours += ["--set", f"train.micro_batch={options.micro_batch}"]
    ours += [word for assignment in options.set for word in ("--set", assignment)]
    theirs = [python, "-m", ourselves, *arguments, "--trainer", str(scratch)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "LLMTRAIN_CACHE_DIR": str(scratch / "c")}
    for way, command in ((_OURS, ours), (_THEIRS, theirs)):
        log = scratch / f"{way}.log"
        finished = run_measured(command, environment, log, scratch)
        text = log.read_text(errors="replace")
        if finished.exit_code:
            raise SystemExit(f"{way} failed:\n{text[-2000:]}")
        yield {
            "way": way,
            "tokens_per_s": _rate(way, text, scratch),
            "peak_bytes": finished.peak_process_bytes,
            "wall_s": round(finished.wall_s, 1),
        }


def _rate(way: str, text: str, scratch: Path) -> float:
    """Return the tokens a second of typical steps, without starting and evaluation."""
    if way == _THEIRS:
        return float(re.findall(r"tokens_per_s ([\d.]+)", text)[-1])
    lines = (scratch / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [found["tokens_per_s"] for found in map(json.loads, lines) if "tokens_per_s" in found]
    return float(rates[-1])


def _make_model(options: argparse.Namespace, directory: Path) -> None:
    import torch
    import transformers

    from llmtrain.tokenizer import train_tokenizer
    from llmtrain.tokenizer.chat_template import with_chat_template

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = _small(transformers) if options.full else _smollm(transformers, options.layers)
    model.save_pretrained(directory)
    with_chat_template(train_tokenizer([" ".join(_WORDS)], vocab_size=300).tokenizer).save(
        directory
    )


def _smollm(transformers: Any, layers: int) -> Any:
    """Return a model of SmolLM-135M's shape, in bf16."""
    import torch

    config = transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def _small(transformers: Any) -> Any:
    """Return a model of cpu-small's shape, in fp32."""
    from llmtrain.model.huggingface import config_of
    from llmtrain.profile.load import load_profile
    from llmtrain.profile.shape import shape_of

    shape = shape_of(load_profile("cpu-small", environment={}, assignments=[]).profile.model)
    config = transformers.Qwen3Config(**config_of(shape, None, 0))
    return transformers.Qwen3ForCausalLM(config)


def _make_rows(file: Path) -> None:
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(400):
            answer = " ".join(draw.choices(_WORDS, k=draw.randint(20, 120)))
            out.write(json.dumps({"prompt": f"What is {number}?", "completion": answer}) + "\n")


def _train_by_trainer(options: argparse.Namespace, scratch: Path) -> None:
    """Train with transformers' Trainer, and PEFT for adapters, in bf16."""
    import peft
    import torch
    import transformers

    from llmtrain.data.batches.conversations import ConversationReader, pack_conversations
    from llmtrain.data.sources.resolve import resolve_sources
    from llmtrain.engine.evaluate_chat import encoded_conversations
    from llmtrain.prepare.chat import ChatEncoder
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.tokenizer.of_model import tokenizer_of_model

    transformers.utils.logging.disable_progress_bar()
    encoder = ChatEncoder(tokenizer_of_model(scratch / "model")[0])
    work = PrepareContext(1, lambda _: None, lambda: None)
    corpus = resolve_sources([str(scratch / "chat.jsonl")], rows="chat")
    stream = encoded_conversations(corpus, encoder, work)
    packed = pack_conversations(stream, encoder.marks, options.context)
    reader = ConversationReader(stream, packed, encoder.marks, options.context, seed=0)
    rows = []
    for position in range(options.steps * options.tokens_per_step // options.context):
        inputs, targets = reader.read(position, 1)
        labels = [-100, *(int(each) if each >= 0 else -100 for each in targets[0, :-1])]
        rows.append({"input_ids": inputs[0].tolist(), "labels": labels})
    model = transformers.AutoModelForCausalLM.from_pretrained(
        scratch / "model", dtype=torch.float32 if options.full else torch.bfloat16
    )
    if not options.full:
        config = peft.LoraConfig(
            r=options.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, config)
    at_once = options.trainer_micro_batch
    training = transformers.TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=options.tokens_per_step // options.context // at_once,
        max_steps=options.steps,
        bf16=True,
        use_cpu=True,
        learning_rate=1e-4,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    times: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    trainer = transformers.Trainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=transformers.default_data_collator,
        callbacks=[Clock()],
    )
    trainer.train()
    step_s = (times[-1] - times[0]) / (len(times) - 1)
    sys.stdout.write(f"tokens_per_s {options.tokens_per_step / step_s:.1f}\n")


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--layers", type=int, default=30, help="of the model")
    parser.add_argument("--steps", type=int, default=4, help="at least two")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument(
        "--full", action="store_true", help="train all weights of cpu-small's shape"
    )
    parser.add_argument(
        "--checkpointing", default="auto", help="what ours recomputes: off, selective, full"
    )
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, of ours")
    parser.add_argument("--micro-batch", default="auto", help="sequences, of ours")
    parser.add_argument("--trainer-micro-batch", type=int, default=1, help="of Trainer")
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
