"""Scores the demo's model on held-out MovingShapes clips, then classifies one mp4 file through the pipeline.

    python examples/demo.py --model runs/moving_shapes/model

Prints top-1 with N for the classes that were trained and for those that never were, of CLIP with mean pooling and of
MoTE with modulation off and on; the same as `demo.json` beside the model. Then the best labels of one unseen clip.
Leaves that clip as `example.mp4`, six clips in a row as `long.mp4`, and a folder `videos` with one folder per class,
for the commands that it prints at the end.
"""

import argparse
import json
import os
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPModel, pipeline

from modeling_mote import MoTEModel
from modeling_mote.loading import load_checkpoint
from modeling_mote.processing import decode_video, encode_classes
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.builders.moving_shapes import encode_mp4
from modeling_mote.processing.clips import VideoClips, collate_clips
from modeling_mote.processing.files import write_whole

CLIP = Path(os.path.relpath(Path(__file__).resolve().parent / "moving_shapes_clip"))  # what the demo trains from
VIDEO_CLASSES = 4  # of the folder of videos that is left to train on
SPLITS = {
    "test": "trained classes",
    "test_compositions": "unseen pairs of object and motion",
    "test_objects": "unseen objects",
    "test_motions": "unseen motions",
}


@torch.no_grad()
def score(
    model: MoTEModel, clip: CLIPModel, clips: VideoClips, class_embeds: torch.Tensor, title: str
) -> dict[str, float | int]:
    """Top-1 of three ways to score the same clips against the same class features [c, d], and N."""
    right = dict.fromkeys(("clip_mean_pooling", "mote_unmodulated", "mote"), 0)
    scored = 0
    for batch in tqdm(DataLoader(clips, batch_size=64, collate_fn=collate_clips), desc=title, leave=False):
        if batch["pixel_values_videos"] is None:
            continue
        labels = batch["labels"]
        pixels = clips.inputs(batch)["pixel_values_videos"]  # [b, t, 3, h, w]
        images = clip.get_image_features(pixels.flatten(0, 1)).pooler_output
        pooled = images.unflatten(0, pixels.shape[:2]).mean(1)
        frames = model.get_frame_features(pixels).pooler_output
        unmodulated = model.get_video_features(frame_embeds=frames).pooler_output
        predicted = {
            "clip_mean_pooling": F.normalize(pooled, dim=-1) @ class_embeds.T,
            "mote_unmodulated": F.normalize(unmodulated, dim=-1) @ class_embeds.T,
            "mote": model(frame_embeds=frames, class_embeds=class_embeds).logits_per_video,
        }
        for name, scores in predicted.items():
            right[name] += int((scores.argmax(-1) == labels).sum())
        scored += len(labels)
    # A clip that can't be read would count as wrong.
    return {"n": len(clips), "scored": scored, "classes": len(class_embeds)} | {
        name: count / len(clips) for name, count in right.items()
    }


def score_splits(model: MoTEModel, processor: Any, clip: CLIPModel, builder: MovingShapes) -> dict[str, dict]:
    """Scores every split of `SPLITS`, and prints them as a table."""
    columns = ("CLIP, mean pooling", "MoTE, modulation off", "MoTE, modulation on")
    lines = [f"{'Top-1 on held-out clips':34} |    N | classes | chance | " + " | ".join(columns)]
    results = {}
    for split, title in SPLITS.items():
        rows, names = builder.as_dataset(split), builder.class_names(split)
        labels = {rows.features["label"].str2int(name): index for index, name in enumerate(names)}
        clips = VideoClips(rows, processor.video_processor, processor.num_frames, "uniform", labels=labels)
        row = results[split] = score(model, clip, clips, encode_classes(model, processor, names), title)
        cells = (row[name] for name in ("clip_mean_pooling", "mote_unmodulated", "mote"))
        shown = (f"{100 * cell:{len(column) - 1}.1f}%" for cell, column in zip(cells, columns, strict=True))
        lines.append(f"{title:34} | {row['n']:4} | {len(names):7} | {100 / len(names):5.1f}% | " + " | ".join(shown))
    print("", *lines, sep="\n")
    return results


def leave_videos(builder: MovingShapes, folder: Path) -> tuple[str, list[str]]:
    """Writes the videos that the printed commands name; returns what `example.mp4` and `long.mp4` show."""
    unseen = builder.as_dataset("test_compositions")
    some = unseen.select(range(0, len(unseen), len(unseen) // 6))
    films, metadata = zip(*(decode_video(video["bytes"]) for video in some["video"]), strict=True)
    write_whole(folder / "long.mp4", encode_mp4(np.concatenate(films), round(metadata[0].fps)))
    write_whole(folder / "example.mp4", unseen[0]["video"]["bytes"])
    motions, count = builder.as_dataset("test_motions"), Counter[str]()
    for row in motions:  # a folder of videos as a user has one
        name = motions.features["label"].int2str(row["label"])
        if len(count) < VIDEO_CLASSES or name in count:
            count[name] += 1
            write_whole(folder / "videos" / name / f"{count[name]}.mp4", row["video"]["bytes"])
    named = unseen.features["label"].int2str
    return named(unseen[0]["label"]), named(some["label"][:])


def next_commands(model: Path, shown: str, scenes: list[str]) -> list[str]:
    """What a reader may want to type now; every line works as it is printed."""
    mote, folder = Path(sysconfig.get_path("scripts"), "mote"), model.parent
    mote = mote.relative_to(Path.cwd()) if mote.is_relative_to(Path.cwd()) else mote
    return [
        f'{mote} classify {folder / "example.mp4"} --model {model} --labels "{shown}, red bar shrinking, blue star"',
        f"{mote} classify {folder / 'long.mp4'} --model {model} --window 2 --timeline {folder / 'timeline.png'} "
        f'--labels "{", ".join(scenes)}"',
        f"{mote} train --data {folder / 'videos'} --model {CLIP} --output {folder.with_name('mine')}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/moving_shapes/model", help="folder that train.py wrote")
    folder = Path(parser.parse_args().model)
    if not folder.is_dir():
        sys.exit(f"error: --model {folder}: there is no such folder; run `accelerate launch examples/train.py` first.")
    model, processor = load_checkpoint(str(folder))
    model.merge_experts()
    builder = MovingShapes()
    builder.download_and_prepare()
    results = score_splits(model, processor, CLIPModel.from_pretrained(CLIP).eval(), builder)
    write_whole(folder.parent / "demo.json", json.dumps(results, indent=2) + "\n")

    video, (shown, scenes) = folder.parent / "example.mp4", leave_videos(builder, folder.parent)
    names = builder.class_names("test_compositions")
    print(f"\n{video} shows a {shown}; of {len(names)} labels:")
    classify = pipeline("zero-shot-video-classification", model=model, processor=processor)  # type: ignore[call-overload]
    for answer in classify(str(video), candidate_labels=names, top_k=5):
        print(f"  {answer['score']:.3f}  {answer['label']}")
    print("\nTo try next:", *next_commands(folder, shown, scenes), sep="\n  ")


if __name__ == "__main__":
    main()
