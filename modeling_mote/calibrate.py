"""What the scores of a checkpoint mean, learned from labelled clips and written into its configuration."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .loading import CheckpointError, load_model, load_processor
from .modeling_mote import MoTEModel
from .processing.builders import load_videos
from .processing.calibration import Calibration, fit_calibration
from .processing.clips import VideoClips
from .processing.files import whole_folder, write_whole
from .processing.prompts import encode_classes
from .training import ScoredClips, validate


def calibrate(
    model: str,
    data: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    output: str | None = None,
    batch_size: int = 8,
    num_workers: int = 2,
    accelerator: Accelerator | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Fit a calibration to labelled clips, and write it into the configuration of a checkpoint.

    Args:
        model: folder of the checkpoint, or with `output` also its Hub id.
        data: CSV list, or folder with one folder per class.
        split: split of the data.
        data_dir: folder of the videos of a CSV list; its own by default.
        output: folder of a calibrated copy; None to calibrate `model` itself.
        batch_size: clips per forward.
        num_workers: reading processes.
        accelerator: device and precision; the machine's own by default.

    Returns:
        the calibration; and `accuracy`, `listed`, `scored` and `bad_clips` of the clips, as `validate` gives them.

    Raises:
        CheckpointError: if there is no folder to write into, or it holds no whole checkpoint.
        ValueError: if the clips are too few, or of fewer than 3 classes.
        OSError: if the data or the output can't be read or written.
    """
    if output is None and not (Path(model) / "config.json").is_file():
        raise CheckpointError(f"{model} is no folder with a checkpoint to write into: name an output folder.")
    accelerator = accelerator or Accelerator()
    loaded = load_model(model, classifier=True, device=accelerator.device)
    processor = load_processor(model)
    options: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    rows: Any = load_videos(data, split, **options)
    clips = VideoClips(rows, processor.video_processor, processor.num_frames, "uniform")
    classes = encode_classes(loaded, processor, rows.features["label"].names)
    kept: list[ScoredClips] = []
    measured = validate(loaded, clips, accelerator, batch_size, num_workers, kept, classes)
    if not kept:
        raise ValueError(f"{data} holds no clip that can be read: {next(iter(measured['bad_clips'].items()))}.")
    found = fit_to_clips(loaded, kept, classes)
    if output is None:
        _write_into(Path(model), found)
        return found, measured
    with whole_folder(Path(output)) as partial:
        if Path(model).is_dir():
            shutil.copytree(model, partial, dirs_exist_ok=True)
            _write_into(Path(partial), found)
        else:
            loaded.config.calibration = found.to_dict()
            loaded.save_pretrained(partial)
            processor.save_pretrained(partial)
    return found, measured


@torch.no_grad()
def fit_to_clips(model: MoTEModel, kept: Sequence[ScoredClips], class_embeds: torch.Tensor) -> Calibration:
    """The calibration of clips that were scored, each list of labels with the modulation that it has.

    Args:
        model: that scored them.
        kept: what it gave, some clips at a time.
        class_embeds: L2-normalised features of all classes, [c, d].

    Raises:
        ValueError: as `fit_calibration`.
    """
    cosines, labels, frames, temporal = (torch.cat(each) for each in zip(*kept, strict=True))
    frames, temporal = (each.to(class_embeds.device) for each in (frames, temporal))

    def score(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        # Modulation and the mean over frames commute: a clip is its mean frame, [r, 1, d].
        rows, columns = rows.to(class_embeds.device), columns.to(class_embeds.device)
        logits, *_ = model.score_modulated(frames[rows, None], temporal[rows, None], class_embeds[columns])
        return logits.float() / model.logit_scale.float().exp()

    return fit_calibration(cosines, labels, score)


def _write_into(folder: Path, calibration: Calibration) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_whole(
        folder / "config.json",
        json.dumps(config | {"calibration": calibration.to_dict()}, indent=2, sort_keys=True) + "\n",
    )


__all__ = ["calibrate", "fit_to_clips"]
