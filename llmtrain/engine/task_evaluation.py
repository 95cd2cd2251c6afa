"""Scores of a model on benchmark tasks, by lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from llmtrain.data.sources.resolve import BUILTIN_PYTHON, resolve_sources
from llmtrain.engine.inference import Trained, load_trained
from llmtrain.errors import DataError, UsageError
from llmtrain.eval.own_tasks import OWN_TASKS
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.yaml_text import parse_document
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.task_scores import TaskScore, save_scores
from llmtrain.untrusted import problem_of, read_bytes

_TASK_BYTES = 1 << 20
_DRAWS = 1000  # of the standard error, where there is no formula
_ONE_PROCESS = "DISABLE_MULTIPROC"  # a variable that the harness reads
_HINT = "--tasks python_identifiers, --tasks FILE.yaml, or a name of lm-evaluation-harness"


def evaluate_tasks(
    run: str,
    tasks: Sequence[str],
    device: DeviceSection,
    observe: Observer,
    check_stop: Callable[[], None],
    limit: int | None = None,
) -> tuple[Trained, list[TaskScore]]:
    """Return the model and its scores; they are saved in its run, if it lies in one.

    `limit`: at most as many questions of each task. Raises UsageError for unknown tasks and a
    missing harness, DataError where the data of a task cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "--tasks needs lm-evaluation-harness, which is not installed",
            hint="pip install 'llmtrain[tasks]'",
        )
    specs = [_spec(task) for task in tasks]
    trained = load_trained(run, device, observe)
    scores = _evaluate(trained, specs, check_stop, limit)
    if trained.record is not None:
        save_scores(RunDirectory(trained.checkpoint.parent.parent), trained.checkpoint.name, scores)
    return trained, scores


def _spec(task: str) -> str | dict[str, Any]:
    """Return what the harness takes: the name of a task, or its configuration."""
    if task in OWN_TASKS:
        return _own_task(task)
    path = Path(task)
    if path.suffix in (".yaml", ".yml"):
        return _task_of_file(path)
    return task


def _task_of_file(path: Path) -> dict[str, Any]:
    """Read a task's configuration as plain YAML: what would run code is refused."""
    try:
        text = read_bytes(path, _TASK_BYTES, follow_links=True).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"--tasks {path} cannot be read: {problem_of(error)}") from None
    values = parse_document(text, str(path))
    if not isinstance(values, dict) or not isinstance(values.get("task"), str):
        raise UsageError(f"--tasks {path} has no key task, which names it", hint="task: my_task")
    if values.get("unsafe_code"):
        raise UsageError(f"--tasks {path}: unsafe_code runs what a model wrote", hint="remove it")
    return values


def _own_task(name: str) -> dict[str, Any]:
    def questions(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        corpus = resolve_sources([BUILTIN_PYTHON])
        found = OWN_TASKS[name](document.text for document in corpus.documents())
        return {"test": Dataset.from_list([question.document() for question in found])}

    return {
        "task": name,
        "custom_dataset": questions,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
    }


def _evaluate(
    trained: Trained,
    specs: Sequence[str | dict[str, Any]],
    check_stop: Callable[[], None],
    limit: int | None,
) -> list[TaskScore]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from llmtrain.eval.harness_model import HarnessModel

    needs_all = any(isinstance(spec, str) for spec in specs)
    manager = TaskManager(include_defaults=needs_all)
    for spec in specs:
        if isinstance(spec, str) and spec not in manager.all_tasks:
            raise UsageError(f"--tasks {spec}: there is no such task", hint=_HINT)
    model = HarnessModel(
        trained.model,
        trained.tokenizer,
        trained.plan.precision.value,
        trained.autocast,
        check_stop,
    )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        # Bars and words, which know neither --quiet nor that stdout is one document.
        with _in_this_process(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            found = manager.load(list(specs))
            results = lm_eval.evaluate(
                model, found, limit=limit, bootstrap_iters=_DRAWS, log_samples=False
            )
    except (OSError, ValueError) as error:  # data that is neither here nor can be downloaded
        first = str(error).strip().splitlines()[:1]
        raise DataError(
            f"a task cannot be evaluated: {' '.join(first)}",
            hint="its data has to be here or reachable; python_identifiers and python_brackets "
            "need none",
        ) from error
    return [
        score
        for name, task in found["tasks"].items()
        for score in _scores(name, task, results["results"][name], limit)
    ]


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Let the harness draw its samples here within the block.

    Otherwise it forks a pool of processes beside torch's threads, whose locks they inherit: now and
    then they never end.
    """
    before = os.environ.get(_ONE_PROCESS)
    os.environ[_ONE_PROCESS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONE_PROCESS]
        else:
            os.environ[_ONE_PROCESS] = before


def _scores(name: str, task: Any, values: Mapping[str, Any], limit: int | None) -> list[TaskScore]:
    """Return a score for each metric, with chance where answers are chosen from a few."""
    documents = list(task.eval_docs)[:limit]
    chance = _chance(task, documents) if task.OUTPUT_TYPE == "multiple_choice" else None
    found = []
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or not kind or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        is_accuracy = metric in ("acc", "acc_norm")
        found.append(
            TaskScore(
                task=name,
                metric=metric if kind == "none" else f"{metric} ({kind})",
                value=float(value),
                standard_error=float(error)
                if isinstance(error, (int, float)) and math.isfinite(error)
                else None,
                chance=chance if is_accuracy else None,
                examples=len(documents),
            )
        )
    return found


def _chance(task: Any, documents: Sequence[Any]) -> float | None:
    if not documents:
        return None
    return sum(1 / len(task.doc_to_choice(each)) for each in documents) / len(documents)
