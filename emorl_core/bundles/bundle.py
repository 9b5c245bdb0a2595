"""The folder that serves: `bundle.yaml`, `adapters/<objective>/`, optionally `base/`, `scorers/` and `predictors/`.

This is the only place that knows the file names. Training writes bundles through it and serving reads them through it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from emorl_core.bundles.profiles import ProfileSpec, Sha256
from emorl_core.config import Strict, explain
from emorl_core.errors import BundleError, InvalidWeights, cut, one_line
from emorl_core.files.documents import MOST_YAML, parse_yaml
from emorl_core.files.reading import Missing, Unreadable, is_folder, read_bytes
from emorl_core.files.text_files import decode
from emorl_core.files.writing import replacing
from emorl_core.scorers import ScorerError, parse_scorer, parts_of
from emorl_core.weights import BASE

BUNDLE_FILE = "bundle.yaml"
ADAPTERS_DIR = "adapters"
BASE_DIR = "base"
SCORERS_DIR = "scorers"
PREDICTORS_DIR = "predictors"
PROMPT = "{prompt}"
# A truncated file is often still valid YAML, without its last objective. So a file that begins with the first of these
# lines must contain the second. Files written by hand or by older versions have neither.
FIRST_LINE = '# A bundle of emorl. It is whole when it ends with the line "# end of bundle".'
LAST_LINE = "# end of bundle"
# Files that are read of a checkpoint or an adapter: safetensors, JSON, YAML and tokenizer files.
FILE_PATTERNS = ("*.safetensors", "*.json", "*.yaml", "*.model", "*.txt", "*.md", "*.jinja")


def _with_one_prompt(template: str) -> str:
    if template.count(PROMPT) != 1:
        raise ValueError(f"must contain {PROMPT} exactly once")
    return template


def _of_words(text: str) -> str:
    if not text.strip():
        raise ValueError("must be a text; leave it out for chats without a system message")
    return text


NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Template = Annotated[str, AfterValidator(_with_one_prompt)]
SystemMessage = Annotated[str, AfterValidator(_of_words)]


class BaseRef(Strict):
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


class PromptSpec(Strict):
    """The prompt of an objective's lane: a system message in a bundle with `chat`, else a template."""

    system: SystemMessage | None = None
    template: Template | None = None

    @model_validator(mode="after")
    def _one_of(self) -> PromptSpec:
        if (self.system is None) == (self.template is None):
            raise ValueError("give exactly one of system and template")
        return self


class ObjectiveSpec(Strict):
    """One objective: the folder of its adapter, relative to the bundle, or a prompt of its own, or both; and a sentence
    for people."""

    adapter: str | None = None
    prompt: PromptSpec | None = None
    description: str = ""

    @model_validator(mode="after")
    def _is_something(self) -> ObjectiveSpec:
        if self.adapter is None and self.prompt is None:
            raise ValueError("give adapter, prompt or both")
        return self


class ChatSpec(Strict):
    """Prompts go through the chat template of the base's tokenizer."""

    system: SystemMessage | None = None  # the system message of chats that have none


