"""How many texts are continued together, and what is proposed where they are too many."""

from __future__ import annotations

import pytest

from llmtrain.errors import DoesNotFitError
from llmtrain.plan.slots import choose_slots
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from tests.machines import CPU

SHAPE = shape_of(ModelSection(context=1024))


@pytest.mark.parametrize("requested", [2**13, 2**64])
def test_what_is_proposed_in_place_of_too_many_fits_and_one_more_does_not(requested: int) -> None:
    machine = CPU
    with pytest.raises(DoesNotFitError) as raised:
        choose_slots(machine, SHAPE, "cpu", half_precision=False, requested=requested)
    proposed = int((raised.value.hint or "").removeprefix("--slots "))
    chosen = choose_slots(machine, SHAPE, "cpu", half_precision=False, requested=proposed)
    assert chosen.value == proposed
    with pytest.raises(DoesNotFitError):
        choose_slots(machine, SHAPE, "cpu", half_precision=False, requested=proposed + 1)
