"""Class names to class features: prompt templates and the ensemble over them."""

from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

PROMPT_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # The 28 of MoTE, "a example" as its authors spell it.
        "mote_28": tuple(
            f"a {medium} of {action}{{}}."
            for medium in ("photo", "video", "example", "demonstration")
            for action in (
                "",
                "a person ",
                "a person using ",
                "a person doing ",
                "a person during ",
                "a person performing ",
                "a person practicing ",
            )
        ),
        "clip": ("a photo of {}.",),
        "plain": ("{}",),
    }
)


def get_prompt_set(prompts: str | Iterable[str]) -> tuple[str, ...]:
    """Look up a named prompt set, or check templates of one's own.

    Args:
        prompts: Name in `PROMPT_SETS`, one template, or several; `{}` in a template stands for the class name.

    Returns:
        The templates.

    Raises:
        ValueError: for an unknown name, no template, and a template without `{}`.
    """
    if isinstance(prompts, str):
        if prompts in PROMPT_SETS:
            return PROMPT_SETS[prompts]
        if "{}" not in prompts:
            raise ValueError(
                f"unknown prompt set {prompts!r}: pass one of {', '.join(PROMPT_SETS)}, or templates with {{}} in them"
            )
        return (prompts,)
    templates = tuple(prompts)
    if not templates:
        raise ValueError(f"no prompt template given: pass at least one, or one of {', '.join(PROMPT_SETS)}")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"prompt template {template!r} has no {{}} to put the class name in")
    return templates


def parse_labels(labels: str | Iterable[str] | None) -> list[str]:
    """Check class names, given as a list or as one comma-separated string.

    Args:
        labels: The names; spaces around them are dropped.

    Returns:
        The names, in order.

    Raises:
        ValueError: for no name at all, an empty one, one given twice, and one that is no string.
    """
    if isinstance(labels, str):
        labels = labels.split(",") if labels.strip() else []
    if labels is None or isinstance(labels, (bytes, Mapping, Set)) or not isinstance(labels, Iterable):
        given = "none were given" if labels is None else f"not a {type(labels).__name__}"
        raise ValueError(f"labels must be a list of names or a comma-separated string, {given}")
    names = list(labels)
    if not names:
        raise ValueError("no label was given: pass at least one name")
    for position, name in enumerate(names, start=1):
        if not isinstance(name, str):
            raise ValueError(f"label {position} of {len(names)} is {name!r}, not a string")
        if not name.strip():
            raise ValueError(f"label {position} of {len(names)} is empty: give it a name or leave it out")
    names = [name.strip() for name in names]
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise ValueError(f"label {twice!r} was given twice: every label must be distinct")
    return names


@torch.no_grad()
def encode_classes(
    model: Any,
    processor: Any,
    names: str | Iterable[str],
    prompts: str | Iterable[str] = "mote_28",
    batch_size: int = 256,
) -> torch.Tensor:
    """Turn class names into class features: the mean over templates of normalised text features, normalised.

    The text tower runs in evaluation mode, whatever its mode, in its own dtype and on its own device; the means
    and norms are float32. Texts are padded to the longest of their batch, which CLIP's causal text tower ignores.

    Args:
        model: A `CLIPModel` or one derived from it, such as `MoTEModel`.
        processor: Processor with a tokenizer, or the tokenizer itself.
        names: Class names, see `parse_labels`.
        prompts: Name of a prompt set or templates, see `get_prompt_set`.
        batch_size: Texts encoded at a time.

    Returns:
        Unit vectors, float32 [c, d], on the model's device.

        Shapes: c classes, d = `config.projection_dim`.

    Raises:
        ValueError: for bad names or templates, and for a tokenizer that does not fit the text tower.
    """
    names, templates = parse_labels(names), get_prompt_set(prompts)
    tokenizer = getattr(processor, "tokenizer", processor)
    texts = [template.replace("{}", name) for name in names for template in templates]
    text_model = model.text_model
    limit = min(tokenizer.model_max_length, text_model.config.max_position_embeddings)
    modes = [(module, module.training) for module in text_model.modules()]
    features = []
    try:
        for module, _ in modes:  # not model.eval(), which would touch more than the text tower
            module.training = False
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size],
                padding="longest",
                truncation=True,
                max_length=limit,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(model.device)
            _check_tokens(batch["input_ids"], batch["attention_mask"], text_model.config.eos_token_id)
            if batch["input_ids"].shape[1] == limit:
                _warn_if_cut(tokenizer, texts[start : start + batch_size], limit)
            output = model.get_text_features(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True
            )
            features.append(F.normalize(output.pooler_output.float(), dim=-1))
    finally:
        for module, training in modes:
            module.training = training
    per_template = torch.cat(features).unflatten(0, (len(names), len(templates)))  # [c, templates, d]
    return F.normalize(per_template.mean(dim=1), dim=-1)


def _check_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor, eos_token_id: int) -> None:
    """Refuse token ids [n, l] from which the text tower would read the wrong position, as it does without a word."""
    # As CLIPTextModel pools: 2 marks the early checkpoints, whose end token is the highest id.
    scores = input_ids if eos_token_id == 2 else (input_ids == eos_token_id).int()
    end = scores.argmax(dim=-1, keepdim=True)
    found = attention_mask.gather(1, end) == 1
    if eos_token_id != 2:
        found &= input_ids.gather(1, end) == eos_token_id
    if not found.all():
        raise ValueError(
            f"the tokenizer does not end its texts with the text tower's eos_token_id {eos_token_id}: load the "
            "tokenizer saved with the model, or correct config.text_config.eos_token_id"
        )


def _warn_if_cut(tokenizer: Any, texts: list[str], limit: int) -> None:
    """Name one of the texts that exceed `limit` tokens, if any does."""
    cut = [text for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True) if len(ids) > limit]
    if cut:
        logger.warning(f"{len(cut)} prompts exceed the text tower's {limit} tokens and are cut, such as {cut[0]!r}")
