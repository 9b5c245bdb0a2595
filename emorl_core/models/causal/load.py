"""Loads a checkpoint folder as a `CausalModel` that has passed its self-test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as progress

from emorl_core.errors import UnsupportedModel, one_line
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal import admission, selftest
from emorl_core.models.causal.body import Body, LibraryBody
from emorl_core.models.causal.compiled import compilation
from emorl_core.models.causal.head import Head, SplitHead
from emorl_core.models.causal.lean import LeanBody, takes
from emorl_core.models.causal.model import CausalModel, Compile
from emorl_core.models.family import Facts, Piece
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.special_tokens import end_tokens

logger = logging.getLogger("emorl.core")


def load(
    folder: Path,
    config: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    training: bool,
    group: ProcessGroup | None = None,
) -> CausalModel:
    """Load a decoder-only checkpoint folder; see `emorl_core.models.family.Family`.

    Raises:
        UnsupportedModel: refused by its config or by the self-test, or files that cannot be read.
    """
    admission.refuse_files(config)
    parsed = admission.parsed(config)
    admission.refuse_config(parsed)
    if group is not None:
        from emorl_core.models.causal import parts  # takes a second to import, and a single process does not need it

        parts.refuse_config(parsed, group)
    end = end_tokens(folder, config)
    library = _weights(folder, parsed, dtype, group).to(device)
    prompts = selftest.rows(_vocabulary(library), (*end, *_special(config)))
    kind = str(parsed.model_type)
    with selftest.faults_refused(kind), selftest.short_windows(library, library.config):
        wanted = selftest.expected(library, prompts, device)
    if group is not None:
        parts.keep_local(library)

    def tested(make: Callable[[Any], Body], compilations: Mapping[str, Compile]) -> CausalModel:
        with selftest.faults_refused(kind):
            head, name = _head(library, group)
            facts = Facts(
                architecture=kind,
                vocab_size=head.vocab_size,
                eos_token_ids=end,
                max_positions=admission.longest_sequence(library.config),
                device=device,
                dtype=dtype,
            )
            model = CausalModel(make(library), head, facts, head_name=name, compilations=compilations)
            for _, layer in model.body.linears():
                layer.base.pack(keep_plain=training)
            with selftest.short_windows(model, library.config):
                model.probe(prompts[0])
                selftest.compare(kind, wanted, _found(model, prompts), dtype)
        return model

    if group is not None:
        if not takes(library):
            raise UnsupportedModel(
                f"base model_type {kind!r}: its layers cannot be held in parts by {group.size} processes; allowed: one"
            )
        return tested(lambda whole: LeanBody(whole, group), {})
    if not training and takes(library):  # training needs separate matrices, as in PEFT
        try:
            return tested(LeanBody, {"cpu": compilation})
        except UnsupportedModel:
            logger.warning(
                "base model_type %r: the lean decoder fails its self-test; transformers' slower code runs instead",
                kind,
            )
        library = _weights(folder, parsed, dtype, None).to(device)
    return tested(LibraryBody, {})


def _head(library: Any, group: ProcessGroup | None) -> tuple[Head, str]:
    """The head and its name in checkpoints."""
    module = library.get_output_embeddings()
    name = next((name for name, each in library.named_modules() if each is module), "lm_head")
    if group is None or len(module.weight) == library.config.vocab_size:
        return Head(module, library.config), name
    return SplitHead(module, library.config, group), name


def _found(model: CausalModel, prompts: list[list[int]]) -> Tensor:
    """Logits [2, STEPS, V] for the self-test: a ragged prefill and cached steps through lanes."""
    bare = LaneIndex.of([() for _ in prompts], 0, model.facts.device)
    cache = model.new_cache()
    lanes = [Lane((), tuple(prompt[: 1 - selftest.STEPS])) for prompt in prompts]
    for memory in model.prefill([Piece.whole(model.passage(lane, ())) for lane in lanes]):
        cache.insert(memory)
    logits = []
    for place in range(-selftest.STEPS, 0):
        tokens = torch.tensor([[prompt[place]] for prompt in prompts], device=model.facts.device)
        logits.append(model.head(model.step(tokens, bare, cache)[:, 0]))
    return torch.stack(logits, dim=1)


def _weights(folder: Path, config: Any, dtype: torch.dtype, group: ProcessGroup | None) -> Any:
    """The library's model; with a group, every process calls this and gets its own shards."""
    if not list(folder.glob("*.safetensors")):
        other = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        hint = f"; {other[0]} is a pickle, which is not loaded: save it as safetensors first" if other else ""
        raise UnsupportedModel(f"{folder}: no model.safetensors and no model.safetensors.index.json{hint}")
    options = {}
    if group is not None:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(tp_size=group.size)
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        model, report = admission.model_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # noqa: BLE001 - a stranger's files in somebody else's code
        raise UnsupportedModel(f"{folder}: cannot be loaded: {one_line(error)}") from None
    finally:
        if shown:
            progress.enable_progress_bar()
    missing = sorted(report["missing_keys"])
    if missing:
        more = f", nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnsupportedModel(
            f"{folder}: the checkpoint has no tensor {missing[0]!r}{more}; {type(model).__name__} would make them up"
        )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _vocabulary(library: Any) -> int:
    embedding = library.get_input_embeddings()
    return int(embedding.weight.shape[0])  # of all shards


def _special(config: Mapping[str, Any]) -> tuple[int, ...]:
    names = ("bos_token_id", "pad_token_id", "image_token_id", "image_token_index")
    return tuple(value for name in names if isinstance(value := config.get(name), int))
