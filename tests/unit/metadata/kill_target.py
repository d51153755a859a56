"""Run as a process by test_machine: makes files for ever, telling each answered name on stdout."""

import os
import sys
from pathlib import Path

from wormfs.core.types import Policy
from wormfs.metadata.machine import Machine
from wormfs.rpc.v1 import filesystem_pb2 as fs
from wormfs.rpc.v1 import types_pb2


def main() -> None:
    machine = Machine.open([Path(path) for path in sys.argv[1:]], copies=2, segment_bytes=1 << 18)
    if not machine.cluster_id:
        machine.form_cluster("c", "test", Policy(4, 2, 1 << 20))
    session = machine.open_session("kill")
    operation = 0
    while True:
        operation += 1
        name = b"%d-%d" % (session, operation)
        caller = types_pb2.Caller(session_id=session, operation=operation, acknowledged=operation - 1)
        machine.execute(fs.MakeNodeRequest(caller=caller, parent=1, name=name, mode=0o644, exclusive=True))
        os.write(1, name + b"\n")


main()
