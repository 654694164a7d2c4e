"""Features on disk, under keys that change with everything the features depend on."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .modeling_mote import MoTEModel
from .processing import encode_classes
from .processing.prompts import get_prompt_set

CACHE_DIR = Path(os.environ.get("MOTE_CACHE", Path(HF_HOME) / "mote"))


def fingerprint(*parts: Any) -> str:
    """SHA-256 of modules' and tensors' values and of anything JSON can hold, in hexadecimal.

    Args:
        *parts: modules (names and values of their parameters and buffers), tensors, or JSON values.
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
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_whole(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that is there whole or not at all, also where several processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def class_features(
    model: MoTEModel,
    processor: Any,
    names: Sequence[str],
    prompts: str | Iterable[str] = "mote_28",
    cache_dir: str | os.PathLike | None = None,
) -> torch.Tensor:
    """Class features as [`modeling_mote.processing.encode_classes`] computes them, kept on disk: a second run encodes no text.

    Args:
        model: any model with CLIP's text tower.
        processor: its processor, or tokenizer.
        names: c class names.
        prompts: a prompt set's name or templates.
        cache_dir: folder of the cache; `$MOTE_CACHE`, or `mote` in the Hugging Face home, where None.

    Returns:
        L2-normalised class features, float32 on the model's device, [c, d].
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    names = list(names)
    key = fingerprint(
        model.text_model,
        model.text_projection,
        model.config.text_config.to_dict(),
        [vocabulary, tokenizer.model_max_length, list(get_prompt_set(prompts)), names],
    )
    path = Path(cache_dir or CACHE_DIR) / "class_features" / f"{key}.safetensors"
    if not path.is_file():
        features = encode_classes(model, tokenizer, names, prompts)
        write_whole({"class_embeds": features.cpu().contiguous()}, path, {"names": json.dumps(names)})
    return load_with_metadata(path)[0]["class_embeds"].to(model.device)


def frame_features_key(model: MoTEModel, video_processor: Any, clips: Sequence[Any], sampling: dict[str, Any]) -> str:
    """Key of a dataset's frame features: image tower, preprocessing, and which frames of which clips.

    Args:
        model: whose image tower encodes the frames.
        video_processor: whose settings prepare them.
        clips: what tells one clip from another, such as path, size and time of change.
        sampling: how frames are chosen.
    """
    return fingerprint(
        model.vision_model,
        model.visual_projection,
        model.config.vision_config.to_dict(),
        video_processor.to_dict(),
        list(clips),
        sampling,
    )


def load_with_metadata(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the tensors are mapped, so the system reads what is used of them.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it.") from error


__all__ = ["class_features", "fingerprint", "frame_features_key", "load_with_metadata", "write_whole"]
