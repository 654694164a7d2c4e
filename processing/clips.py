"""Rows of a video dataset to pixels, in DataLoader workers: decode, sample frames, augment, normalise."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from .augmentation import augment_clip, clip_seed
from .reading import describe_error
from .video_processing_mote import MoTEVideoProcessor


def list_clips(rows: Any) -> list[tuple[str | None, int, float | None, float | None]]:
    """(path, label, start, end) of every clip of a split, without touching its videos.

    Args:
        rows: a split of `datasets`, as the builders give them.
    """

    def column(name: str) -> Any:
        return rows[name] if name in rows.column_names else [None] * len(rows)

    paths = rows["path"] if "path" in rows.column_names else [video["path"] for video in rows["video"]]
    return list(zip(paths, rows["label"], column("start"), column("end"), strict=True))


class VideoClips(Dataset):
    """Clips of a `datasets` split as pixels; what is random in one is determined by (seed, epoch, index) alone.

    An item is asked for as `index` or as `(epoch, index)`. It holds `index`, `label`, `decoder` (the library that read
    it) and `pixel_values_videos`, uint8 [t, 3, h, w] or, for several views, [v, t, 3, h, w]; or, for a file that
    cannot be read, `error` in place of the last two. `inputs` normalises the bytes on the model's device.

    Videos are read by the processor, with its own options for all that is not passed here.

    Args:
        rows: a split with the columns `video` (undecoded), `label`, and maybe `start` and `end` in seconds.
        video_processor: decodes, samples, resizes, crops and normalises.
        num_frames: frames per clip, t.
        sampling: where they lie, see [`MoTEVideoProcessorKwargs`].
        num_clips, num_crops: views of a video, v = num_clips · num_crops, the crops of one clip side by side.
        transform: random transform of a frame, see [`train_transform`], instead of resize and crop; drawn once for all
            frames of a clip.
        labels: dataset's label → class index, if they differ.
        seed: of frames and transforms.
        square_pixels: whether pixels that are not square are corrected.

    Raises:
        ValueError: for options that the processor refuses.
    """

    input_name = "pixel_values_videos"

    def __init__(
        self,
        rows: Any,
        video_processor: MoTEVideoProcessor,
        num_frames: int | None = None,
        sampling: str | None = None,
        num_clips: int | None = None,
        num_crops: int | None = None,
        transform: v2.Transform | None = None,
        labels: Mapping[int, int] | None = None,
        seed: int = 0,
        square_pixels: bool | None = None,
    ):
        self.rows, self.video_processor, self.labels = rows, video_processor, labels
        self.transform, self.seed = transform, seed
        self.options = video_processor.reading_options(
            num_frames=num_frames,
            sampling=sampling,
            num_clips=num_clips,
            num_crops=1 if transform is not None and num_crops is None else num_crops,
            square_pixels=square_pixels,
        )
        if transform is not None and self.options["num_crops"] > 1:
            raise ValueError("num_crops is 3 but a transform takes the place of the crops: pass num_crops=1")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """What messages call a clip: its place in the dataset, or its path."""
        row = self.rows[index]
        path = row.get("path") or (row["video"].get("path") if isinstance(row["video"], Mapping) else None)
        return path or f"clip {index}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.rows[index]
        label = row["label"] if self.labels is None else self.labels[row["label"]]
        try:
            pixels, decoder = self.read(row, clip_seed(self.seed, epoch, index), self.name(index))
        except Exception as error:  # whatever escapes a reader is that file's error, and no end of the run
            return {"index": index, "label": label, "error": describe_error(error, self.name(index))}
        return {"index": index, "label": label, "decoder": decoder, self.input_name: pixels}

    def inputs(self, batch: Mapping[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The model's inputs of a batch of [`collate_clips`], unless it is empty: `pixel_values_videos`, float32."""
        pixels = batch[self.input_name].to(device, non_blocking=True)
        return {self.input_name: self.video_processor.normalize_pixels(pixels)}

    def read(self, row: Mapping[str, Any], seed: int, name: str) -> tuple[torch.Tensor, str | None]:
        """Pixels of one row, uint8 [t, 3, h, w] or [v, t, 3, h, w], and the library that decoded it.

        Raises:
            ValueError: if the file cannot be decoded (a `VideoDecodeError`), or is shorter than the processor allows.
            FileNotFoundError: if there is none.
        """
        views, metadata = self.video_processor.read(
            row["video"],
            name,
            options=self.options,
            start=row.get("start"),
            end=row.get("end"),
            transform=None if self.transform is None else partial(augment_clip, transform=self.transform, seed=seed),
            seed=seed,
        )
        return views[0] if len(views) == 1 else views, metadata.video_backend


def collate_clips(samples: Sequence[Mapping[str, Any]], input_name: str = VideoClips.input_name) -> dict[str, Any]:
    """A batch of what could be read, and the errors of what could not.

    Args:
        samples: items of [`VideoClips`], or of a dataset with another input in place of the pixels.
        input_name: key of the input.

    Returns:
        the input [b, ...] under its name, or None if nothing could be read; `labels` [b], `indices` [b] and `decoders`
        of the same clips; `errors`, a list of (index, label, message).

    Raises:
        ValueError: for clips of different lengths, which a processor that samples by `fps` gives.
    """
    read = [sample for sample in samples if "error" not in sample]
    lengths = {sample[input_name].shape[-4] for sample in read} if input_name == VideoClips.input_name else set()
    if len(lengths) > 1:
        raise ValueError(
            f"clips of {' and '.join(map(str, sorted(lengths)))} frames cannot be one batch: set num_frames in place "
            "of the processor's fps, or read one clip at a time"
        )
    return {
        input_name: torch.stack([sample[input_name] for sample in read]) if read else None,
        "labels": torch.tensor([sample["label"] for sample in read], dtype=torch.long),
        "indices": torch.tensor([sample["index"] for sample in read], dtype=torch.long),
        "decoders": [sample.get("decoder") for sample in read],
        "errors": [(sample["index"], sample["label"], sample["error"]) for sample in samples if "error" in sample],
    }
