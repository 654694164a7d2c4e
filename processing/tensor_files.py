"""Tensors on disk with a checksum, and the fingerprint that tells values apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .files import whole_file
from .module_state import TOKENS_MERGED

CHECKSUM = "sha256"  # in a file's metadata: the fingerprint of its tensors and its other metadata
# What peft's layers compute with beside their weights: the same weights give other features with an adapter off.
ADAPTER_STATE = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")


def fingerprint(*parts: Any) -> str:
    """SHA-256 of modules' and tensors' values and of anything JSON can hold, in hexadecimal.

    Args:
        *parts: modules (names and values of their parameters and buffers, which adapters are on, how many tokens are
            merged, and which engine runs them, see `engines`), tensors, or JSON values.
    """
    digest = hashlib.sha256()
    for part in parts:
        tensors = (
            part.state_dict()
            if isinstance(part, nn.Module)
            else {"": part}
            if isinstance(part, torch.Tensor)
            else None
        )
        if tensors is None:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
            continue
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        if isinstance(part, nn.Module) and (beside := _beside_weights(part)):
            digest.update(json.dumps(beside, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _beside_weights(module: nn.Module) -> dict[str, Any]:
    """Adapters that are on, merged tokens, and engines, by module: the same weights give other features with them."""
    return {
        f"{name}.{field}": getattr(layer, field)
        for name, layer in module.named_modules()
        for field in (*(ADAPTER_STATE if hasattr(layer, "merged_adapters") else ()), "engine", TOKENS_MERGED)
        if hasattr(layer, field)
    }


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with a checksum; it is there whole or not at all, also if several processes write it.

    Args:
        tensors: by name.
        path: of the file; its folder is made if there is none.
        metadata: texts by name.

    Raises:
        OSError: if it can't be written.
    """
    metadata = metadata or {}
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata | {CHECKSUM: fingerprint(_fingerprints(tensors), metadata)})
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error


def _fingerprints(tensors: dict[str, torch.Tensor]) -> list[list[str]]:
    """[name, fingerprint] of every tensor, sorted."""
    return [[name, fingerprint(tensor)] for name, tensor in sorted(tensors.items())]


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of [`save_tensors`].

    The tensors are mapped: after the checksum was compared, the system keeps in memory what is used of them.

    Raises:
        ValueError: if the file is damaged, if only by one bit.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it.") from error
    checksum = metadata.pop(CHECKSUM, None)
    if checksum != fingerprint(_fingerprints(tensors), metadata):
        what = "its content does not fit its checksum" if checksum else "it has no checksum"
        raise ValueError(f"{path} is damaged ({what}): remove it.")
    return tensors, metadata


__all__ = ["fingerprint", "load_tensors", "save_tensors"]
