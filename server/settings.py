"""Every setting of the service: the only reader of the environment.

Order of precedence: flags (keyword arguments) > environment (`EMORL_...`) > YAML file > defaults. The names are the
same in all three.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as PydanticSettingsError

from emorl_core.config import check_numbers, explain
from emorl_core.errors import EmorlError, one_line
from emorl_core.files.documents import read_yaml
from emorl_core.files.reading import Missing, Unreadable
from emorl_core.types import MAX_THREADS, PromptLookup, Threads

ENV_PREFIX = "EMORL_"
HOST_NAME = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"  # a name, an address of IPv4, or one of IPv6 in brackets
Keys = Annotated[tuple[SecretStr, ...], NoDecode]
Names = Annotated[tuple[str, ...], NoDecode]


def _threads(value: object) -> object:
    if isinstance(value, str) and value.isdecimal() and len(value) < 5:
        value = int(value)
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_THREADS):
        return value
    raise ValueError(f"must be auto, or a whole number from 1 to {MAX_THREADS}")


ThreadCount = Annotated[Threads, BeforeValidator(_threads)]


Engine = Literal["process", "thread"]


def _compile(value: object) -> object:
    """YAML reads on and off as true and false."""
    known = {"true": "on", "1": "on", "false": "off", "0": "off"}
    return known.get(str(value).lower(), value)


Compile = Annotated[Literal["auto", "on", "off"], BeforeValidator(_compile)]


class SettingsError(EmorlError):
    """A setting that cannot be used; one line names it, the value and what is allowed."""

    code = "invalid_settings"


class Settings(BaseSettings):
    """Settings of one server. Durations end in `_s` and are seconds."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    config: Path | None = Field(None, description="YAML file with settings, by these names.")

    # what to serve
    bundle: str | None = Field(None, description="Bundle to serve: a folder or a Hugging Face hub id.")
    device: str = Field("auto", description="Device of the model: auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number format of the model.")
    quantize: Literal["auto", "off", "float16", "int8"] = Field(
        "auto",
        description="Storage of the base's matrices on an x86 CPU: float16; int8, half of that at a small error;"
        " off, as dtype; auto, float16 where dtype is auto and resolves to float32.",
    )
    slots: int = Field(16, ge=1, le=4096, description="Sequences decoded at once.")
    prefill_cache_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="Memory for cached prompts and replies, so that common prefixes are computed once; 0 is off.",
    )
    prefill_tokens: int = Field(
        48,
        ge=1,
        description="Prompt tokens read per step, over all lanes, so that a long prompt does not hold up running"
        " streams; eight times as many when none is running. An encoder reads a whole prompt at once.",
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory for keys and values of running requests. Others wait; those that never fit are refused"
        " (422). Unset: bounded by slots only.",
    )
    threads: ThreadCount = Field(
        "auto",
        description="Compute threads on a CPU: a number, or auto, the fastest number, measured at startup and"
        " whenever steps have become slow or the machine may be idle again.",
    )
    engine: Engine = Field(
        "process",
        description="Where the model runs: process, a separate one, which many clients cannot slow down and which is"
        " restarted if it fails; or thread, in the server's process, which takes less memory.",
    )
    compile: Compile = Field(
        "auto",
        description="Compile the decoding step, for faster tokens: on, before serving, which takes minutes the first"
        " time; auto, in the background, on a CPU with a C++ compiler; off.",
    )
    prompt_lookup: PromptLookup = Field(
        "off",
        description="Propose tokens copied from the prompt and the reply so far, and verify up to four in one"
        " step: fewer steps for the same text. auto, on a CPU where that is faster; on; off.",
    )
    compile_cache: Path | None = Field(
        None,
        description="Folder that keeps compiled steps for the next start. Unset: emorl/compiled in $XDG_CACHE_HOME or"
        " ~/.cache.",
    )

    # scoring
    score: bool = Field(True, description="Load the scorers that the bundle names, for requests with score.")
    scorer_device: str = Field("cpu", description="Device of scorers with models: auto, cpu, cuda or cuda:N.")
    scorer_code: bool = Field(
        False, description="Run scorers of kind callable: Python functions that the bundle names. Only if you trust it."
    )
    score_timeout_s: float = Field(10.0, gt=0, description="Longest wait for scores; after it a text is left unscored.")
    score_queue: int = Field(256, ge=32, description="Texts that may wait to be scored; more are left unscored.")
    max_score_chars: int = Field(
        8192, ge=1, description="Longest prompt or text that is scored, in characters; others are left unscored."
    )

    # where to listen
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    root_path: str = Field("", description="Path prefix behind a proxy, such as /emorl, left on or taken off by it.")
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most open connections; beyond it the longest idle ones are closed. Unset: 1000, or what fits.",
    )
    backlog: int = Field(1024, ge=1, le=4096, description="Connections that the kernel queues until they are accepted.")

    # limits
    max_queue: int = Field(64, ge=0, le=100_000, description="Requests that may wait for a slot; then 429.")
    queue_timeout_s: float = Field(30.0, gt=0, description="Longest wait for a slot; then 503.")
    max_prompt_chars: int | None = Field(
        None,
        ge=1,
        description="Longest prompt in characters; then 422 before it is tokenised. Unset: twice what the bundle's"
        " max_source_tokens hold if each is the longest token of its vocabulary.",
    )
    max_new_tokens: int = Field(1024, ge=1, description="Largest max_new_tokens (or max_tokens) a request may ask for.")
    max_choices: int = Field(8, ge=1, le=128, description="Most completions that one OpenAI request may ask for.")
    max_sweep: int = Field(4096, ge=1, description="Most completions (prompts times weight vectors) of one sweep.")
    sweep_line_timeout_s: float = Field(30.0, gt=0, description="Longest run of one /sweep/line; then 422.")
    sweep_map_timeout_s: float = Field(
        30.0, gt=0, description="Longest search for the exact map of one /sweep/map; then it is a grid."
    )
    max_body_bytes: int = Field(256 * 1024, ge=1024, description="Largest request body; then 413.")
    max_header_bytes: int = Field(16 * 1024, ge=1024, description="Largest headers of a request; then 431.")
    max_unread_events: int = Field(
        65_536,
        ge=1024,
        description="Most unread tokens over all streams; beyond it the slowest client's stream ends.",
    )
    max_concurrent_per_key: int | None = Field(
        None, ge=1, description="Requests one API key may have in progress; then 429. Unset: no limit per key."
    )

    # time
    keep_alive_s: float = Field(10.0, gt=0, description="A stream without new events sends a comment this often.")
    head_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Longest time to send a request's whole head, from the start of a new connection.",
    )
    read_timeout_s: float = Field(30.0, gt=0, description="Longest time to send a request's body; then 408.")
    write_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Slow-client timeout: a client must read 64 KiB, or all that is ready, within this time.",
    )
    idle_timeout_s: float = Field(
        75.0, gt=0, description="A connection without a request is closed after this; let a proxy close first."
    )
    drain_delay_s: float = Field(
        0.0, ge=0, description="After SIGTERM, go on listening this long while readiness answers 503."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="After SIGTERM, running requests have this long to finish.")
    last_bytes_s: float = Field(5.0, gt=0, description="Slow-client timeout while the server shuts down.")
    stall_s: float = Field(120.0, gt=0, description="An engine step that takes longer than this fails liveness.")

    # security
    api_keys: Keys = Field((), description="API keys, comma-separated; empty: no key is required.")
    api_keys_file: Path | None = Field(None, description="File with one API key per line, optionally as name:key.")
    admin_keys: Keys = Field((), description="Keys for /admin routes, comma-separated; empty: those routes are off.")
    metrics_key_required: bool = Field(False, description="Require an API key on /metrics too.")
    allowed_hosts: Names = Field(
        (),
        description="Hosts that requests may name, comma-separated, on any port; empty: any. Probes may name any.",
    )
    cors_origins: Names = Field((), description="Origins a browser may call from, comma-separated; empty: CORS is off.")

    # policy
    policy: str | None = Field(
        None,
        min_length=1,
        description="Policy on which messages get no draft: crisis-cues, a YAML file of patterns, or a Python"
        " callable as package.module:function. Unset: all get one.",
    )
    policy_timeout_s: float = Field(
        2.0, gt=0, description="Longest wait for its answer about one prompt or chat; then nothing is drafted."
    )

    # choices
    choices_file: Path | None = Field(
        None, description="SQLite file that POST /choices writes to, without any text. Unset: choices are not stored."
    )
    learn_profiles: bool = Field(
        False,
        description="Let POST /profiles/learn store learned profiles in choices_file, named by the user's label and"
        " served at once and after a restart.",
    )

    # the page
    playground: bool = Field(True, description="Serve the playground page at /.")

    # logs
    log_format: Literal["console", "json"] = Field("console", description="Log lines for people or for machines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level to log.")
    log_lines_per_s: float = Field(
        10.0,
        ge=0,
        description="Log lines of one kind per second; more are only counted, except for finished texts. 0: no limit.",
    )
    log_queue_lines: int = Field(
        4096, ge=1, description="Log lines queued for a slow reader; beyond it they are dropped and counted."
    )
    log_flush_s: float = Field(2.0, ge=0, description="Longest wait for the log's reader at shutdown.")

    tracing: bool = Field(False, description="Send OpenTelemetry traces, configured by the OTEL_... variables.")

    @property
    def compiled_steps(self) -> Path:
        """Where compiled steps are kept."""
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.compile_cache or caches / "emorl" / "compiled"

    @model_validator(mode="wrap")
    @classmethod
    def _plain_numbers(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        settings = validate(data)
        check_numbers(data, settings)
        return settings

    @model_validator(mode="after")
    def _kept_somewhere(self) -> Self:
        if self.learn_profiles and self.choices_file is None:
            raise ValueError("learn_profiles is true, but choices_file is not set; learned profiles are kept there")
        return self

    @field_validator("root_path")
    @classmethod
    def _is_path(cls, value: str) -> str:
        if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)*/?", value):
            raise ValueError("allowed: empty, or a path such as /emorl of letters, digits and . _ ~ -")
        return value.rstrip("/")

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(HOST_NAME, name) for name in value):
            raise ValueError(
                "allowed: hosts without scheme, port and path, such as emorl.example.org, 10.0.0.1 or [::1]"
            )
        return value

    @field_validator("api_keys", "admin_keys", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config = init_settings().get("config") or env_settings().get("config")
        if config is None:
            return init_settings, env_settings
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_file(Path(config)))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path, regular=False)
    except Missing:
        raise SettingsError(f"config is {str(path)!r}; there is no such file", param="config") from None
    except Unreadable as error:
        raise SettingsError(error.message, param="config") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must be a mapping of settings, found {type(values).__name__}", param="config")
    return values


def load_settings(**flags: Any) -> Settings:
    """Settings from flags, environment and file; a flag that is None counts as not given.

    Raises:
        SettingsError: one line that names every setting at fault.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(explain(error)) from None
    except PydanticSettingsError as error:
        raise SettingsError(one_line(error)) from None


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """`EMORL_...` variables that are not settings; probably misspelt, so the server warns about them at startup.

    They are not refused, because Kubernetes injects `<SERVICE>_PORT_...` variables into every container.
    """
    known = {(ENV_PREFIX + name).upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)
