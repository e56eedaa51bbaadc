"""Ports for servers that tests start in other processes."""

import socket

PORTS = range(20_000, 30_000)  # below those that the system chooses for clients and for port 0
_reservations: list[socket.socket] = []  # UDP sockets of the same numbers


def free_port() -> int:
    """Return a TCP port that no program uses, and that no other call returns while this process lives.

    A port that the system chose could be given to another program before the server binds it.
    """
    for port in PORTS:
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            try:
                reservation.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
            except OSError:  # of another process of the tests, or in use
                reservation.close()
                continue
        _reservations.append(reservation)
        return port
    raise AssertionError("all ports of the tests are in use")
