"""Batches read by other processes, and what is said when one of them dies."""

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from modeling_mote.processing.clip_batches import ClipBatches


class Clips(Dataset):
    """Eight clips of one number each, of which reading number 5 ends the process that reads it."""

    input_name = "x"

    def __init__(self, deadly: bool):
        self.deadly = deadly

    def __len__(self) -> int:
        return 8

    def name(self, index: int) -> str:
        return f"clip{index}.mp4"

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        if self.deadly and index == 5:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return {"index": index, "label": 0, "x": torch.tensor([index])}


BATCHES = [[0, 1], [2, 3], [(1, 4), (1, 5)], [6, 7]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order(num_workers):
    with ClipBatches(Clips(deadly=False), BATCHES, num_workers) as read:
        assert [batch["x"].flatten().tolist() for batch in read] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_reading_process_that_dies_is_an_error_of_its_clip():
    with pytest.raises(ChildProcessError, match="died while it read clip5.mp4"):  # noqa: SIM117
        with ClipBatches(Clips(deadly=True), BATCHES, num_workers=2) as read:
            for _ in read:
                pass


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="of another kind"), ClipBatches(Clips(False), BATCHES):
        raise RuntimeError("of another kind")
