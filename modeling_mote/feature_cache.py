"""Tensors on disk, with a checksum, under keys that change with everything that they depend on."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import av
import torch
from huggingface_hub.constants import HF_HOME
from transformers import CLIPModel

from .modeling_mote import MoTEModel
from .processing import encode_classes
from .processing.class_names import parse_candidates
from .processing.prompts import get_prompt_set
from .processing.tensor_files import fingerprint, load_tensors, save_tensors

CACHE_DIR = Path(os.environ.get("MOTE_CACHE", Path(HF_HOME) / "mote"))


@cache
def reading_version() -> str:
    """What changes whenever the code does that turns a file into pixels: its sources and the decoder's version."""
    digest = hashlib.sha256(av.__version__.encode())
    folder = resources.files("modeling_mote.processing")
    for file in sorted((file for file in folder.iterdir() if file.name.endswith(".py")), key=lambda file: file.name):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def load_cached(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """As [`load_tensors`], of a file that can be made again: None if it is not there, or damaged, which is said."""
    if not path.is_file():
        return None
    try:
        return load_tensors(path)
    except ValueError as error:
        warnings.warn(str(error).removesuffix(": remove it.") + "; it is made anew.", stacklevel=2)
        return None


def class_features(
    model: CLIPModel,
    processor: Any,
    names: Any,
    prompts: str | Iterable[str] = "mote_28",
    cache_dir: str | os.PathLike | None = None,
) -> torch.Tensor:
    """Class features of [`encode_classes`][modeling_mote.processing.encode_classes], kept on disk.

    Args:
        model: any model with CLIP's text tower.
        processor: its processor, or tokenizer.
        names: c class names, or {name: description}.
        prompts: a prompt set's name or templates.
        cache_dir: folder of the cache; by default `$MOTE_CACHE`, or `mote` in the Hugging Face home.

    Returns:
        L2-normalised class features, float32 on the model's device, [c, d].

        Shapes: c classes, d = `projection_dim`.

    Raises:
        ValueError: for names or prompts that can't be encoded.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    candidates = parse_candidates(names)
    key = fingerprint(
        model.text_model,
        model.text_projection,
        model.config.text_config.to_dict(),
        [vocabulary, tokenizer.model_max_length, list(get_prompt_set(prompts)), list(candidates.items())],
        resources.files("modeling_mote.processing").joinpath("prompts.py").read_text(encoding="utf-8"),
    )
    path = Path(cache_dir or CACHE_DIR) / "class_features" / f"{key}.safetensors"
    cached = load_cached(path)
    if cached is not None:
        return cached[0]["class_embeds"].to(model.device)
    features = encode_classes(model, tokenizer, candidates, prompts)
    save_tensors({"class_embeds": features.cpu().contiguous()}, path, {"names": json.dumps(list(candidates))})
    return features


def frame_features_key(model: MoTEModel, video_processor: Any, clips: Sequence[Any], sampling: dict[str, Any]) -> str:
    """Key of a data set's frame features: image tower, preprocessing, reading code, and which frames of which clips.

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
        reading_version(),
    )


def video_features_key(model: MoTEModel, video_processor: Any) -> str:
    """Key of videos' features: the model, before its experts are merged, its preprocessing and the reading code.

    Args:
        model: that computes them.
        video_processor: its own, whose settings choose and prepare the frames.
    """
    towers = [getattr(model.config, f"{name}_config").to_dict() for name in ("vision", "text", "temporal")]
    frames = [video_processor.to_dict(), video_processor.frames_per_clip(model.config)]
    return fingerprint(model, towers, frames, reading_version())


__all__ = [
    "class_features",
    "fingerprint",
    "frame_features_key",
    "load_cached",
    "load_tensors",
    "reading_version",
    "save_tensors",
    "video_features_key",
]
