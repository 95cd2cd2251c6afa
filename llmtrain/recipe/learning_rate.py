"""Rule 4: peak learning rates by role, for B tokens a step.

4.1 Muon's rate for hidden matrices is

        0.02 · (B / 16,384)^0.6,    at most 0.03,

    at every width and depth: its updates are orthogonal, and how far they move an output does not
    depend on the width (Jordan et al. 2024, "Muon"; Bernstein 2025). Fitted to 57 trainings of 3M
    and 20M parameters on 1M to 8M tokens with B from 1,024 to 32,768
    (`tests/benchmarks/sweeps/batch*.yaml`): the loss is 0.25% above that of the best rate on
    average, and 0.6% at most. At three shapes that were held back it was the best of five rates
    (`held_back.yaml`).
4.2 AdamW's rate is

        4e-3 · min(1.5, (B / 8,192)^0.6) · (384 / width)^0.6,    at most 8e-3,

    the largest that was good. The loss is flat in it: a factor of two changes it by about 1%
    (`recipe_*.yaml`, `momentum.yaml`, `against_baseline_117m.yaml`).
4.3 With Muon, everything that is not a hidden matrix has AdamW's rate. With AdamW alone,
    `optim.learning_rate` is the rate of all roles unless embedding or head have their own.
4.4 A model that is continued (`model.init_from`) has half of these rates, after a warm-up as usual.
    Of 2, 1, 0.5, 0.3 and 0.1 of the rule's rates, a 27M model trained on code learned prose and
    other code best at 1 (at 2 with several passes); at 0.5 its loss on the new text was 1% to 2.5%
    above that, and on the first text as low or lower. Models that were trained for much longer than
    that one have more to lose (`tests/benchmarks/continuing.py`).
4.5 Direct preference optimization has a twentieth of the rates of 4.4. This share is not measured
    here: it is that of TRL's defaults, 1e-6 beside 2e-5 for supervised fine-tuning.
"""

from __future__ import annotations

from typing import Literal

from llmtrain.choice import Algorithm
from llmtrain.profile.schema import OptimSection

Role = Literal["matrix", "gain", "embedding", "head"]

_EXPONENT = 0.6  # of tokens a step, and of the width
_MUON_RATE, _MUON_TOKENS, _MUON_MOST = 0.02, 16_384, 0.03
_ADAMW_RATE, _ADAMW_TOKENS, _ADAMW_WIDTH = 4e-3, 8_192, 384
CONTINUED_SHARE = 0.5
DPO_SHARE = 0.05  # of a continued model's
_ADAMW_MOST_BY_TOKENS, _ADAMW_MOST = 1.5, 8e-3


def algorithm_of(section: OptimSection, role: Role) -> Algorithm:
    """Return the optimizer of a role: Muon only ever for hidden matrices."""
    return "muon" if section.name == "muon" and role == "matrix" else "adamw"


def muon_rate(tokens_per_step: int) -> float:
    """Return Muon's rate by rule 4.1."""
    rate: float = _MUON_RATE * (tokens_per_step / _MUON_TOKENS) ** _EXPONENT
    return min(_MUON_MOST, rate)


def adamw_rate(tokens_per_step: int, hidden_size: int) -> float:
    """Return AdamW's rate by rule 4.2."""
    by_tokens = min(_ADAMW_MOST_BY_TOKENS, (tokens_per_step / _ADAMW_TOKENS) ** _EXPONENT)
    by_width = (_ADAMW_WIDTH / hidden_size) ** _EXPONENT
    return float(min(_ADAMW_MOST, _ADAMW_RATE * by_tokens * by_width))


def peak_learning_rates(
    section: OptimSection,
    hidden_size: int,
    tokens_per_step: int,
    *,
    continues: bool = False,
    is_dpo: bool = False,
) -> dict[Role, float]:
    """Return each role's rate before the schedule: the profile's, or by rule 4.

    `continues`: the model begins with the weights of another one; `is_dpo`: and learns preferences.
    """
    share = (CONTINUED_SHARE if continues else 1.0) * (DPO_SHARE if is_dpo else 1.0)
    adamw = share * adamw_rate(tokens_per_step, hidden_size)
    matrix, embedding = section.learning_rate, section.embedding_learning_rate
    if matrix == "auto":
        matrix = share * muon_rate(tokens_per_step) if section.name == "muon" else adamw
    if embedding == "auto":
        embedding = adamw if section.name == "muon" else matrix
    head = embedding if section.head_learning_rate == "auto" else section.head_learning_rate
    gain = embedding if section.name == "muon" else matrix
    return {"matrix": matrix, "gain": gain, "embedding": embedding, "head": head}
