"""Clients whose requests are not complete.

A client that sends slowly must not take the place of another one. A new client is therefore never refused: if too many
are waiting, the client that has waited longest is dropped, of the address that has most of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Client:
    """Client that is sending a request.

    Args:
        address: Network address of the client.
        drop: Function that ends the request.

    Attributes:
        received: Number of bytes of the body that have arrived.
    """

    def __init__(self, address: str, drop: Callable[[], None]) -> None:
        self.address = address
        self.drop = drop
        self.received = 0


class Waiting:
    """Clients whose requests are not complete, in the order of their arrival.

    Args:
        most: Largest number of clients.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.clients: dict[Client, None] = {}

    def add(self, client: Client) -> None:
        """Add a client. If there are too many now, drop the first one of the address with most clients."""
        self.clients[client] = None
        if len(self.clients) > self.most:
            counts = Counter(each.address for each in self.clients)
            self._drop_first(counts)

    def discard(self, client: Client) -> None:
        """Remove a client whose request is complete, or which is gone."""
        self.clients.pop(client, None)

    def drop_largest(self) -> None:
        """Drop the first client of the address from which most bytes have arrived, if there is a client."""
        counts = Counter[str]()
        for client in self.clients:
            counts[client.address] += client.received
        if counts:
            self._drop_first(counts)

    def drop_all(self) -> None:
        """Drop all clients."""
        for client in [*self.clients]:
            self._drop(client)

    def _drop_first(self, counts: Counter[str]) -> None:
        [(address, _)] = counts.most_common(1)
        self._drop(next(client for client in self.clients if client.address == address))

    def _drop(self, client: Client) -> None:
        self.discard(client)
        client.drop()
