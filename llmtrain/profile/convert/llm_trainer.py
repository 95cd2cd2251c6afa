"""llm-trainer 0.1 and 0.2 (HelpingAI): a YAML with `model`, `training`, `data` and `tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.profile.convert.rules import (
    Became,
    Old,
    Rule,
    dropped,
    gated_width,
    instead,
    mapped,
    never,
    replaced,
    to,
    trackers,
    unless_off,
)

# Its defaults, as far as they change what is trained.
DEFAULTS: Mapping[str, Any] = {
    "training.batch_size": 32,
    "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 1e-4,
    "training.weight_decay": 0.01,
    "training.lr_scheduler": "cosine",
    "training.warmup_steps": 1000,
    "training.min_lr_ratio": 0.1,
    "training.optimizer": "adamw",
    "training.beta2": 0.999,
    "training.num_epochs": 10,
    "training.seed": 42,
    "model.vocab_size": 50_000,
    "model.d_model": 512,
    "model.n_heads": 8,
    "model.n_layers": 6,
    "model.d_ff": 2048,
    "model.max_seq_len": 1024,
    "data.dataset_name": "wikitext",
    "data.validation_split": "validation",
}
# Datasets that the Hub has under an owner now.
_OWNERS = {
    "wikitext": "Salesforce/wikitext",
    "openwebtext": "Skylion007/openwebtext",
    "bookcorpus": "bookcorpus/bookcorpus",
    "c4": "allenai/c4",
    "tiny_shakespeare": "karpathy/tiny_shakespeare",
}
_SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "cosine": {"optim.schedule": "cosine"},
    "linear": {"optim.schedule": "linear"},
    "polynomial": {"optim.schedule": "linear"},
    "constant": {"optim.schedule": "wsd", "optim.decay_fraction": 0.0},
}


def _context(old: Old) -> int:
    return int(min(old["model.max_seq_len"], old.get("data.max_length", old["model.max_seq_len"])))


def _first(old: Old, *keys: str) -> Any:
    return next(old[key] for key in keys if old.get(key) is not None)


def _tokens_per_step(_: Any, old: Old) -> Became:
    batch = _first(old, "training.per_device_train_batch_size", "training.batch_size")
    accumulation = old["training.gradient_accumulation_steps"]
    ranks = max(1, old.get("training.world_size") or 1)
    tokens = int(batch) * int(accumulation) * int(ranks) * _context(old)
    return mapped(
        {"train.tokens_per_step": tokens},
        f"batch {batch} × accumulation {accumulation} × processes {ranks} × context "
        f"{_context(old)}; how many sequences fit at once is planned (train.micro_batch: auto)",
    )


def _epochs(value: Any, old: Old) -> Became:
    if old.get("training.max_steps"):
        return replaced("training.max_steps ends the run")
    return dropped("not set") if value is None else mapped({"train.epochs": float(value)})


def _schedule(value: Any, _: Old) -> Became:
    if value is None:
        return dropped("not set")
    return mapped(_SCHEDULES[value], "polynomial falls in a line" if value == "polynomial" else "")


def _optimizer(value: Any, _: Old) -> Became:
    if value is None:
        return dropped("not set")
    note = "" if str(value).startswith("adamw") else f"{value} is not there; AdamW is used"
    return mapped({"optim.name": "adamw"}, note or "muon, the default here, learns faster")


def _is_cpu(old: Old) -> bool:
    return bool(old.get("training.force_cpu")) or "cpu" in (
        old.get("device"),
        old.get("training.device"),
    )


def _half(precision: str) -> Rule:
    def rule(value: Any, old: Old) -> Became:
        if not value:
            return replaced("device.precision: auto uses bf16 where it is measured to pay")
        if _is_cpu(old):
            return replaced("it was off on CPUs; device.precision: auto decides here")
        return mapped({"device.precision": precision})

    return rule


def _amp(value: Any, old: Old) -> Became:
    return replaced("device.precision: auto chooses fp32, bf16 or fp16 for the device")


def _backend(value: Any, old: Old) -> Became:
    if value == "nccl" and _is_cpu(old):
        return replaced("device.backend: auto is gloo on CPUs")
    return mapped({"device.backend": value})


def _processes(value: Any, _: Old) -> Became:
    if value in (None, 1):
        return replaced("device.processes: auto")
    return mapped({"device.processes": value}, "counted in train.tokens_per_step too")


def _checkpointing(value: Any, _: Old) -> Became:
    if not value:
        return replaced("device.activation_checkpointing: auto recomputes where memory is short")
    return mapped({"device.activation_checkpointing": "full"})


def _vocabulary(value: Any, old: Old) -> Became:
    if value == old["model.vocab_size"]:
        return mapped({"model.vocab_size": value})
    return replaced(f"model.vocab_size: {old['model.vocab_size']} is the tokenizer's size too")


def _length(value: Any, old: Old) -> Became:
    return mapped({"model.context": _context(old)}, "tokens of a window")


def _source(value: Any, old: Old) -> Became:
    if value is None:
        return dropped("not set")
    if old.get("data.train_file"):
        return replaced("data.train_file is read")
    return mapped({"data.sources": [_hub(value, old, old.get("data.dataset_split") or "train")]})


def _hub(name: str, old: Old, split: str) -> str:
    """Return the dataset as a source of ours; a directory is read by its path."""
    if name.startswith((".", "/", "~")):
        return name
    config = old.get("data.dataset_config")
    spec = _OWNERS.get(name, name) + (f"/{config}" if config else "")
    column = old.get("data.text_column")
    return f"hf://{spec}:{split}" + (f"#{column}" if column and column != "text" else "")


def _validation(value: Any, old: Old) -> Became:
    if not value:
        return replaced("data.validation_fraction of the text is held out")
    if old.get("data.validation_file"):
        return replaced("data.validation_file is read")
    if old.get("data.train_file"):
        return replaced("data.validation_fraction of data.train_file is held out")
    return mapped({"data.validation": _hub(old["data.dataset_name"], old, value)})


def _duplicates(value: Any, _: Old) -> Became:
    return mapped({"data.duplicates": "drop_exact" if value else "keep"})


def _tokenizer(value: Any, _: Old) -> Became:
    if value in ("bpe", "sentencepiece"):
        return mapped({"data.tokenizer_kind": "bpe"}, "trained on the text of the run")
    return replaced("llmtrain tokenizer import FILE --out DIR, then data.tokenizer: DIR")


def _workers(path: str) -> Rule:
    def rule(value: Any, _: Old) -> Became:
        return mapped({path: value}) if value else replaced(f"{path}: auto")

    return rule


def _only(expected: object, otherwise: str) -> Rule:
    """Return the rule for a key whose one value is what is done here."""

    def rule(value: Any, _: Old) -> Became:
        return replaced("as here") if value == expected else dropped(otherwise)

    return rule


_EVAL = instead("eval.every_steps; a run is evaluated at its end in any case")
_PEFT = unless_off("adapters are for fine-tuning: llmtrain finetune --lora", (False, None))
_PEFT_DETAIL = never("of LoRA adapters: llmtrain finetune --lora r=16,alpha=32,targets=all")
_SHARDING = unless_off("device.sharding: auto shards where no replica fits; shard asks for it")
_DATASETS = "text is read from what data.sources names"
_LOADER = instead("windows are read ahead from shards on disk by one thread")

_MODEL: Mapping[str, Rule] = {
    "vocab_size": to("model.vocab_size"),
    "d_model": to("model.hidden_size"),
    "n_heads": to("model.num_heads"),
    "n_layers": to("model.num_layers"),
    "d_ff": to(
        "model.intermediate_size",
        gated_width,
        "two thirds: SwiGLU has three matrices where the old MLP has two",
    ),
    "max_seq_len": _length,
    "dropout": unless_off("there is no dropout; optim.weight_decay regularises", (0, 0.0, None)),
    "attention_dropout": unless_off("there is no dropout", (0, 0.0, None)),
    "init_std": instead("the recipe's initialisation"),
    "use_learned_pos_emb": instead("rotary positions"),
    "layer_norm_eps": to("model.norm_epsilon", float, "of RMS norms"),
    "pre_norm": _only(True, "norms are before attention and MLP"),
    "activation": instead("SwiGLU, whose activation is swish"),
    "use_bias": _only(False, "there are no biases"),
    "gradient_checkpointing": _checkpointing,
}
_TRAINING: Mapping[str, Rule] = {
    "per_device_train_batch_size": _tokens_per_step,
    "batch_size": _tokens_per_step,
    "gradient_accumulation_steps": _tokens_per_step,
    "learning_rate": to("optim.learning_rate", float, "leave it out for the recipe's rate (auto)"),
    "weight_decay": to("optim.weight_decay", float),
    "max_steps": lambda value, _: mapped({"train.steps": value}) if value else dropped("not set"),
    "num_train_epochs": _epochs,
    "num_epochs": _epochs,
    "learning_rate_type": _schedule,
    "lr_scheduler": _schedule,
    "warmup_steps": to("optim.warmup_steps"),
    "warmup_ratio": never("llm-trainer never reads it: warmup_steps counts"),
    "min_lr_ratio": to("optim.final_learning_rate_fraction", float),
    "optim": _optimizer,
    "optimizer": _optimizer,
    "beta1": to("optim.beta1", float),
    "beta2": to("optim.beta2", float),
    "eps": to("optim.epsilon", float),
    "max_grad_norm": to("train.gradient_clip", float),
    "use_amp": _amp,
    "amp_dtype": _amp,
    "fp16": _half("fp16"),
    "bf16": _half("bf16"),
    "compile_model": lambda value, _: (
        mapped({"device.compile": True}) if value else replaced("device.compile: auto")
    ),
    "compile_mode": instead("device.compile: auto"),
    "save_steps": to("checkpoint.every_steps"),
    "save_total_limit": to("checkpoint.keep_last"),
    "checkpoint_dir": instead("llmtrain train --out DIR"),
    "output_dir": instead("llmtrain train --out DIR"),
    "resume_from_checkpoint": instead("llmtrain train --resume auto"),
    "eval_steps": to("eval.every_steps"),
    "eval_strategy": _EVAL,
    "evaluation_strategy": _EVAL,
    "eval_accumulation_steps": never("losses are summed, not collected"),
    "per_device_eval_batch_size": instead("planned with the micro-batch"),
    "logging_steps": to("train.log_every_steps"),
    "logging_strategy": instead("train.log_every_steps"),
    "save_strategy": instead("checkpoint.every_steps or checkpoint.every_minutes"),
    "log_level": instead("llmtrain -q or -v"),
    "report_to": trackers,
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": to("device.pin_memory"),
    "dataloader_drop_last": _only(True, "every step has the same number of tokens"),
    "local_rank": instead("llmtrain train --nproc N, or torchrun"),
    "world_size": _processes,
    "distributed_backend": _backend,
    "use_deepspeed": _SHARDING,
    "deepspeed_config": _SHARDING,
    "use_accelerate": instead("llmtrain train --nproc N, or torchrun"),
    "accelerate_mixed_precision": _amp,
    "use_peft": _PEFT,
    **dict.fromkeys(
        ("peft_type", "peft_r", "peft_alpha", "peft_dropout", "peft_target_modules"), _PEFT_DETAIL
    ),
    **dict.fromkeys(("peft_bias", "peft_task_type"), _PEFT_DETAIL),
    "device": to("device.kind"),
    "force_cpu": to("device.force_cpu"),
    "seed": to("train.seed"),
    "early_stopping_patience": to("eval.patience", note="evaluations without a new best"),
    "early_stopping_threshold": unless_off("any lower validation loss is a new best"),
    "use_gradient_checkpointing": _checkpointing,
    "use_low_vram": instead("the plan fits the memory there is: llmtrain memory --profile FILE"),
    "fuse_layers": instead("device.compile: auto"),
    "empty_cache_steps": never("memory is planned; no cache is emptied between steps"),
}
_DATA: Mapping[str, Rule] = {
    "train_file": lambda value, _: (
        mapped({"data.sources": [value]}) if value else dropped("not set")
    ),
    "validation_file": to("data.validation"),
    "test_file": instead("llmtrain eval RUN --data FILE"),
    "dataset_name": _source,
    "dataset_config": instead("part of data.sources"),
    "dataset_split": instead("part of data.sources"),
    "validation_split": _validation,
    "test_split": instead("llmtrain eval RUN --data hf://…:test"),
    "text_column": to("data.text_field"),
    "max_length": _length,
    "min_length": to("data.filters.min_bytes", note="bytes of a document, not characters"),
    "stride": never("windows do not overlap"),
    "tokenizer_type": _tokenizer,
    "vocab_size": _vocabulary,
    "special_tokens": instead("one separator token; more with data.tokenizer_reserve"),
    "filter_empty_lines": never("documents are kept as they are; empty ones have no tokens"),
    "filter_short_sequences": instead("data.filters.min_bytes"),
    "remove_duplicates": _duplicates,
    "use_data_augmentation": unless_off("text is not changed"),
    "augmentation_prob": never("text is not changed"),
    "use_streaming": instead("text is tokenized once into shards, in bounded memory"),
    "cache_dir": instead("the environment variable LLMTRAIN_CACHE_DIR"),
    "preprocessing_num_workers": _workers("device.workers"),
    "data_format": instead("each file's own format, by its name and contents"),
    "pack_sequences": _only(True, "windows are always full; nothing is padded"),
    "packing_strategy": instead("data.packing: concatenate or best_fit"),
}
_TOKENIZER: Mapping[str, Rule] = {
    "type": _tokenizer,
    "vocab_size": _vocabulary,
    "save_path": instead("the cache; llmtrain tokenizer train --out DIR for one of your own"),
    "dataset_name": instead(_DATASETS),
    "dataset_config": instead(_DATASETS),
    "max_samples": instead("a sample of 64 MiB of the text"),
    "name_or_path": instead("llmtrain tokenizer import FILE --out DIR, then data.tokenizer: DIR"),
}

RULES: Mapping[str, Rule] = {
    "device": to("device.kind"),
    **{f"model.{key}": rule for key, rule in _MODEL.items()},
    **{f"training.{key}": rule for key, rule in _TRAINING.items()},
    **{f"data.{key}": rule for key, rule in _DATA.items()},
    **{f"tokenizer.{key}": rule for key, rule in _TOKENIZER.items()},
}
