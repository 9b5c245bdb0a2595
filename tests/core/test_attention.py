"""Attention of few queries on a CPU is two plain products: the same numbers as torch's fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from emorl_core.models.t5.blocks import attention


def inputs(queries: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(queries)
    q = torch.randn(3, 4, queries, 8, generator=generator).to(dtype)
    # A cache's rows: more capacity than tokens, so that the views have gaps.
    k, v = torch.randn(2, 5, 4, 32, 8, generator=generator)[:, :3, :, :20].unbind()
    mask = torch.zeros(3, 1, queries, 20)
    mask[1, ..., 15:] = float("-inf")
    return q, k, v, mask


@pytest.mark.parametrize("queries", [1, 4, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_products_equal_the_fused_kernel(queries: int, masked: bool) -> None:
    q, k, v, mask = inputs(queries, torch.float32)
    own = mask if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=own, scale=1.0)
    torch.testing.assert_close(attention(q, k, v, own), expected, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():  # the fused kernel, where gradients are wanted
        q.requires_grad_()
        assert torch.equal(attention(q, k, v, own), expected)


@pytest.mark.parametrize("queries", [1, 7])
def test_bfloat16_queries_read_a_float32_cache_and_stay_bfloat16(queries: int) -> None:
    q, k, v, mask = inputs(queries, torch.bfloat16)
    out = attention(q, k, v, mask.bfloat16())
    assert out.dtype == torch.bfloat16
    expected = F.scaled_dot_product_attention(q.float(), k, v, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(out, expected.bfloat16(), atol=1e-2, rtol=1e-2)
