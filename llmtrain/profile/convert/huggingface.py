"""Hugging Face's `TrainingArguments` as JSON: how to train, without a model and without text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmtrain.profile.convert.rules import (
    Became,
    Old,
    Rule,
    dropped,
    instead,
    mapped,
    never,
    replaced,
    to,
    trackers,
    unless_off,
)
from llmtrain.profile.schema import ModelSection

# transformers' defaults, as far as they change what is trained.
DEFAULTS: Mapping[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "seed": 42,
}
_CONTEXT = ModelSection().context
_SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "linear": {"optim.schedule": "linear"},
    "cosine": {"optim.schedule": "cosine"},
    "constant": {"optim.schedule": "wsd", "optim.decay_fraction": 0.0},
    "constant_with_warmup": {"optim.schedule": "wsd", "optim.decay_fraction": 0.0},
    "warmup_stable_decay": {"optim.schedule": "wsd"},
    "polynomial": {"optim.schedule": "linear"},
    "cosine_with_min_lr": {"optim.schedule": "cosine"},
}


def _tokens_per_step(_: Any, old: Old) -> Became:
    batch, accumulation = old["per_device_train_batch_size"], old["gradient_accumulation_steps"]
    return mapped(
        {"train.tokens_per_step": int(batch) * int(accumulation) * _CONTEXT},
        f"batch {batch} × accumulation {accumulation} × {_CONTEXT} tokens, of one process: "
        "multiply by the processes, and by model.context if you change it",
    )


def _epochs(value: Any, old: Old) -> Became:
    if old["max_steps"] > 0:
        return replaced("max_steps ends the run")
    return mapped({"train.epochs": float(value)})


def _steps(value: Any, _: Old) -> Became:
    return mapped({"train.steps": value}) if value > 0 else replaced("num_train_epochs")


def _warmup(value: Any, old: Old) -> Became:
    """Below 1 it is a share of the run, as `warmup_ratio` was."""
    if 0 < value < 1:
        if old["max_steps"] > 0:
            return mapped({"optim.warmup_steps": round(value * old["max_steps"])})
        return dropped(f"set optim.warmup_steps to {value:g} of the run's steps")
    return mapped({"optim.warmup_steps": int(value)})


def _ratio(value: Any, old: Old) -> Became:
    if not value:
        return dropped("off, as here")
    return replaced("warmup_steps") if old["warmup_steps"] else _warmup(value, old)


def _schedule(value: Any, _: Old) -> Became:
    found = _SCHEDULES.get(value)
    return mapped(found) if found else dropped("optim.schedule can be wsd, cosine or linear")


def _optimizer(value: Any, _: Old) -> Became:
    note = "" if str(value).startswith("adamw") else f"{value} is not there; "
    return mapped({"optim.name": "adamw"}, note + "muon, the default here, learns faster")


def _half(precision: str) -> Rule:
    def rule(value: Any, _: Old) -> Became:
        if value:
            return mapped({"device.precision": precision}, "auto chooses by measurement")
        return replaced("device.precision: auto")

    return rule


def _cpu(value: Any, _: Old) -> Became:
    return mapped({"device.force_cpu": True}) if value else replaced("device.kind: auto")


def _checkpointing(value: Any, _: Old) -> Became:
    if value:
        return mapped({"device.activation_checkpointing": "full"})
    return replaced("device.activation_checkpointing: auto recomputes where memory is short")


def _every(path: str, strategy: str) -> Rule:
    """Return the rule for an interval in steps, which counts if the strategy says so."""

    def rule(value: Any, old: Old) -> Became:
        if value is None:
            return dropped("not set")
        if old.get(strategy, "steps") != "steps":
            return replaced(f"{strategy} is {old[strategy]}: {path} has its default")
        if value < 1:
            return dropped(f"a share of the run; set {path}")
        return mapped({path: int(value)})

    return rule


def _timeout(value: Any, _: Old) -> Became:
    return mapped({"device.collective_timeout": f"{int(value)}s"})


def _group(rule: Rule, names: Iterable[str]) -> Mapping[str, Rule]:
    return dict.fromkeys(names, rule)


_FSDP = unless_off("device.sharding: auto shards where no replica fits; shard asks for it")
_HUB = never("a run is not pushed anywhere while it trains")
_LOADER = instead("windows are read ahead from shards on disk")
_LOGS = instead("metrics.jsonl in the run directory, llmtrain runs show")
_TRAINER = never("of the Trainer class: nothing here needs it")

RULES: Mapping[str, Rule] = {
    "per_device_train_batch_size": _tokens_per_step,
    "gradient_accumulation_steps": _tokens_per_step,
    "max_steps": _steps,
    "num_train_epochs": _epochs,
    "learning_rate": to("optim.learning_rate", float, "leave it out for the recipe's rate (auto)"),
    "lr_scheduler_type": _schedule,
    "lr_scheduler_kwargs": unless_off("see optim.*", (None, {})),
    "warmup_steps": _warmup,
    "warmup_ratio": _ratio,
    "optim": _optimizer,
    "optim_args": unless_off("see optim.*"),
    "optim_target_modules": unless_off("every weight has the optimizer of its role"),
    "adafactor": unless_off("AdamW is used"),
    "weight_decay": to("optim.weight_decay", float, "of hidden matrices"),
    "adam_beta1": to("optim.beta1", float),
    "adam_beta2": to("optim.beta2", float),
    "adam_epsilon": to("optim.epsilon", float),
    "max_grad_norm": lambda value, _: mapped({"train.gradient_clip": float(value) or None}),
    "label_smoothing_factor": unless_off("the loss is the cross-entropy of the text"),
    "neftune_noise_alpha": unless_off("no noise is added"),
    "bf16": _half("bf16"),
    "fp16": _half("fp16"),
    "tf32": instead("device.precision: auto decides"),
    "torch_compile": lambda value, _: (
        mapped({"device.compile": True}) if value else replaced("device.compile: auto")
    ),
    "gradient_checkpointing": _checkpointing,
    "activation_checkpointing": _checkpointing,
    "use_cpu": _cpu,
    "no_cuda": _cpu,
    "seed": to("train.seed"),
    "data_seed": unless_off("train.seed is the seed of weights and data order", (None,)),
    "full_determinism": instead("equal seeds give equal runs on one machine"),
    "logging_steps": _every("train.log_every_steps", "logging_strategy"),
    "eval_steps": _every("eval.every_steps", "eval_strategy"),
    "save_steps": _every("checkpoint.every_steps", "save_strategy"),
    "save_total_limit": to("checkpoint.keep_last"),
    "load_best_model_at_end": lambda value, _: (
        mapped({"checkpoint.keep_best": True}) if value else replaced("checkpoint.keep_best")
    ),
    "save_only_model": unless_off("a checkpoint can always be resumed from"),
    "ddp_backend": to("device.backend"),
    "ddp_timeout": _timeout,
    "dataloader_pin_memory": to("device.pin_memory"),
    "run_name": to("name"),
    "output_dir": instead("llmtrain train --out DIR"),
    "overwrite_output_dir": instead("another --out; nothing is overwritten"),
    "resume_from_checkpoint": instead("llmtrain train --resume auto"),
    "logging_strategy": instead("train.log_every_steps"),
    "save_strategy": instead("checkpoint.every_steps or checkpoint.every_minutes"),
    **_group(
        instead("eval.every_steps; a run is evaluated at its end in any case"),
        ("eval_strategy", "evaluation_strategy", "do_train", "do_eval", "eval_on_start"),
    ),
    **_group(
        instead("planned with the micro-batch"),
        ("per_device_eval_batch_size", "auto_find_batch_size", "per_gpu_train_batch_size"),
    ),
    **_group(instead("the lowest validation loss"), ("metric_for_best_model", "greater_is_better")),
    **_group(
        instead("llmtrain train --nproc N, or torchrun"),
        ("local_rank", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    ),
    "report_to": trackers,
    **_group(
        _LOGS,
        (
            *("logging_dir", "logging_first_step", "log_on_each_node", "project"),
            *("log_level", "log_level_replica", "disable_tqdm", "logging_nan_inf_filter"),
            *("include_num_input_tokens_seen", "include_tokens_per_second"),
            *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ),
    ),
    **_group(
        _LOADER,
        (
            *("dataloader_num_workers", "dataloader_drop_last", "dataloader_persistent_workers"),
            *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
            *("dataloader_in_order", "group_by_length", "length_column_name"),
            *("train_sampling_strategy", "remove_unused_columns"),
        ),
    ),
    **_group(
        _HUB,
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
            *("hub_always_push", "hub_revision", "push_to_hub_model_id", "push_to_hub_token"),
            "push_to_hub_organization",
        ),
    ),
    **_group(
        _FSDP,
        (
            *("fsdp", "fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
            *("deepspeed", "parallelism_config", "ddp_static_graph"),
        ),
    ),
    **_group(
        instead("device.compile: auto"),
        ("torch_compile_backend", "torch_compile_mode", "jit_mode_eval"),
    ),
    **_group(
        instead("device.activation_checkpointing: auto"),
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ),
    **_group(
        instead("kernels are chosen by measurement"), ("use_liger_kernel", "liger_kernel_config")
    ),
    **_group(
        instead("device.precision: auto"),
        ("bf16_full_eval", "fp16_full_eval", "half_precision_backend", "fp16_opt_level"),
    ),
    **_group(
        _TRAINER,
        (
            *("average_tokens_across_devices", "use_cache", "torch_empty_cache_steps"),
            *("prediction_loss_only", "eval_delay", "eval_do_concat_batches", "do_predict"),
            *("eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics"),
            *("batch_eval_metrics", "save_on_each_node", "enable_jit_checkpoint"),
            *("ignore_data_skip", "restore_callback_states_from_checkpoint", "label_names"),
            *("accelerator_config", "debug", "skip_memory_metrics", "past_index", "mp_parameters"),
            *("save_safetensors", "use_legacy_prediction_loop", "use_ipex", "use_mps_device"),
            *("tpu_num_cores", "tpu_metrics_debug", "torchdynamo", "ray_scope", "xpu_backend"),
            *("include_inputs_for_metrics", "eval_use_gather_object", "dispatch_batches"),
            *("split_batches", "_n_gpu", "__cached__setup_devices", "distributed_state"),
        ),
    ),
}
