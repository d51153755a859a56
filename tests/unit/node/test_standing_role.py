"""Which errors leave a node standing: those of a newer program alone."""

import pytest

from wormfs.core.errors import DataLossError, DiskError, NewerProgramError
from wormfs.node.standing_role import is_of_newer_program

NEWER = NewerProgramError("entry 7 of the metadata log: of a newer program")
ROT = DataLossError("the log behind 7 cannot be read: upgrade WormFS")  # in words alone


@pytest.mark.parametrize(
    ("error", "stands"),
    [
        (NEWER, True),
        (ROT, False),
        (ExceptionGroup("", [ExceptionGroup("", [NEWER]), NEWER]), True),
        (ExceptionGroup("", [NEWER, DiskError("disk 2 fails")]), False),
    ],
)
def test_only_what_a_newer_program_wrote_leaves_a_node_standing(error: Exception, stands: bool) -> None:
    assert is_of_newer_program(error) is stands
