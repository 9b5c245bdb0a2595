"""Which device and number format to run in: what `auto` means."""

from __future__ import annotations

from typing import get_args

import torch

from emorl_core.errors import InvalidRequest
from emorl_core.types import Quantize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA when there is one, else the CPU. Raises InvalidRequest for a device this machine does not have."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise InvalidRequest(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:<number>", param="device") from None
    if picked.type not in ("cpu", "cuda"):
        raise InvalidRequest(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:<number>", param="device")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise InvalidRequest(
            f"device is {device!r}; this machine has {torch.cuda.device_count()} CUDA devices", param="device"
        )
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively (AVX512-BF16 or AMX on a CPU), else float32: without
    such instructions a CPU emulates it, several times slower than float32."""
    if dtype == "auto":
        return torch.bfloat16 if _native_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype is {dtype!r}; allowed: auto, {', '.join(DTYPES)}", param="dtype")
    return DTYPES[dtype]


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def fbgemm_available() -> bool:
    """Whether torch has FBGEMM here, which `emorl_core.lanes.fbgemm` computes with."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def pick_quantize(quantize: str, dtype: str, device: torch.device) -> Quantize:
    """Storage of the base's matrices. `auto` is float16 where `dtype` is `auto` and resolves to float32, on a CPU with
    FBGEMM: they are read in half the time, and are still eight times as precise as in bfloat16, which other machines
    use.

    Raises InvalidRequest for another word, and for what this machine or device does not have.
    """
    if quantize not in get_args(Quantize) and quantize != "auto":
        raise InvalidRequest(
            f"quantize is {quantize!r}; allowed: auto, {', '.join(get_args(Quantize))}", param="quantize"
        )
    possible = device.type == "cpu" and fbgemm_available()
    if quantize == "auto":
        wanted = possible and dtype == "auto" and pick_dtype(dtype, device) == torch.float32
        return "float16" if wanted else "off"
    if quantize != "off" and not possible:
        raise InvalidRequest(
            f"quantize is {quantize!r}, for which the device must be a CPU with FBGEMM (x86); allowed: auto, off",
            param="quantize",
        )
    chosen: Quantize = quantize  # type: ignore[assignment]
    return chosen
