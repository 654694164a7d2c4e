"""How many times as fast as it plays a live stream is scored, by the size of its pictures: above 1, all of it is.

    cd examples/experiments
    python live_speed.py --model ../../runs/moving_shapes/model
    python live_speed.py --sizes 640x360 1920x1080 --seconds 30

H.264 in MPEG-TS at 30 frames a second comes as fast as it is taken, with windows of 4 s, one every second. Prints a
row per model and size: the model of `--model`, and a MoTE of ViT-B/16's sizes with random weights and 400 classes; the
last columns say how many windows there were, and how many frames and windows were left out.
"""

import argparse
import io
import os
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from benchmark import build
from transformers import AutoTokenizer

from modeling_mote.loading import load_pipeline
from modeling_mote.processing import (
    MoTEProcessor,
    MoTEVideoProcessor,
    ZeroShotVideoClassificationPipeline,
    classify_stream,
)
from modeling_mote.video_scores import over_training_classes

FPS = 30
CLIP = Path(__file__).resolve().parents[1] / "moving_shapes_clip"


def write_stream(width: int, height: int, seconds: float) -> bytes:
    """A stream of drifting noise, some 0.1 bit per pixel, as cameras send it."""
    file, rng = io.BytesIO(), np.random.default_rng(0)
    scene = rng.integers(0, 255, (height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "60", "bf": "0", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(round(seconds * FPS)):
            at = index * 2 % 500
            image = np.ascontiguousarray(scene[at : at + height, at : at + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def large_model() -> Any:
    """The pipeline over the training classes of a MoTE of ViT-B/16's sizes, untrained."""
    model = build(torch.float32, "sdpa")
    for layer in model.temporal_model.layers:  # as a step of training does: the pipeline refuses untrained layers
        torch.nn.init.constant_(layer.layer_norm1.bias, 1e-3)
    tokenizer = AutoTokenizer.from_pretrained(CLIP)
    processor = MoTEProcessor(MoTEVideoProcessor(num_frames=8, short_video="loop"), tokenizer)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor, tokenizer=tokenizer, device="cpu")


def measure(classify: Any, content: bytes) -> dict[str, float]:
    """Seconds of a stream that are scored per second, and what was left out."""
    classify, labels = over_training_classes(classify)
    begun, count, last = time.perf_counter(), 0, 0.0
    with classify_stream(classify, io.BytesIO(content), labels, window=4.0, stride=1.0, top_k=1) as answers:
        for answer in answers:
            count, last = count + 1, answer["end"]
    seconds = time.perf_counter() - begun
    counts = answers.counts
    left_out = {"frames": counts.dropped_frames, "skipped": counts.skipped_windows}
    return {"windows": count, "speed": last / seconds, "rate": count / seconds, **left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="runs/moving_shapes/model")
    parser.add_argument("--sizes", nargs="+", default=["320x240", "640x360", "1280x720", "1920x1080"])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each stream")
    options = parser.parse_args()
    models = {"of --model": load_pipeline(options.model, "cpu"), "ViT-B/16's sizes": large_model()}
    print(f"{os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} threads")
    print(
        "| model | pictures | times as fast as it plays | windows per second | windows "
        "| windows left out | frames left out |"
    )
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        content = write_stream(width, height, options.seconds)
        for name, classify in models.items():
            found = measure(classify, content)
            print(
                f"| {name} | {width} × {height} | {found['speed']:.1f} | {found['rate']:.1f} | {found['windows']} | "
                f"{found['skipped']} | {found['frames']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
