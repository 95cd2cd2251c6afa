"""Several epochs over one text: when to warn, and what validation said in the end.

Up to four epochs teach nearly as much as new text would; after that the gain decays, and by about
sixteen nothing is left of it (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
"""

from __future__ import annotations

from llmtrain.units import format_count

MANY_EPOCHS = 4.0
_CLEARLY_WORSE = 1.005  # evaluations of one model on one text differ by nothing; steps do


def repetition_warning(steps: int, tokens_per_step: int, text_tokens: int) -> str | None:
    """What to know of a run that will read its text often; None where it will not."""
    epochs = steps * tokens_per_step / max(1, text_tokens)
    if epochs <= MANY_EPOCHS:
        return None
    return (
        f"{epochs:.3g} epochs over {format_count(text_tokens)} tokens: after about four, text that "
        "is read again teaches little; more text (--data) or a shorter run would serve better. "
        "The best checkpoint by validation loss is kept"
    )


def overfitting_note(val_loss: float | None, best: float | None, step: int | None) -> str | None:
    """What validation said at the end; None where the last model is about the best."""
    if val_loss is None or best is None or val_loss <= best * _CLEARLY_WORSE:
        return None
    return (
        f"the validation loss was lowest at step {step}: {best:.4f}, now {val_loss:.4f}. "
        f"That checkpoint is kept: llmtrain runs show"
    )
