"""The folder that serves: `bundle.yaml`, `adapters/<objective>/`, optionally `base/`.

This is the only place that knows the file names. Training writes bundles through it and serving reads them through it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from emorl_core.errors import BundleError, InvalidWeights
from emorl_core.weights import BASE, resolve

BUNDLE_FILE = "bundle.yaml"
ADAPTERS_DIR = "adapters"
BASE_DIR = "base"
PROMPT = "{prompt}"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseRef(_Strict):
    """Where the base model is: a folder inside the bundle, or a Hugging Face hub id."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None  # of `hub`: a branch, tag or commit

    @model_validator(mode="after")
    def _one_of(self) -> BaseRef:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self


class ObjectiveSpec(_Strict):
    """One objective: the folder of its adapter, relative to the bundle, and a sentence for people."""

    adapter: str
    description: str = ""


class ProfileSpec(_Strict):
    """Named weights and where they came from (a search, a person)."""

    weights: dict[str, float]
    origin: dict[str, Any] = Field(default_factory=dict)


class BundleSpec(_Strict):
    """`bundle.yaml`. Unknown keys are refused."""

    format: Literal["emorl-bundle/1"] = "emorl-bundle/1"
    name: Name
    base: BaseRef
    prompt_template: str = PROMPT  # wraps every prompt; `{prompt}` stands for it
    max_source_tokens: int = Field(default=512, ge=1)  # tokens of the wrapped prompt; longer ones are refused
    objectives: dict[Name, ObjectiveSpec]
    profiles: dict[Name, ProfileSpec] = Field(default_factory=dict)
    default_profile: str | None = None

    @field_validator("prompt_template")
    @classmethod
    def _template(cls, value: str) -> str:
        if value.count(PROMPT) != 1:
            raise ValueError(f"must contain {PROMPT} exactly once")
        return value

    @model_validator(mode="after")
    def _names(self) -> BundleSpec:
        if BASE in self.objectives:
            raise ValueError(f"objectives.{BASE}: the name is taken by the bare model, which is always there")
        for name, profile in self.profiles.items():
            try:
                resolve(self.lanes, profile.weights)
            except InvalidWeights as error:
                raise ValueError(f"profiles.{name}: {error.message}") from None
        if self.default_profile is not None and self.default_profile not in self.profiles:
            raise ValueError(
                f"default_profile {self.default_profile!r} is unknown; profiles: {', '.join(self.profiles) or 'none'}"
            )
        return self

    @property
    def lanes(self) -> tuple[str, ...]:
        """Lane order of the engine: `base`, then the objectives as listed."""
        return (BASE, *self.objectives)

    def wrap(self, prompt: str) -> str:
        """Put a prompt into the template. `str.format` is not used: a prompt may hold braces."""
        return self.prompt_template.replace(PROMPT, prompt)

    def check_template(self, tokens: int) -> None:
        """tokens: what the template takes by itself. Raises `BundleError` when it leaves none for a prompt."""
        if tokens >= self.max_source_tokens:
            raise BundleError(
                f"prompt_template takes {tokens} tokens by itself; max_source_tokens is {self.max_source_tokens}, "
                "which leaves none for a prompt",
                param="max_source_tokens",
            )

    def profile_weights(self) -> dict[str, dict[str, float]]:
        return {name: dict(profile.weights) for name, profile in self.profiles.items()}


class Bundle:
    """A bundle on disk: its folder and its parsed `bundle.yaml`."""

    def __init__(self, folder: Path, spec: BundleSpec) -> None:
        self.folder = folder
        self.spec = spec

    @classmethod
    def open(cls, where: str | os.PathLike[str], *, revision: str | None = None) -> Bundle:
        """Open a folder, or fetch a Hugging Face hub id (`owner/name`) into the local hub cache.

        Raises:
            BundleError: no such folder, unreadable or invalid `bundle.yaml`; one line per fault, joined by `; `.
        """
        folder = Path(where)
        if not folder.is_dir():
            folder = _from_hub(str(where), revision)
        return cls(folder, read_spec(folder / BUNDLE_FILE))

    def base_folder(self) -> Path:
        """The folder that holds the base checkpoint; fetches it from the hub when the bundle names a hub id."""
        ref = self.spec.base
        if ref.path is not None:
            return self._inside(ref.path, "base.path")
        assert ref.hub is not None  # held by BaseRef
        return hub_folder(ref.hub, ref.revision)

    def adapter_folder(self, objective: str) -> Path:
        return self._inside(self.spec.objectives[objective].adapter, f"objectives.{objective}.adapter")

    def _inside(self, relative: str, key: str) -> Path:
        path = self.folder / relative
        # A bundle may come from a stranger: its paths stay inside it. Symbolic links of a hub cache point elsewhere,
        # so the check is on the path as written, not on where it resolves to.
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise BundleError(f"{BUNDLE_FILE}: {key} is {relative!r}; allowed: a path inside the bundle", param=key)
        if not path.is_dir():
            raise BundleError(f"{BUNDLE_FILE}: {key} is {relative!r}; there is no such folder in the bundle", param=key)
        return path


def read_spec(path: Path) -> BundleSpec:
    """Parse and validate one `bundle.yaml`."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; a bundle folder holds a {BUNDLE_FILE}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"{path}: cannot be read as YAML: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise BundleError(f"{path}: must be a mapping of keys, found {type(raw).__name__}")
    try:
        return BundleSpec.model_validate(raw)
    except ValidationError as error:
        raise BundleError(f"{path}: {explain(error)}") from None


def write_spec(folder: Path, spec: BundleSpec) -> None:
    """Write `bundle.yaml` so that a reader sees the old file or the new one, never half of it."""
    text = yaml.safe_dump(spec.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True, width=100)
    with replacing(folder / BUNDLE_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write, fsync, rename: yields a temporary path beside `path` that takes its place when the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files; names a base or an adapter in a receipt."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def explain(error: ValidationError) -> str:
    """A pydantic error as one line: key, what was found, what is allowed. Shared by every file format of the house."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"] if part != "[key]")
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}")
            continue
        message = item["msg"].removeprefix("Value error, ")
        found = item.get("input")
        unshown = item["type"] == "missing" or isinstance(found, (dict, list, BaseModel))
        shown = "" if unshown else f" (found {_cut(found)})"
        lines.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(lines)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()


def _from_hub(name: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BundleError(f"bundle {name!r}: no such folder, and not a hub id of the form owner/name")
    return hub_folder(name, revision)


def hub_folder(name: str, revision: str | None = None) -> Path:
    """Fetch a repository from the Hugging Face hub: safetensors, JSON, YAML and tokenizer files only."""
    from huggingface_hub import snapshot_download  # only where the hub is used
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.yaml", "*.model", "*.txt", "*.md"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BundleError(f"hub id {name!r}: cannot be fetched: {_one_line(error)[:200]}") from None
