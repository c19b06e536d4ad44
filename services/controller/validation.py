"""GenerateRequest to RequestSpec. Nothing of a request is kept before all of it is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from headway.core.request import RequestSpec, Sampling
from headway.core.slo import Slo
from headway.errors import FieldViolation, InvalidRequest
from headway.ports.tokenizer import Tokenizer
from headway.rpc.convert import duration_from_pb, sampling_from_pb, slo_from_pb
from headway.v1 import generation_pb2
from headway.v1 import inference_service_pb2 as pb
from services.controller.slo_validation import check_duration, check_slo

MAX_REQUEST_BYTES = 1 << 20
MAX_STOPS = 16
MAX_STOP_BYTES = 64
DEFAULT_MAX_TOKENS = 256
MIN_DEADLINE_S = 0.001
MAX_DEADLINE_S = 3600.0

_ROLES = {"system", "user", "assistant"}
_PROMPT_FIELDS = ("prompt_text", "prompt_token_ids", "messages")
# Longer texts are tokenised in a thread, so that other requests' tokens do not wait for it.
_LONG_TEXT_CHARS = 4096
# A reply's details travel as metadata, which is limited to a few KiB.
_MAX_UNKNOWN_FIELDS = 8


class RequestReader:
    """Checks and tokenises what clients send.

    Args:
        tiers: bounds by name; None for a best-effort tier.
        mint_request_id: makes ids that nobody can guess.
    """

    def __init__(
        self,
        tiers: Mapping[str, Slo | None],
        tokenizer: Tokenizer,
        mint_request_id: Callable[[], str],
    ) -> None:
        self._tiers = tiers
        self._tokenizer = tokenizer
        self._mint_request_id = mint_request_id

    async def read(self, request: pb.GenerateRequest, max_model_len: int) -> RequestSpec:
        """The request, checked. Args: max_model_len: longest prompt and output, in tokens.

        Raises:
            InvalidRequest: with everything that is wrong; lengths of texts are checked only
                when nothing else is wrong, because that needs tokenising.
        """
        if violations := list(self._violations(request, max_model_len)):
            raise InvalidRequest(violations)
        token_ids = await self._token_ids(request)
        sampling = sampling_from_pb(request.sampling)
        if violations := list(_length_violations(request, len(token_ids), max_model_len)):
            raise InvalidRequest(violations)
        return RequestSpec(
            request_id=self._mint_request_id(),
            prompt_token_ids=token_ids,
            sampling=_with_max_tokens(sampling, max_model_len - len(token_ids)),
            slo=slo_from_pb(request.slo) if request.HasField("slo") else self._tier(request),
            tier=request.tier,
            refuse_if_not_promised=request.when_not_promised == pb.WHEN_NOT_PROMISED_REFUSE,
            deadline_s=(
                duration_from_pb(request.deadline)
                if request.HasField("deadline")
                else MAX_DEADLINE_S
            ),
        )

    def _tier(self, request: pb.GenerateRequest) -> Slo | None:
        return self._tiers[request.tier] if request.tier else None

    async def _token_ids(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        if request.prompt_token_ids:
            return tuple(request.prompt_token_ids)
        if request.ByteSize() > _LONG_TEXT_CHARS:
            return tuple(await asyncio.to_thread(self._tokenise, request))
        return tuple(self._tokenise(request))

    def _tokenise(self, request: pb.GenerateRequest) -> list[int]:
        if request.prompt_text:
            return self._tokenizer.encode(request.prompt_text)
        return self._tokenizer.encode_chat([(m.role, m.content) for m in request.messages])

    def _violations(
        self, request: pb.GenerateRequest, max_model_len: int
    ) -> Iterator[FieldViolation]:
        num_bytes = request.ByteSize()
        if num_bytes > MAX_REQUEST_BYTES:
            # What is inside is not looked at: that is what the limit is for.
            yield FieldViolation("", f"has {num_bytes} bytes, at most {MAX_REQUEST_BYTES}")
            return
        yield from _unknown_fields(request)
        yield from self._prompt_violations(request, max_model_len)
        yield from self._promise_violations(request)
        yield from _sampling_violations(request.sampling, self._tokenizer.vocab_size, max_model_len)
        if request.HasField("deadline"):
            yield from _deadline_violations(request.deadline)

    def _prompt_violations(
        self, request: pb.GenerateRequest, max_model_len: int
    ) -> Iterator[FieldViolation]:
        given = [name for name in _PROMPT_FIELDS if getattr(request, name)]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            yield FieldViolation(
                given[1] if given else "prompt_text",
                f"give exactly one of {', '.join(_PROMPT_FIELDS)}, and not empty; got {what}",
            )
        for index, message in enumerate(request.messages):
            if message.role not in _ROLES:
                yield FieldViolation(
                    f"messages[{index}].role", f"must be one of {', '.join(sorted(_ROLES))}"
                )
                break  # one tells enough
        token_ids = request.prompt_token_ids
        vocab_size = self._tokenizer.vocab_size
        if token_ids and max(token_ids) >= vocab_size:
            index = next(i for i, token_id in enumerate(token_ids) if token_id >= vocab_size)
            yield FieldViolation(
                f"prompt_token_ids[{index}]", f"must be below {vocab_size}, got {token_ids[index]}"
            )
        if given == ["prompt_token_ids"]:
            yield from _length_violations(request, len(token_ids), max_model_len)

    def _promise_violations(self, request: pb.GenerateRequest) -> Iterator[FieldViolation]:
        if request.tier and request.HasField("slo"):
            yield FieldViolation("slo", "give either tier or slo")
        if request.tier and request.tier not in self._tiers:
            known = ", ".join(sorted(self._tiers))
            yield FieldViolation("tier", f"is unknown; tiers are: {known}")
        if request.when_not_promised not in pb.WhenNotPromised.values():
            yield FieldViolation(
                "when_not_promised", f"{request.when_not_promised} is not a value of its enum"
            )
        if request.HasField("slo"):
            yield from check_slo(request.slo, self._tokenizer.vocab_size)


def _length_violations(
    request: pb.GenerateRequest, num_prompt_tokens: int, max_model_len: int
) -> Iterator[FieldViolation]:
    field = next((name for name in _PROMPT_FIELDS if getattr(request, name)), "prompt_text")
    max_tokens = request.sampling.max_tokens
    if num_prompt_tokens == 0:
        yield FieldViolation(field, "has no tokens")
    elif num_prompt_tokens >= max_model_len:
        yield FieldViolation(
            field,
            f"has {num_prompt_tokens} tokens, which leaves no room for output within the"
            f" model's {max_model_len}",
        )
    elif num_prompt_tokens + max_tokens > max_model_len >= max_tokens:
        yield FieldViolation(
            "sampling.max_tokens",
            f"{num_prompt_tokens} prompt tokens and {max_tokens} output tokens are more than"
            f" the model's {max_model_len}",
        )


def _with_max_tokens(sampling: Sampling, num_left: int) -> Sampling:
    if sampling.max_tokens > 0:
        return sampling
    return Sampling(
        max_tokens=min(DEFAULT_MAX_TOKENS, num_left),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
    )


def _sampling_violations(
    sampling: generation_pb2.SamplingParams, vocab_size: int, max_model_len: int
) -> Iterator[FieldViolation]:
    # Comparisons are written so that NaN fails them.
    if not 0 <= sampling.temperature <= 2:
        yield FieldViolation("sampling.temperature", f"must be 0 to 2, got {sampling.temperature}")
    if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
        yield FieldViolation(
            "sampling.top_p", f"must be above 0 and at most 1, got {sampling.top_p}"
        )
    if sampling.top_k > vocab_size:
        yield FieldViolation(
            "sampling.top_k", f"must be at most {vocab_size}, got {sampling.top_k}"
        )
    if sampling.max_tokens > max_model_len:
        yield FieldViolation(
            "sampling.max_tokens",
            f"must be at most the model's {max_model_len}, got {sampling.max_tokens}",
        )
    if len(sampling.stop) > MAX_STOPS:
        yield FieldViolation(
            "sampling.stop", f"at most {MAX_STOPS} strings, got {len(sampling.stop)}"
        )
    for index, stop in enumerate(sampling.stop[:MAX_STOPS]):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            yield FieldViolation(
                f"sampling.stop[{index}]", f"must have 1 to {MAX_STOP_BYTES} bytes"
            )


def _deadline_violations(deadline: Duration) -> Iterator[FieldViolation]:
    if violation := check_duration("deadline", deadline):
        yield violation
    elif not MIN_DEADLINE_S <= duration_from_pb(deadline) <= MAX_DEADLINE_S:
        yield FieldViolation("deadline", "must be 1 ms to 1 h")


def _unknown_fields(request: pb.GenerateRequest) -> Iterator[FieldViolation]:
    """Fields of a newer version: what they ask for would be ignored silently."""
    for count, path in enumerate(_unknown_paths(request, "")):
        if count == _MAX_UNKNOWN_FIELDS:
            return
        yield FieldViolation(path, "is not a field of this version")


def _unknown_paths(message: Message, prefix: str) -> Iterator[str]:
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]
        yield f"{prefix}#{unknown.field_number}"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if isinstance(value, Message):
            yield from _unknown_paths(value, f"{prefix}{descriptor.name}.")
        else:
            for index, item in enumerate(value):
                yield from _unknown_paths(item, f"{prefix}{descriptor.name}[{index}].")
