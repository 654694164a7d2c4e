"""MoTEVideoProcessor: every form of input, sampling, views, and pixels equal to the authors'."""

import json
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from modeling_mote.processing import MoTEVideoProcessor
from modeling_mote.processing.frame_sampling import sample_indices
from modeling_mote.processing.video_decoding import VideoDecodeError, decode_video
from modeling_mote.processing.video_options import CHOICES, READING_OPTIONS


@pytest.fixture
def tiny() -> MoTEVideoProcessor:
    return MoTEVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, write_video) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=16, size=(48, 64))


@pytest.fixture(scope="module")
def frames(clip: Path) -> np.ndarray:
    return decode_video(clip)[0]  # [16, 48, 64, 3]


def pixels(processor: MoTEVideoProcessor, videos: object, **kwargs: object) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **kwargs)["pixel_values_videos"]


FORMS = {
    "path": lambda path, frames: path,
    "string": lambda path, frames: str(path),
    "bytes": lambda path, frames: path.read_bytes(),
    "bytearray": lambda path, frames: bytearray(path.read_bytes()),
    "datasets path": lambda path, frames: {"path": str(path), "bytes": None},
    "datasets bytes": lambda path, frames: {"path": "gone.mp4", "bytes": path.read_bytes()},
    "array": lambda path, frames: frames,
    "array, channels first": lambda path, frames: frames.transpose(0, 3, 1, 2),
    "array, mirrored twice": lambda path, frames: np.ascontiguousarray(frames[:, :, ::-1])[:, :, ::-1],
    "array of int64": lambda path, frames: frames.astype(np.int64),
    "array of uint16": lambda path, frames: frames.astype(np.uint16),
    "tensor": lambda path, frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "tensor, channels last": lambda path, frames: torch.from_numpy(frames),
    "PIL frames": lambda path, frames: [Image.fromarray(frame) for frame in frames],
    "opaque RGBA PIL frames": lambda path, frames: [Image.fromarray(frame).convert("RGBA") for frame in frames],
    "tuple of arrays": lambda path, frames: tuple(frames),
    "list of tensors": lambda path, frames: list(torch.from_numpy(frames).permute(0, 3, 1, 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_give_the_same_pixels(form, tiny, clip, frames):
    expected = pixels(tiny, frames, num_frames=4)
    assert expected.shape == (1, 4, 3, 32, 32) and expected.dtype == torch.float32
    torch.testing.assert_close(pixels(tiny, FORMS[form](clip, frames), num_frames=4), expected, rtol=0, atol=0)


def test_float_pixels_and_their_own_scale(tiny, frames):
    """Floating-point pixels are not rounded nor clipped by the resize, so they agree up to a level or so."""
    expected = pixels(tiny, frames, num_frames=4)
    assert (pixels(tiny, frames.astype(np.float64), num_frames=4) - expected).abs().mean() < 0.02
    scaled = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    assert (pixels(tiny, scaled, num_frames=4, do_rescale=False) - expected).abs().mean() < 0.02


def test_mixed_batch_of_lengths_and_sizes(tiny, clip, frames, tmp_path, write_video):
    other = write_video(tmp_path / "other.mkv", num_frames=9, size=(80, 40))
    batch = [clip, {"path": str(other), "bytes": None}, frames[:5, :, :40], [Image.fromarray(f) for f in frames[:7]]]
    together = pixels(tiny, batch, num_frames=4)
    assert together.shape == (4, 4, 3, 32, 32)
    for video, expected in zip(batch, together, strict=True):
        assert torch.equal(pixels(tiny, video, num_frames=4)[0], expected)
    assert torch.equal(pixels(tiny, [[video] for video in batch], num_frames=4), together)
    assert torch.equal(pixels(tiny, np.stack([frames, frames[::-1]]), num_frames=4)[0], together[0])


def test_frames_are_those_of_sample_indices(tiny, clip, frames):
    for sampling, clips in (("uniform", 1), ("uniform", 3), ("dense", 2), ("val", 1)):
        indices = sample_indices(len(frames), 4, sampling, clips)
        expected = pixels(tiny, frames[indices], do_sample_frames=False)[0]
        given = tiny(clip, num_frames=4, sampling=sampling, num_clips=clips, return_metadata=True, return_tensors="pt")
        assert torch.equal(given["pixel_values_videos"][0].flatten(0, -4), expected)
        assert list(given["video_metadata"][0].frames_indices) == indices.tolist()


def test_train_sampling_follows_the_global_seed(tiny, frames):
    torch.manual_seed(1)
    first = pixels(tiny, frames, num_frames=4, sampling="train")
    others = [pixels(tiny, frames, num_frames=4, sampling="train") for _ in range(5)]
    torch.manual_seed(1)
    assert torch.equal(pixels(tiny, frames, num_frames=4, sampling="train"), first)
    assert any(not torch.equal(other, first) for other in others)


def test_evaluation_draws_no_random_number(tiny, clip):
    before = torch.random.get_rng_state()
    pixels(tiny, clip, num_frames=4, num_clips=2, num_crops=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_views_are_clips_then_crops(tiny, frames):
    views = pixels(tiny, [frames, frames], num_frames=4, num_clips=2, num_crops=3)
    assert views.shape == (2, 6, 4, 3, 32, 32)
    crops = pixels(tiny, frames, num_frames=4, num_crops=3)
    clips = pixels(tiny, frames, num_frames=4, num_clips=2)
    assert crops.shape == (1, 3, 4, 3, 32, 32) and clips.shape == (1, 2, 4, 3, 32, 32)
    indices = sample_indices(len(frames), 4, "uniform", 2).reshape(2, 4)
    for clip_index in range(2):
        one = pixels(tiny, frames[indices[clip_index]], do_sample_frames=False, num_clips=2, num_crops=3)
        assert torch.equal(views[0, 3 * clip_index : 3 * clip_index + 3], one[0])


@pytest.mark.parametrize(("height", "width"), [(35, 50), (37, 50), (64, 33), (33, 33), (32, 39)])
def test_crop_offsets(height, width):
    """Offsets half to even for one crop, on the quarter grid for three, in the order left, right, centre."""
    video = np.zeros((1, height, width, 3), np.uint8)
    video[..., 0], video[..., 1] = np.arange(height)[:, None], np.arange(width)
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False, "crop_size": {"height": 32, "width": 32}}
    processor = MoTEVideoProcessor(**plain)
    corners = {
        (round((height - 32) / 2), round((width - 32) / 2)): pixels(processor, video)[0],
    }
    quarter_y, quarter_x = (height - 32) // 4, (width - 32) // 4
    three = pixels(processor, video, num_crops=3)[0]
    assert [tuple(crop[0, :2, 0, 0].tolist()) for crop in three] == [
        (2 * quarter_y, x) for x in (0, 4 * quarter_x, 2 * quarter_x)
    ]
    for (top, left), crop in corners.items():
        assert crop.shape == (1, 3, 32, 32) and tuple(crop[0, :2, 0, 0].tolist()) == (top, left)


def test_pixels_equal_the_authors(shared):
    reference = load_file(shared / "reference" / "preprocessing.safetensors")
    cases = [name for name in reference if "uint8_frames" not in name]
    assert len(cases) == 5
    for name in cases:
        source, size, crops = name.split(".")
        side, num_crops = int(size.removeprefix("size")), int(crops.removeprefix("crops"))
        processor = MoTEVideoProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, num_crops=num_crops
        )
        ours = pixels(processor, reference[f"{source}.uint8_frames"])
        ours = ours if num_crops == 1 else ours[0]
        assert ours.shape == reference[name].shape
        assert (ours - reference[name].float()).abs().mean() <= 1e-3, name  # the design allows 0.02


def test_normalisation_is_clips():
    video = np.full((1, 224, 224, 3), 51, np.uint8)
    expected = (0.2 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    torch.testing.assert_close(pixels(MoTEVideoProcessor(), video)[0, 0, :, 100, 100], expected, atol=1e-5, rtol=0)


def test_grey_and_transparent_frames(tiny, frames):
    grey = frames[..., :1]
    expected = pixels(tiny, grey.repeat(3, axis=-1), num_frames=4)
    forms = (grey, list(grey[..., 0]), [Image.fromarray(frame[..., 0]) for frame in grey])
    for form in forms:
        assert torch.equal(pixels(tiny, form, num_frames=4), expected)
    clear = np.concatenate([frames, np.zeros_like(grey)], axis=-1)
    assert torch.equal(pixels(tiny, clear, num_frames=4), pixels(tiny, np.full_like(frames, 255), num_frames=4))
    palette = [Image.fromarray(frame).quantize(256) for frame in frames]
    torch.testing.assert_close(
        pixels(tiny, palette, num_frames=4), pixels(tiny, frames, num_frames=4), rtol=0, atol=0.5
    )


def test_short_videos(tiny, clip, frames):
    with pytest.raises(ValueError, match=r"clip\.mp4 has 16 frames, fewer than num_frames=17"):
        tiny(clip, num_frames=17)
    with pytest.raises(ValueError, match="video 1 of 2 has 3 frames, fewer than num_frames=4"):
        tiny([frames, frames[:3]], num_frames=4)
    looped = pixels(tiny, [frames, frames[:3]], num_frames=8, short_video="loop")
    indices = sample_indices(3, 8)
    assert torch.equal(looped[1], pixels(tiny, frames[indices], do_sample_frames=False)[0])


def test_fps_sampling(tiny, clip, frames):
    saved = MoTEVideoProcessor(**{**tiny.to_dict(), "num_frames": 8})  # as checkpoints do
    expected = pixels(tiny, frames[::2], do_sample_frames=False)
    assert torch.equal(pixels(saved, clip, fps=4), expected)  # the file has 8 frames a second
    metadata = [{"total_num_frames": 16, "fps": 8}]
    assert torch.equal(pixels(saved, frames, fps=4, video_metadata=metadata), expected)
    assert pixels(saved, clip).shape[1] == 8
    assert pixels(saved, clip, do_sample_frames=False).shape[1] == 16
    with pytest.raises(ValueError, match="num_frames=3 and fps=2 exclude each other"):
        tiny(clip, num_frames=3, fps=2)
    with pytest.raises(ValueError, match="video 0 of 1: .*fps"):
        tiny(frames, fps=2)


def test_saved_and_loaded(tmp_path, tiny):
    processor = MoTEVideoProcessor(num_frames=8, short_video="loop", num_clips=4, num_crops=3, sampling="dense")
    processor.save_pretrained(tmp_path)
    loaded = MoTEVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.short_video, loaded.num_clips, loaded.num_crops, loaded.sampling) == ("loop", 4, 3, "dense")
    changed = MoTEVideoProcessor.from_pretrained(tmp_path, num_crops=1, num_frames=16)
    assert (changed.num_crops, changed.num_frames) == (1, 16)


@pytest.mark.parametrize(
    ("videos", "kwargs", "message"),
    [
        (None, {}, "NoneType is no video: pass a path"),
        (7, {}, "int is no video"),
        ([], {}, "an empty list holds no video"),
        ([[]], {}, "an empty list holds no video"),
        (np.zeros((4, 4), np.uint8), {}, r"ndarray of shape \(4, 4\) is no video"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, r"video 0 of 1 is empty: its shape is \(0, 8, 8, 3\)"),
        (np.zeros((4, 8, 8, 2), np.uint8), {}, "has no dimension of 1, 3 or 4 channels"),
        (np.zeros((4, 8, 8, 3), bool), {}, "dtype bool: pass uint8 pixels"),
        (np.full((4, 8, 8, 3), 999), {}, "values from 999 to 999: pass pixels from 0 to 255"),
        (np.zeros((4, 8, 8, 4), np.float32), {}, "four channels of float32"),
        ([np.zeros((8, 8, 3)), np.zeros((9, 8, 3))], {}, "the frames of video 0 of 1 have shapes"),
        ([Image.new("RGB", (8, 8)), np.zeros((8, 8, 3))], {}, "mixes PIL images and arrays"),
        ({"array": 1}, {}, "a dict with neither 'path' nor 'bytes': its keys are array"),
        ("nowhere/missing.mp4", {}, "missing.mp4"),
        ({"path": "broken.mp4", "bytes": b"no video at all"}, {}, "broken.mp4"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_crops": 2}, "num_crops is 2: pass one of 1, 3"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_crops": 3, "do_center_crop": False}, "do_center_crop is off"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_crops": 3, "do_resize": False}, "smaller than the three crops"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_clips": 0}, "num_clips is 0"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_frames": 0}, "num_frames is 0: pass a whole number"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_frames": "8"}, "num_frames is '8': pass a whole number"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_frames": True}, "num_frames is True: pass a whole number"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"do_resize": "yes"}, "field 'do_resize'"),
        (np.zeros((8, 8, 3), np.uint8), {}, r"video 0 of 1 is a still picture: pass it in a list, \[picture\]"),
        (Image.new("RGB", (8, 8)), {}, r"video 0 of 1 is a still picture: pass it in a list, \[picture\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"num_clips": 2}, "num_clips=2 needs num_frames"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"sampling": "often"}, "sampling is 'often': pass one of 'uniform'"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"short_video": "pad"}, "short_video is 'pad'"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"video_backend": "opencv"}, "video_backend is 'opencv'"),
        (
            np.zeros((4, 8, 8, 3), np.uint8),
            {"num_frames": 8, "video_metadata": [{"total_num_frames": 9}]},
            "has 4 frames but its video_metadata says 9",
        ),
    ],
)
def test_bad_input_is_one_sentence(tiny, videos, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(videos, return_tensors="pt", **kwargs)
    assert "\n" not in str(caught.value)


def test_bad_files(tiny, tmp_path, frames):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(VideoDecodeError, match=r"broken\.mp4"):
        tiny([frames, broken], num_frames=4)
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        tiny(tmp_path / "absent.mp4")


def test_a_file_that_breaks_off(tiny, shared):
    clip = shared / "videos" / "trunc_avi_SoccerJuggling.avi"
    with pytest.warns(UserWarning, match="trunc_avi_SoccerJuggling"):
        assert pixels(tiny, clip, num_frames=4).shape == (1, 4, 3, 32, 32)
    with pytest.raises(VideoDecodeError, match="trunc_avi_SoccerJuggling"):
        tiny(clip, num_frames=4, strict=True)


def test_different_lengths_need_a_number_of_frames(tiny, frames):
    with pytest.raises(ValueError, match="cannot be stacked: pass num_frames="):
        tiny([frames, frames[:5]], return_tensors="pt")
    assert [len(video) for video in tiny([frames, frames[:5]])["pixel_values_videos"]] == [16, 5]


def write_circle(path: Path, pixel_aspect: Fraction) -> Path:
    """A white circle, round where it is shown, in pixels of this width over height."""
    y, x = np.mgrid[:120, :160]
    image = np.zeros((120, 160, 3), np.uint8)
    image[np.hypot((x - 79.5) * float(pixel_aspect), y - 59.5) < 36] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def roundness(processor: MoTEVideoProcessor, video: object, **kwargs: object) -> float:
    """Width of the white part of the first frame over its height."""
    plain = {"do_rescale": False, "do_normalize": False, **kwargs}
    white = pixels(processor, video, **plain)[0, 0, 0] > 127  # [h, w]
    return int(white.any(dim=0).sum()) / int(white.any(dim=1).sum())


@pytest.mark.parametrize("pixel_aspect", [Fraction(64, 45), Fraction(8, 9), Fraction(2)])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_pixels_that_are_not_square(tmp_path, pixel_aspect, container):
    clip = write_circle(tmp_path / f"circle.{container}", pixel_aspect)
    processor = MoTEVideoProcessor(size={"shortest_edge": 100}, crop_size={"height": 100, "width": 100})
    assert roundness(processor, clip) == pytest.approx(1, abs=0.04)
    assert roundness(processor, clip, square_pixels=False) == pytest.approx(float(1 / pixel_aspect), abs=0.04)
    shown = processor(clip, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values_videos"]
    assert shown.shape[-2:] == (round(120 / min(pixel_aspect, 1)), round(160 * max(pixel_aspect, 1)))


def test_a_turned_video_with_pixels_that_are_not_square(tmp_path):
    """Upright pixels are high where the stored ones are wide."""
    clip = write_circle(tmp_path / "circle.mp4", Fraction(64, 45))
    data = bytearray(clip.read_bytes())
    one = 1 << 16
    data[(at := data.index(b"tkhd") + 44) : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    processor = MoTEVideoProcessor(size={"shortest_edge": 100}, crop_size={"height": 100, "width": 100})
    assert decode_video(bytes(data))[0].shape == (4, 160, 120, 3)
    assert roundness(processor, bytes(data)) == pytest.approx(1, abs=0.04)
    assert roundness(processor, bytes(data), square_pixels=False) == pytest.approx(64 / 45, abs=0.06)


def test_nonsense_in_the_shape_of_pixels_is_left_alone(tmp_path):
    clip = write_circle(tmp_path / "circle.mp4", Fraction(400))
    assert MoTEVideoProcessor()(clip, do_resize=False, do_center_crop=False)["pixel_values_videos"][0].shape[-1] == 160


def test_processors_saved_before_square_pixels_go_on_without(tmp_path):
    MoTEVideoProcessor(num_frames=4).save_pretrained(tmp_path)
    assert MoTEVideoProcessor.from_pretrained(tmp_path).square_pixels is True
    file = tmp_path / "preprocessor_config.json"
    file = file if file.is_file() else next(tmp_path.glob("*processor_config.json"))
    saved = json.loads(file.read_text())
    assert saved.pop("square_pixels") is True
    file.write_text(json.dumps(saved))
    assert MoTEVideoProcessor.from_pretrained(tmp_path).square_pixels is False
    assert MoTEVideoProcessor.from_pretrained(tmp_path, square_pixels=True).square_pixels is True


def test_frames_are_resized_as_they_come(tiny, tmp_path, write_video):
    """Of frames at full size, some are held at a time, however many and of however many videos are asked."""
    clip = write_video(tmp_path / "large.mp4", num_frames=16, size=(720, 960), preset="ultrafast")
    expected = pixels(tiny, decode_video(clip)[0])
    tracemalloc.start()
    try:
        given = pixels(tiny, [clip, clip])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 720 * 960 * 3  # 32 frames were
    assert torch.equal(given, expected.repeat(2, 1, 1, 1, 1))


def test_reading_options_stand_once(tiny):
    options = {"num_frames": 3, "num_clips": 2, "sampling": "dense", "short_video": "loop", "square_pixels": False}
    assert options.items() <= tiny.reading_options(**options).items()
    assert set(options) < set(READING_OPTIONS) and set(CHOICES) < set(READING_OPTIONS)
    sampled_by_rate = MoTEVideoProcessor(fps=2)
    with pytest.raises(ValueError, match="unknown option 'num_clip': pass some of num_frames, fps, sampling"):
        tiny.reading_options(num_clip=2)
    assert (sampled_by_rate.reading_options(num_frames=4)["fps"], sampled_by_rate.reading_options()["fps"]) == (
        None,
        2,
    )


def test_frames_per_clip_are_the_processors_else_the_models():
    config = SimpleNamespace(num_frames=8)
    assert MoTEVideoProcessor(num_frames=4).frames_per_clip(config) == 4
    assert MoTEVideoProcessor().frames_per_clip(config) == 8
    assert MoTEVideoProcessor(fps=2).frames_per_clip(config) is None


def test_read_gives_what_a_call_normalises(tiny, clip):
    options = tiny.reading_options(num_frames=4, num_clips=2, num_crops=3)
    views, metadata = tiny.read(clip, options=options)
    assert views.shape == (6, 4, 3, 32, 32) and views.dtype == torch.uint8 and metadata.total_num_frames == 16
    expected = pixels(tiny, clip, num_frames=4, num_clips=2, num_crops=3)
    assert torch.equal(tiny.normalize_pixels(views)[None], expected)


def test_constructor_checks_its_options():
    with pytest.raises(ValueError, match="short_video is 'pad': pass one of 'error', 'loop'"):
        MoTEVideoProcessor(short_video="pad")


def test_fetch_videos_is_the_packages_decoder(tiny, clip, frames):
    images, metadata = tiny.fetch_videos(str(clip), sample_indices_fn=lambda metadata: [3, 1])
    assert np.array_equal(images, frames[[3, 1]]) and metadata.total_num_frames == 16
    videos, metadatas = tiny.fetch_videos([str(clip), str(clip)])
    assert [video.shape for video in videos] == [frames.shape] * 2 and len(metadatas) == 2
