"""Everything a run needs to go on to the last digit, in `checkpoints/step-N`; a checkpoint is whole or absent."""

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.optim.swa_utils import AveragedModel

from .checked_folder import CHECKSUMS, find_damage, write_checksums
from .feature_cache import load_tensors, save_tensors
from .processing.clip_batches import is_worker_death
from .processing.files import restore_folder, whole_folder

PROGRESS, AVERAGE = "progress.json", "ema.safetensors"


class Checkpoints:
    """The checkpoints of one run: model, optimizer, random states, average, and the run's own progress.

    Args:
        folder: of the checkpoints, on a disk that all processes share.
        accelerator: that prepared model and optimizer.
        settings: what a continuation must have in common with the run, as JSON values; names are for messages.
        keep: number of checkpoints that stay.
        ema: an average of the weights that goes with them.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        settings: Mapping[str, Any],
        keep: int = 2,
        ema: AveragedModel | None = None,
    ):
        self.folder, self.accelerator, self.keep, self.ema = folder, accelerator, keep, ema
        self.settings = json.loads(json.dumps(settings))

    def all(self) -> list[Path]:
        """The folders of this run's checkpoints, oldest first; those of other names are the user's."""
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))

    def save(self, step: int, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint, then delete those before it but for the number to keep.

        Args:
            step: its number; a checkpoint of this number is replaced.
            progress: JSON values that `load_newest` gives back.

        Raises:
            OSError: if it can't be written; those before it are still there then.
        """
        whole, main = self.folder / f"step-{step:08d}", self.accelerator.is_main_process
        with whole_folder(whole) if main else nullcontext() as partial:
            (shared,) = broadcast_object_list([None if partial is None else str(partial)])
            try:
                self.accelerator.save_state(shared)
            except RuntimeError as error:  # torch.save's way to say that the disk is full
                if is_worker_death(error):
                    raise
                raise OSError(f"{whole} can't be written: {str(error).splitlines()[0]}") from error
            self.accelerator.wait_for_everyone()
            if main:
                self._complete(Path(shared), {"step": step, "settings": self.settings, **progress})
        if main:
            before = [path for path in self.all() if path.name <= whole.name]
            for old in before[: -self.keep]:
                (old / CHECKSUMS).unlink(missing_ok=True)  # half deleted, it is none
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _complete(self, folder: Path, progress: dict[str, Any]) -> None:
        if self.ema is not None:
            save_tensors(self.ema.state_dict(), folder / AVERAGE)
        (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        write_checksums(folder)

    def load_newest(self) -> dict[str, Any] | None:
        """Go back to the newest whole checkpoint, if there is any; damaged ones are named in a warning.

        Returns:
            the progress that was saved with it, and its `step`; None if there is no checkpoint.

        Raises:
            ValueError: if all are damaged, or the run had other settings or another model.
        """
        (chosen,) = broadcast_object_list([self._newest_whole() if self.accelerator.is_main_process else None])
        if chosen is None:
            return None
        progress = json.loads((Path(chosen) / PROGRESS).read_text(encoding="utf-8"))
        changed = sorted(key for key in self.settings if self.settings[key] != progress["settings"].get(key))
        if changed:
            raise ValueError(
                f"{chosen} was written with another {', '.join(changed)}: go on with the same, or choose another "
                "output folder."
            )
        try:
            self.accelerator.load_state(chosen)
            if self.ema is not None:
                self.ema.load_state_dict(load_tensors(Path(chosen) / AVERAGE)[0])
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise ValueError(
                f"{chosen} does not fit the model, or is damaged: choose another output folder, or remove it."
            ) from error
        return progress

    def _newest_whole(self) -> str | None:
        for left in self.folder.glob(".step-*"):  # of a run that was killed
            restore_folder(self.folder / left.name.removeprefix(".").removesuffix(".old"))
            shutil.rmtree(left, ignore_errors=True)
        for folder in reversed(self.all()):
            problem = find_damage(folder)
            if problem is None:
                return str(folder)
            warnings.warn(f"{folder} is damaged ({problem}): it is passed over.", stacklevel=2)
        if self.all():
            raise ValueError(f"No checkpoint in {self.folder} is whole: remove the folder to begin anew.")
        return None


__all__ = ["Checkpoints"]
