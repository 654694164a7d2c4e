"""The forms of a video: what is one, what has to be decoded, and under which name."""

import asyncio
import io
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mote.processing import MoTEVideoProcessor, decode_video
from modeling_mote.processing.video_inputs import flatten_videos, is_encoded, is_one_video, open_encoded


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, write_video) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=8, size=(32, 40))


class Upload:
    """As FastAPI's `UploadFile`: reads with `await`, and holds a file that reads without."""

    def __init__(self, content: bytes, **attributes: object) -> None:
        self.content = content
        self.__dict__.update(attributes)

    async def read(self) -> bytes:
        return self.content


def decoded_column(path: str | None, content: bytes | None) -> SimpleNamespace:
    """As a torchcodec `VideoDecoder` that `datasets` made: it keeps what the row holds."""
    return SimpleNamespace(_hf_encoded={"path": path, "bytes": content})


def test_a_decoded_column_of_datasets(clip):
    expected = MoTEVideoProcessor()(clip, num_frames=4, return_tensors="pt")["pixel_values_videos"]
    for video in (decoded_column(str(clip), None), decoded_column("elsewhere.mp4", clip.read_bytes())):
        assert is_encoded(video) and is_one_video(video) and flatten_videos([video, video]) == [video, video]
        given = MoTEVideoProcessor()(video, num_frames=4, return_tensors="pt")["pixel_values_videos"]
        assert torch.equal(given, expected)


def test_a_column_that_datasets_decodes(clip, tmp_path):
    pytest.importorskip("torchcodec.decoders")
    datasets = pytest.importorskip("datasets")
    column = datasets.Dataset.from_dict({"video": [str(clip)]}).cast_column("video", datasets.Video())
    video = column[0]["video"]
    assert open_encoded(video, "the video") == (str(clip), str(clip))


def test_paths_of_archives_and_hubs_reach_the_decoder_as_they_are():
    for path in ("zip://clip.mp4::/data/clips.zip", "hf://datasets/org/name/clip.mp4", "s3://bucket/clip.mp4"):
        assert open_encoded({"bytes": None, "path": path}, "video 0") == (path, path)


def test_files_and_uploads(clip):
    content = clip.read_bytes()
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    spooled.write(content)
    upload = Upload(content, file=io.BytesIO(content), filename="holiday.mp4")
    assert open_encoded(upload, "video 0") == (upload.file, "holiday.mp4")
    for video in (spooled, io.BytesIO(content)):
        assert is_encoded(video) and open_encoded(video, "video 0") == (video, "video 0")
    expected = decode_video(clip)[0]
    assert np.array_equal(decode_video(open_encoded(upload, "video 0")[0])[0], expected)
    with pytest.raises(ValueError, match="video 0 is a Upload that reads asynchronously: pass its bytes"):
        open_encoded(Upload(content), "video 0")
    assert asyncio.run(upload.read()) == content  # it was an upload


def test_a_picture_is_no_video_unless_it_is_in_a_list():
    picture = Image.new("RGB", (40, 32), "red")
    processor = MoTEVideoProcessor(num_frames=4, short_video="loop")
    for still in (picture, np.asarray(picture), torch.from_numpy(np.asarray(picture).copy())):
        with pytest.raises(ValueError, match=r"video 0 of 1 is a still picture: pass it in a list, \[picture\]"):
            processor(still)
        assert processor([still], return_tensors="pt")["pixel_values_videos"].shape == (1, 4, 3, 224, 224)


def test_only_the_sampled_frames_are_converted():
    frames = np.zeros((64, 100, 100, 3), np.int64)
    tracemalloc.start()
    try:
        MoTEVideoProcessor(num_frames=4)(frames)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < frames.nbytes / 4  # a copy of all was made
