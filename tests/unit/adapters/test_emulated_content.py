"""Pages and tokens of the emulated engine depend on the prompt, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headway.adapters.emulated import content
from headway.core.request import FinishReason, Sampling


def text_of(prompt: Sequence[int], sampling: Sampling) -> content.Output:
    return content.output(content.block_hashes(prompt, 4, seed=0)[-1], sampling)


def test_output_is_the_same_on_every_machine_and_forever() -> None:
    assert text_of([1, 2, 3], Sampling(max_tokens=12)).text == "z!YJu/rFLmt#"


def test_output_is_printable_and_as_long_as_asked() -> None:
    output = text_of([1, 2, 3], Sampling(max_tokens=1000))
    assert len(output.token_ids) == len(output.text) == 1000
    assert all(32 <= token_id < 127 for token_id in output.token_ids)
    assert output.finish_reason is FinishReason.LENGTH


def test_a_shorter_output_is_the_beginning_of_a_longer_one() -> None:
    longer = text_of([5], Sampling(max_tokens=200))
    assert longer.text.startswith(text_of([5], Sampling(max_tokens=65)).text)


def test_every_token_of_the_prompt_changes_the_output() -> None:
    prompt = list(range(9))
    outputs = {text_of(prompt, Sampling(20)).text}
    for index in range(9):
        outputs.add(text_of([*prompt[:index], 99, *prompt[index + 1 :]], Sampling(20)).text)
    assert len(outputs) == 10


def test_the_stop_string_that_is_complete_first_ends_the_output() -> None:
    whole = text_of([5], Sampling(max_tokens=40)).text
    output = text_of([5], Sampling(max_tokens=40, stop=(whole[20:22], whole[9:16], whole[12:15])))
    assert output.text == whole[:12]
    assert output.token_ids == whole[:15].encode()
    assert output.finish_reason is FinishReason.STOP


def test_pages_differ_by_block_layer_and_seed() -> None:
    def pages_of(seed: int) -> set[bytes]:
        hashes = content.block_hashes([7] * 12, 4, seed)
        return {
            content.pages(hashes, layer, 32)[block * 32 : block * 32 + 32]
            for layer in range(content.NUM_LAYERS)
            for block in range(3)
        }

    assert len(pages_of(0) | pages_of(1)) == 2 * 3 * content.NUM_LAYERS


@pytest.mark.parametrize("page_bytes", [1, 7, 8, 20])
def test_pages_have_their_exact_size(page_bytes: int) -> None:
    hashes = content.block_hashes(range(10), 4, seed=0)
    assert len(content.pages(hashes, 1, page_bytes)) == 3 * page_bytes
