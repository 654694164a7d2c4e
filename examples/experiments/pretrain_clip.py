"""Pretrain the tiny CLIP from which the demo trains MoTE, on captioned stills of MovingShapes.

    python examples/experiments/pretrain_clip.py --output_dir examples/moving_shapes_clip

Stills of the 36 objects in the 12 motions, some sharp, some blurred or with a trail of older copies, are rendered as
they are needed; captions name colour, shape, motion and more. Nothing is downloaded. 700 steps of 432 stills gave, on
2160 new stills: 94.1% right objects of 36 (sharp), 80.1% right motions of 12 and 76.6% right classes of 432 (with a
trail), mean cosine of two classes 0.858. A step takes 0.66 s of processor time (Xeon, one thread): 8 minutes in all,
or 17 as measured beside other work.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast, set_seed

from modeling_mote.processing.builders.moving_shapes import (
    COLORS,
    MOTIONS,
    OBJECTS,
    SHAPES,
    class_name,
    poses,
    render_stills,
    sample_scenes,
)
from modeling_mote.processing.prompts import PROMPT_SETS, encode_classes

TEMPLATES = PROMPT_SETS["mote_28"]
SIZES = ("small", "medium", "large")
PLACES = tuple(
    f"at the {place}"
    for place in ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
)
# What a still shows, and among how many values; a linear probe is trained to read each from the image embedding.
ATTRIBUTES = {
    "color": len(COLORS),
    "shape": len(SHAPES),
    "motion": len(MOTIONS),
    "size": len(SIZES),
    "place": len(PLACES),
}
CLASSES = [(color, shape, motion) for (color, shape), motion in itertools.product(OBJECTS, MOTIONS)]
# Part of the stills with each exposure: sharp ones make the image tower ready for video frames, the others teach the
# text tower what the words for motions mean.
SHARES = {"sharp": 0.2, "blurred": 0.3, "trailing": 0.5}
# cross_entropy leaves these out.
IGNORED = -100
# Where OpenAI's CLIP ended: class features then lie in a narrow cone, for which MoTE's modulation is made.
LOGIT_SCALE = 100.0
# Length of what all text features share at the start, over that of what differs; training finds its own.
CONE = 6.0
# Length of an image embedding. Cosines do not feel it, but MoTE's frame positions, drawn with 0.02, drown in more.
EMBED_NORM = 3.5


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: those of the captions and of the 28 prompt templates; any other word is <unk>."""
    texts = [*TEMPLATES, *SIZES, *PLACES, *COLORS, *SHAPES, *MOTIONS, "shape"]
    splitter = pre_tokenizers.Whitespace()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text.replace("{}", " "))}
    # <eos> must not have id 2, on which CLIP's text tower pools by the largest id instead.
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=77,
        padding_side="right",
    )


