"""Class names to class features: prompt templates and the ensemble over them."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import logging

from .class_names import parse_labels, to_words

logger = logging.get_logger(__name__)

SAME_COSINE = 0.9999  # class features nearer than this are one class to the text tower

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


def encode_classes(
    model: Any,
    processor: Any,
    names: str | Iterable[str],
    prompts: str | Iterable[str] = "mote_28",
    batch_size: int = 256,
) -> torch.Tensor:
    """Turn class names into class features that differ from one another.

    Args:
        model: A `CLIPModel` or one derived from it, such as `MoTEModel`.
        processor: Processor with a tokenizer, or the tokenizer itself.
        names: Class names, see `parse_labels`. They are texts, taken as they are.
        prompts: Name of a prompt set or templates, see `get_prompt_set`.
        batch_size: Texts encoded at a time.

    Returns:
        Unit vectors as `encode_texts` gives them, float32 [c, d], on the model's device.

        Shapes: c classes, d = `config.projection_dim`.

    Raises:
        ValueError: for bad names or templates, a name of which the tokenizer knows no word, two names that the text
            tower can't tell apart (cosine above `SAME_COSINE`), and a tokenizer that does not fit the text tower.
    """
    names, tokenizer = parse_labels(names), getattr(processor, "tokenizer", processor)
    limit = _token_limit(model, tokenizer)
    for name, ids in zip(names, _tokenize(tokenizer, names, limit)["input_ids"], strict=True):
        if set(ids) <= set(tokenizer.all_special_ids):  # the unknown token is one of them
            words = to_words(name)
            advice = "write it in other words" if words == name else f"did you mean {words!r}?"
            raise ValueError(f"label {name!r} holds no word that the tokenizer knows: {advice}")
    embeds = encode_texts(model, tokenizer, names, prompts, batch_size)
    _check_distinct(embeds, names)
    return embeds


def _check_distinct(embeds: torch.Tensor, names: Sequence[str], rows: int = 1024) -> None:
    """Refuse class features [c, d] of which two are the same, some rows at a time."""
    for start in range(0, len(names), rows):
        cosines = embeds[start : start + rows] @ embeds.T  # [rows, c]
        found = (cosines > SAME_COSINE).triu(start + 1).nonzero()
        if len(found):
            one, other = names[start + int(found[0, 0])], names[int(found[0, 1])]
            raise ValueError(
                f"labels {one!r} and {other!r} are one to the text tower, which reads the same from both: leave one "
                "out, or write it in other words"
            )


@torch.no_grad()
def encode_texts(
    model: Any,
    processor: Any,
    texts: Sequence[str],
    prompts: str | Iterable[str] = "mote_28",
    batch_size: int = 256,
) -> torch.Tensor:
    """Turn texts into features: the mean over templates of normalised text features, normalised.

    The text tower runs in evaluation mode, whatever its mode, in its own dtype and on its own device; the means
    and norms are float32. Texts are padded to the longest of their batch, which CLIP's causal text tower ignores.

    Args:
        model: A `CLIPModel` or one derived from it, such as `MoTEModel`.
        processor: Processor with a tokenizer, or the tokenizer itself.
        texts: Class names, or captions, of which several may say the same.
        prompts: Name of a prompt set or templates, see `get_prompt_set`.
        batch_size: Texts encoded at a time.

    Returns:
        Unit vectors, float32 [c, d], on the model's device.

        Shapes: c texts, d = `config.projection_dim`.

    Raises:
        ValueError: for bad templates, and for a tokenizer that does not fit the text tower.
    """
    templates, tokenizer = get_prompt_set(prompts), getattr(processor, "tokenizer", processor)
    filled = [template.replace("{}", text) for text in texts for template in templates]
    text_model = model.text_model
    limit = _token_limit(model, tokenizer)
    modes = [(module, module.training) for module in text_model.modules()]
    features = []
    try:
        for module, _ in modes:  # not model.eval(), which would touch more than the text tower
            module.training = False
        for start in range(0, len(filled), batch_size):
            batch = _tokenize(tokenizer, filled[start : start + batch_size], limit, return_tensors="pt").to(
                model.device
            )
            _check_tokens(batch["input_ids"], batch["attention_mask"], text_model.config.eos_token_id)
            _warn_if_cut(filled[start : start + batch_size], batch.encodings or [], limit)
            output = model.get_text_features(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True
            )
            features.append(F.normalize(output.pooler_output.float(), dim=-1))
    finally:
        for module, training in modes:
            module.training = training
    per_template = torch.cat(features).unflatten(0, (len(texts), len(templates)))  # [c, templates, d]
    return F.normalize(per_template.mean(dim=1), dim=-1)


def _token_limit(model: Any, tokenizer: Any) -> int:
    return min(tokenizer.model_max_length, model.text_model.config.max_position_embeddings)


def _tokenize(tokenizer: Any, texts: Sequence[str], limit: int, **options: Any) -> Any:
    """Tokens of texts, always with one padding and cut: both are state of the tokenizer, which threads may share."""
    return tokenizer(
        list(texts), padding="longest", truncation=True, max_length=limit, return_attention_mask=True, **options
    )


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


def _warn_if_cut(texts: Sequence[str], encodings: Sequence[Any], limit: int) -> None:
    """Name one of the texts whose encodings were cut at `limit` tokens, if any was; slow tokenizers don't tell."""
    cut = [text for text, encoding in zip(texts, encodings, strict=False) if encoding.overflowing]
    if cut:
        logger.warning(f"{len(cut)} prompts exceed the text tower's {limit} tokens and are cut, such as {cut[0]!r}")
