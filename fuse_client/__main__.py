"""`python -m fuse_client`: the process behind one mount. `wormfs mount` starts it.

With --ready-fd it tells its parent how it went, one line on that descriptor: `OK`, or an error's
class name, a tab and the message. Then it lives on by itself; its output is a log file.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from fuse_client.serving import MountSettings, serve_mount
from wormfs.cli.mounts import own_record, remove_record
from wormfs.client.options import ClientOptions
from wormfs.core.errors import WormError
from wormfs.rpc.memory import collect_rarely, raise_mmap_threshold
from wormfs.settings.client import ClientConfig, load_client_config

_log = logging.getLogger("fuse_client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one mount to its end; 0 when everything was written back."""
    parsed = _parser().parse_args(arguments)
    ready = _Readiness(parsed.ready_fd)
    raise_mmap_threshold()
    logging.basicConfig(
        level=parsed.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    point = Path(parsed.mountpoint)
    try:
        config = load_client_config(cluster=parsed.cluster, config=parsed.config)
        settings = MountSettings(point, config.cluster, client_options(config), read_only=parsed.read_only)
        record = own_record(point, ",".join(config.cluster), parsed.log_file)
    except WormError as error:
        return ready.failed(error)

    def usable() -> None:
        record.write()
        collect_rarely()
        ready.succeeded()
        _log.info("%s is mounted from %s", point, record.cluster)

    try:
        trio.run(serve_mount, settings, usable)
    except WormError as error:
        if not ready.told:
            return ready.failed(error)
        _log.error("%s: %s", point, error.message)
        dataclasses.replace(record, error=error.message).write()
        return error.exit_code
    except BaseException:
        _log.exception("%s: the mount process failed", point)
        failure = WormError(f"internal error; see {parsed.log_file or 'above'}")
        if ready.told:
            dataclasses.replace(record, error=failure.message).write()
        return ready.failed(failure)
    remove_record(point)
    return 0


def client_options(config: ClientConfig) -> ClientOptions:
    """What client.yaml says, in the client's terms; the fields are the same."""
    return ClientOptions(**dataclasses.asdict(config.options))


class _Readiness:
    """Tells the parent once, or standard error when there is none."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.told = False

    def succeeded(self) -> None:
        self._tell("OK")

    def failed(self, error: WormError) -> int:
        if self._descriptor is None:
            print(f"wormfs: {error.message}", file=sys.stderr)
        elif not self.told:
            self._tell(f"{type(error).__name__}\t{error.message}")
        return error.exit_code

    def _tell(self, line: str) -> None:
        self.told = True
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, line.encode() + b"\n")
            except BrokenPipeError:
                _log.warning("nobody waits for: %s", line)
            os.close(self._descriptor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuse_client", description=__doc__)
    parser.add_argument("mountpoint")
    parser.add_argument("--cluster", metavar="ADDR[,ADDR]")
    parser.add_argument("--config", metavar="FILE", type=Path)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-file", default="", help="where this process's output goes, to name it")
    parser.add_argument("--ready-fd", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
