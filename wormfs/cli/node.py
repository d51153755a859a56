"""`wormfs-node`: reads the configuration, runs one node, maps its end to an exit code."""

import sys

try:  # Ctrl-C may come before main() is there to answer it
    import argparse
    import logging
    import os
    import signal
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    import trio

    from wormfs.cli.parsing import Parser
    from wormfs.core.errors import ConfigError, WormError
    from wormfs.node.config import ENVIRONMENT_PREFIX, NodeConfig, load_node_config
    from wormfs.node.logging import set_up_logging
    from wormfs.node.node import run_node
    from wormfs.node.parts import package_version
    from wormfs.node.replica_role import etcd_options
    from wormfs.rpc.etcd_client import check_options
    from wormfs.rpc.memory import collect_rarely, raise_mmap_threshold
    from wormfs.settings.loader import Override
except KeyboardInterrupt:
    sys.exit(130)

log = logging.getLogger(__name__)

_EPILOG = """\
examples:
  wormfs-node --config /etc/wormfs/node.yaml
  wormfs-node --disk /srv/a --disk /srv/b --listen 10.0.0.1:7400         a cluster of one server
  wormfs-node --disk /srv/a --listen 10.0.0.2:7400 --join 10.0.0.1:7400  one more node of it
  WORMFS_NODE_LOG_LEVEL=debug wormfs-node --config node.yaml --set policy.k=2 --set policy.m=1
config/node.yaml of the distribution explains every setting. A setting `policy: {k: 4}` is also
the variable WORMFS_NODE_POLICY_K and the flag `--set policy.k=4`; flags win over variables,
variables over the file.
exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong configuration, 3 cluster not reachable"""

_FLAGS = (
    ("--name", "name", "the node's name in the cluster"),
    ("--listen", "listen", "host:port of the stream server"),
    ("--unix-socket", "unix_socket", "path of the stream server's unix socket"),
    ("--grpc-listen", "grpc_listen", "host:port of the gRPC server"),
    ("--join", "join", "host:port[,host:port] of nodes of the cluster to join"),
    ("--log-level", "log.level", "debug, info, warning or error"),
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="wormfs-node",
        description="Run one WormFS node: it serves disks, and the first node of a cluster its metadata.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration, YAML")
    for flag, path, text in _FLAGS:
        parser.add_argument(flag, dest=path, metavar="VALUE", help=text)
    parser.add_argument("--disk", action="append", default=[], metavar="DIR", help="a disk; may be repeated")
    parser.add_argument("--log-json", action="store_true", help="logs as JSON lines")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, as policy.k=4"
    )
    parser.add_argument("--check", action="store_true", help="only check the configuration")
    parser.add_argument("--version", action="version", version=f"wormfs-node {package_version()}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until SIGTERM or SIGINT; its exit code. Failures are lines on standard error."""
    parsed = build_parser().parse_args(arguments)
    try:
        config = _load(parsed)
        if parsed.check:
            _check_files(config)
            print("the configuration is right")
            return 0
        raise_mmap_threshold()
        collect_rarely()
        set_up_logging(config.log.level, as_json=config.log.json, node=config.name)
        _make_socket_folder(config)
        trio.run(_serve, config)
    except BaseException as error:  # the last line of defence: no traceback reaches a user
        return _report(error)
    return 0


def _load(parsed: argparse.Namespace) -> NodeConfig:
    overrides = [
        Override(tuple(path.split(".")), value, flag)
        for flag, path, _ in _FLAGS
        if (value := getattr(parsed, path)) is not None
    ]
    if parsed.disk:
        overrides.append(Override(("disks",), parsed.disk, "--disk"))
    if parsed.log_json:
        overrides.append(Override(("log", "json"), True, "--log-json"))
    for text in parsed.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, as policy.k=4")
        overrides.append(Override(tuple(key.strip().split(".")), value, f"--set {key}"))
    anything = parsed.config or overrides or any(name.startswith(ENVIRONMENT_PREFIX) for name in os.environ)
    if not anything:
        raise ConfigError("nothing says what to serve: give --config FILE or --disk DIR (see --help)")
    return load_node_config(parsed.config, overrides=overrides)


def _check_files(config: NodeConfig) -> None:
    """What the node reads at its start beside the configuration. Raises ConfigError."""
    if config.metadata.engine == "etcd":
        check_options(etcd_options(config))


def _make_socket_folder(config: NodeConfig) -> None:
    """A folder such as /run/wormfs is gone with each boot. Raises ConfigError."""
    if config.unix_socket is None:
        return
    try:
        config.unix_socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"unix_socket: cannot make {config.unix_socket.parent}: {error.strerror}") from None


async def _serve(config: NodeConfig) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            nursery.start_soon(_stop_on_signal, signals, stop)
            with stop:
                await run_node(config)
            nursery.cancel_scope.cancel()


async def _stop_on_signal(signals: AsyncIterator[int], stop: trio.CancelScope) -> None:
    async for number in signals:
        if stop.cancel_called:
            log.warning("second signal: ending at once")
            os._exit(1)
        log.info("%s: stopping", signal.Signals(number).name)
        stop.cancel()


def _report(error: BaseException) -> int:
    """Print what went wrong, a line for each; the exit code of the first."""
    leaves = list(_leaves(error))
    leaf = leaves[0]
    if isinstance(leaf, SystemExit):
        raise leaf
    if isinstance(leaf, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(leaf, WormError):
        for line in leaf.message.splitlines() or [type(leaf).__name__]:
            print(f"wormfs-node: {line}", file=sys.stderr)
        return leaf.exit_code
    log.error("internal error", exc_info=error)
    text = " ".join(str(leaf).split())
    print(f"wormfs-node: internal error, please report it: {type(leaf).__name__}: {text}", file=sys.stderr)
    return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
