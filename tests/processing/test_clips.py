"""Rows of a data set as pixels: the same whoever asks, and nothing that cannot be read is passed over."""

import csv

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers.video_utils import VideoMetadata

from modeling_mote.processing import MoTEVideoProcessor, decode_video
from modeling_mote.processing.augmentation import augment_clip, clip_seed, train_transform
from modeling_mote.processing.builders import load_videos
from modeling_mote.processing.clips import VideoClips, collate_clips, list_clips
from modeling_mote.processing.frame_sampling import sample_indices

SIDE = 32


@pytest.fixture(scope="module")
def video_processor():
    return MoTEVideoProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, num_frames=4, short_video="loop"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_video):
    """Five clips of 3 to 30 frames; the last but one is no video, the last is missing."""
    folder = tmp_path_factory.mktemp("clips")
    for name, num_frames in (("a", 30), ("b", 17), ("c", 3)):
        write_video(folder / f"{name}.mp4", num_frames, size=(40, 56), fps=8)
    (folder / "d.mp4").write_bytes(b"no video")
    return folder


def write_rows(folder, name, rows):
    with open(folder / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return load_videos(str(folder / f"{name}.csv"), "train", cache_dir=str(folder / "prepared"))


@pytest.fixture(scope="module")
def rows(folder):
    labels = ["run", "swim", "run", "swim", "run"]
    paths = [f"{name}.mp4" for name in "abcde"]
    return write_rows(folder, "all", [("path", "label"), *zip(paths, labels, strict=True)])


def same(first, second):
    return torch.equal(first["pixel_values_videos"], second["pixel_values_videos"])


@pytest.mark.parametrize(
    "sampling, clips, crops",
    [("val", 1, 1), ("uniform", 3, 1), ("uniform", 1, 3), ("uniform", 4, 3), ("dense", 2, 3)],
)
def test_pixels_are_the_processors(rows, folder, video_processor, sampling, clips, crops):
    """From the file through the processor alone, which has its own tests."""
    dataset = VideoClips(rows, video_processor, 4, sampling, clips, crops)
    alone = MoTEVideoProcessor(**video_processor.to_dict() | {"sampling": sampling})
    for index, name in enumerate("abc"):
        item = dataset[index]
        expected = alone(
            str(folder / f"{name}.mp4"), num_clips=clips, num_crops=crops, return_tensors="pt"
        ).pixel_values_videos[0]
        assert item["pixel_values_videos"].shape == (
            (clips * crops, 4, 3, SIDE, SIDE) if clips * crops > 1 else (4, 3, SIDE, SIDE)
        )
        assert item["pixel_values_videos"].dtype == torch.uint8
        assert torch.equal(dataset.inputs(collate_clips([item]))["pixel_values_videos"][0], expected)
        assert (item["index"], item["label"], item["decoder"]) == (index, index % 2, "pyav")


def test_the_processors_own_options_are_followed(rows, folder, video_processor):
    """What is not passed is the processor's: its number of frames or rate, sampling, views and short videos."""
    own = {"num_frames": 3, "sampling": "dense", "num_clips": 2, "num_crops": 3}
    processor = MoTEVideoProcessor(**video_processor.to_dict() | own)
    expected = processor(str(folder / "b.mp4"), return_tensors="pt").pixel_values_videos[0]
    dataset = VideoClips(rows, processor)
    assert torch.equal(dataset.inputs(collate_clips([dataset[1]]))["pixel_values_videos"][0], expected)

    by_rate = MoTEVideoProcessor(**video_processor.to_dict() | {"num_frames": None, "fps": 2})
    assert len(VideoClips(rows, by_rate)[0]["pixel_values_videos"]) == 7  # of 30 frames, 8 per second
    assert len(VideoClips(rows, by_rate, 4)[0]["pixel_values_videos"]) == 4
    with pytest.raises(ValueError, match="clips of 4 and 7 frames cannot be one batch"):
        collate_clips([VideoClips(rows, by_rate)[index] for index in (0, 1)])


def test_a_short_video_is_an_error_unless_frames_may_repeat(rows, video_processor):
    strict = MoTEVideoProcessor(**video_processor.to_dict() | {"short_video": "error"})
    item = VideoClips(rows, strict, 4)[2]
    assert "c.mp4 has 3 frames, fewer than num_frames=4" in item["error"]
    assert VideoClips(rows, video_processor, 4)[2]["pixel_values_videos"].shape == (4, 3, SIDE, SIDE)


def test_bad_options_are_refused_before_any_video_is_read(rows, video_processor):
    with pytest.raises(ValueError, match="sampling is 'often': pass one of"):
        VideoClips(rows, video_processor, 4, "often")
    with pytest.raises(ValueError, match="num_crops is 3 but a transform takes the place of the crops"):
        VideoClips(rows, video_processor, 4, num_crops=3, transform=train_transform(SIDE))


def test_whatever_escapes_a_reader_is_an_error_of_that_clip(rows, video_processor):
    """A transform of the user's stands for a decoder with a fault of a kind that nobody thought of."""

    def break_down(frames: torch.Tensor) -> torch.Tensor:
        raise IndexError("list index out of range")

    dataset = VideoClips(rows, video_processor, 4, transform=break_down)
    assert dataset[0] == {"index": 0, "label": 0, "error": "a.mp4 can't be read: list index out of range"}


def test_what_cannot_be_read_is_an_error_with_its_name(rows, video_processor):
    dataset = VideoClips(rows, video_processor, 4, "val")
    for index, name in ((3, "d.mp4"), (4, "e.mp4")):
        item = dataset[index]
        assert item.keys() == {"index", "label", "error"} and name in item["error"]
        assert dataset.name(index) == name and item["label"] == index % 2


def test_a_batch_holds_what_was_read_and_names_the_rest(rows, video_processor):
    dataset = VideoClips(rows, video_processor, 4, "val", labels={0: 7, 1: 9})
    batch = collate_clips([dataset[index] for index in (4, 1, 3, 0)])
    assert batch["pixel_values_videos"].shape == (2, 4, 3, SIDE, SIDE)
    assert batch["indices"].tolist() == [1, 0] and batch["labels"].tolist() == [9, 7]
    assert batch["decoders"] == ["pyav", "pyav"]
    assert [(index, label) for index, label, _ in batch["errors"]] == [(4, 7), (3, 9)]
    nothing = collate_clips([dataset[3], dataset[4]])
    assert nothing["pixel_values_videos"] is None and len(nothing["labels"]) == 0 and len(nothing["errors"]) == 2


@pytest.mark.parametrize("augment", [False, True], ids=["frames", "frames and augmentation"])
def test_chance_is_fixed_by_seed_epoch_and_index_alone(rows, video_processor, augment):
    transform = train_transform(SIDE) if augment else None

    def clips(seed=0):
        return VideoClips(rows, video_processor, 4, "train", transform=transform, seed=seed)

    first = clips()[3 - 3, 0]
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.random.get_rng_state()
    assert same(clips()[0, 0], first) and same(clips()[0], first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(clips()[1, 0], first) and not same(clips(seed=1)[0, 0], first)
    assert len({clips()[epoch, 0]["pixel_values_videos"].sum().item() for epoch in range(5)}) == 5


def test_a_decoder_that_asks_twice_is_answered_the_same(folder, video_processor, write_video):
    """The packets of a file with damage promise more frames than can be decoded, and frames are chosen once more."""
    path = write_video(folder / "damaged.avi", 40, size=(40, 56), codec="mpeg4")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
        start, end = packet.pos, packet.pos + packet.size
    content = bytearray(path.read_bytes())
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    asked = []

    class Recorder(MoTEVideoProcessor):
        def sample_frames(self, metadata: VideoMetadata, **kwargs: object) -> np.ndarray:
            asked.append((metadata.total_num_frames, super().sample_frames(metadata, **kwargs).tolist()))
            return np.array(asked[-1][1])

    rows = write_rows(folder, "damaged", [("path", "label"), ("damaged.avi", "run")])
    with pytest.warns(UserWarning, match=r"damaged\.avi"):
        VideoClips(rows, Recorder(**video_processor.to_dict()), 4, "train")[0]
    assert asked[0][0] > asked[-1][0]
    for count, indices in asked:
        generator = np.random.default_rng(clip_seed(0, 0, 0))
        assert indices == sample_indices(count, 4, "train", 1, generator).tolist()


def test_workers_give_what_one_process_gives(rows, video_processor):
    dataset = VideoClips(rows, video_processor, 4, "train", transform=train_transform(SIDE))
    order = [[(0, 0), (0, 1)], [(0, 2), (1, 0)], [(1, 1), (1, 3)]]
    alone, workers = (
        list(DataLoader(dataset, batch_sampler=order, collate_fn=collate_clips, num_workers=number))
        for number in (0, 2)
    )
    for one, other in zip(alone, workers, strict=True):
        assert same(one, other) and one["errors"] == other["errors"]
    assert len(alone[2]["errors"]) == 1


def test_frames_are_augmented_as_all_at_once_would_be(rows, folder, video_processor):
    transform = train_transform(SIDE)
    given = VideoClips(rows, video_processor, 4, "val", transform=transform)[0]["pixel_values_videos"]
    frames = torch.from_numpy(decode_video(folder / "a.mp4", [0, 7, 15, 22])[0]).permute(0, 3, 1, 2)
    assert torch.equal(given, augment_clip(frames, transform, clip_seed(0, 0, 0)))


def test_one_draw_for_all_frames_of_a_clip(rows, video_processor, folder, write_video):
    still = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 40, 56, 3), dtype=np.uint8), 12, axis=0)
    write_video(folder / "still.mp4", frames=still, crf="0", pix_fmt="yuv444p")
    rows = write_rows(folder, "still", [("path", "label"), ("still.mp4", "run")])
    dataset = VideoClips(rows, video_processor, 4, "train", transform=train_transform(SIDE))
    crops = [dataset[epoch, 0]["pixel_values_videos"] for epoch in range(6)]
    for pixels in crops:
        for frame in pixels[1:]:
            torch.testing.assert_close(frame, pixels[0], rtol=0, atol=3)
    assert all((crops[0].float() - other.float()).abs().mean() > 6 for other in crops[1:])


