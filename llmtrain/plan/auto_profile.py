"""Choose a profile and the tokens of a step where they are not given.

The rules are in `llmtrain.recipe`; here they are applied to what was measured on this machine.
"""

from __future__ import annotations

from dataclasses import replace

from llmtrain.choice import Choice, OptimizerName
from llmtrain.machine.facts import Facts
from llmtrain.plan.cpu_benchmarks import eager_tokens_per_s
from llmtrain.plan.decisions import choose_device
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import LoadedProfile, load_section, profile_layer
from llmtrain.profile.schema import DeviceSection, ModelSection, OptimSection, Profile
from llmtrain.profile.setting import CHOSEN
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.recipe.batch_size import best_tokens_per_step
from llmtrain.recipe.model_size import best_for_time
from llmtrain.units import format_count

_CPU_PROFILES = ("cpu-tiny", "cpu-mini", "cpu-small", "cpu-medium")
_ACCELERATOR_TOKENS_PER_STEP = 65_536  # keeps a GPU busy; its speed is not measured
SYNC_EVERY, _TOKENS_PER_STEP = "train.sync_every", "train.tokens_per_step"


def choose_profile(
    facts: Facts,
    options: DeviceSection,
    time_s: float | None,
    *,
    measure: bool = True,
    announce: Announce | None = None,
) -> Choice[str]:
    """Choose the profile for the device that will train, and for the time there is.

    `measure`: the facts are those of this machine, and it may be timed, which is announced. Raises
    UsageError.
    """
    device = choose_device(facts, options).value
    if device == "cuda":
        return Choice("gpu-small", "there is a CUDA GPU")
    if device == "mps":
        return Choice("mps-small", "there is an Apple GPU")
    if time_s is None:
        return Choice("cpu-tiny", "trains in minutes on a CPU")
    if not measure:
        return Choice("cpu-tiny", "the smallest, as the speed of the CPU is unknown")
    layers = {name: profile_layer(name) for name in _CPU_PROFILES}
    shapes = {
        name: shape_of(load_section(ModelSection, "model", layer)) for name, layer in layers.items()
    }

    def tokens_per_s(name: str) -> float | None:
        optimizer = load_section(OptimSection, "optim", layers[name]).name
        return eager_tokens_per_s(facts, options, _workload(shapes[name], optimizer), announce)

    return best_for_time(shapes, time_s, tokens_per_s)


def choose_finetuning_profile(facts: Facts, options: DeviceSection) -> Choice[str]:
    """Choose the profile for fine-tuning on the device that will train. Raises UsageError."""
    if choose_device(facts, options).value == "cpu":
        return Choice("finetune-cpu", "trains on a CPU")
    return Choice("finetune-gpu", "there is a GPU")


def choose_tokens_per_step(
    profile: Profile, facts: Facts, *, measure: bool = True, announce: Announce | None = None
) -> Choice[int]:
    """Choose the profile's number, or the rule's for the expected tokens of the run.

    `measure`: the facts are those of this machine, and it may be timed, which is announced. Raises
    UsageError.
    """
    train, shape = profile.train, shape_of(profile.model)
    if train.tokens_per_step != "auto":
        return Choice(train.tokens_per_step, "asked for")
    tokens: float | None = train.tokens
    if tokens is None and choose_device(facts, profile.device).value != "cpu":
        number = max(1, _ACCELERATOR_TOKENS_PER_STEP // shape.context) * shape.context
        return Choice(number, "keeps a GPU busy")
    if train.time is not None and measure:
        tokens = _expected_tokens(profile, facts, train.time, announce)
    number = best_tokens_per_step(shape, tokens, uses_muon=profile.optim.name == "muon")
    if tokens is None:
        return Choice(number, "large enough that the optimizer takes little of a step")
    return Choice(number, f"for about {format_count(round(tokens))} tokens in all")


def with_chosen_step(loaded: LoadedProfile, choice: Choice[int]) -> LoadedProfile:
    """Return the profile with its tokens per step set, and the origin of the number."""
    if loaded.profile.train.tokens_per_step != "auto":
        return loaded
    return _with_chosen(loaded, _TOKENS_PER_STEP, choice)


def with_chosen_rounds(loaded: LoadedProfile, choice: Choice[int]) -> LoadedProfile:
    """Return the profile with its steps between two exchanges set, and the origin of the number."""
    return _with_chosen(loaded, SYNC_EVERY, choice)


def _with_chosen(loaded: LoadedProfile, path: str, choice: Choice[int]) -> LoadedProfile:
    name = path.removeprefix("train.")
    train = loaded.profile.train.model_copy(update={name: choice.value})
    profile = loaded.profile.model_copy(update={"train": train})
    origins = {**loaded.origins, path: f"{CHOSEN}{choice.reason}"}
    return replace(loaded, profile=profile, origins=origins)


def _expected_tokens(
    profile: Profile, facts: Facts, time_s: float, announce: Announce | None
) -> float | None:
    """Return the tokens of a run for a time by rule 1.1; None if it does not fit the memory."""
    workload = replace(
        _workload(shape_of(profile.model), profile.optim.name),
        micro_batch=profile.train.micro_batch,
        mask_documents=profile.data.mask_documents,
    )
    rate = eager_tokens_per_s(facts, profile.device, workload, announce)
    return None if rate is None else rate * time_s


def _workload(shape: ModelShape, optimizer: OptimizerName) -> Workload:
    """Return the work of a step whose size is still to be chosen."""
    tokens_per_step = best_tokens_per_step(shape, None, uses_muon=optimizer == "muon")
    return Workload(shape, tokens_per_step, optimizer=optimizer)
