"""Which decoder-only models are supported, by `config.json` and transformers' class, before any weight is read.

What they do not show is found by the self-test at load (`selftest.py`). A refusal is one line: the reason and what
works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from emorl_core.errors import UnsupportedModel, one_line
from emorl_core.models.config import refuse_quantised

WORKS = (
    "decoder-only models with full or sliding-window attention in transformers' own code, such as Llama, Mistral, "
    "Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3 (text), SmolLM3, Phi-3, OLMo 2, Granite, Cohere 2, GPT-2, GPT-NeoX, OPT, "
    "StarCoder2, gpt-oss and Mixtral"
)
_ATTENTION = frozenset({"full_attention", "sliding_attention"})
_RECURRENT = frozenset({"linear_attention", "mamba", "recurrent", "conv", "hybrid"})
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
# RoPE whose frequencies depend on the longest row of a batch once it exceeds the original context length.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def refuse_files(config: Mapping[str, Any]) -> None:
    """Refuse a `config.json` that must not be passed to the library.

    Raises:
        UnsupportedModel
    """
    if config.get("auto_map"):
        raise UnsupportedModel(
            "config.json has auto_map: the model brings code of its own, which is not run. Where transformers has the "
            "same model built in, take auto_map out of config.json"
        )
    for part in _parts(config):
        refuse_quantised(part)
    made_for = config.get("architectures") or []
    if made_for and not any(str(name).endswith(_LANGUAGE_MODELS) for name in made_for):
        raise UnsupportedModel(
            f"config.json names architectures {_listed(map(str, made_for))}, which is no causal language model; "
            "allowed: ...ForCausalLM or ...LMHeadModel"
        )


def parsed(config: Mapping[str, Any]) -> Any:
    """The library's config object.

    Raises:
        UnsupportedModel: a model_type that the library does not know, or values that it does not accept.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UnsupportedModel(f"base model_type is {kind!r}, which transformers does not know; what works: {WORKS}")
    try:
        return CONFIG_MAPPING[kind].from_dict(_with_floats(config))
    except Exception as error:  # noqa: BLE001 - a stranger's values in somebody else's code
        raise UnsupportedModel(f"config.json: transformers cannot read it as {kind!r}: {one_line(error)}") from None


def refuse_config(config: Any) -> None:
    """Refuse an unsupported parsed config (`transformers.PreTrainedConfig`), judging also by the class that would run
    it.

    Raises:
        UnsupportedModel
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise _refused(kind, "it has an encoder; only its decoder would run")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _refused(kind, "transformers has no causal language model for it")
    if type(config).sub_configs and config.get_text_config(decoder=True) is not config:
        raise _refused(kind, "it holds more than a language model; save its text model alone")
    if getattr(config, "add_cross_attention", False):
        raise _refused(kind, "it has cross-attention (add_cross_attention)")
    if getattr(config, "kv_lora_rank", None) is not None:
        raise _refused(kind, "it has multi-head latent attention (kv_lora_rank), which is not proven here")
    layers = set(getattr(config, "layer_types", None) or ())
    if layers & _RECURRENT:
        raise _refused(
            kind, f"it has recurrent, convolution or linear-attention layers ({_listed(layers - _ATTENTION)})"
        )
    if layers - _ATTENTION:
        raise _refused(kind, f"layer_types holds {_listed(layers - _ATTENTION)}; allowed: {_listed(_ATTENTION)}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise _refused(kind, "its layers share keys and values (num_kv_shared_layers)")
    if getattr(config, "use_bidirectional_attention", None):
        raise _refused(kind, "its attention looks both ways (use_bidirectional_attention)")
    model = model_class(config)
    if model._is_stateful:
        raise _refused(kind, "it keeps a recurrent state beside keys and values")
    if not model._supports_attention_backend:
        raise _refused(
            kind, "its code in transformers does not let attention be replaced (_supports_attention_backend)"
        )


def model_class(config: Any) -> Any:
    """The library's class for this config."""
    found = AutoModelForCausalLM._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def longest_sequence(config: Any) -> int | None:
    """The number of positions; None if unbounded.

    RoPE of type `dynamic` or `longrope` is limited to its original length: beyond it the frequencies of every row
    depend on the longest row in the batch, and a row's tokens must not depend on other rows.
    """
    bounds = [getattr(config, "max_position_embeddings", None)]
    for rope in _ropes(config):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            bounds.append(rope.get("original_max_position_embeddings"))
    known = [bound for bound in bounds if isinstance(bound, int)]
    return min(known, default=None)


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The RoPE settings, one for the whole model or one per layer type."""
    settings = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in settings:
        yield settings
    for nested in settings.values():
        if isinstance(nested, Mapping):
            yield nested


def _with_floats(value: Any) -> Any:
    """Convert the library's form of numbers that JSON lacks, {"__float__": "Infinity"}, to floats."""
    if isinstance(value, Mapping):
        return (
            float(value["__float__"]) if set(value) == {"__float__"} else {k: _with_floats(v) for k, v in value.items()}
        )
    return [_with_floats(each) for each in value] if isinstance(value, list) else value


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield value


def _refused(kind: str, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"base model_type {kind!r}: {reason}; what works: {WORKS}")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
