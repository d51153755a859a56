"""Of what a master does to the log before it serves: nothing, where nobody is answered early."""

from pathlib import Path

from tests.unit.node.serving import serving


async def test_a_master_on_its_own_disks_skips_no_numbers(tmp_path: Path) -> None:
    made = []
    for operation, name in enumerate((b"a", b"b")):
        async with serving(tmp_path) as served, served.mount(session=False) as mount:
            await mount.open_session(known=operation)  # the second master waits for nobody else
            mount.operation = operation
            made.append((await mount.create(name)).attributes.inode)
    assert made == [2, 3]
