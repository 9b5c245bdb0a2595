"""One settings model; flags over environment over file; every fault named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load_settings, unknown_variables


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nslots: 2\nmax_queue: 3\n")
    monkeypatch.setenv("EMORL_CONFIG", str(file))
    monkeypatch.setenv("EMORL_SLOTS", "20")
    monkeypatch.setenv("EMORL_PORT", "10")
    settings = load_settings(port=100, host=None)
    assert (settings.port, settings.slots, settings.max_queue) == (100, 20, 3)
    assert settings.host == "127.0.0.1", "a flag that was not given is no value"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"port": 70000}, "port: Input should be less than or equal to 65535 (found 70000)"),
        ({"slots": 0}, "slots"),
        ({"prot": 1}, "unknown key 'prot'"),
        ({"dtype": "float16"}, "'bfloat16'"),
        ({"config": "nowhere.yaml"}, "'nowhere.yaml'; there is no such file"),
        ({"port": "8_000"}, "port is '8_000'; allowed: a number without _ between its digits"),
        ({"drain_timeout_s": "1_0.5"}, "drain_timeout_s is '1_0.5'; allowed: a number without _"),
        ({"slots": True}, "slots is true; allowed: a number"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(flags: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(**flags)
    assert says in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "port: [",
        "nope: 1",
        "port: much",
        "port: 1\nport: 2",
        "port: 1\n8000: x",
        f"port: {'9' * 5000}",
        "a: &a [*a]",
    ],
)
def test_a_bad_file_is_one_line_too(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings(config=file)
    assert "\n" not in error.value.message


def test_lists_are_comma_separated_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMORL_API_KEYS", "first, second,")
    monkeypatch.setenv("EMORL_CORS_ORIGINS", "")
    settings = load_settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["first", "second"]
    assert settings.cors_origins == ()
    assert "second" not in repr(settings), "keys are secrets"


def test_misspelt_variables_are_found() -> None:
    assert unknown_variables({"EMORL_API_KEY": "x", "EMORL_API_KEYS": "x", "PATH": ""}) == ["EMORL_API_KEY"]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
