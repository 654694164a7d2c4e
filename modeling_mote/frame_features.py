"""Frame features of a whole data set on disk: with a frozen image tower, every frame is encoded once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .feature_cache import frame_features_key, load_cached, load_tensors, save_tensors
from .modeling_mote import MoTEModel
from .processing.clip_batches import ClipBatches
from .processing.clips import VideoClips

SHARD = 64  # clips per file


class FrameFeatures(Dataset):
    """The clips of a data set as frame features [t, d] on disk, which the system reads when they are asked for.

    Args:
        clips: the data set of pixels that they were computed from.
        places: where in the files each clip is; equal clips share a place.
        paths: the files, `SHARD` places each.

    Shapes: t frames, d = `projection_dim`.
    """

    input_name = "frame_embeds"

    def __init__(self, clips: VideoClips, places: list[int], paths: list[Path]):
        self.clips, self.places = clips, places
        self.labels = [label if clips.labels is None else clips.labels[label] for label in clips.rows["label"]]
        self.shards, self.errors = [], {}
        for number, path in enumerate(paths):
            tensors, metadata = load_tensors(path)
            self.shards.append(tensors["frame_embeds"])
            errors = json.loads(metadata["errors"]).items()
            self.errors.update({number * SHARD + int(row): message for row, message in errors})

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """What messages call a clip."""
        return self.clips.name(index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        place, sample = self.places[index], {"index": index, "label": self.labels[index]}
        if place in self.errors:
            return sample | {"error": self.errors[place]}
        return sample | {"frame_embeds": self.shards[place // SHARD][place % SHARD]}

    def inputs(self, batch: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The model's inputs of a batch, unless it is empty: `frame_embeds` [b, t, d]."""
        return {"frame_embeds": batch["frame_embeds"].to(device, non_blocking=True)}


def clip_identity(row: dict[str, Any], with_path: bool = True) -> str:
    """What tells a clip from another, or from an older file of its name: path, size, time of change, start and end.

    Args:
        row: of a data set: `video`, not decoded, and maybe `start` and `end` in seconds.
        with_path: False to tell files apart by size and time of change alone, wherever they lie.
    """
    video = row["video"]
    if video.get("bytes") is not None:
        content: Any = hashlib.sha256(video["bytes"]).hexdigest()
    else:
        path = Path(video["path"])
        content = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None
    return json.dumps([video.get("path") if with_path else None, content, row.get("start"), row.get("end")])


@torch.no_grad()
def encode_frames(
    model: MoTEModel,
    clips: VideoClips,
    cache_dir: Path,
    accelerator: Accelerator,
    batch_size: int = 64,
    num_workers: int = 0,
) -> FrameFeatures:
    """Frame features of a data set, from disk or encoded once, by all processes.

    A run that is killed on the way goes on where it was. A clip that could not be read is tried again by every run:
    the reason may have been the disk's.

    Args:
        model: whose image tower encodes.
        clips: pixels of the data set.
        cache_dir: folder of the cache, on a disk that all processes share.
        accelerator: divides the files between the processes.
        batch_size: clips per forward.
        num_workers: reading processes of each process.

    Raises:
        OSError: if the cache can't be written.
    """
    place: dict[str, int] = {}
    first: list[int] = []  # of equal clips, which few-shot lists have: they are encoded once
    identities = [clip_identity(row) for row in clips.rows]
    for index, each in enumerate(identities):
        if each not in place:
            place[each] = len(first)
            first.append(index)
    sampling = clips.options | {"precision": accelerator.mixed_precision}
    folder = cache_dir / f"frames-{frame_features_key(model, clips.video_processor, list(place), sampling)}"
    shards = [first[begin : begin + SHARD] for begin in range(0, len(first), SHARD)]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(shards))]
    mine = range(accelerator.process_index, len(shards), accelerator.num_processes)
    unfinished = [_Shard(paths[number], shards[number], batch_size) for number in mine]
    unfinished = [shard for shard in unfinished if shard.batches]

    model.eval()
    batches = [batch for shard in unfinished for batch in shard.batches]
    hidden = not accelerator.is_main_process
    with ClipBatches(clips, batches, num_workers) as read:
        stream = iter(read)
        for shard in tqdm(unfinished, desc="encoding frames", unit="file", disable=hidden or not unfinished):
            shard.encode(model, clips, stream, accelerator)
    accelerator.wait_for_everyone()
    return FrameFeatures(clips, [place[each] for each in identities], paths)


class _Shard:
    """One file of features, and the batches of clips that it still lacks."""

    def __init__(self, path: Path, indices: list[int], batch_size: int):
        self.path, self.row = path, {index: row for row, index in enumerate(indices)}
        cached = load_cached(path)
        self.embeds, missing = None, indices
        if cached is not None:
            self.embeds = cached[0]["frame_embeds"]
            missing = [indices[int(row)] for row in json.loads(cached[1]["errors"])]
        self.batches = [missing[begin : begin + batch_size] for begin in range(0, len(missing), batch_size)]

    def encode(self, model: Any, clips: VideoClips, stream: Any, accelerator: Accelerator) -> None:
        shape = (len(self.row), clips.options["num_frames"], model.config.projection_dim)
        embeds = torch.zeros(shape) if self.embeds is None else self.embeds.clone()
        errors: dict[int, str] = {}
        for _ in self.batches:
            batch = next(stream)
            errors.update({self.row[index]: message for index, _, message in batch["errors"]})
            if len(batch["labels"]):
                with accelerator.autocast():
                    encoded = model.get_frame_features(**clips.inputs(batch, accelerator.device))
                embeds[[self.row[index] for index in batch["indices"].tolist()]] = encoded.pooler_output.float().cpu()
        self.embeds = None  # the file is replaced
        save_tensors({"frame_embeds": embeds}, self.path, {"errors": json.dumps(errors)})


__all__ = ["FrameFeatures", "clip_identity", "encode_frames"]
