"""Layers of the package: imports point down, and each kind of access has one place."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import llmtrain

ROOT = Path(llmtrain.__file__).parent
# From the bottom up. Rooms of one layer do not import each other.
LAYERS = (
    {"", "errors", "units", "files", "choice", "progress", "magic", "interrupts", "pipes"},
    {"untrusted", "children"},
    {"profile"},
    {"machine"},
    {"ops"},
    {"model", "data", "tokenizer", "recipe"},
    {"plan"},
    {"generate"},
    {"eval", "export", "serve"},
    {"prepare"},
    {"train"},
    {"report", "tracking"},
    {"engine"},
    {"documents"},
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
PURE = (
    *(
        "profile",
        "recipe",
        "plan",
        "choice",
        "progress",
        "errors",
        "units",
        "files",
        "untrusted",
        "magic",
    ),
    *("machine/facts", "machine/assume", "machine/memory_pressure", "ops/chunk_sizes"),
)
# The parts of `plan` that measure, or read and write files.
IMPURE = {
    *(
        "plan/cpu_benchmarks",
        "plan/gpu_benchmarks",
        "plan/step_benchmarks",
        "plan/kernel_probes",
        "plan/probe",
        "plan/past_runs",
        "plan/process_benchmarks",
        "plan/exchange_benchmarks",
    ),
    *("plan/auto_profile", "plan/memory_watch"),
}
# Modules of `machine` that only define values and functions of values.
VALUES = {"facts", "assume", "memory_pressure", "memory_readings", "out_of_memory"}


# They run matrix products, read tensors' sizes, or ask torch for devices.
NEEDS_TORCH = {
    *("machine/gpu", "machine/matmul_timing", "machine/native", "machine/out_of_memory"),
    "machine/probe",
}


@dataclass(frozen=True)
class Source:
    """A file of the package: its path below the package without `.py`, and its syntax tree."""

    name: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The room it belongs to; empty for the package's own `__init__`."""
        first = self.name.split("/")[0]
        return "" if first == "__init__" else first


RUNS_WHAT_IT_READS = {
    *("pickle", "_pickle", "cPickle", "marshal", "shelve", "dbm", "copyreg", "xmlrpc"),
    *("dill", "cloudpickle", "joblib", "jsonpickle", "runpy", "imp", "code", "codeop"),
}
RUNS_ITS_ARGUMENT = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.export.load"),
    *("np.load", "numpy.load", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
}
# They read what this process or the kernel wrote, or apply bounds of their own.
READS_WHAT_IT_TRUSTS = {
    "untrusted",  # implements the bounds
    "data/formats/json_text",  # lines of a corpus, bounded there
    "train/checkpoint/tensors",  # after the header was validated
    "machine/cpu",
    "machine/cgroup",
    "machine/core_wait",
    "machine/energy",
    "machine/memory_usage",
    "machine/numa",
    "machine/rlimits",
    "machine/measurement_cache",  # the key of an entry
    "train/divergence/rewind",
    "train/distributed/world",
    "engine/prove_resume/observe",  # results of its own trials
    "engine/prove_resume/kill",
    "tokenizer/train_process",  # its own arguments
    "children",  # what its own child says
    "cli/topics",  # pages that came with the package
    "engine/calibrate",
    "train/distributed/launch",
    "train/distributed/failures",  # a message of another rank
}
Law = Callable[[Source], Iterator[tuple[ast.AST, str]]]


def parse(name: str, text: str) -> Source:
    return Source(name, ast.parse(text))


