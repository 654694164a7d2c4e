"""The authors' MoTE checkpoints (`MoTE_B16.pt`, `MoTE_L14.pt`) as folders that transformers loads.

    convert("MoTE_B16.pt", "openai/clip-vit-base-patch16", "mote-vitb16")

Their file holds the fine-tuned image tower, the temporal head and the training classes' text features; the frozen text
tower is CLIP's own. `mote convert` is the command; `python -m modeling_mote.convert_mote_original` runs it too.
"""

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import CLIPModel

from .configuration_mote import MoTEConfig
from .loading import first_sentence, load_clip, new_processor
from .modeling_mote import MoTEForVideoClassification
from .processing import encode_classes
from .processing.files import whole_folder
from .processing.label_sets import load_label_set, read_label_file

# Authors' name → ours, in one block of either Transformer. `in_proj_*` holds q, k and v on top of one another.
BLOCK = {
    "attn.in_proj_weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.in_proj_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn.out_proj.weight": ("self_attn.out_proj.weight",),
    "attn.out_proj.bias": ("self_attn.out_proj.bias",),
    "ln_1.weight": ("layer_norm1.weight",),
    "ln_1.bias": ("layer_norm1.bias",),
    "ln_2.weight": ("layer_norm2.weight",),
    "ln_2.bias": ("layer_norm2.bias",),
}
IMAGE_BLOCK = BLOCK | {
    "mlp.c_fc.weight": ("mlp.fc1.weight",),
    "mlp.c_fc.bias": ("mlp.fc1.bias",),
    "mlp.c_proj.weight": ("mlp.fc2.weight",),
    "mlp.c_proj.bias": ("mlp.fc2.bias",),
}
EXPERTS = {
    "mlp.fc_up.{}.weight": "mlp.up_proj",
    "mlp.fc_up.{}.bias": "mlp.up_proj_bias",
    "mlp.fc_dn.{}.weight": "mlp.down_proj",
    "mlp.fc_dn.{}.bias": "mlp.down_proj_bias",
}
IMAGE_TOWER = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
HEAD = {
    "frame_position_embeddings.weight": "temporal_model.position_embedding.weight",
    "spe_cls_feature": "seen_classes.weight",
}


class ConversionError(ValueError):
    """The input is not a MoTE checkpoint that can be converted with these arguments."""


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int | None]:
    """Reads the authors' file without running code from it.

    Returns:
        the image tower's tensors, the temporal head's, both by the authors' names in float32, and the epoch.

    Raises:
        FileNotFoundError: if there is no such file.
        ConversionError: if it is not a checkpoint of theirs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file is not a checkpoint
        raise ConversionError(f"{path} holds no plain PyTorch weights: {first_sentence(error)}.") from error
    parts = []
    for name in ("model_state_dict", "fusion_model_state_dict"):
        part = loaded.get(name) if isinstance(loaded, dict) else None
        if not isinstance(part, dict) or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in part.items()
        ):
            raise ConversionError(f"{path} is not a checkpoint of MoTE's authors: it has no tensors under {name!r}.")
        if broken := [key for key, value in part.items() if not value.isfinite().all()]:
            raise ConversionError(f"{path} holds values that are not finite in {', '.join(broken)}.")
        parts.append({key.removeprefix("module."): value.float() for key, value in part.items()})
    epoch = loaded.get("epoch")
    return parts[0], parts[1], epoch if isinstance(epoch, int) else None


def count(tensors: dict[str, torch.Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern`'s group takes in the keys."""
    return max((int(match[1]) + 1 for key in tensors if (match := re.match(pattern, key))), default=0)


def infer_config(
    image: dict[str, torch.Tensor], head: dict[str, torch.Tensor], clip: CLIPModel, num_frames: int
) -> MoTEConfig:
    """The config of the temporal head, from its tensors' sizes; the towers' is CLIP's, which the image tower must fit.

    Raises:
        ConversionError: if a size can't be told, or the image tower's depth is not that of `clip`.
    """
    layers, clip_layers = (
        count(image, r"visual\.transformer\.resblocks\.(\d+)\."),
        clip.config.vision_config.num_hidden_layers,
    )
    if layers != clip_layers:
        raise ConversionError(
            f"The checkpoint's image tower has {layers} layers and the CLIP's {clip_layers}: "
            "name the CLIP that it was trained from."
        )
    sizes = ["frame_position_embeddings.weight", "spe_cls_feature", "transformer.resblocks.0.mlp.fc_up.0.weight"]
    if missing := [key for key in sizes if key not in head or head[key].dim() != 2]:
        raise ConversionError(f"The checkpoint is not MoTE's: it has no matrix {', '.join(missing)}.")
    positions, seen, up = (head[key] for key in sizes)
    if seen.shape[1] != clip.config.projection_dim:
        raise ConversionError(
            f"The checkpoint's features are {seen.shape[1]} wide and the CLIP's {clip.config.projection_dim}: "
            "name the CLIP that it was trained from."
        )
    return MoTEConfig(
        text_config=clip.config.text_config.to_dict(),
        vision_config=clip.config.vision_config.to_dict(),
        projection_dim=clip.config.projection_dim,
        logit_scale_init_value=clip.config.logit_scale_init_value,
        temporal_config={
            "intermediate_size": up.shape[0],
            "num_hidden_layers": count(head, r"transformer\.resblocks\.(\d+)\."),
            "num_experts": count(head, r"transformer\.resblocks\.0\.mlp\.fc_up\.(\d+)\."),
            "max_frames": positions.shape[0],
        },
        num_frames=num_frames,
        num_labels=seen.shape[0],  # type: ignore[call-arg]  # transformers reads it beside the fields
    )


