"""Class names to class features: prompt templates and the ensemble over them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from .class_names import parse_candidates, to_words

SAME_COSINE = 0.9999  # class features nearer than this are one class to the text tower
CUT_NAMED = 20  # classes that the warning of texts that were cut names

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
    names: Any,
    prompts: str | Iterable[str] = "mote_28",
    batch_size: int = 256,
) -> torch.Tensor:
    """Turn class names, or descriptions of classes, into class features that differ from one another.

    Args:
        model: A `CLIPModel` or one derived from it, such as `MoTEModel`.
        processor: Processor with a tokenizer, or the tokenizer itself.
        names: Class names, or {name: description}, see `parse_candidates`. The texts of a description are encoded as
            they are, without a prompt template; a name without one is put into the templates.
        prompts: Name of a prompt set or templates, see `get_prompt_set`.
        batch_size: Texts encoded at a time.

    Returns:
        Unit vectors, float32 [c, d], on the model's device: for each class the mean over its texts of normalised text
        features, normalised. Texts beyond the text tower's limit are cut, with one warning that names their classes.

        Shapes: c classes, d = `config.projection_dim`.

    Raises:
        ValueError: for bad names, descriptions or templates, a name or description of which the tokenizer knows no
            word, two classes that the text tower can't tell apart (cosine above `SAME_COSINE`), and a tokenizer that
            does not fit the text tower.
    """
    candidates, templates = parse_candidates(names), get_prompt_set(prompts)
    tokenizer = getattr(processor, "tokenizer", processor)
    _check_words(candidates, tokenizer, _token_limit(model, tokenizer))
    texts = {name: described or _fill(templates, name) for name, described in candidates.items()}
    embeds = _encode_means(model, tokenizer, list(texts), list(texts.values()), batch_size)
    _check_distinct(embeds, list(candidates))
    return embeds


def _check_words(candidates: Mapping[str, Sequence[str]], tokenizer: Any, limit: int) -> None:
    """Refuse names and descriptions that are nothing to the tokenizer."""
    read = [(name, text) for name, described in candidates.items() for text in described or (name,)]
    tokens = _tokenize(tokenizer, [text for _, text in read], limit)["input_ids"]
    for (name, text), ids in zip(read, tokens, strict=True):
        if set(ids) <= set(tokenizer.all_special_ids):  # the unknown token is one of them
            what = f"label {name!r}" if text == name else f"description {text!r} of label {name!r}"
            words = to_words(text)
            advice = "write it in other words" if words == text else f"did you mean {words!r}?"
            raise ValueError(f"{what} holds no word that the tokenizer knows: {advice}")


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
    return _encode_means(model, tokenizer, texts, [_fill(templates, text) for text in texts], batch_size)


def _fill(templates: Sequence[str], text: str) -> tuple[str, ...]:
    return tuple(template.replace("{}", text) for template in templates)


@torch.no_grad()
def _encode_means(
    model: Any, tokenizer: Any, names: Sequence[str], texts: Sequence[Sequence[str]], batch_size: int
) -> torch.Tensor:
    """[c, d] of c names: the mean over each one's texts of normalised features, normalised."""
    flat = [text for group in texts for text in group]
    text_model = model.text_model
    limit = _token_limit(model, tokenizer)
    modes = [(module, module.training) for module in text_model.modules()]
    features, cut = [], []
    try:
        for module, _ in modes:  # not model.eval(), which would touch more than the text tower
            module.training = False
        for start in range(0, len(flat), batch_size):
            batch = _tokenize(tokenizer, flat[start : start + batch_size], limit, return_tensors="pt").to(model.device)
            _check_tokens(batch["input_ids"], batch["attention_mask"], text_model.config.eos_token_id)
            cut += [bool(encoding.overflowing) for encoding in batch.encodings or []]  # slow tokenizers don't tell
            output = model.get_text_features(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True
            )
            features.append(F.normalize(output.pooler_output.float(), dim=-1))
    finally:
        for module, training in modes:
            module.training = training
    _warn_of_cut(names, texts, cut, limit)
    means = [group.mean(dim=0) for group in torch.cat(features).split([len(group) for group in texts])]
    return F.normalize(torch.stack(means), dim=-1)


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


def _warn_of_cut(names: Sequence[str], texts: Sequence[Sequence[str]], cut: Sequence[bool], limit: int) -> None:
    """Say once whose texts were cut at `limit` tokens, if any was."""
    marks, found = iter(cut), []
    for name, group in zip(names, texts, strict=True):
        if count := sum(next(marks, False) for _ in group):
            shown = name if len(name) <= 60 else f"{name[:60]}…"
            found.append(f"{shown!r} ({count} of {len(group)})")
    if found:
        more = f" and {len(found) - CUT_NAMED} more" if len(found) > CUT_NAMED else ""
        warnings.warn(
            f"The text tower reads {limit} tokens: longer texts are cut there, those of "
            f"{', '.join(found[:CUT_NAMED])}{more}.",
            stacklevel=4,
        )


__all__ = ["PROMPT_SETS", "SAME_COSINE", "encode_classes", "encode_texts", "get_prompt_set"]
