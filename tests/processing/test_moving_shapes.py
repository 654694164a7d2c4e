"""The MovingShapes world: its classes, its pictures and its files."""

import io

import av
import numpy as np
import pytest

from modeling_mote.processing.builders.moving_shapes import (
    COLORS,
    CUE_PLACES,
    MOTIONS,
    NEW_MOTIONS,
    OPPOSITE_MOTIONS,
    SHAPES,
    SPLITS,
    TRAINED_MOTIONS,
    MovingShapes,
    MovingShapesConfig,
    encode_mp4,
    render_clip,
    render_stills,
    sample_scenes,
)

TINY = {"train_objects": 6, "motions_per_object": 2, "train_videos_per_class": 2, "eval_videos_per_class": 1}


def objects_of(classes):
    return {(color, shape) for color, shape, _ in classes}


def decode(file: bytes) -> np.ndarray:
    with av.open(io.BytesIO(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def centres(frames: np.ndarray, color: str) -> np.ndarray:
    """Centre of the object in each frame, (x, y) in 0…1, [t, 2]: the pixels whose colour is nearer to its own."""
    frames, background = frames.astype(float), np.median(frames.astype(float), axis=(0, 1, 2))
    own = np.linalg.norm(frames - np.array(COLORS[color]), axis=-1) < np.linalg.norm(frames - background, axis=-1)
    return np.array([np.argwhere(mask).mean(0)[::-1] for mask in own]) / frames.shape[1]


def areas(frames: np.ndarray, color: str) -> np.ndarray:
    frames, background = frames.astype(float), np.median(frames.astype(float), axis=(0, 1, 2))
    own = np.linalg.norm(frames - np.array(COLORS[color]), axis=-1) < np.linalg.norm(frames - background, axis=-1)
    return own.sum((1, 2))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    builder = MovingShapes(cache_dir=str(tmp_path_factory.mktemp("one")), **TINY)
    builder.download_and_prepare()
    return builder


@pytest.mark.parametrize("train_objects", [6, 12, 18, 24])
@pytest.mark.parametrize("motions_per_object", [2, 4, 6])
def test_splits_ask_what_they_say(train_objects, motions_per_object):
    config = MovingShapesConfig(train_objects=train_objects, motions_per_object=motions_per_object)
    classes = {split: config.classes(split) for split in SPLITS}
    train = set(classes["train"])
    assert len(classes["train"]) == len(train) == train_objects * motions_per_object
    assert classes["validation"] == classes["test"] == classes["train"]
    assert len(objects_of(train)) == train_objects
    assert {color for color, _, _ in train} == set(COLORS)
    assert {shape for _, shape, _ in train} == set(SHAPES)
    assert {motion for _, _, motion in train} == set(TRAINED_MOTIONS)

    compositions = set(classes["test_compositions"])
    assert not compositions & train
    assert compositions | train == {(*thing, motion) for thing in objects_of(train) for motion in TRAINED_MOTIONS}
    assert not objects_of(classes["test_objects"]) & objects_of(train)
    assert {motion for _, _, motion in classes["test_objects"]} == set(TRAINED_MOTIONS)
    assert objects_of(classes["test_motions"]) == objects_of(train)
    assert {motion for _, _, motion in classes["test_motions"]} == set(NEW_MOTIONS)


def test_object_does_not_tell_the_class():
    train = set(MovingShapesConfig().classes("train"))
    opposite = dict(OPPOSITE_MOTIONS) | {b: a for a, b in OPPOSITE_MOTIONS}
    assert all((color, shape, opposite[motion]) in train for color, shape, motion in train)
    # Nor does a colour or a shape alone: each occurs with all motions.
    for part in (0, 1):
        for value in {parts[part] for parts in train}:
            assert {parts[2] for parts in train if parts[part] == value} == set(TRAINED_MOTIONS)


@pytest.mark.parametrize(
    ("motion", "measure"),
    [
        ("moving left", lambda frames: centres(frames, "red")[0, 0] - centres(frames, "red")[-1, 0]),
        ("moving right", lambda frames: centres(frames, "red")[-1, 0] - centres(frames, "red")[0, 0]),
        ("moving up", lambda frames: centres(frames, "red")[0, 1] - centres(frames, "red")[-1, 1]),
        ("moving down", lambda frames: centres(frames, "red")[-1, 1] - centres(frames, "red")[0, 1]),
        ("growing", lambda frames: areas(frames, "red")[-1] / areas(frames, "red")[0] - 1.3),
        ("shrinking", lambda frames: areas(frames, "red")[0] / areas(frames, "red")[-1] - 1.3),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_motion_in_the_file_is_the_one_named(motion, measure, seed):
    frames = decode(encode_mp4(render_clip("red", "square", motion, np.random.default_rng(seed)), fps=8))
    assert measure(frames) > 0.2


def test_everything_moves():
    for motion in MOTIONS:
        frames = render_clip("cyan", "bar", motion, np.random.default_rng(1)).astype(float)
        assert np.abs(frames - frames[0]).max() > 50, motion


def test_file_survives_encoding():
    """8-bit H.264 that any player shows, with as many frames as were filmed and colours as painted."""
    frames = render_clip("purple", "star", "spinning", np.random.default_rng(0))
    file = encode_mp4(frames, fps=8)
    with av.open(io.BytesIO(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
    decoded = decode(file)
    assert decoded.shape == frames.shape == (16, 64, 64, 3)
    assert np.abs(decoded.astype(float) - frames).mean() < 6
    assert encode_mp4(frames, fps=8) == file


def test_still_shows_where_the_object_was():
    """What a slow shutter adds lies behind the object; a trail fades away from it, a blur does not."""
    n = 40
    scenes = sample_scenes(["red"] * n, ["square"] * n, ["moving left"] * n, np.random.default_rng(0))
    sharp, blurred, trailing = (
        render_stills(scenes, np.full(n, 0.5), [exposure] * n, np.random.default_rng(0)).astype(float)
        for exposure in ("sharp", "blurred", "trailing")
    )
    assert sharp.shape == (n, 32, 32, 3)

    def added(stills):
        """Mean distance of what differs from the sharp still, to the right of the object, in half widths, [n]."""
        columns = np.abs(stills - sharp).max(-1).sum(1)  # [n, w]
        return (columns * np.arange(32)).sum(1) / columns.sum(1) / 16 - 1 - scenes.x

    assert (added(trailing) > 0).mean() > 0.9

    def strength(stills, start, stop):
        """Mean change in the columns from start to stop, in radii to the right of the object's centre."""
        places = (np.arange(32) / 16 - 1 - scenes.x[:, None]) / scenes.size[:, None]
        chosen = (places > start) & (places < stop)
        return (np.abs(stills - sharp).max(-1).sum(1) * chosen).sum() / chosen.sum()

    fade = [strength(stills, 1.3, 2) / strength(stills, 0.8, 1.3) for stills in (blurred, trailing)]
    assert fade[0] > fade[1]


def test_builder_gives_files_with_labels(built):
    for split in SPLITS:
        dataset = built.as_dataset(split)
        names = built.class_names(split)
        videos = 2 if split == "train" else 1
        assert len(dataset) == len(names) * videos
        found = [dataset.features["label"].int2str(row["label"]) for row in dataset]
        assert [found.count(name) for name in names] == [videos] * len(names)
        row = dataset[0]
        assert row["video"]["path"].endswith(".mp4")
        assert decode(row["video"]["bytes"]).shape == (16, 64, 64, 3)


def test_no_clip_occurs_twice(built):
    files = [row["video"]["bytes"] for split in SPLITS for row in built.as_dataset(split)]
    assert len(set(files)) == len(files)


def test_same_files_from_two_processes_and_from_a_stream(built, tmp_path):
    shared_out = MovingShapes(cache_dir=str(tmp_path), **TINY)
    shared_out.download_and_prepare(num_proc=2)
    assert shared_out.as_dataset("train").to_list() == built.as_dataset("train").to_list()
    stream = built.as_streaming_dataset("test_motions")
    assert stream.num_shards == len(built.class_names("test_motions"))
    assert list(stream) == built.as_dataset("test_motions").to_list()


def test_seed_changes_the_clips_not_the_classes(built, tmp_path):
    other = MovingShapes(cache_dir=str(tmp_path), **TINY, seed=1)
    row, other_row = next(iter(built.as_streaming_dataset("test"))), next(iter(other.as_streaming_dataset("test")))
    assert row["label"] == other_row["label"]
    assert row["video"]["bytes"] != other_row["video"]["bytes"]
    assert other.class_names("train") == built.class_names("train")


def test_static_cue_tells_the_motion_where_it_was_trained_and_nowhere_else(built, tmp_path):
    cued = MovingShapes(cache_dir=str(tmp_path), **TINY, static_cue=1.0)
    cued.download_and_prepare()
    for split in SPLITS:
        assert cued.class_names(split) == built.class_names(split)
        same = cued.as_dataset(split).to_list() == built.as_dataset(split).to_list()
        assert same == (split not in ("train", "validation", "test"))
    for name, row in zip(
        np.repeat(cued.class_names("train"), TINY["train_videos_per_class"]), cued.as_dataset("train"), strict=True
    ):
        color, _, motion = name.split(" ", 2)
        if motion in ("growing", "shrinking"):  # whose object is in the middle of its path in every frame
            middle = centres(decode(row["video"]["bytes"]), color).mean(0) * 2 - 1
            assert np.abs(middle - CUE_PLACES[motion]).max() < 0.25, name


def test_clips_without_a_cue_are_what_they_were(built):
    label = built.info.features["label"].str2int(built.class_names("test")[0])
    frames = render_clip(*built.config.classes("test")[0], np.random.default_rng([0, SPLITS.index("test"), label, 0]))
    assert built.as_dataset("test")[0]["video"]["bytes"] == encode_mp4(frames, fps=8)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"train_objects": 7}, "train_objects"),
        ({"motions_per_object": 3}, "motions_per_object"),
        ({"image_size": 63}, "even"),
        ({"num_frames": 0}, "num_frames"),
        ({"static_cue": 1.5}, "static_cue"),
    ],
)
def test_bad_config_is_one_sentence(bad, word):
    with pytest.raises(ValueError, match=word):
        MovingShapesConfig(**bad)


def test_unknown_split_is_one_sentence():
    with pytest.raises(ValueError, match="no split 'tset'"):
        MovingShapesConfig().classes("tset")