def key_table(config: MoTEConfig) -> Iterator[tuple[list[str], list[str]]]:
    """Pairs of authors' keys and ours: one to one, one to three (q, k, v), or one per expert to a stacked tensor."""
    for source, target in (IMAGE_TOWER | HEAD).items():
        yield [source], [target]
    temporal = config.temporal_config
    for layer in range(config.vision_config.num_hidden_layers):
        for source, names in IMAGE_BLOCK.items():
            yield (
                [f"visual.transformer.resblocks.{layer}.{source}"],
                [f"vision_model.encoder.layers.{layer}.{name}" for name in names],
            )
    for layer in range(temporal.num_hidden_layers):
        for source, names in BLOCK.items():
            yield (
                [f"transformer.resblocks.{layer}.{source}"],
                [f"temporal_model.layers.{layer}.{name}" for name in names],
            )
        for source, target in EXPERTS.items():
            yield (
                [f"transformer.resblocks.{layer}.{source.format(expert)}" for expert in range(temporal.num_experts)],
                [f"temporal_model.layers.{layer}.{target}"],
            )


def convert_state_dict(
    image: dict[str, torch.Tensor], head: dict[str, torch.Tensor], config: MoTEConfig
) -> dict[str, torch.Tensor]:
    """Renames, splits, stacks and transposes the authors' tensors into ours.

    Raises:
        ConversionError: naming the keys that are missing or that nothing is made of.
    """
    original, table = image | head, list(key_table(config))
    expected = {key for sources, _ in table for key in sources}
    missing = sorted(expected - set(original))
    unexpected = sorted(key for key in set(original) - expected if not key.endswith(".mote_fusion_weight"))
    unexpected += sorted(image.keys() & head.keys())
    if missing or unexpected:
        said = [
            f"{len(keys)} {kind} keys: {', '.join(keys)}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise ConversionError(f"The checkpoint does not fit a MoTE of its sizes; {'; '.join(said)}.")
    converted: dict[str, torch.Tensor] = {}
    for sources, targets in table:
        tensors = [original[key] for key in sources]
        if sources == ["visual.proj"]:
            tensors = [tensors[0].transpose(0, -1)]
        elif len(targets) == 3:
            tensors = list(tensors[0].chunk(3))
        elif ".mlp.fc_" in sources[0]:
            if len({tensor.shape for tensor in tensors}) > 1:
                raise ConversionError(
                    f"The experts of {sources[0].rsplit('.', 2)[0]} differ in size; they can't be merged."
                )
            tensors = [torch.stack(tensors)]
        converted.update((target, tensor.contiguous()) for target, tensor in zip(targets, tensors, strict=True))
    return converted


def merge_weights(head: dict[str, torch.Tensor], config: MoTEConfig) -> torch.Tensor | None:
    """The merge at test that `mote_fusion_weight` stores, its softmax per layer, [L, E]; None if it is uniform."""
    temporal = config.temporal_config
    keys = [f"transformer.resblocks.{layer}.mlp.mote_fusion_weight" for layer in range(temporal.num_hidden_layers)]
    stored = {key: head.get(key, torch.zeros(temporal.num_experts)) for key in keys}
    if wrong := [key for key, weights in stored.items() if weights.shape != (temporal.num_experts,)]:
        raise ConversionError(f"{', '.join(wrong)} must hold one weight for each of {temporal.num_experts} experts.")
    merge = torch.stack(list(stored.values())).softmax(-1)
    return None if torch.allclose(merge, torch.full_like(merge, 1 / temporal.num_experts)) else merge


def class_names(
    model: MoTEForVideoClassification, tokenizer: Any, features: torch.Tensor, labels: str | os.PathLike | None
) -> list[str]:
    """Names of the training classes, n for features [n, d].

    The label file's; else Kinetics-400's if every feature is nearest to its name's; else LABEL_i, with a warning.
    """
    n = len(features)
    if labels is not None:
        label_set = read_label_file(Path(labels))
        if label_set.descriptions:
            raise ConversionError(
                f"{labels} describes classes, but the checkpoint has their text features: give a file of names alone."
            )
        names = list(label_set.classes)
        if len(names) != n:
            raise ConversionError(f"{labels} names {len(names)} classes, but the checkpoint has {n}.")
        return names
    if n == 400:
        names = list(load_label_set("kinetics400").classes)
        cosines = encode_classes(model, tokenizer, names) @ F.normalize(features, dim=-1).T  # [names, features]
        if cosines.argmax(0).tolist() == list(range(n)):
            return names
    warnings.warn(
        f"The checkpoint does not say what its {n} classes are called, and they are not Kinetics-400's in its order: "
        f"naming them LABEL_0 to LABEL_{n - 1}. Pass a file of their names as labels.",
        stacklevel=3,
    )
    return [f"LABEL_{index}" for index in range(n)]


def card_stub(record: dict[str, Any], config: MoTEConfig) -> ModelCard:
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="video-classification",
        base_model=record["clip"] if "/" in record["clip"] else None,
        tags=["mote", "zero-shot-video-classification", "clip", "video"],
    )
    text = f"""# MoTE

Converted by `mote convert` from `{record["checkpoint"]}`
(SHA-256 `{record["checkpoint_sha256"]}`) and the CLIP `{record["clip"]}`.
The image tower and the logit scale are {record["alpha"]} · fine-tuned + {1 - record["alpha"]:.4g} · CLIP;
the authors score with 0.99. {config.num_labels} training classes, {config.num_frames} frames,
{config.temporal_config.num_hidden_layers} temporal layers.

```python
import modeling_mote
from transformers import pipeline

classify = pipeline("zero-shot-video-classification", model="PATH_OF_THIS_FOLDER")
classify("clip.mp4", candidate_labels=["archery", "yoga"])
```

No accuracy was measured on this conversion. Method: MoTE, arXiv 2410.10589; weights by its authors, Apache-2.0.
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def convert(
    checkpoint: str | os.PathLike,
    clip: str | os.PathLike,
    output: str | os.PathLike,
    alpha: float = 0.99,
    labels: str | os.PathLike | None = None,
    num_frames: int = 8,
) -> MoTEForVideoClassification:
    """Converts one checkpoint; `output` appears whole or not at all.

    Args:
        checkpoint: the authors' `.pt` file.
        clip: the CLIP it was trained from: a folder or a Hub id in transformers' format.
        output: folder to create; may exist if empty.
        alpha: the image tower and logit scale become alpha · fine-tuned + (1 - alpha) · CLIP; the authors take 0.99.
        labels: CSV or text file with the training classes' names in order.
        num_frames: frames it was trained with; the file does not say.

    Returns:
        the model that was saved.

    Raises:
        ConversionError: for anything but a checkpoint of theirs that fits the other arguments.
        CheckpointError: if `clip` is no whole CLIP with a tokenizer.
        FileNotFoundError, FileExistsError: for a missing checkpoint, an output that is not empty.
    """
    checkpoint, output = Path(checkpoint), Path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder.")
    if not 0 <= alpha <= 1:
        raise ConversionError(f"alpha must be between 0 (CLIP) and 1 (fine-tuned), got {alpha}.")
    image, head, epoch = read_checkpoint(checkpoint)
    clip_model = load_clip(str(clip))
    config = infer_config(image, head, clip_model, num_frames)
    processor = new_processor(str(clip), config, num_frames)
    model = MoTEForVideoClassification(config).eval()
    model.load_state_dict(fitting_weights(convert_state_dict(image, head, config), clip_model, model, alpha))
    features = model.seen_classes.weight
    model.set_training_classes(class_names(model, processor.tokenizer, features, labels), features)
    merge = merge_weights(head, config)
    if merge is not None:
        model.merge_experts(weights=merge)
    record = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "clip": Path(clip).resolve().name if Path(clip).exists() else str(clip),
        "alpha": alpha,
        "epoch": epoch,
        "merge": "uniform at inference" if merge is None else [[round(s, 6) for s in row] for row in merge.tolist()],
        "classes": len(features),
    }
    try:
        with whole_folder(output) as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            card_stub(record, model.config).save(partial / "README.md")
            (partial / "conversion.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except SafetensorError as error:  # how safetensors says that a disk is full
        raise OSError(f"{output} can't be written: {first_sentence(error)}.") from error
    return model


def fitting_weights(
    converted: dict[str, torch.Tensor], clip: CLIPModel, model: MoTEForVideoClassification, alpha: float
) -> dict[str, torch.Tensor]:
    """The whole state dict: CLIP's text tower, the temporal head, and the image tower blended with CLIP's.

    Raises:
        ConversionError: if a tensor's size is not the one that the CLIP asks for.
    """
    state, pretrained = model.state_dict(), clip.state_dict()
    for key, tensor in converted.items():
        if tensor.shape != state[key].shape:
            raise ConversionError(
                f"The checkpoint does not fit the CLIP: {key} is {list(tensor.shape)} there and must be "
                f"{list(state[key].shape)}; name the CLIP that it was trained from."
            )
        # Their scripts blend what was fine-tuned from CLIP; the temporal head has no CLIP counterpart.
        if key in pretrained and alpha < 1:
            converted[key] = alpha * tensor + (1 - alpha) * pretrained[key]
    return pretrained | converted


if __name__ == "__main__":
    from .commands.command_line import run_command

    # What the options were called before there was `mote convert`.
    earlier = {"--checkpoint": "--model", "--labels": "--labels_file"}
    options = [each.partition("=") for each in sys.argv[1:]]
    sys.exit(run_command("convert", [earlier.get(name, name) + equals + value for name, equals, value in options]))
