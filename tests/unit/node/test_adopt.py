"""What a master does to the log before it serves."""

from pathlib import Path

from tests.unit.node.serving import serving
from wormfs.core.ordering import SKIPPED_INODES


async def test_a_master_skips_the_numbers_that_a_log_may_have_lost(tmp_path: Path) -> None:
    """A mount on another server may have been told of them, and may hold such a file open."""
    made = []
    for operation, name in enumerate((b"a", b"b")):
        async with serving(tmp_path) as served, served.mount(session=False) as mount:
            await mount.open_session(known=operation)  # the second master waits for nobody else
            mount.operation = operation
            made.append((await mount.create(name)).attributes.inode)
    assert made[1] - made[0] > SKIPPED_INODES
