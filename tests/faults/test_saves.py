"""Faults at the operations of a save and of a whole training. The long versions are the modules."""

import pytest

from tests.faults import full_disk, saves, shim

pytestmark = pytest.mark.skipif(not shim.is_possible(), reason="needs Linux and a C compiler")


def test_the_last_good_checkpoint_survives_faults_at_every_fourth_operation_of_a_save() -> None:
    assert saves.main(["--every", "4"]) == 0


def test_a_run_goes_on_exactly_once_there_is_room_again() -> None:
    assert full_disk.main(["--points", "2"]) == 0