SOURCES = [
    parse(path.relative_to(ROOT).with_suffix("").as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
]


def imported(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Yield the dotted name of everything that is imported anywhere in the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.name}:{node.lineno}: a relative import"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` of an attribute chain, or "" if it does not start with a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def called(source: Source) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def imports_that_point_up(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find imports of a room that is not on a lower layer."""
    for node, module in imported(source):
        words = module.split(".")
        if words[0] != "llmtrain":
            continue
        target = words[1] if len(words) > 1 and words[1] in RANK else ""
        if target != source.part and RANK[target] >= RANK[source.part]:
            yield node, f"imports {module}"


def impure_imports(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find imports of heavy or hardware modules by profiles, plans and other pure code."""
    if source.name in IMPURE or not f"{source.name}/".startswith(tuple(f"{p}/" for p in PURE)):
        return
    for node, module in imported(source):
        words = module.split(".")
        heavy = words[0] in {"torch", "numpy", "psutil", "subprocess", "platform"}
        hardware = words[:2] == ["llmtrain", "machine"] and not VALUES & set(words)
        if heavy or hardware:
            yield node, f"imports {module}"


def unsafe_loading(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find what may run the contents of a file: as a pickle, as code or as a command."""
    for node, module in imported(source):
        if module.split(".")[0] in RUNS_WHAT_IT_READS:
            yield node, f"imports {module}"
    for call, name in called(source):
        if name in RUNS_ITS_ARGUMENT or (name.startswith("dist.") and "object" in name):
            yield call, f"calls {name}"
        if name == "importlib.import_module" and not isinstance(call.args[0], ast.Constant):
            yield call, "imports a module by a variable name"
        for keyword in call.keywords:
            if keyword.arg in {"allow_pickle", "shell", "weights_only", "trust_remote_code"}:
                yield call, f"passes {keyword.arg}"
    for node in ast.walk(source.tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        if name.startswith("yaml.") and name.endswith("Loader") and name != "yaml.SafeLoader":
            yield node, f"uses {name}"


def unbounded_reading(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find reads of files that do not go through `llmtrain.untrusted`."""
    if source.name in READS_WHAT_IT_TRUSTS:
        return
    for call, name in called(source):
        if name in {"json.load", "json.loads"} or name.endswith((".safe_load", ".load_file")):
            yield call, f"calls {name}"
        if isinstance(call.func, ast.Attribute) and call.func.attr in {"read_text", "read_bytes"}:
            yield call, f"calls {call.func.attr}"


def printing(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find output outside of the command line."""
    if source.part == "cli":
        return
    for call, name in called(source):
        if name == "print" or name.endswith(".print"):
            yield call, f"calls {name}"
    for node in ast.walk(source.tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        if name in {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}:
            yield node, f"uses {name}"
    for node, module in imported(source):
        if module.split(".")[0] in {"rich", "typer"}:
            yield node, f"imports {module}"


def hardware_queries(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find queries of the hardware outside of `machine`."""
    if source.part == "machine":
        return
    for node in ast.walk(source.tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        if name in {"torch.cuda", "torch.backends", "torch.mps", "torch.accelerator", "torch.xpu"}:
            yield node, f"uses {name}"
        if name in {"os.cpu_count", "os.sched_getaffinity", "psutil.virtual_memory"}:
            yield node, f"uses {name}"


def hardware_queries_but_selection(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find hardware queries; training may select its GPU, but not ask which there are."""
    allowed = {
        id(node.value)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and dotted(node) == "torch.cuda.set_device"
    }
    permitted = source.part in {"train", "engine"}
    for node, what in hardware_queries(source):
        if not (permitted and id(node) in allowed):
            yield node, what


def eager_torch(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find imports of torch by importing `machine`, apart from the modules that need it."""
    if source.part != "machine" or source.name in NEEDS_TORCH:
        return
    for node in source.tree.body:
        for _, module in imported(Source(source.name, ast.Module([node], []))):
            deferred = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)
            if module.split(".")[0] == "torch" and not deferred:
                yield node, f"imports {module}"


def broad_excepts(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Find handlers of Exception, and of BaseException that do not raise it again."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {"" if kind is None else dotted(kind) for kind in kinds}
        last = node.body[-1]
        cleans_up = isinstance(last, ast.Raise) and last.exc is None
        if names & {"", "Exception"} or ("BaseException" in names and not cleans_up):
            yield node, "catches everything"


def imported_modules(source: Source, names: Collection[str]) -> set[str]:
    """Return the files of the package that `source` imports, except under TYPE_CHECKING."""
    only_for_types = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node, module in imported(source):
        path = module.removeprefix("llmtrain.").replace(".", "/")
        candidates = (path, path.rpartition("/")[0])
        target = next((name for name in candidates if name in names), None)
        if target is not None and id(node) not in only_for_types:
            found.add(target)
    return found - {source.name}


def cycles(sources: Iterable[Source]) -> list[tuple[str, ...]]:
    """Return the groups of files that import each other, directly or through others."""
    named = {source.name.removesuffix("/__init__"): source for source in sources}
    imports = {name: imported_modules(source, named) for name, source in named.items()}
    reached = {name: _reachable(name, imports) for name in imports}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in imports
        if name in reached[name]
    }
    return sorted(groups)


def _reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(imports[name])
    return reached


LAWS: tuple[Law, ...] = (
    imports_that_point_up,
    impure_imports,
    unsafe_loading,
    unbounded_reading,
    printing,
    hardware_queries_but_selection,
    eager_torch,
    broad_excepts,
)


def test_every_part_has_a_layer() -> None:
    assert {source.part for source in SOURCES} <= set(RANK)
    assert len(SOURCES) > 50


def test_no_files_import_each_other() -> None:
    assert cycles(SOURCES) == []


def test_a_cycle_is_seen_also_within_functions() -> None:
    texts = {
        "cli/a": "def f():\n    from llmtrain.cli.b import g",
        "cli/b": "import llmtrain.cli.c",
        "cli/c": "from llmtrain.cli import a",
        "cli/d": "if TYPE_CHECKING:\n    from llmtrain.cli.e import E",
        "cli/e": "from llmtrain.cli.d import D",
    }
    assert cycles(parse(*item) for item in texts.items()) == [("cli/a", "cli/b", "cli/c")]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_no_file_breaks_the_law(law: Law) -> None:
    found = [
        f"llmtrain/{source.name}.py:{getattr(node, 'lineno', 0)}: {what}"
        for source in SOURCES
        for node, what in law(source)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("law", "name", "text"),
    [
        (imports_that_point_up, "model/a", "import llmtrain.tokenizer.piece"),
        (imports_that_point_up, "data/a", "def f():\n    from llmtrain.tokenizer import Tokenizer"),
        (imports_that_point_up, "profile/a", "from llmtrain import machine"),
        (imports_that_point_up, "units", "from llmtrain.errors import UsageError"),
        (imports_that_point_up, "engine/a", "from llmtrain.cli.output import Output"),
        (impure_imports, "profile/a", "def f():\n    import torch"),
        (
            impure_imports,
            "plan/planner",
            "from llmtrain.machine.memory_usage import resident_bytes",
        ),
        (impure_imports, "plan/memory", "from llmtrain.machine import probe"),
        (unsafe_loading, "train/a", "import pickle"),
        (unsafe_loading, "train/a", "torch.load(path)"),
        (unsafe_loading, "cli/a", "eval('1')"),
        (unsafe_loading, "data/a", "np.load(path, allow_pickle=False)"),
        (unsafe_loading, "profile/yaml_text", "yaml.load(text, _Loader)"),
        (unsafe_loading, "train/a", "class L(yaml.FullLoader): pass"),
        (unsafe_loading, "train/a", "np.load(path)"),
        (unsafe_loading, "train/a", "def f():\n    from marshal import loads"),
        (unsafe_loading, "train/a", "dist.broadcast_object_list(values)"),
        (unsafe_loading, "profile/a", "importlib.import_module(profile.model.name)"),
        (unsafe_loading, "machine/a", "subprocess.run(command, shell=True)"),
        (unbounded_reading, "train/a", "json.loads(text)"),
        (unbounded_reading, "train/a", "(directory / 'state.json').read_text()"),
        (unbounded_reading, "train/a", "safetensors.torch.load_file(path)"),
        (printing, "engine/a", "print(1)"),
        (printing, "train/a", "console.print(1)"),
        (printing, "train/a", "sys.stderr.write('a')"),
        (hardware_queries_but_selection, "ops/a", "torch.cuda.is_available()"),
        (hardware_queries_but_selection, "train/a", "torch.cuda.device_count()"),
        (hardware_queries_but_selection, "model/a", "torch.cuda.set_device(0)"),
        (hardware_queries_but_selection, "plan/planner", "os.cpu_count()"),
        (imports_that_point_up, "machine/a", "from llmtrain.model.decoder import Decoder"),
        (imports_that_point_up, "machine/a", "import llmtrain.train.loop"),
        (imports_that_point_up, "profile/a", "def f():\n    from llmtrain.ops import loss"),
        (eager_torch, "machine/a", "import torch.nn"),
        (broad_excepts, "train/a", "try:\n    f()\nexcept:\n    raise"),
        (broad_excepts, "train/a", "try:\n    f()\nexcept (OSError, Exception):\n    raise"),
        (broad_excepts, "train/a", "try:\n    f()\nexcept BaseException:\n    pass"),
    ],
)
def test_a_law_sees_what_breaks_it(law: Law, name: str, text: str) -> None:
    assert list(law(parse(name, text)))


@pytest.mark.parametrize(
    ("law", "name", "text"),
    [
        (imports_that_point_up, "train/a", "from llmtrain.tokenizer import Tokenizer"),
        (imports_that_point_up, "model/a", "from llmtrain.model.decoder import Decoder"),
        (unsafe_loading, "eval/a", "model.eval()"),
        (unsafe_loading, "model/a", "block.compile(dynamic=False)"),
        (unsafe_loading, "machine/a", "importlib.util.find_spec('triton')"),
        (unbounded_reading, "train/a", "json.dumps(value)"),
        (printing, "cli/a", "sys.stdout.write('a')"),
        (hardware_queries_but_selection, "train/a", "torch.cuda.set_device(device)"),
        (eager_torch, "machine/a", "def f():\n    import torch"),
        (eager_torch, "machine/a", "if TYPE_CHECKING:\n    import torch"),
        (broad_excepts, "train/a", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    ],
)
def test_a_law_allows_what_is_meant(law: Law, name: str, text: str) -> None:
    assert list(law(parse(name, text))) == []


def loaded_after(statement: str) -> set[str]:
    """Return the modules that a new process has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_command_line_starts_without_heavy_modules() -> None:
    loaded = loaded_after("import llmtrain.cli.app")
    assert "llmtrain.cli.app" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "rich"}


def test_profiles_and_plans_need_no_torch() -> None:
    loaded = loaded_after("import llmtrain.profile.load, llmtrain.plan.planner")
    assert "pydantic" in loaded
    assert not loaded & {"torch", "numpy", "psutil"}


def test_the_machine_is_known_without_torch_but_for_what_needs_it() -> None:
    names = [f"llmtrain.{source.name.replace('/', '.')}" for source in SOURCES]
    heavy = {f"llmtrain.{name.replace('/', '.')}" for name in NEEDS_TORCH}
    rooms = ("llmtrain.machine.", "llmtrain.profile.", "llmtrain.recipe.")
    light = [name for name in names if name.startswith(rooms) and name not in heavy]
    loaded = loaded_after("import " + ", ".join(light).replace(".__init__", ""))
    assert not loaded & {"torch", "numpy"}


def test_text_is_read_without_torch() -> None:
    loaded = loaded_after("import llmtrain.prepare.train_tokenizer, llmtrain.prepare.dataset")
    assert "sentencepiece" in loaded
    assert "torch" not in loaded


def test_nothing_is_compiled_by_importing() -> None:
    # torch's compiler takes as long to import as everything else, and 60 MB.
    compiler = {"torch._dynamo", "torch._inductor", "sympy"} - loaded_after("import torch")
    loaded = loaded_after("import llmtrain.engine.train_run, llmtrain.engine.api")
    assert "llmtrain.model.timing" in loaded
    assert not loaded & compiler
