"""A mount that lives through `wormfs metadata restore`, with a file open."""

import os
import shutil
from pathlib import Path

import pytest
import trio

from tests.unit.client.masters import masters
from tests.unit.node.serving import open_machine
from wormfs.core.limits import ROOT_INODE

pytestmark = pytest.mark.timeout(30)


async def test_an_open_file_shows_what_was_restored(tmp_path: Path) -> None:
    live, backup = tmp_path / "live", tmp_path / "backup"
    live.mkdir()
    async with masters(live) as made, made.mount("one") as one:
        _, handle = await one.fs.create(ROOT_INODE, b"f", 0o100644, 0, 0, os.O_RDWR)
        await one.fs.write(handle, 0, b"saved")
        await one.fs.fsync(handle)
        await made.depose()
        for disk in live.glob("disk-*"):
            shutil.copytree(disk, backup / disk.name)
        await made.lead(0)
        await one.fs.write(handle, 0, b"later, and longer")
        await one.fs.fsync(handle)
        await made.depose()
        machine = open_machine(backup)
        for session in machine.sessions():  # as a restore does
            machine.close_session(session.session_id)
        machine.close()
        made._folder = backup
        await made.lead(1)
        with trio.fail_after(15):
            entry = await one.fs.getattr(handle.inode)
            assert entry.attributes.size_bytes == len(b"saved")
            assert bytes(await one.fs.read(handle, 0, 100)) == b"saved"
