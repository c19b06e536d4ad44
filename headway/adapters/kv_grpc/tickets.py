"""One-time proofs that a decode worker expects a transfer.

The worker's process mints them, the receiver in its engine's process verifies them; they
share a secret and the machine's monotonic clock, nothing else.
"""

from __future__ import annotations

import hmac
import secrets
import struct
import time
from collections.abc import Callable

from headway.errors import PermissionDenied, Refused

DEFAULT_TTL_S = 120.0

_EXPIRY = struct.Struct("<Q")
_MAC_BYTES = 32


def _mac(secret: bytes, transfer_id: str, expiry: bytes) -> bytes:
    return hmac.digest(secret, expiry + transfer_id.encode(), "sha256")


class TicketMint:
    """Mints transfer ids and the tickets that go with them; keeps no state."""

    def __init__(
        self,
        secret: bytes,
        *,
        ttl_s: float = DEFAULT_TTL_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = secret
        self._ttl_s = ttl_s
        self._now_s = now_s

    def mint(self, request_id: str) -> tuple[str, bytes]:
        """A fresh transfer id, not to be guessed, and the ticket for one use of it."""
        transfer_id = f"{request_id}.{secrets.token_hex(16)}"
        expiry = _EXPIRY.pack(int((self._now_s() + self._ttl_s) * 1e9))
        return transfer_id, expiry + _mac(self._secret, transfer_id, expiry)


class TicketGate:
    """Lets each valid ticket pass once.

    Remembers used ids until they expire, and at most `max_remembered` of them. Not
    thread-safe.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        max_remembered: int = 1 << 16,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret = secret
        self._max_remembered = max_remembered
        self._now_s = now_s
        self._used_until_ns: dict[str, int] = {}

    def redeem(self, transfer_id: str, ticket: bytes) -> float:
        """Use a ticket up; returns for how many seconds it would still have been valid.

        Raises:
            PermissionDenied: wrong, expired or used.
            Refused: too many tickets are remembered.
        """
        now_ns = int(self._now_s() * 1e9)
        until_ns = self._check(transfer_id, ticket, now_ns)
        if not self._has_room(now_ns):
            raise Refused("TICKETS", "too many transfers in a short time", retry_after_s=1.0)
        self._used_until_ns[transfer_id] = until_ns
        return (until_ns - now_ns) / 1e9

    def check(self, transfer_id: str, ticket: bytes) -> None:
        """Look at a ticket without using it up.

        Raises:
            PermissionDenied: wrong, expired or used.
        """
        self._check(transfer_id, ticket, int(self._now_s() * 1e9))

    def _check(self, transfer_id: str, ticket: bytes, now_ns: int) -> int:
        """When the ticket expires, on our clock."""
        expiry, mac = ticket[: _EXPIRY.size], ticket[_EXPIRY.size :]
        if len(mac) != _MAC_BYTES or not hmac.compare_digest(
            mac, _mac(self._secret, transfer_id, expiry)
        ):
            raise PermissionDenied("the ticket is not for this transfer")
        until_ns: int = _EXPIRY.unpack(expiry)[0]
        if until_ns <= now_ns:
            raise PermissionDenied("the ticket has expired")
        if transfer_id in self._used_until_ns:
            raise PermissionDenied("the ticket was used or revoked")
        return until_ns

    def revoke(self, transfer_id: str, ttl_s: float = DEFAULT_TTL_S) -> None:
        """Refuse a ticket that may still come; `ttl_s` later it will have expired.

        Where too many are remembered the ticket stays valid: nobody will expect its transfer.
        """
        now_ns = int(self._now_s() * 1e9)
        if self._has_room(now_ns):
            self._used_until_ns[transfer_id] = now_ns + int(ttl_s * 1e9)

    def _has_room(self, now_ns: int) -> bool:
        if len(self._used_until_ns) >= self._max_remembered:
            self._used_until_ns = {
                key: value for key, value in self._used_until_ns.items() if value > now_ns
            }
        return len(self._used_until_ns) < self._max_remembered
