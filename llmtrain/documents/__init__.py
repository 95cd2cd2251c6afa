"""Every document and line that is published, described key by key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from llmtrain.documents import data, files, inspection, memory, plans, results
from llmtrain.documents.base import schema_of

# By the words of the command, or the name of the file.
PUBLISHED: dict[str, type[BaseModel]] = {
    "train": results.Train,
    "train-dry-run": plans.TrainDryRun,
    "eval": results.Eval,
    "generate": results.Generate,
    "memory": memory.Memory,
    "memory-profile": memory.MemoryProfile,
    "device-info": plans.DeviceInfo,
    "device-bench": results.DeviceBench,
    "profiles-list": plans.ProfilesList,
    "profiles-show": plans.ProfilesShow,
    "profiles-show-resolved": plans.ProfilesShowResolved,
    "profiles-validate": plans.ProfilesValidate,
    "runs-list": results.RunsList,
    "runs-show": results.RunsShow,
    "runs-verify": results.RunsVerify,
    "runs-prove-resume": results.RunsProveResume,
    "data-prepare": data.DataPrepare,
    "data-cache-list": data.DataCacheList,
    "data-cache-clear": data.DataCacheClear,
    "tokenizer-train": results.TokenizerTrain,
    "tokenizer-import": results.TokenizerImport,
    "tokenizer-encode": results.TokenizerEncode,
    "tokenizer-decode": results.TokenizerDecode,
    "tokenizer-inspect": results.TokenizerInspect,
    "data-inspect": inspection.DataInspect,
    "schema": results.SchemaList,
    "error": results.Error,
    "metrics.jsonl": files.MetricsLine,
    "samples.jsonl": files.SampleLine,
    "run.yaml": files.RunFile,
}


def published_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of what is published as `name`. Raises KeyError."""
    return schema_of(name, PUBLISHED[name])


def describes(name: str) -> str:
    """What it is of, in a line. Raises KeyError."""
    return " ".join((PUBLISHED[name].__doc__ or "").split())
