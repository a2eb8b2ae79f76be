#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""An echo server, UDP and TCP, that says which traits came with what it receives. Plain socket calls, no module.

    traits sockets attach                       # once, as root
    python3 echo.py --tenant 7 127.0.0.1 7777   # as anybody, started after that

It prints a line for every datagram, for every connection (the traits of its SYN) and for all data on one:

    udp 10.77.0.1:40000 tenant=7 flow_id=12
    tcp 10.77.0.1:40002 syn tenant=2 flow_id=14
    tcp 10.77.0.1:40002 data tenant=2 flow_id=15

What it sends has traits as well, for the programs that see packets leave: the answer to a datagram has that datagram's
`flow_id`, and with --tenant all of them have `tenant`.

Numbers and structs are those of include/packet_traits/socket.h, which says more about each.
"""

import argparse
import errno
import selectors
import signal
import socket
import struct
import sys
import uuid
from typing import Any, List, NamedTuple, Optional

SOL_TRAITS = 0x5452
SOL_TRAITS_DATAGRAM = 0x5453
TRAITS_KEYS = 0x000
SAVE_SYN_TRAITS = 0x100
RCV_TRAITS = 0x200
SYN_TRAITS = 0x300
LAST_TRAITS = 0x400
SOCKET_TRAITS = 0x500
NEXT_TRAITS = 0x600
TRAITS_ALL = 0xFF
TRAITS_KEY_MAX = 64

KEY = struct.Struct("32s4B2H")  # struct traits_key
TRAITS = struct.Struct("QII232s")  # struct traits

# types of keys whose values are not unsigned integers
I64, IPV4, IPV6, MAC, UUID = 7, 8, 9, 10, 11


class Key(NamedTuple):
    """A registered key."""

    name: str
    number: int
    type: int
    size: int
    offset: int


class Traits(NamedTuple):
    """What came with a packet."""

    present: int
    mark: int
    values: bytes

    def get(self, key: Key) -> Optional[bytes]:
        """The value of a key, in the host's byte order; None if it is not set."""
        if not self.present >> key.number & 1:
            return None
        return self.values[key.offset : key.offset + key.size]


def read_keys(sock: socket.socket) -> List[Key]:
    """The keys there are. One call gets 25 of them, since Python gives getsockopt 1024 bytes at most."""
    keys: List[Key] = []
    first = 0
    while first < TRAITS_KEY_MAX:
        try:
            raw = sock.getsockopt(SOL_TRAITS, TRAITS_KEYS + first, 25 * KEY.size)
        except OSError as error:
            if error.errno == errno.ENOENT:  # none from `first` on
                break
            raise
        for name, number, kind, size, _merge, offset, _distance in KEY.iter_unpack(raw):
            keys.append(Key(name.rstrip(b"\0").decode(), number, kind, size, offset))
        first = keys[-1].number + 1
    return keys


def is_detached(error: OSError) -> bool:
    """Whether a call failed because of `traits sockets detach`: the server goes on without traits."""
    return error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP)


def read_traits(sock: socket.socket, level: int, option: int) -> Traits:
    """All traits that an option gives, in one call."""
    while True:
        try:
            raw = sock.getsockopt(level, option, TRAITS.size)
            break
        except BlockingIOError:  # EAGAIN: a packet is just changing it
            pass
        except OSError as error:
            if is_detached(error):
                return Traits(0, 0, b"")
            raise
    present, _flags, mark, values = TRAITS.unpack(raw.ljust(TRAITS.size, b"\0"))
    return Traits(present, mark, values)