def test_parts_of_a_file_are_counted_from_their_start(folder, video_processor):
    rows = write_rows(
        folder, "parts", [("path", "label", "start", "end"), ("a.mp4", "run", 1, 2), ("a.mp4", "run", "", "")]
    )
    part, whole = VideoClips(rows, video_processor, 8, "val"), VideoClips(rows, video_processor, 30, "val")
    expected = whole[1]["pixel_values_videos"][8:16]  # 8 frames a second
    torch.testing.assert_close(part[0]["pixel_values_videos"], expected)


def test_videos_as_bytes(folder, video_processor, rows):
    row = rows[0]
    packed = [row | {"video": {"path": "packed.mp4", "bytes": (folder / "a.mp4").read_bytes()}}]
    assert same(VideoClips(packed, video_processor, 4, "val")[0], VideoClips(rows, video_processor, 4, "val")[0])


def test_lists_of_clips(folder, rows):
    assert list_clips(rows) == [(f"{name}.mp4", index % 2, None, None) for index, name in enumerate("abcde")]
    parts = write_rows(
        folder, "times", [("path", "label", "start", "end"), ("a.mp4", "run", 1, 2), ("b.mp4", "swim", "", "")]
    )
    assert list_clips(parts) == [("a.mp4", 0, 1.0, 2.0), ("b.mp4", 1, None, None)]
