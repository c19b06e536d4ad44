"""Plan updates on their way into the engine's process: datagrams on a socket of this machine.

A utility call of vLLM would wait for the running step, be answered, and take a thread hop on
both sides. Senders must be processes of the same user: the kernel vouches for them.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from headway.adapters.vllm_scheduler.demand import ReceivedUpdate, decode_update, encode_update
from headway.errors import EngineFailed
from headway.ports.engine import PlanUpdate

_log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("3i")


class PlanReceiver:
    """Listens on a thread; `take` and `close` are for the engine's own."""

    def __init__(self, on_update: Callable[[], None]) -> None:
        self._on_update = on_update
        self._updates: deque[ReceivedUpdate] = deque()
        # In the abstract namespace: nothing is left behind by a process that is killed.
        self.address = f"headway-plan-{secrets.token_hex(16)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{self.address}")
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="plan updates", daemon=True)
        self._thread.start()

    @property
    def has_updates(self) -> bool:
        return bool(self._updates)

    def take(self) -> list[ReceivedUpdate]:
        """What came since the last call, the oldest first."""
        updates = []
        while self._updates:
            updates.append(self._updates.popleft())
        return updates

    def close(self) -> None:
        self._closed = True
        # Wakes the thread, which closing alone would not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        room = socket.CMSG_SPACE(_CREDENTIALS.size)
        while not self._closed:
            datagram, ancillary, _, _ = self._socket.recvmsg(_MAX_BYTES, room)
            if not datagram or not _is_ours(ancillary):
                continue
            try:
                update = decode_update(datagram)
            except (ValueError, KeyError, TypeError):
                _log.warning("a plan update cannot be read and is left out")
                continue
            self._updates.append(update)
            self._on_update()


def _is_ours(ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            _, user_id, _ = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])
            return bool(user_id == os.geteuid())
    return False


class PlanSender:
    """The other end. Sending never waits."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address = f"\0{address}"

    def send(self, update: PlanUpdate) -> None:
        """Raises EngineFailed: the engine has ended, or has not taken the last updates."""
        try:
            self._socket.sendto(encode_update(update, time.monotonic()), self._address)
        except OSError as error:
            raise EngineFailed(f"the engine does not take plans: {error}") from error

    def close(self) -> None:
        self._socket.close()
