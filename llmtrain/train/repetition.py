"""Several epochs over one text: when to warn, and whether the run overfitted.

Up to four epochs teach nearly as much as new text would; then the gain decays, to nothing by about
sixteen epochs (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmtrain.data.batches.mixture import MixedSource
from llmtrain.units import format_count

MANY_EPOCHS = 4.0
_CLEARLY_WORSE = 1.005  # evaluation has no noise, but steps change the loss a little


def repetition_warning(steps: int, tokens_per_step: int, text_tokens: int) -> str | None:
    """Return the warning for a run with many epochs over its text, if it has them."""
    epochs = steps * tokens_per_step / max(1, text_tokens)
    if epochs <= MANY_EPOCHS:
        return None
    return (
        f"{epochs:.3g} epochs over {format_count(text_tokens)} tokens: after about four, repeated "
        "text teaches little; more text (--data) or a shorter run would be better. "
        "The checkpoint with the best validation loss is kept"
    )


def repetition_warnings(
    steps: int, tokens_per_step: int, text_tokens: int, mixture: Sequence[MixedSource]
) -> Iterator[str]:
    """Yield the warnings for each source with many epochs, or for the text as a whole."""
    if not mixture:
        warning = repetition_warning(steps, tokens_per_step, text_tokens)
        yield from [] if warning is None else [warning]
    for source, share in _shares(mixture):
        epochs = steps * tokens_per_step * share / source.tokens
        if epochs > MANY_EPOCHS:
            yield (
                f"{source.spec}: {epochs:.3g} epochs over {format_count(source.tokens)} tokens: "
                "after about four, repeated text teaches little; a smaller weight, more text or a "
                "shorter run would be better"
            )


def mixture_lines(
    mixture: Sequence[MixedSource], steps: int | None, tokens_per_step: int
) -> Iterator[str]:
    """Yield a line per source: its share, its tokens, and its epochs if known."""
    for source, share in _shares(mixture):
        line = f"{source.spec}: {share:.1%} of training, {format_count(source.tokens)} tokens"
        if steps is not None:
            line += f", {steps * tokens_per_step * share / source.tokens:.3g} epochs"
        yield line


def _shares(mixture: Sequence[MixedSource]) -> Iterator[tuple[MixedSource, float]]:
    total = sum(source.weight for source in mixture)
    return ((source, source.weight / total) for source in mixture)


def overfitting_note(val_loss: float | None, best: float | None, step: int | None) -> str | None:
    """Return a note if the final validation loss is clearly above the best; else None."""
    if val_loss is None or best is None or val_loss <= best * _CLEARLY_WORSE:
        return None
    return (
        f"the validation loss was lowest at step {step}: {best:.4f}, now {val_loss:.4f}. "
        f"That checkpoint is kept: llmtrain runs show"
    )
