"""Text to token ids: with the served model's own tokenizer, or one token per byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.config import ModelConfig
from headway.errors import ConfigError, FieldViolation, InvalidRequest
from headway.ports.tokenizer import Tokenizer

BYTES_VOCAB_SIZE = 512


def load_tokenizer(model: ModelConfig) -> Tokenizer:
    """The tokenizer that the config names.

    Raises:
        ConfigError: the model's folder has none.
    """
    match model.tokenizer:
        case "bytes":
            return BytesTokenizer()
        case "model":
            return ModelTokenizer(Path(model.path))


@dataclass(frozen=True, slots=True)
class BytesTokenizer:
    """Implements `ports.Tokenizer`: token i is byte i of UTF-8. For the emulated engine."""

    vocab_size: int = BYTES_VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        lines = [f"{role}: {content}\n" for role, content in messages]
        return self.encode("".join([*lines, "assistant: "]))


class ModelTokenizer:
    """Implements `ports.Tokenizer` from the files of a model in Hugging Face format.

    Gives the ids that the transformers library gives, without its seconds of import.
    """

    def __init__(self, model_dir: Path) -> None:
        # Slow enough to import that a process without a model's tokenizer should not.
        import tokenizers  # noqa: PLC0415

        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"no tokenizer in {str(model_dir)!r}: `headway model` prepares it")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._chat = _ChatTemplate(model_dir)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """See `ports.Tokenizer`.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
        """
        # The template writes the special tokens itself.
        return self._tokenizer.encode(self._chat.render(messages), add_special_tokens=False).ids


class _ChatTemplate:
    """The model's chat template, in a sandbox: it is code that came with the weights."""

    def __init__(self, model_dir: Path) -> None:
        import jinja2  # noqa: PLC0415
        import jinja2.ext  # noqa: PLC0415
        import jinja2.sandbox  # noqa: PLC0415

        settings_path = model_dir / "tokenizer_config.json"
        settings = json.loads(settings_path.read_text()) if settings_path.is_file() else {}
        template_path = model_dir / "chat_template.jinja"
        source = (
            template_path.read_text()
            if template_path.is_file()
            else settings.get("chat_template", "")
        )
        # These options are those of transformers, for which templates are written.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_template_error
        self._template = environment.from_string(source) if source else None
        self._variables = {
            name: _token_text(settings.get(name))
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        import jinja2  # noqa: PLC0415

        if self._template is None:
            raise InvalidRequest([FieldViolation("messages", "the model has no chat template")])
        try:
            text: str = self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=True,
                **self._variables,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                [FieldViolation("messages", f"the model's chat template says: {error}")]
            ) from error
        return text


def _token_text(token: str | dict[str, str] | None) -> str:
    """tokenizer_config.json names a special token by its text, or by an object with it."""
    match token:
        case {"content": text}:
            return text
        case str():
            return token
        case _:
            return ""


def _raise_template_error(message: str) -> None:
    import jinja2  # noqa: PLC0415

    raise jinja2.TemplateError(message)
