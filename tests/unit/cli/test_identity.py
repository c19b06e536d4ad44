from headway.cli.identity import PROMPT_LENGTHS, differences, identity_prompts


def test_prompts_have_every_length_and_none_begins_another() -> None:
    prompts = identity_prompts(range(3000))
    assert [len(prompt) for prompt in prompts] == list(PROMPT_LENGTHS)
    assert len({prompt[0] for prompt in prompts}) == len(PROMPT_LENGTHS)


def test_difference_is_found_with_its_place() -> None:
    plain = [[1, 2, 3] for _ in PROMPT_LENGTHS]
    served = [list(output) for output in plain]
    assert differences(served, plain) == []
    served[1][2] = 9
    served[3].pop()
    assert differences(served, plain) == [
        "prompt of 2 tokens: outputs part at token 2",
        "prompt of 64 tokens: outputs part at token 2",
    ]
