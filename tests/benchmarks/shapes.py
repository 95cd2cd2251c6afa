"""The shapes that are compared, and how much of each system makes the same model of them."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.profile.schema import ModelSection


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and the batch that every system trains it on, one micro-batch a step.

    `peak_products` are the (rows, in, out) of the linear layers that the machine's peak is
    looked for with, from cheap to dear.
    """

    name: str
    profile: str  # where ours takes what is not said here
    model: ModelSection
    micro_batch: int
    steps: int
    peak_products: tuple[tuple[int, int, int], ...]

    @property
    def tokens_per_micro_batch(self) -> int:
        """Tokens of one forward and backward."""
        return self.micro_batch * self.model.context


_PRODUCTS = tuple(
    (4096, *sizes)
    for sizes in ((1024, 1024), (1024, 4096), (4096, 1024), (2048, 4096), (4096, 4096))
)

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "tiny",
            "cpu-tiny",
            ModelSection(
                vocab_size=4096,
                hidden_size=192,
                intermediate_size=512,
                num_layers=6,
                num_heads=3,
                context=256,
            ),
            micro_batch=8,
            steps=8,
            peak_products=((512, 256, 256), (512, 512, 512)),
        ),
        Shape(
            "S",
            "cpu-small",
            ModelSection(
                vocab_size=32000,
                hidden_size=384,
                intermediate_size=1024,
                num_layers=8,
                num_heads=6,
                context=512,
            ),
            micro_batch=8,
            steps=8,
            peak_products=_PRODUCTS,
        ),
        Shape(
            "M",
            "cpu-medium",
            ModelSection(
                vocab_size=32000,
                hidden_size=768,
                intermediate_size=2304,
                num_layers=12,
                num_heads=12,
                context=1024,
            ),
            micro_batch=4,
            steps=4,
            peak_products=_PRODUCTS,
        ),
    )
}


_TOKENS_AT_ONCE = 4096
_MADE_STEPS = 40


def shape_named(text: str) -> Shape:
    """The shape of that name, or of values for a model section: `hidden_size=512,num_layers=6,…`.

    What is not said is as in S; intermediate_size is 8/3 of hidden_size, in whole 64s. Raises
    ValueError, of pydantic too.
    """
    if text in SHAPES:
        return SHAPES[text]
    base = SHAPES["S"]
    values = {**base.model.model_dump(), **_integers(text)}
    if "intermediate_size" not in text:
        values["intermediate_size"] = -(-8 * values["hidden_size"] // (3 * 64)) * 64
    model = ModelSection.model_validate(values)
    micro_batch = max(1, _TOKENS_AT_ONCE // model.context)
    return Shape(text, base.profile, model, micro_batch, _MADE_STEPS, _PRODUCTS)


def _integers(text: str) -> dict[str, int]:
    """Values by name. Raises ValueError."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"{text!r} is neither of {', '.join(SHAPES)} nor NAME=NUMBER,…")
    return {name: int(value) for name, _, value in pairs}


def gpt2_mlp_width(intermediate_size: int) -> int:
    """Features of an MLP of two matrices with as many weights as SwiGLU's three."""
    return 3 * intermediate_size // 2
