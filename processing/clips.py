"""Rows of a video dataset to pixels, in DataLoader workers: decode, sample frames, augment, normalise."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .augmentation import augment_clip, clip_seed
from .frame_sampling import sample_indices
from .video_decoding import VideoDecodeError, decode_video
from .video_processing_mote import MoTEVideoProcessor, open_encoded


def list_clips(rows: Any) -> list[tuple[str | None, int, float | None, float | None]]:
    """(path, label, start, end) of every clip of a split, without touching its videos.

    Args:
        rows: a split of `datasets`, as the builders give them.
    """

    def column(name: str) -> Any:
        return rows[name] if name in rows.column_names else [None] * len(rows)

    paths = rows["path"] if "path" in rows.column_names else [video["path"] for video in rows["video"]]
    return list(zip(paths, rows["label"], column("start"), column("end"), strict=True))


def list_sha256(rows: Any) -> str:
    """SHA-256, in hexadecimal, of a split's paths, labels and times, in order."""
    return hashlib.sha256(json.dumps(list_clips(rows)).encode()).hexdigest()


class VideoClips(Dataset):
    """Clips of a `datasets` split as pixels; what is random in one is determined by (seed, epoch, index) alone.

    An item is asked for as `index` or as `(epoch, index)`. It holds `index`, `label`, `decoder` (the library that read
    it) and `pixel_values_videos`, uint8 [t, 3, h, w] or, for several views, [v, t, 3, h, w]; or, for a file that
    cannot be read, `error` in place of the last two. `inputs` normalises the bytes on the model's device.

    Args:
        rows: a split with the columns `video` (undecoded), `label`, and maybe `start` and `end` in seconds.
        video_processor: resizes, crops and normalises.
        num_frames: frames a clip, t.
        sampling: mode of [`sample_indices`].
        num_clips, num_crops: views of a video, v = num_clips · num_crops, the crops of one clip side by side.
        transform: random transform of a clip's frames, see [`train_transform`], instead of resize and crop.
        labels: dataset's label → class index, where they differ.
        seed: of frames and transforms.
    """

    input_name = "pixel_values_videos"

    def __init__(
        self,
        rows: Any,
        video_processor: MoTEVideoProcessor,
        num_frames: int,
        sampling: str = "uniform",
        num_clips: int = 1,
        num_crops: int = 1,
        transform: v2.Transform | None = None,
        labels: Mapping[int, int] | None = None,
        seed: int = 0,
    ):
        self.rows, self.video_processor, self.num_frames, self.sampling = rows, video_processor, num_frames, sampling
        self.num_clips, self.num_crops, self.transform, self.seed = num_clips, num_crops, transform, seed
        self.labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """What messages call a clip: its place in the dataset, or its path."""
        row = self.rows[index]
        return row.get("path") or row["video"].get("path") or f"clip {index}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.rows[index]
        label = row["label"] if self.labels is None else self.labels[row["label"]]
        try:
            pixels, decoder = self.read(row, clip_seed(self.seed, epoch, index), self.name(index))
        except (VideoDecodeError, OSError) as error:
            return {"index": index, "label": label, "error": str(error)}
        return {"index": index, "label": label, "decoder": decoder, self.input_name: pixels}

    def inputs(self, batch: Mapping[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The model's inputs of a batch of [`collate_clips`], unless it is empty: `pixel_values_videos`, float32."""
        pixels = batch[self.input_name].to(device, non_blocking=True)
        return {self.input_name: self.video_processor.normalize_pixels(pixels)}

    def read(self, row: Mapping[str, Any], seed: int, name: str) -> tuple[torch.Tensor, str | None]:
        """Pixels of one row, uint8 [t, 3, h, w] or [v, t, 3, h, w], and the library that decoded it.

        Raises:
            VideoDecodeError: if the file cannot be decoded.
            FileNotFoundError: if there is none.
        """

        def choose(metadata: Any) -> np.ndarray:
            generator = np.random.default_rng(seed)
            return sample_indices(metadata.total_num_frames, self.num_frames, self.sampling, self.num_clips, generator)

        video, _ = open_encoded(row["video"], name)
        frames, metadata = decode_video(
            video,
            choose,
            backend=self.video_processor.video_backend,
            strict=self.video_processor.strict,
            start=row.get("start"),
            end=row.get("end"),
        )
        clips = list(torch.from_numpy(frames).permute(0, 3, 1, 2).unflatten(0, (self.num_clips, self.num_frames)))
        options: dict[str, Any] = {"do_sample_frames": False, "return_tensors": "pt", "num_crops": self.num_crops}
        options |= {"do_rescale": False, "do_normalize": False}
        if self.transform is not None:
            clips = [augment_clip(clip, self.transform, seed) for clip in clips]
            options |= {"do_resize": False, "do_center_crop": False}
        pixels = self.video_processor(clips, **options)["pixel_values_videos"]  # [clips, (crops), t, 3, h, w]
        views = pixels.flatten(0, -5)
        return views[0] if len(views) == 1 else views, metadata.video_backend


def collate_clips(samples: Sequence[Mapping[str, Any]], input_name: str = VideoClips.input_name) -> dict[str, Any]:
    """A batch of what could be read, and the errors of what could not.

    Args:
        samples: items of [`VideoClips`], or of a dataset with another input in place of the pixels.
        input_name: key of the input.

    Returns:
        the input [b, ...] under its name, or None if nothing could be read; `labels` [b], `indices` [b] and `decoders`
        of the same clips; `errors`, a list of (index, label, message).
    """
    read = [sample for sample in samples if "error" not in sample]
    return {
        input_name: torch.stack([sample[input_name] for sample in read]) if read else None,
        "labels": torch.tensor([sample["label"] for sample in read], dtype=torch.long),
        "indices": torch.tensor([sample["index"] for sample in read], dtype=torch.long),
        "decoders": [sample.get("decoder") for sample in read],
        "errors": [(sample["index"], sample["label"], sample["error"]) for sample in samples if "error" in sample],
    }
