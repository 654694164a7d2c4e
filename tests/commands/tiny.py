"""A checkpoint as `mote train` leaves it, made in a second: tiny, whole, of weights that all count."""

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from modeling_mote import MoTEForVideoClassification
from modeling_mote.cards import training_card
from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor, encode_classes

CLASSES = ("left", "right", "still")


def save_mote(
    folder: Path, clip: Path, classes: tuple[str, ...] = CLASSES, num_frames: int = 8, trained: bool = True
) -> Path:
    """A MoTE made from a CLIP by moving every weight; without `trained`, its temporal layers are as they begin."""
    tokenizer = AutoTokenizer.from_pretrained(clip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MoTEForVideoClassification.from_pretrained(clip, num_frames=num_frames).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if trained and name != "logit_scale" and not name.startswith("text_"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    if classes:
        model.set_training_classes(classes, encode_classes(model, tokenizer, classes))
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    video_processor = MoTEVideoProcessor(num_frames=num_frames, short_video="loop", **sizes)
    MoTEProcessor(video_processor, tokenizer).save_pretrained(folder)
    return folder


def save_trained(folder: Path, clip: Path, data: str = "/home/somebody/my videos.csv") -> Path:
    """`save_mote`, with the record, card and plot of a training."""
    save_mote(folder, clip)
    validation = {"accuracy": 0.75, "listed": 8, "scored": 8}
    record = {"arguments": {"data": data, "model": str(clip), "shots": None}, "step": 9, "validation": validation}
    (folder / "training.json").write_text(json.dumps(record))
    card = training_card(CLASSES, data=data, base=str(clip), num_frames=8, step=9, validation=validation)
    (folder / "README.md").write_text(card)
    Figure().savefig(folder.parent / "curves.png")
    return folder
