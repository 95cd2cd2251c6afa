"""nanoGPT's `config/*.py`: assignments of plain values, parsed and never run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from llmtrain.errors import UsageError
from llmtrain.profile.convert.rules import (
    Became,
    Old,
    Rule,
    Unevaluated,
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

# Its train.py's defaults, as far as they change what is trained.
DEFAULTS: Mapping[str, Any] = {
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "learning_rate": 6e-4,
    "max_iters": 600_000,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 2000,
    "lr_decay_iters": 600_000,
    "min_lr": 6e-5,
    "dataset": "openwebtext",
}
_LARGEST = 2**63
_DEEPEST = 100  # levels of an expression
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def read_assignments(text: str, origin: str) -> dict[str, Any]:
    """Return the values that a Python file assigns at its top level; nothing is executed.

    Numbers, text, lists, and sums, differences, products and quotients of numbers are evaluated.
    Raises UsageError where the text is not Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{origin} is not Python: {str(error)[:120]}") from None
    values: dict[str, Any] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                values[name] = _value(expression, text)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as expression):
                values[name] = _value(expression, text)
    return values


def _value(expression: ast.expr, text: str) -> Any:
    try:
        return _evaluated(expression, _DEEPEST)
    except (ArithmeticError, TypeError, ValueError):
        return Unevaluated(ast.get_source_segment(text, expression) or "")


def _evaluated(node: ast.expr, levels: int) -> Any:
    """Return a plain value. Raises ValueError for what is none."""
    if levels == 0:
        raise ValueError("nested too deeply")
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, levels)
        case ast.BinOp(left=left, op=how, right=right) if type(how) in _OPERATORS:
            found = _OPERATORS[type(how)](_number(left, levels), _number(right, levels))
            return _bounded(found)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_evaluated(part, levels - 1) for part in parts]
    raise ValueError("not a plain value")


def _number(node: ast.expr, levels: int) -> int | float:
    value = _evaluated(node, levels - 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return value


def _bounded(value: Any) -> Any:
    if isinstance(value, (int, float)) and not abs(value) < _LARGEST:
        raise ValueError("too large a number")
    return value


def _tokens_per_step(_: Any, old: Old) -> Became:
    accumulation, batch, context = (
        int(old[key]) for key in ("gradient_accumulation_steps", "batch_size", "block_size")
    )
    return mapped(
        {"train.tokens_per_step": accumulation * batch * context},
        f"accumulation {accumulation} × batch {batch} × context {context}; how many sequences fit "
        "at once is planned (train.micro_batch: auto)",
    )


def _horizon(value: Any, old: Old) -> Became:
    if not old["decay_lr"]:
        return replaced("decay_lr is off")
    if value == old["max_iters"]:
        return replaced("the rate falls until the end of the run, as here")
    return dropped(
        f"the rate falls until the end of the run, which is step {old['max_iters']}: set "
        "train.steps for another"
    )


def _decays(value: Any, _: Old) -> Became:
    if value:
        return mapped({"optim.schedule": "cosine"}, "wsd, the default here, is as good")
    return mapped({"optim.schedule": "wsd", "optim.decay_fraction": 0.0})


def _lowest(value: Any, old: Old) -> Became:
    if not old["decay_lr"]:
        return replaced("decay_lr is off")
    share = float(value) / float(old["learning_rate"])
    return mapped({"optim.final_learning_rate_fraction": round(share, 6)}, "of the peak")


def _dataset(value: Any, _: Old) -> Became:
    if value == "openwebtext":
        return mapped(
            {"data.sources": ["hf://Skylion007/openwebtext"], "model.vocab_size": 50_304},
            "with a tokenizer of as many pieces, trained on the text",
        )
    return dropped(f"data/{value}/ holds token ids; name its text with --data FILE")


def _initial(value: Any, _: Old) -> Became:
    if value == "scratch":
        return replaced("random weights, as here")
    if value == "resume":
        return replaced("llmtrain train --resume auto")
    return dropped(
        "GPT-2 has learned positions, biases and GELU, which the model here has no form for; "
        "model.init_from takes Qwen3 and Llama forms"
    )


def _evaluated_tokens(value: Any, old: Old) -> Became:
    tokens = int(value) * int(old["batch_size"]) * int(old["block_size"])
    return mapped({"eval.tokens": tokens}, "eval_iters × batch_size × block_size")


def _device(value: Any, _: Old) -> Became:
    return mapped({"device.kind": str(value).partition(":")[0]})


def _precision(value: Any, _: Old) -> Became:
    return mapped({"device.precision": _PRECISIONS[value]}, "auto chooses by measurement")


_WANDB = instead("metrics.jsonl in the run directory, llmtrain runs show")

RULES: Mapping[str, Rule] = {
    "out_dir": instead("llmtrain train --out DIR"),
    "eval_interval": to("eval.every_steps"),
    "log_interval": to("train.log_every_steps"),
    "eval_iters": _evaluated_tokens,
    "eval_only": unless_off("llmtrain eval RUN"),
    "always_save_checkpoint": instead("checkpoint.keep_last and checkpoint.keep_best"),
    "init_from": _initial,
    "wandb_log": lambda value, old: trackers("wandb" if value is True else None, old),
    "wandb_project": _WANDB,
    "wandb_run_name": _WANDB,
    "dataset": _dataset,
    "gradient_accumulation_steps": _tokens_per_step,
    "batch_size": _tokens_per_step,
    "block_size": to("model.context"),
    "n_layer": to("model.num_layers"),
    "n_head": to("model.num_heads"),
    "n_embd": lambda value, _: mapped(
        {"model.hidden_size": value, "model.intermediate_size": gated_width(4 * int(value))},
        "the inner width is 8/3 of it: SwiGLU has three matrices where GPT-2's MLP has two",
    ),
    "dropout": unless_off("there is no dropout; optim.weight_decay regularises"),
    "bias": unless_off("there are no biases"),
    "learning_rate": lambda value, _: mapped(
        {"optim.learning_rate": float(value), "optim.name": "adamw"},
        "leave both out for Muon with the recipe's rates (auto)",
    ),
    "max_iters": to("train.steps"),
    "weight_decay": to("optim.weight_decay", float),
    "beta1": to("optim.beta1", float),
    "beta2": to("optim.beta2", float),
    "grad_clip": lambda value, _: mapped({"train.gradient_clip": float(value) or None}),
    "decay_lr": _decays,
    "warmup_iters": to("optim.warmup_steps"),
    "lr_decay_iters": _horizon,
    "min_lr": _lowest,
    "backend": to("device.backend"),
    "device": _device,
    "dtype": _precision,
    "compile": to("device.compile"),
    "seed": to("train.seed"),
    "meta_vocab_size": never("read from the tokenizer"),
}
