"""Why an etcd member and we do not agree on TLS, in words for who set them up.

gRPC says no more than "Socket closed" of most of it. Asked only when nobody has answered: by a handshake
of our own, and a request behind it, for with TLS 1.3 a member refuses our certificate after the handshake.
"""

import socket
import ssl

import trio

from wormfs.rpc.etcd_types import EtcdOptions

_WAIT_S = 1.0
_REQUEST = b"GET /version HTTP/1.0\r\n\r\n"


async def tls_problem(options: EtcdOptions) -> str:
    """What is wrong with the first endpoint whose TLS is; one line, empty when none is known. Ends in 2 s."""
    found: dict[str, str] = {}

    async def look(endpoint: str) -> None:
        found[endpoint] = await trio.to_thread.run_sync(
            _problem_of, endpoint, options, abandon_on_cancel=True
        )

    with trio.move_on_after(2 * _WAIT_S):
        async with trio.open_nursery() as nursery:
            for endpoint in options.endpoints:
                nursery.start_soon(look, endpoint)
    return next(
        (f"etcd at {each}: {found[each]}" for each in options.endpoints if found.get(each)),
        "",
    )


def _problem_of(endpoint: str, options: EtcdOptions) -> str:
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=_WAIT_S) as plain:
            if options.ca_file is None:
                return _without_tls(plain)
            return _with_tls(plain, host, options)
    except OSError:  # it does not answer at all: nothing to be said of TLS
        return ""


def _without_tls(plain: socket.socket) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether it speaks TLS is asked; nothing is sent
    try:
        context.wrap_socket(plain).close()
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return ""
    return "it speaks TLS, and no ca_file is given: name it, and cert_file and key_file if it asks for them"


def _with_tls(plain: socket.socket, host: str, options: EtcdOptions) -> str:
    context = ssl.create_default_context(cafile=options.ca_file)
    if options.cert_file is not None:
        context.load_cert_chain(options.cert_file, options.key_file, password="")
    try:
        secure = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, options)
    except (ssl.SSLError, ConnectionResetError) as error:
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return _refused(error, options)
        return "it does not speak TLS, and ca_file is given: have it do so, or take ca_file out"
    with secure:
        try:
            secure.sendall(_REQUEST)
            secure.recv(1)
        except ssl.SSLError as error:
            return _refused(error, options)
    return ""


def _unverified(error: ssl.SSLCertVerificationError, options: EtcdOptions) -> str:
    why = error.verify_message.rstrip(".")
    return (
        f"its certificate is not accepted ({why}): it must be in date, signed by the authority in ca_file "
        f"{options.ca_file}, and name the endpoint's address"
    )


def _refused(error: ssl.SSLError, options: EtcdOptions) -> str:
    if options.cert_file is None:
        return "it asks for a certificate: give cert_file and key_file, signed by an authority that it trusts"
    why = (error.reason or "").lower().replace("_", " ")
    return (
        f"it does not take the certificate in cert_file {options.cert_file} ({why}): that must be in date, "
        "signed by an authority that it trusts, and be one for clients"
    )