def traits_of_datagram(sock: socket.socket, control: List[Any]) -> Traits:
    """The traits of the datagram that recvmsg returned with these control messages."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SO_MARK:
            (handle,) = struct.unpack("i", data)
            return read_traits(sock, SOL_TRAITS_DATAGRAM, handle)
    return Traits(0, 0, b"")


def value_text(key: Key, value: bytes) -> str:
    """A value as people write it."""
    if key.type == IPV4:
        return socket.inet_ntop(socket.AF_INET, value)
    if key.type == IPV6:
        return socket.inet_ntop(socket.AF_INET6, value)
    if key.type == MAC:
        return value[:6].hex(":")
    if key.type == UUID:
        return str(uuid.UUID(bytes=value))
    return str(int.from_bytes(value, sys.byteorder, signed=key.type == I64))


def traits_text(keys: List[Key], traits: Traits) -> str:
    """`tenant=7 flow_id=12`; of a flag just the name."""
    words = []
    for key in keys:
        value = traits.get(key)
        if value is not None:
            words.append(f"{key.name}={value_text(key, value)}" if key.size else key.name)
    if traits.mark:
        words.append(f"mark={traits.mark}")
    return " ".join(words) or "none"


def peer_text(peer: Any) -> str:
    """`10.77.0.1:40000` or `[fd77::1]:40000`."""
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server:
    """Both sockets, and those accepted."""

    def __init__(self, address: str, port: int, tenant: Optional[int]) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.udp = socket.socket(family, socket.SOCK_DGRAM)
        # first: a set fails with ENOPROTOOPT where nothing is attached, but a get of an IPv4 socket with EOPNOTSUPP
        self.udp.setsockopt(SOL_TRAITS, RCV_TRAITS, 1)
        self.keys = read_keys(self.udp)
        by_name = {key.name: key for key in self.keys}
        self.flow_id = by_name.get("flow_id")
        if tenant is not None and "tenant" in by_name:
            key = by_name["tenant"]
            value = tenant.to_bytes(key.size, sys.byteorder)
            self.udp.setsockopt(SOL_TRAITS, SOCKET_TRAITS + key.number, value)
        self.udp.bind((address, port))

        self.tcp = socket.socket(family, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # accepted sockets inherit both
        self.tcp.setsockopt(SOL_TRAITS, SAVE_SYN_TRAITS, 1)
        self.tcp.setsockopt(SOL_TRAITS, RCV_TRAITS, 1)
        self.tcp.bind((address, port))
        self.tcp.listen()

        self.selector = selectors.DefaultSelector()
        self.selector.register(self.udp, selectors.EVENT_READ, self.answer_datagram)
        self.selector.register(self.tcp, selectors.EVENT_READ, self.accept)

    def run(self) -> None:
        """Serves until a signal raises SystemExit."""
        while True:
            for ready, _events in self.selector.select():
                try:
                    ready.data(ready.fileobj)
                except OSError as error:
                    print(f"cannot serve: {error}", file=sys.stderr)

    def say(self, peer: Any, what: str, traits: Traits) -> None:
        """Prints a line."""
        protocol, *rest = what.split()
        print(protocol, peer_text(peer), *rest, traits_text(self.keys, traits), flush=True)

    def answer_datagram(self, udp: socket.socket) -> None:
        """Receives a datagram and sends it back."""
        data, control, _flags, peer = udp.recvmsg(65535, socket.CMSG_SPACE(4))
        traits = traits_of_datagram(udp, control)
        self.say(peer, "udp", traits)
        if self.flow_id:
            # no bytes if the datagram had none: then the answer has none either
            value = traits.get(self.flow_id) or b""
            try:
                udp.setsockopt(SOL_TRAITS, NEXT_TRAITS + self.flow_id.number, value)
            except OSError as error:
                if not is_detached(error):
                    raise
        udp.sendto(data, peer)

    def accept(self, tcp: socket.socket) -> None:
        """Accepts a connection."""
        connection, peer = tcp.accept()
        connection.settimeout(5)  # a client that does not read its echo is not waited for any longer
        self.say(peer, "tcp syn", read_traits(connection, SOL_TRAITS, SYN_TRAITS + TRAITS_ALL))
        self.selector.register(connection, selectors.EVENT_READ, self.answer_data)

    def answer_data(self, connection: socket.socket) -> None:
        """Receives what a connection has and sends it back."""
        still_open = False
        try:
            data = connection.recv(65536)
            if data:
                traits = read_traits(connection, SOL_TRAITS, LAST_TRAITS + TRAITS_ALL)
                self.say(connection.getpeername(), "tcp data", traits)
                connection.sendall(data)
                still_open = True
        finally:
            if not still_open:
                self.selector.unregister(connection)
                connection.close()


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="Echo server that prints the traits of what it receives.")
    parser.add_argument("address", help="IPv4 or IPv6 address to listen on")
    parser.add_argument("port", type=int, help="port, the same for UDP and TCP")
    parser.add_argument("--tenant", type=int, help="tenant of all datagrams it sends")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    try:
        server = Server(args.address, args.port, args.tenant)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            sys.exit('not attached: run "traits sockets attach" as root')
        sys.exit(f"cannot serve {args.address} port {args.port}: {error.strerror}")
    server.run()


if __name__ == "__main__":
    main()
