"""Two real engines, one core each, and the pages between them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from headway.adapters.tokenizer import ModelTokenizer
from headway.config import Config
from headway.core.request import FinishReason, Sampling
from headway.errors import EngineFailed, KvTransferFailed
from headway.ports.engine import KvTransferRecord
from tests.vllm.conftest import BLOCK_SIZE, KV_BYTES_PER_TOKEN, NUM_BLOCKS
from tests.vllm.pair import Output, Pair, at_rest, greedy, prompt_of, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LENGTHS = [1, 2, 31, 32, 33, 128, 129, 260, 600]
NUM_TOKENS = 12
# Two of these begin with 4 blocks and would need 10 in the end.
LONG_LENGTH = 2 * BLOCK_SIZE
NUM_LONG_TOKENS = 80

Expected = dict[tuple[int, int], list[int]]


@pytest.fixture(scope="module")
def expected(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """What one plain vLLM says to prompt_of(length, seed)."""
    keys = [(length, 0) for length in LENGTHS] + [(LONG_LENGTH, 1), (LONG_LENGTH, 2)]
    out = tmp_path_factory.mktemp("plain") / "tokens.json"
    asked = {
        "prompt_token_ids": [prompt_of(*key) for key in keys],
        "max_tokens": NUM_LONG_TOKENS,
    }
    command = [sys.executable, "-m", "headway.adapters.plain_vllm", "--model", str(model_dir)]
    command += ["--dtype", "float32", "--max-model-len", "1440", "--out", str(out)]
    subprocess.run(command, input=json.dumps(asked), text=True, check=True)
    return dict(zip(keys, json.loads(out.read_text())["token_ids"], strict=True))


def transfer_of(output: Output) -> KvTransferRecord:
    assert output.finished is not None
    assert output.finished.kv_transfer is not None
    return output.finished.kv_transfer


async def test_greedy_output_is_that_of_one_plain_engine(pair: Pair, expected: Expected) -> None:
    for length in LENGTHS:
        output = await pair.generate(prompt_of(length), greedy(NUM_TOKENS))
        assert (length, output.token_ids) == (length, expected[length, 0][:NUM_TOKENS])
        assert output.num_recomputed == 1
        assert output.finished is not None
        assert output.finished.finish_reason is FinishReason.LENGTH
    await pair.settled()


async def test_requests_at_the_same_time_do_not_change_each_other(
    pair: Pair, expected: Expected
) -> None:
    outputs = await asyncio.gather(
        *(pair.generate(prompt_of(length), greedy(NUM_TOKENS)) for length in LENGTHS)
    )
    for length, output in zip(LENGTHS, outputs, strict=True):
        assert (length, output.token_ids) == (length, expected[length, 0][:NUM_TOKENS])
        assert output.num_recomputed == 1
    await pair.settled()


async def test_prompts_the_decode_engine_computes_itself_come_out_the_same(
    pair: Pair, expected: Expected
) -> None:
    outputs = [Output() for _ in LENGTHS]
    moved = asyncio.create_task(pair.generate(prompt_of(260), greedy(NUM_TOKENS)))
    await asyncio.gather(
        *(
            pair.generate_here(output, prompt_of(length), greedy(NUM_TOKENS), due_s=60.0)
            for length, output in zip(LENGTHS, outputs, strict=True)
        )
    )
    for length, output in zip(LENGTHS, outputs, strict=True):
        assert (length, output.token_ids) == (length, expected[length, 0][:NUM_TOKENS])
        assert output.finished is not None
        assert output.finished.kv_transfer is None
        assert output.num_recomputed == 0
        assert output.prefill is not None
        assert output.prefill.computed_s > 0
    assert (await moved).token_ids == expected[260, 0][:NUM_TOKENS]
    assert (await moved).num_recomputed == 1
    await pair.settled()


async def test_cancelling_while_the_decode_engine_computes_a_prompt_gives_blocks_back(
    pair: Pair,
) -> None:
    computing = asyncio.create_task(
        pair.generate_here(Output(), prompt_of(1200, seed=60), greedy(4))
    )
    await until(pair.decode, lambda load: load.num_free_kv_blocks < NUM_BLOCKS)
    computing.cancel()
    await asyncio.gather(computing, return_exceptions=True)
    await pair.settled()


async def test_blocks_the_decode_engine_has_are_not_sent_again(pair: Pair) -> None:
    prompt = prompt_of(200, seed=7)
    first = await pair.generate(prompt, greedy(4))
    second = await pair.generate(prompt, greedy(4))
    block_bytes = BLOCK_SIZE * KV_BYTES_PER_TOKEN
    assert transfer_of(first).num_bytes == 7 * block_bytes
    assert transfer_of(first).num_blocks_reused == 0
    # 200 tokens are 6 whole blocks, which are cached, and a partial one, which is not.
    assert transfer_of(second).num_bytes == block_bytes
    assert transfer_of(second).num_blocks_reused == 6
    assert second.token_ids == first.token_ids
    assert second.num_recomputed == 1
    assert second.prefill is not None
    assert second.prefill.num_cached_tokens == 6 * BLOCK_SIZE
    await pair.settled()


async def test_pages_leave_while_the_prompt_is_still_computed(pair: Pair) -> None:
    output = await pair.generate(prompt_of(600, seed=8), greedy(2))
    # Five steps of at most 128 tokens; what the last one computes cannot come before its end.
    assert transfer_of(output).overlapped_ratio > 0.5
    assert output.prefill is not None
    assert output.prefill.computed_s > 0
    await pair.settled()


async def test_a_preempted_request_resumes_and_comes_out_the_same(
    pair: Pair, expected: Expected
) -> None:
    # This one waits for pages that never come, and leaves too few blocks for the two others.
    hog = asyncio.create_task(
        pair.decode_into(Output(), pair.ask(prompt_of(37 * BLOCK_SIZE, seed=9)), greedy(4))
    )
    await until(pair.decode, lambda load: load.num_free_kv_blocks == NUM_BLOCKS - 37)
    growing = [
        asyncio.create_task(pair.generate(prompt_of(LONG_LENGTH, seed), greedy(NUM_LONG_TOKENS)))
        for seed in (1, 2)
    ]
    await until(pair.decode, lambda load: load.num_running == 2)
    load = await until(pair.decode, lambda load: load.num_running == 1)
    assert load.num_waiting == 2
    for seed, output in zip((1, 2), await asyncio.gather(*growing), strict=True):
        assert output.token_ids == expected[LONG_LENGTH, seed]
    hog.cancel()
    await asyncio.gather(hog, return_exceptions=True)
    await pair.settled()


async def test_output_ends_before_a_stop_string(pair: Pair, model_dir: Path) -> None:
    prompt = ModelTokenizer(model_dir).encode_chat([("user", "Tell me a story about a dog.")])
    sampling = Sampling(max_tokens=24, temperature=0.8, top_p=0.95, seed=11)
    whole = await pair.generate(prompt, sampling)
    stop = whole.text[20:24]
    assert len(stop) == 4
    cut = await pair.generate(
        prompt, Sampling(max_tokens=24, temperature=0.8, top_p=0.95, seed=11, stop=(stop,))
    )
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finished is not None
    assert cut.finished.finish_reason is FinishReason.STOP
    assert cut.num_recomputed == 1
    assert transfer_of(cut).num_bytes > 0
    await pair.settled()


async def test_prompts_start_in_the_order_they_are_due_and_best_effort_last(pair: Pair) -> None:
    order: list[str] = []

    async def generate(name: str, prompt: list[int], due_s: float | None) -> None:
        asked = pair.ask(prompt)
        decoding = asyncio.create_task(pair.decode_into(Output(), asked, greedy(1)))
        await pair.prefill.prefill(asked.prefill_job(due_s))
        order.append(name)
        await decoding

    asking = [
        asyncio.create_task(generate(f"best effort {i}", prompt_of(400, seed=20 + i), None))
        for i in range(3)
    ]
    await until(pair.prefill, lambda load: load.num_running + load.num_waiting == 3)
    for name, due_s in (("late", 30.0), ("later", 40.0), ("soon", 20.0), ("overdue", -1.0)):
        prompt = prompt_of(300, seed=30 + int(due_s))
        asking.append(asyncio.create_task(generate(name, prompt, due_s)))
    await asyncio.gather(*asking)
    # What is late already is not worth making others late; best effort under way is overtaken.
    promised = [name for name in order if not name.startswith("best effort")]
    assert promised == ["soon", "late", "later", "overdue"]
    assert order.index("overdue") <= 4
    await pair.settled()


async def test_cancelling_while_pages_are_awaited_gives_blocks_back(pair: Pair) -> None:
    asked = pair.ask(prompt_of(300, seed=40))
    decoding = asyncio.create_task(pair.decode_into(Output(), asked, greedy(4)))
    await until(pair.decode, lambda load: load.num_free_kv_blocks == NUM_BLOCKS - 10)
    decoding.cancel()
    await pair.settled()
    with pytest.raises(asyncio.CancelledError):
        await decoding


async def test_cancelling_while_pages_arrive_gives_everything_back(pair: Pair) -> None:
    asked = pair.ask(prompt_of(1200, seed=41))
    before = (await at_rest(pair.decode)).resources.num_staged_pages_created
    decoding = asyncio.create_task(pair.decode_into(Output(), asked, greedy(4)))
    prefill = asyncio.create_task(pair.prefill.prefill(asked.prefill_job()))
    await until(pair.decode, lambda load: load.resources.num_staged_pages_created > before)
    assert not prefill.done()
    prefill.cancel()
    decoding.cancel()
    await asyncio.gather(prefill, decoding, return_exceptions=True)
    await pair.settled()


async def test_a_cancelled_prefill_fails_the_waiting_decode_at_once(pair: Pair) -> None:
    asked = pair.ask(prompt_of(1200, seed=42))
    before = (await at_rest(pair.decode)).resources.num_staged_pages_created
    decoding = asyncio.create_task(pair.decode_into(Output(), asked, greedy(4), kv_timeout_s=250))
    prefill = asyncio.create_task(pair.prefill.prefill(asked.prefill_job()))
    await until(pair.decode, lambda load: load.resources.num_staged_pages_created > before)
    prefill.cancel()
    with pytest.raises(KvTransferFailed):
        await decoding
    await pair.settled()


async def test_cancelling_while_tokens_come_gives_blocks_back(pair: Pair) -> None:
    asked = pair.ask(prompt_of(100, seed=43))
    output = Output()
    decoding = asyncio.create_task(pair.decode_into(output, asked, greedy(1000)))
    await pair.prefill.prefill(asked.prefill_job())
    await output.has_tokens.wait()
    decoding.cancel()
    await asyncio.gather(decoding, return_exceptions=True)
    assert output.finished is None
    await pair.settled()


async def test_pages_that_never_come_end_the_request_and_free_its_blocks(pair: Pair) -> None:
    asked = pair.ask(prompt_of(300, seed=44))
    with pytest.raises(KvTransferFailed):
        await pair.decode_into(Output(), asked, greedy(4), kv_timeout_s=0.3)
    await pair.settled()


async def test_a_request_that_gets_no_blocks_in_time_is_ended(pair: Pair) -> None:
    asked = pair.ask(prompt_of(1400, seed=45))
    hog = asyncio.create_task(pair.decode_into(Output(), asked, greedy(4)))
    await until(pair.decode, lambda load: load.num_free_kv_blocks < 10)
    asked = pair.ask(prompt_of(600, seed=46))
    with pytest.raises(KvTransferFailed, match="no KV blocks"):
        await pair.decode_into(Output(), asked, greedy(4), kv_timeout_s=0.3)
    hog.cancel()
    await asyncio.gather(hog, return_exceptions=True)
    await pair.settled()


async def test_facts_and_step_times_are_reported(pair: Pair, vllm_config: Config) -> None:
    for engine in (pair.prefill, pair.decode):
        assert engine.info.num_kv_blocks == NUM_BLOCKS
        assert engine.info.kv_block_size == BLOCK_SIZE
        assert engine.info.kv_bytes_per_token == KV_BYTES_PER_TOKEN
        assert engine.info.perf_model.token_s > 0
        assert (await engine.load()).step_time_ratio > 0


async def test_a_dead_engine_process_fails_its_requests(pair: Pair) -> None:
    asked = pair.ask(prompt_of(50, seed=50))
    decoding = asyncio.create_task(pair.decode_into(Output(), asked, greedy(4), kv_timeout_s=250))
    load = await until(pair.decode, lambda load: load.num_free_kv_blocks < NUM_BLOCKS)
    assert load.num_waiting == 1
    # The decode engine was the second to be started.
    engines = [
        child
        for child in psutil.Process().children()
        if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline())
    ]
    max(engines, key=psutil.Process.create_time).kill()
    with pytest.raises(EngineFailed):
        await decoding
    with pytest.raises(EngineFailed):
        await pair.decode.load()
