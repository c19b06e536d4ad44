from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headway.adapters.tokenizer import ModelTokenizer, load_tokenizer
from headway.config import ModelConfig
from headway.errors import ConfigError, InvalidRequest

TEXTS = ["Hello, world!", "", " leading", "a  b\n\n\tc", "1234567", "naïve 你好 🎉", "<|im_end|>x"]
CHATS = [
    [("user", "What is 2+2?")],
    [("system", "Be brief. "), ("user", " hi "), ("assistant", "yes"), ("user", "<|im_end|>")],
]


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    return AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_ids_of_the_transformers_library(
    model_dir: Path, reference: Any, text: str
) -> None:
    assert ModelTokenizer(model_dir).encode(text) == reference.encode(text)


@pytest.mark.parametrize("chat", CHATS)
def test_chat_becomes_the_ids_of_the_transformers_library(
    model_dir: Path, reference: Any, chat: list[tuple[str, str]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in chat]
    text = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ModelTokenizer(model_dir).encode_chat(chat) == reference.encode(
        text, add_special_tokens=False
    )


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_tokenizer(ModelConfig(name="x", path=str(tmp_path)))


def test_a_template_that_refuses_the_messages_is_the_callers_mistake(
    model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").symlink_to(model_dir / "tokenizer.json")
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(InvalidRequest, match="no system role"):
        ModelTokenizer(tmp_path).encode_chat([("system", "x")])


def test_bytes_are_their_own_tokens() -> None:
    tokenizer = load_tokenizer(ModelConfig(name="x", tokenizer="bytes"))
    ids = tokenizer.encode("héllo")
    assert ids == list("héllo".encode())
    assert max(tokenizer.encode_chat([("user", "hi")])) < tokenizer.vocab_size
