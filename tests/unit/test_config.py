"""The deployment file."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.config import Config, load_config, load_profile
from headway.errors import ConfigError

ROOT = Path(__file__).parents[2]

GOOD = """
[model]
name = "tiny"
tokenizer = "bytes"
[engine]
kind = "emulated"
profile = "profiles/x.toml"
[controller]
listen = "127.0.0.1:0"
[controller.tiers.chat]
ttft_s = 1.0
tpot_s = 0.05
[controller.tiers.batch]
"""


def _load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "stack.toml"
    path.write_text(text)
    return load_config(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    config = _load(tmp_path, GOOD)
    chat = config.controller.tiers["chat"].slo()
    assert chat is not None
    assert (chat.ttft_s, chat.tightest_tpot_s) == (1.0, 0.05)
    assert config.controller.tiers["batch"].slo() is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tpot_s = 0.05", "tpot_s = 0.05\noops = 1", "controller.tiers.chat.oops"),
        ("[engine]", "[engine]\nbatch = 3", "engine.emulated.batch"),
        ("[model]", "[modle]", "modle"),
        ("tpot_s = 0.05", "tpot_s = -1", "controller.tiers.chat.tpot_s"),
        ("tpot_s = 0.05", "tpot_s = nan", "controller.tiers.chat.tpot_s"),
        ("tpot_s = 0.05", "", "controller.tiers.chat"),
        ("ttft_s = 1.0", "ttft_s = 1.0\nttft_slowdown = 3.0", "not both"),
        ('kind = "emulated"', 'kind = "magic"', "engine"),
        ("[model]", "[prefill]\nreplicas = 2\ncores = [[0]]\n[model]", "one entry per replica"),
        ("[model]", "[model", "TOML"),
    ],
)
def test_a_mistake_is_refused_with_its_path(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert said in str(caught.value) or (said == "TOML" and "stack.toml" in str(caught.value))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_config_and_its_profile_can_be_read(path: Path) -> None:
    config = load_config(path)
    assert load_profile(ROOT / config.engine.profile).floor_s > 0
    assert config.controller.tiers
