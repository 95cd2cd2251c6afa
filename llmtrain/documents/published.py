"""Every document and line that is published, by name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from llmtrain.documents import (
    bench,
    bug_report,
    cluster,
    compare,
    data,
    error,
    evaluations,
    export,
    files,
    machines,
    memory,
    plans,
    profiles,
    runs,
    sweep,
    tokenizer,
)
from llmtrain.documents.base import Document, Part, Text, key, schema_of


class Listed(Part):
    """A published schema."""

    name: Text = key("what `llmtrain schema NAME` takes")
    describes: Text = key("of what, in a line")


class SchemaList(Document):
    """`llmtrain schema`, without a name."""

    schemas: list[Listed] = key("in the order of docs/reference/json.md")


# By the words of the command, or the name of the file.
PUBLISHED: dict[str, type[BaseModel]] = {
    "train": runs.Train,
    "train-dry-run": plans.TrainDryRun,
    "finetune": runs.Finetune,
    "finetune-dry-run": plans.FinetuneDryRun,
    "eval": evaluations.Eval,
    "eval-compared": evaluations.EvalCompared,
    "eval-tasks": evaluations.EvalTasks,
    "generate": runs.Generate,
    "serve": runs.Serve,
    "export": export.Export,
    "memory": memory.Memory,
    "memory-profile": memory.MemoryProfile,
    "device-info": machines.DeviceInfo,
    "device-bench": bench.DeviceBench,
    "profiles-list": profiles.ProfilesList,
    "profiles-show": profiles.ProfilesShow,
    "profiles-show-resolved": profiles.ProfilesShowResolved,
    "profiles-validate": profiles.ProfilesValidate,
    "profiles-convert": profiles.ProfilesConvert,
    "runs-list": runs.RunsList,
    "runs-show": runs.RunsShow,
    "runs-compare": compare.RunsCompare,
    "runs-report": runs.RunsReport,
    "runs-tag": runs.RunsTag,
    "runs-rm": runs.RunsRm,
    "runs-verify": runs.RunsVerify,
    "runs-prove-resume": runs.RunsProveResume,
    "data-prepare": data.DataPrepare,
    "data-cache-list": data.DataCacheList,
    "data-cache-clear": data.DataCacheClear,
    "tokenizer-train": tokenizer.TokenizerTrain,
    "tokenizer-import": tokenizer.TokenizerImport,
    "tokenizer-encode": tokenizer.TokenizerEncode,
    "tokenizer-decode": tokenizer.TokenizerDecode,
    "tokenizer-inspect": tokenizer.TokenizerInspect,
    "data-inspect": data.DataInspect,
    "cluster-script": cluster.ClusterScript,
    "cluster-plan": cluster.ClusterPlan,
    "report-bug": bug_report.ReportBug,
    "data-inspect-chat": data.DataInspectChat,
    "sweep": sweep.Sweep,
    "schema": SchemaList,
    "error": error.Error,
    "metrics.jsonl": files.MetricsLine,
    "samples.jsonl": files.SampleLine,
    "run.yaml": files.RunFile,
}


def published_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of what is published as `name`. Raises KeyError."""
    return schema_of(name, PUBLISHED[name])


def describes(name: str) -> str:
    """Return one line on what the document describes. Raises KeyError."""
    return " ".join((PUBLISHED[name].__doc__ or "").split())