def build_image_processor() -> CLIPImageProcessor:
    """CLIP's preprocessing at 32 pixels."""
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """An untrained CLIP of 1.05 million parameters: ViT 3 × 128 on patches of 8 pixels, text 2 × 128, d = 64."""
    tower = {"hidden_size": 128, "intermediate_size": 512, "projection_dim": 64}
    config = CLIPConfig(
        projection_dim=64,
        vision_config={**tower, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        text_config={
            **tower,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
    )
    model = CLIPModel(config)
    # CLIP's 0.02 drowns in patch embeddings of this width: where a patch lies is then learned late.
    nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    nn.init.normal_(model.text_model.final_layer_norm.bias, std=CONE)
    nn.init.constant_(model.logit_scale, math.log(LOGIT_SCALE)).requires_grad_(False)
    return model


def write_caption(color: str, shape: str, motion: str, size: str, place: str, rng: np.random.Generator) -> str:
    """Describe a still, in one of many ways: a phrase, with or without size and place, or one of the 28 templates."""
    phrase = class_name("" if rng.random() < 0.08 else color, "shape" if rng.random() < 0.08 else shape, motion)
    phrase = phrase.strip()
    if rng.random() < 0.35:
        return TEMPLATES[rng.integers(len(TEMPLATES))].format(phrase)
    if rng.random() < 0.25:
        phrase = f"{size} {phrase}"
    if rng.random() < 0.25:
        phrase = f"{phrase} {place}"
    return f"a {phrase}" if rng.random() < 0.5 else phrase


def third(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 up to `high`, 2 above."""
    return (values > low).astype(np.int64) + (values > high)


def sample_stills(
    rng: np.random.Generator, shares: dict[str, float]
) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
    """Photograph every object in every motion once, so that no two stills of a batch ought to match one caption.

    Args:
        rng: the only source of randomness.
        shares: part of the stills taken with each of `EXPOSURES`. Captions of sharp ones do not name the motion.

    Returns:
        Stills uint8 [n, h, w, 3], captions [n], and {attribute: values int64 [n]}; n = 36 objects · 12 motions = 432.
    """
    colors, shapes, motions = (list(column) for column in zip(*CLASSES, strict=True))
    scenes = sample_scenes(colors, shapes, motions, rng)
    moments = rng.random(len(scenes))
    exposures = rng.choice(list(shares), size=len(scenes), p=list(shares.values()))
    sharp = exposures == "sharp"
    stills = render_stills(scenes, moments, exposures.tolist(), rng)
    x, y, radius, _, _ = (values[:, 0] for values in poses(scenes, moments[:, None]))
    attributes = {
        "color": np.array([list(COLORS).index(color) for color in colors]),
        "shape": scenes.shapes,
        "motion": np.where(sharp, IGNORED, scenes.motions),
        "size": third(radius, 0.38, 0.47),
        "place": 3 * third(y, -0.2, 0.2) + third(x, -0.2, 0.2),
    }
    silent = sharp | (rng.random(len(scenes)) < 0.1)
    captions = [
        write_caption(color, shape, "" if quiet else motion, SIZES[size], PLACES[place], rng)
        for (color, shape, motion), quiet, size, place in zip(
            CLASSES, silent, attributes["size"], attributes["place"], strict=True
        )
    ]
    return stills, captions, attributes


def to_pixel_values(stills: np.ndarray, image_processor: CLIPImageProcessor) -> torch.Tensor:
    """uint8 [n, h, w, 3] of the right size to normalised [n, 3, h, w]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
    return (torch.from_numpy(stills).permute(0, 3, 1, 2) / 255 - mean) / std


def build_optimizers(model: CLIPModel, probes: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the Transformer layers, which is twice as fast here, and AdamW for all else."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in parameters if ".layers." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [*(p for _, p in parameters if id(p) not in chosen), *probes.parameters()]
    decayed, free = [p for p in others if p.ndim > 1], [p for p in others if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=2 * learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98)),
    ]


def pretrain(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, steps: int, learning_rate: float, rng: np.random.Generator
) -> None:
    """Train with CLIP's contrastive loss, and linear probes of the image embedding that are thrown away afterwards.

    Without the probes it takes several times as many stills until shapes and motions are told apart.
    """
    image_processor = build_image_processor()
    width = model.visual_projection.out_features
    probes = nn.ModuleDict({name: nn.Linear(width, n) for name, n in ATTRIBUTES.items()})
    optimizers = build_optimizers(model, probes, learning_rate)

    def pace(step: int) -> float:
        return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, pace) for optimizer in optimizers]
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    model.train()
    for _ in (progress := tqdm(range(steps), desc="pretraining", unit="step")):
        stills, captions, attributes = sample_stills(rng, SHARES)
        image_embeds = model.get_image_features(to_pixel_values(stills, image_processor)).pooler_output
        texts = tokenizer(captions, padding=True, return_tensors="pt")
        text_embeds = model.get_text_features(**texts).pooler_output
        logits = model.logit_scale.exp() * F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T
        pairs = torch.arange(len(captions))
        contrastive = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        probing = sum(
            F.cross_entropy(probes[name](image_embeds), torch.from_numpy(values), ignore_index=IGNORED)
            for name, values in attributes.items()
        )
        for optimizer in optimizers:
            optimizer.zero_grad()
        (contrastive + probing).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        progress.set_postfix(loss=f"{contrastive.item():.2f}")
    model.eval()
    with torch.no_grad():
        norm = model.get_image_features(to_pixel_values(stills, image_processor)).pooler_output.norm(dim=-1).mean()
        model.visual_projection.weight *= EMBED_NORM / norm


@torch.no_grad()
def evaluate(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, rounds: int = 5) -> dict:
    """Zero-shot accuracy on new stills, and how alike the class features are.

    Returns:
        `objects`: right object of 36, on sharp stills; `motions` and `classes`: right motion of 12 and right class of
        432, on stills with a trail; `stills`: how many of each were scored; `cosine`: mean cosine of two classes.
    """
    image_processor = build_image_processor()
    object_embeds = encode_classes(model, tokenizer, [" ".join(thing) for thing in OBJECTS])
    class_embeds = encode_classes(model, tokenizer, [class_name(*parts) for parts in CLASSES])
    truth = torch.arange(len(CLASSES))
    right = {"objects": 0, "motions": 0, "classes": 0}
    for _ in range(rounds):
        sharp, slow = (
            model.get_image_features(
                to_pixel_values(sample_stills(rng, {exposure: 1.0})[0], image_processor)
            ).pooler_output
            for exposure in ("sharp", "trailing")
        )
        found = (slow @ class_embeds.T).argmax(dim=1)
        right["objects"] += ((sharp @ object_embeds.T).argmax(dim=1) == truth // len(MOTIONS)).sum().item()
        right["motions"] += (found % len(MOTIONS) == truth % len(MOTIONS)).sum().item()
        right["classes"] += (found == truth).sum().item()
    stills = rounds * len(CLASSES)
    cosines = class_embeds @ class_embeds.T
    others = ~torch.eye(len(CLASSES), dtype=torch.bool)
    return {k: n / stills for k, n in right.items()} | {"stills": stills, "cosine": cosines[others].mean().item()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to save model and preprocessing in")
    parser.add_argument("--steps", type=int, default=700, help="batches of 432 stills")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of AdamW; Muon's is twice as large")
    parser.add_argument("--seed", type=int, default=0, help="the same seed and threads give the same weights")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    args = parser.parse_args(arguments)
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; it must be at least 1")

    torch.set_num_threads(args.threads)
    set_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_clip(tokenizer)
    pretrain(model, tokenizer, args.steps, args.learning_rate, np.random.default_rng([args.seed, 0]))
    scores = evaluate(model, tokenizer, np.random.default_rng([args.seed, 1]))
    for part in (model, tokenizer, build_image_processor()):
        part.save_pretrained(args.output_dir)
    print(
        f"on {scores['stills']} new stills: {scores['objects']:.1%} right objects of {len(OBJECTS)} (sharp), "
        f"{scores['motions']:.1%} right motions of {len(MOTIONS)} and {scores['classes']:.1%} right classes of "
        f"{len(CLASSES)} (with a trail); mean cosine of two classes {scores['cosine']:.3f}\nsaved in {args.output_dir}"
    )


if __name__ == "__main__":
    main()
