"""Sizes of a decoder-only model, counted on the library's own model without allocating its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from emorl_core.errors import UnsupportedModel, one_line
from emorl_core.models.causal import admission
from emorl_core.models.shape import LinearShape, Shape, TokenCost


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Raises UnsupportedModel for a config from which the library cannot build a model."""
    parsed = admission.parsed(config)
    try:
        with torch.device("meta"):
            library = admission.model_class(parsed)(parsed)
    except Exception as error:  # noqa: BLE001 - a stranger's values in somebody else's code
        raise UnsupportedModel(f"config.json: no model can be made of it: {one_line(error)}") from None
    decoder, head, embedding = library.get_decoder(), library.get_output_embeddings(), library.get_input_embeddings()
    found: Counter[tuple[str, int, int]] = Counter()
    for name, module in decoder.named_modules():
        if type(module) in (nn.Linear, Conv1D):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            inside, outside = weight.shape if isinstance(module, Conv1D) else reversed(weight.shape)
            found[name.rsplit(".", 1)[-1], inside, outside] += 1
    linears = tuple(LinearShape(*key, count) for key, count in found.items())
    tied = head.weight is embedding.weight
    counted = embedding.weight.numel() + (0 if tied else head.weight.numel()) + sum(each.parameters for each in linears)
    # Autograd keeps the inputs and outputs of every product; norms and activation functions add about as much as the
    # products' inputs again.
    activations = sum(each.count * (2 * each.in_features + each.out_features) for each in linears)
    groups = next((m.num_key_value_groups for m in decoder.modules() if hasattr(m, "num_key_value_groups")), 1)
    size = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
    keys_and_values = parsed.num_hidden_layers * 2 * (parsed.num_attention_heads // groups) * size
    adapted = sum(each.count for each in linears)
    return Shape(
        hidden=head.weight.shape[1],
        vocabulary=head.weight.shape[0],
        tied=tied,
        linears=linears,
        prompt=TokenCost(activations, adapted, keys_and_values, trained_keys_and_values=keys_and_values),
        reply=TokenCost(activations, adapted, keys_and_values),
        other_parameters=sum(parameter.numel() for parameter in library.parameters()) - counted,
    )