class BundleSpec(Strict):
    """`bundle.yaml`. Unknown keys are refused."""

    format: Literal["emorl-bundle/1"] = "emorl-bundle/1"
    name: Name
    base: BaseRef
    prompt_template: Template = PROMPT  # wraps every prompt; `{prompt}` stands for it
    chat: ChatSpec | None = None  # instead of `prompt_template`
    max_source_tokens: int = Field(default=512, ge=1)  # tokens of the wrapped prompt or chat; longer ones are refused
    objectives: dict[Name, ObjectiveSpec]
    profiles: dict[Name, ProfileSpec] = Field(default_factory=dict)
    default_profile: str | None = None
    # By name, usually that of the objective it was trained for: a scorer, as in a recipe.
    scorers: dict[Name, dict[str, Any] | str] = Field(default_factory=dict, exclude_if=lambda value: not value)
    # Scorer folder inside the bundle -> SHA-256 over the names and contents of its files.
    scorer_files: dict[str, Sha256] = Field(default_factory=dict, exclude_if=lambda value: not value)

    @field_validator("scorers")
    @classmethod
    def _known_scorers(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            try:
                for _ in parts_of(parse_scorer(given, where=name), where=name):
                    pass
            except ScorerError as error:
                raise ValueError(error.message) from None
        return value

    @model_validator(mode="after")
    def _names(self) -> BundleSpec:
        if self.chat is not None and self.prompt_template != PROMPT:
            raise ValueError("give at most one of prompt_template and chat")
        if BASE in self.objectives:
            raise ValueError(f"objectives.{BASE}: the name is taken by the bare model, which is always there")
        for name, prompt in self.prompts.items():
            if (prompt.system is None) != (self.chat is None):
                fits = "template, for a bundle without chat" if self.chat is None else "system, for a bundle with chat"
                raise ValueError(f"objectives.{name}.prompt: must be {fits}")
        for name, profile in self.profiles.items():
            try:
                profile.check(self.lanes)
            except InvalidWeights as error:
                raise ValueError(f"profiles.{name}: {error.message}") from None
        if self.default_profile is not None and self.default_profile not in self.profiles:
            known = ", ".join(self.profiles) or "none"
            raise ValueError(f"default_profile {cut(self.default_profile)} is unknown; profiles: {known}")
        return self

    @property
    def lanes(self) -> tuple[str, ...]:
        """Lane order of the engine: `base`, then the objectives as listed."""
        return (BASE, *self.objectives)

    @property
    def prompts(self) -> dict[str, PromptSpec]:
        """The prompts of the objectives that have their own."""
        return {name: each.prompt for name, each in self.objectives.items() if each.prompt is not None}

    @property
    def adapted(self) -> tuple[str, ...]:
        """The objectives that have an adapter."""
        return tuple(name for name, each in self.objectives.items() if each.adapter is not None)

    @property
    def predicted(self) -> tuple[str, ...]:
        """The profiles that have a predictor."""
        return tuple(name for name, each in self.profiles.items() if each.predictor is not None)

    @property
    def around(self) -> tuple[str, str]:
        """The template's text before and after the prompt."""
        return split_template(self.prompt_template)

    def wrap(self, prompt: str) -> str:
        """Put a prompt into the template. `str.format` is not used, because prompts may contain braces."""
        before, after = self.around
        return before + prompt + after

    def check_template(self, tokens: int, objective: str | None = None) -> None:
        """tokens: taken by the template or an objective's prompt alone. Raises `BundleError` when none are left for a
        prompt."""
        if tokens >= self.max_source_tokens:
            template = "prompt_template" if self.chat is None else "the chat template, with chat.system,"
            if objective is not None:
                template = f"the prompt of objective {objective!r}"
            raise BundleError(
                f"{template} takes {tokens} tokens by itself; max_source_tokens is {self.max_source_tokens}, "
                "which leaves none for a prompt",
                param="max_source_tokens",
            )

    def profile_weights(self) -> dict[str, dict[str, float] | None]:
        """A profile's weights; None: a predictor chooses them for each prompt."""
        return {name: profile.weights for name, profile in self.profiles.items()}


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
        folder = bundle_folder(where, revision)
        return cls(folder, read_spec(folder / BUNDLE_FILE))

    def base_folder(self) -> Path:
        """The folder that holds the base checkpoint; fetches it from the hub when the bundle names a hub id."""
        ref = self.spec.base
        if ref.path is not None:
            return self._inside(ref.path, "base.path")
        assert ref.hub is not None  # held by BaseRef
        return hub_folder(ref.hub, ref.revision)

    def adapter_folder(self, objective: str) -> Path:
        """The adapter folder of an objective that has one."""
        adapter = self.spec.objectives[objective].adapter
        assert adapter is not None  # one of `BundleSpec.adapted`
        return self._inside(adapter, f"objectives.{objective}.adapter")

    def scorer_folder(self, path: str) -> Path:
        """One of `scorer_files`."""
        return self._inside(path, f"scorer_files.{path}")

    def predictor_folder(self, profile: str) -> Path:
        """The predictor folder of a profile that has one."""
        predictor = self.spec.profiles[profile].predictor
        assert predictor is not None  # checked by the caller
        return self._inside(predictor.path, f"profiles.{profile}.predictor.path")

    def _inside(self, relative: str, key: str) -> Path:
        path = self.folder / relative
        # A bundle may be untrusted, so its paths must stay inside it. Symbolic links of a hub cache point elsewhere,
        # so the check is on the path as written, not on where it resolves to.
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise BundleError(f"{BUNDLE_FILE}: {key} is {cut(relative)}; allowed: a path inside the bundle", param=key)
        if not _is_folder(path):
            raise BundleError(
                f"{BUNDLE_FILE}: {key} is {cut(relative)}; there is no such folder in the bundle", param=key
            )
        return path


def split_template(template: str) -> tuple[str, str]:
    """A template's text before and after the prompt."""
    before, _, after = template.partition(PROMPT)
    return before, after


def bundle_folder(where: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder itself, or the local copy of a hub id. Raises `BundleError`."""
    folder = Path(where)
    return folder if _is_folder(folder) else _from_hub(str(where), revision)


def read_spec(path: Path) -> BundleSpec:
    """Parse and validate one `bundle.yaml`. Raises `BundleError`."""
    return parse_spec(read_spec_bytes(path), path)


def read_spec_bytes(path: Path) -> bytes:
    """The content of a `bundle.yaml`, for `parse_spec` and for a hash of what was parsed. Raises `BundleError`."""
    try:
        return read_bytes(path, most=MOST_YAML)
    except Missing as error:
        raise BundleError(f"{error.message}; a bundle folder holds a {BUNDLE_FILE}") from None
    except Unreadable as error:
        raise BundleError(error.message) from None


def parse_spec(data: bytes, path: Path) -> BundleSpec:
    """Validate the content of a `bundle.yaml`; `path` is for messages. Raises `BundleError`."""
    try:
        text = decode(data, path, kind="YAML")
        lines = [line.rstrip() for line in text.split("\n")]
        if lines[:1] == [FIRST_LINE] and LAST_LINE not in lines:
            raise BundleError(f"{path}: is cut short: its last line, {LAST_LINE!r}, is missing; copy it once more")
        raw = parse_yaml(text, path=path)
    except Unreadable as error:
        raise BundleError(error.message) from None
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
        temporary.write_text(f"{FIRST_LINE}\n{text}{LAST_LINE}\n", encoding="utf-8")


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy the files that are read of a checkpoint and its tokenizer into a new folder."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in FILE_PATTERNS):
            shutil.copyfile(path, target / path.name)


def _is_folder(path: Path) -> bool:
    try:
        return is_folder(path)
    except Unreadable as error:
        raise BundleError(error.message) from None


def _from_hub(name: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BundleError(f"bundle {name!r}: no such folder, and not a hub id of the form owner/name")
    return hub_folder(name, revision)


def hub_folder(name: str, revision: str | None = None) -> Path:
    """Fetch a repository from the Hugging Face hub: safetensors, JSON, YAML and tokenizer files only."""
    from huggingface_hub import snapshot_download  # imported only where the hub is used
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILE_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BundleError(f"hub id {name!r}: cannot be fetched: {one_line(error)}") from None
