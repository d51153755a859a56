"""Addresses, listening and dialing. Every socket made here is non-blocking and tuned.

A unix socket is made with mode 0666: mounts of other users must reach the node, and the folder's
permissions are the guard (the node's folder is its own to close). Its path may be of any length:
past the 107 bytes that a socket address holds, the folder is reached through /proc/self/fd.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from wormfs.core.errors import ConfigError

_BUFFER_BYTES = 4 << 20
_UNIX_PATH_MAX_BYTES = 107
_BACKLOG = 512
_KEEPALIVE_IDLE_S = 5
_KEEPALIVE_INTERVAL_S = 2
_KEEPALIVE_PROBES = 3
_UNACKNOWLEDGED_MAX_MS = 10_000


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket file."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host name or number and a port; port 0 listens on a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """`unix:/path`, `host:port` or `[::1]:port`. Raises ConfigError."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ConfigError(f"address {text!r}: a unix socket needs an absolute path")
        return UnixAddress(path)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text!r}: write an IPv6 host in brackets")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"address {text!r} is neither unix:/path nor host:port")
    return TcpAddress(host, int(port))


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    forced = ((socket.SO_SNDBUF, "SO_SNDBUFFORCE", 32), (socket.SO_RCVBUF, "SO_RCVBUFFORCE", 33))
    for option, name, number in forced:
        try:  # root may go past net.core.*mem_max; the numbers are Linux's, Python lacks the names
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name, number), _BUFFER_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MAX_MS),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def secure(sock: socket.socket, *, server: bool) -> socket.socket:
    """The seam for TLS 1.3: every accepted and every dialed socket passes here before its first byte.

    FrameLink asks of what is returned only recv_into, send, sendmsg, fileno, shutdown and close, all
    non-blocking, and that a recv_into that brings less than asked for has left nothing behind.
    """
    del server
    _tune(sock)
    return sock


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name of at most 107 bytes for a socket file, valid inside the block."""
    if len(os.fsencode(path)) <= _UNIX_PATH_MAX_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(short)) > _UNIX_PATH_MAX_BYTES:
            raise ConfigError(f"the unix socket's file name is too long: {path.name}")
        yield short
    finally:
        os.close(folder)


async def dial(address: UnixAddress | TcpAddress) -> socket.socket:
    """A connected socket. Raises OSError; the caller holds the deadline."""
    if isinstance(address, UnixAddress):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short_path(address.path) as short:
                # Never in progress: connect(2) on a unix socket succeeds or fails at once (EAGAIN
                # while the listener's backlog is full).
                sock.setblocking(False)
                sock.connect(short)
            return secure(sock, server=False)
        except BaseException:
            sock.close()
            raise
    stream = await trio.open_tcp_stream(address.host, address.port)
    return secure(_detach(stream.socket), server=False)


def _detach(sock: trio.socket.SocketType) -> socket.socket:
    family, kind, proto = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, proto, fileno=sock.detach())


class Listener:
    """A listening socket; `address` is what a peer on this machine can dial."""

    def __init__(self, sock: socket.socket, address: UnixAddress | TcpAddress) -> None:
        self._sock = sock
        self.address = address
        self._identity: tuple[int, int] | None = None
        if isinstance(address, UnixAddress):
            status = address.path.stat()
            self._identity = (status.st_dev, status.st_ino)

    async def accept(self) -> socket.socket:
        """The next connection. Raises OSError (EMFILE and its like)."""
        await trio.lowlevel.checkpoint()  # a flood of connections must not starve those there are
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except ConnectionAbortedError:
                continue
            else:
                return secure(sock, server=True)

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still this listener's."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        if isinstance(self.address, UnixAddress):
            with contextlib.suppress(OSError):
                status = self.address.path.stat()
                if (status.st_dev, status.st_ino) == self._identity:
                    self.address.path.unlink()


async def listen(text: str) -> Listener:
    """Listen on an address. Raises ConfigError when it is taken or cannot be used."""
    address = parse_address(text)
    try:
        return _listen_unix(address) if isinstance(address, UnixAddress) else await _listen_tcp(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {text}: {error.strerror or error}") from error


def _listen_unix(address: UnixAddress) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _short_path(address.path) as short:
            _remove_stale(address.path, short)
            sock.bind(short)
            sock.listen(_BACKLOG)
            os.chmod(short, 0o666)
        return Listener(sock, address)
    except BaseException:
        sock.close()
        raise


def _remove_stale(path: Path, short: str) -> None:
    """Remove a socket file that nobody listens on; anything else there is an error."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {path}: something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(short)
    if code != errno.ECONNREFUSED:
        raise ConfigError(f"cannot listen on {path}: another process does ({os.strerror(code)})")
    path.unlink()


async def _listen_tcp(address: TcpAddress) -> Listener:
    found = await trio.socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, proto, _, where = found[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)
        return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]))
    except BaseException:
        sock.close()
        raise


def describe_peer(sock: socket.socket) -> str:
    """The other end, for logs: `pid 12 uid 0` on a unix socket, `host:port` on TCP."""
    if sock.family == socket.AF_UNIX:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        return f"pid {pid} uid {uid}"
    try:
        name = sock.getpeername()
    except OSError:
        return "a peer that left"
    return str(TcpAddress(name[0], name[1]))
