from __future__ import annotations

import pytest

from headway.adapters.kv_grpc.tickets import TicketGate, TicketMint
from headway.errors import PermissionDenied, Refused


class Clock:
    def __init__(self) -> None:
        self.at_s = 1000.0

    def now_s(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mint(clock: Clock) -> TicketMint:
    return TicketMint(b"secret", ttl_s=10.0, now_s=clock.now_s)


@pytest.fixture
def gate(clock: Clock) -> TicketGate:
    return TicketGate(b"secret", max_remembered=3, now_s=clock.now_s)


def test_a_ticket_passes_once(mint: TicketMint, gate: TicketGate) -> None:
    transfer_id, ticket = mint.mint("request")
    assert gate.redeem(transfer_id, ticket) == pytest.approx(10.0)
    with pytest.raises(PermissionDenied, match="used"):
        gate.redeem(transfer_id, ticket)


def test_every_transfer_id_is_new_and_names_its_request(mint: TicketMint) -> None:
    ids = {mint.mint("request")[0] for _ in range(100)}
    assert len(ids) == 100
    assert all(transfer_id.startswith("request.") for transfer_id in ids)


def test_a_ticket_is_for_its_own_transfer_only(mint: TicketMint, gate: TicketGate) -> None:
    transfer_id, _ = mint.mint("request")
    _, ticket = mint.mint("request")
    with pytest.raises(PermissionDenied):
        gate.redeem(transfer_id, ticket)


def test_changing_any_byte_voids_a_ticket(mint: TicketMint, gate: TicketGate) -> None:
    transfer_id, ticket = mint.mint("request")
    for index in range(len(ticket)):
        changed = bytearray(ticket)
        changed[index] ^= 1
        with pytest.raises(PermissionDenied):
            gate.redeem(transfer_id, bytes(changed))
    for wrong in (b"", ticket[:-1], ticket + b"\0"):
        with pytest.raises(PermissionDenied):
            gate.redeem(transfer_id, wrong)
    gate.redeem(transfer_id, ticket)


def test_a_ticket_of_another_secret_is_refused(clock: Clock, gate: TicketGate) -> None:
    transfer_id, ticket = TicketMint(b"other", now_s=clock.now_s).mint("request")
    with pytest.raises(PermissionDenied):
        gate.redeem(transfer_id, ticket)


def test_a_ticket_expires(mint: TicketMint, gate: TicketGate, clock: Clock) -> None:
    transfer_id, ticket = mint.mint("request")
    clock.at_s += 10.0
    with pytest.raises(PermissionDenied, match="expired"):
        gate.redeem(transfer_id, ticket)


def test_a_revoked_ticket_is_refused_until_it_has_expired(
    mint: TicketMint, gate: TicketGate, clock: Clock
) -> None:
    transfer_id, ticket = mint.mint("request")
    gate.revoke(transfer_id, ttl_s=10.0)
    clock.at_s += 9.9
    with pytest.raises(PermissionDenied):
        gate.redeem(transfer_id, ticket)


def test_the_memory_of_used_tickets_is_bounded_and_forgets_expired_ones(
    mint: TicketMint, gate: TicketGate, clock: Clock
) -> None:
    for _ in range(3):
        gate.redeem(*mint.mint("request"))
    with pytest.raises(Refused):
        gate.redeem(*mint.mint("request"))
    clock.at_s += 10.0
    gate.redeem(*mint.mint("request"))
