"""tests/ mirrors llmtrain/: a reader of a file finds its tests by its path."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import llmtrain
from tests.checkout import ROOT

TESTS, PACKAGE = ROOT / "tests", Path(llmtrain.__file__).parent
# Folders that mirror no room.
APART = {
    "compatibility": "run directories of earlier versions",
    "benchmarks": "programs that measure; their tests are beside them",
    "faults": "programs that break things; their short forms are beside them",
    "docs": "pages of docs/",
}
# Test modules that span several files of their room: a behaviour, or every case of a kind.
SPANNING = {
    "test_conda": ".ci/conda/recipe.yaml",
    "test_project_files": "CITATION.cff, .github",
    "test_constraints": "constraints.txt",
    "test_default_signals": "how the tests themselves start children",
    "test_downstream": "a program with the annotations of the package",
    "test_examples": "docs/examples",
    "test_function_length": "the source of the whole package",
    "test_fixtures": "the types of all fixtures",
    "test_layers": "imports of the whole package",
    "test_mirror": "this test",
    "test_platforms": "the source of the whole package",
    "test_simulated_windows": "commands on a simulated Windows",
    "test_programs": "programs beside the tests",
    "cli/data/test_page": "docs/guides/data.md",
    "cli/data/test_remote": "commands that read s3:// and https://",
    "cli/data/test_sources": "data in every command",
    "report/test_browser": "the report in a browser",
    "cli/test_dpo": "finetune on preferences, and their evaluation",
    "cli/test_device_bench": "device bench, from the command to its cache",
    "cli/test_documents": "documents that commands print",
    "cli/test_explain": "the plan that every command shows alike",
    "cli/test_errors": "every error of every command",
    "cli/test_help": "--help of every command",
    "cli/test_machines": "device info on machines that are not here",
    "cli/test_public_surface": "docs/reference/public_surface.txt",
    "cli/test_schemas": "docs/reference/json.md and every document",
    "cli/test_use": "eval and generate",
    "cli/tokenizer/test_tokenizer": "all tokenizer commands",
    "data/formats/test_broken": "damaged files of every format",
    "data/formats/test_memory": "memory that reading takes, of every format",
    "data/formats/test_round_trip": "every format gives the text back",
    "data/sources/test_file_names": "names that are not UTF-8, from a directory to run.yaml",
    "data/test_damage": "damaged shards, from build to windows",
    "data/test_hostile": "hostile text, from source to shards",
    "machine/test_omp": "OMP_NUM_THREADS, from the environment to the plan",
    "model/test_accuracy": "the decoder against a reference",
    "model/test_compiled": "the compiled decoder against the eager one",
    "model/test_documents": "attention within documents",
    "model/test_profiles": "the models of shipped profiles",
    "plan/test_gpu_memory": "planned against measured bytes on a GPU",
    "profile/test_layers_of_settings": "flags over environment over files",
    "profile/test_nested_sections": "sections within sections",
    "profile/test_refusals": "every value that a profile refuses",
    "profile/test_shipped": "the profiles in profiles/",
    "tokenizer/test_unigram": "unigram tokenizers, trained and read",
    "train/distributed/test_chosen_rounds": "train.sync_every: auto, from the ranks to a resume",
    "train/distributed/test_lost_rank": "what a rank costs that is killed in a round",
    "train/run_directory/test_refused": "what a refused run leaves",
    "train/test_continuing": "training that continues a model, from --init-from to a resume",
    "train/test_documents": "training with attention within documents",
    "train/test_hostile_run": "damaged and hostile run directories",
    "train/test_native": "training with native kernels",
    "train/test_mixture": "training on several sources",
    "train/test_resolve": "from a request to the run that it trains",
    "train/test_resume": "resumed equals uninterrupted",
    "train/test_time": "training for a time",
    "train/test_trl": "losses and gradients of fine-tuning beside TRL and PEFT",
}


def module_names(directory: Path, pattern: str) -> Iterator[str]:
    """Yield the path below `directory`, without `.py`, of each file that matches."""
    for path in sorted(directory.rglob(pattern)):
        yield path.relative_to(directory).with_suffix("").as_posix()


def without_counterpart(tests: Collection[str], modules: Collection[str]) -> list[str]:
    """Return the test modules that are named after no module and no package."""
    packages = {name.rpartition("/")[0] for name in modules}
    known = {*modules, *packages}
    return [
        name
        for name in tests
        if name.split("/")[0] not in APART and "".join(name.rsplit("test_", 1)) not in known
    ]


def test_each_test_module_has_the_path_of_what_it_tests() -> None:
    tests, modules = list(module_names(TESTS, "test_*.py")), list(module_names(PACKAGE, "*.py"))
    unnamed = set(without_counterpart(tests, modules)) - set(SPANNING)
    assert unnamed == set(), "name it after what it tests, or list in SPANNING what it spans"


def test_what_is_listed_as_spanning_exists_and_is_named_after_no_module() -> None:
    tests, modules = list(module_names(TESTS, "test_*.py")), list(module_names(PACKAGE, "*.py"))
    assert set(SPANNING) - set(without_counterpart(tests, modules)) == set()


def test_each_folder_of_tests_is_a_room() -> None:
    folders = {path.relative_to(TESTS).parent.as_posix() for path in TESTS.rglob("test_*.py")}
    rooms = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_dir()}
    assert folders - rooms - set(APART) == {"."}


def test_a_test_of_nothing_is_found() -> None:
    found = without_counterpart(["plan/test_planner", "plan/test_lost"], ["plan/planner"])
    assert found == ["plan/test_lost"]
