"""Peak learning rates by role, where the profile says `auto`.

1. Muon's rate for hidden matrices is 0.02 at every width: its steps are orthogonal, and how far
   they move an output does not depend on the width (Jordan et al. 2024; Bernstein 2025).
2. AdamW's rate is 4e-3 up to a width of 384, the best of a sweep at 20M parameters, and falls as
   1 / √width beyond it, as nanochat has it.
3. Under Muon everything that is not a hidden matrix has AdamW's rate. Where AdamW steps all,
   `optim.learning_rate` is everybody's unless embedding or head name their own.
"""

from __future__ import annotations

from typing import Literal

from llmtrain.profile.schema import OptimSection
from llmtrain.train.muon import Algorithm

Role = Literal["matrix", "gain", "embedding", "head"]

MUON_RATE = 0.02
ADAMW_RATE, ADAMW_RATE_WIDTH = 4e-3, 384


def algorithm_of(section: OptimSection, role: Role) -> Algorithm:
    """What steps a role: Muon only ever hidden matrices."""
    return "muon" if section.name == "muon" and role == "matrix" else "adamw"


def peak_learning_rates(section: OptimSection, hidden_size: int) -> dict[Role, float]:
    """Each role's rate before the schedule: the profile's, or the rules'."""
    adamw = ADAMW_RATE * min(1.0, (ADAMW_RATE_WIDTH / hidden_size) ** 0.5)
    matrix, embedding = section.learning_rate, section.embedding_learning_rate
    if matrix == "auto":
        matrix = MUON_RATE if section.name == "muon" else adamw
    if embedding == "auto":
        embedding = adamw if section.name == "muon" else matrix
    head = embedding if section.head_learning_rate == "auto" else section.head_learning_rate
    gain = embedding if section.name == "muon" else matrix
    return {"matrix": matrix, "gain": gain, "embedding": embedding, "head": head}
