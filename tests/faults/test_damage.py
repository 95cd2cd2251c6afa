"""No damage to a checkpoint is loaded. The long version is the module."""

from tests.faults import damage


def test_none_of_two_hundred_mutations_loads_something_else() -> None:
    assert damage.main(["--mutations", "200"]) == 0
