"""From a profile to the workload that a plan is made for."""

from __future__ import annotations

from llmtrain.machine.facts import Facts
from llmtrain.plan.auto_profile import choose_tokens_per_step
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.workload import Workload
from llmtrain.profile.lora_shape import lora_shape_of
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.train.distributed.world import World


def workload_of(
    profile: Profile,
    world: World | None,
    facts: Facts,
    *,
    measure: bool = True,
    announce: Announce | None = None,
) -> Workload:
    """Return what the profile requires of a machine, for the ranks of `world` if launched."""
    ranks = world if world is not None and world.size > 1 else None
    train = profile.train
    tokens_per_step = choose_tokens_per_step(profile, facts, measure=measure, announce=announce)
    tokens = train.steps * tokens_per_step.value if train.steps is not None else train.tokens
    return Workload(
        shape=shape_of(profile.model),
        tokens_per_step=tokens_per_step.value,
        micro_batch=profile.train.micro_batch,
        launched_processes=ranks.size if ranks is not None else None,
        launched_local_processes=ranks.local_size if ranks is not None else None,
        has_equal_machines=ranks is None or ranks.has_equal_machines,
        optimizer=profile.optim.name,
        tokens=tokens,
        time_s=train.time,
        mask_documents=profile.data.masks_documents,
        lora=lora_shape_of(profile.lora),
        has_conversations=profile.data.has_conversations,
        is_dpo=profile.data.rows == "preferences",
        sync_every=1 if train.sync_every == "auto" else train.sync_every,
        sync_is_open=train.sync_every == "auto",
        sync_precision=train.sync_precision,
        sync_shares=train.sync_shares,
        sync_delay=train.sync_delay,
        torch_build=facts.torch_build,
    )
