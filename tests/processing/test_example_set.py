"""A few clips per label: what they add to the texts, whom they leave alone, and what is refused in one sentence."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import pipeline

from modeling_mote.processing import ExampleSet, classify_windows, encode_classes

TASK = "zero-shot-video-classification"
LABELS = ["archery", "yoga", "flipping the pancake"]
RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


@pytest.fixture(scope="module")
def classify(model_folder: Path):
    return pipeline(TASK, model=str(model_folder), device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video) -> dict[str, list[str]]:
    """Six clips per label, of one colour each, with noise: a folder per label."""
    folder, noise = tmp_path_factory.mktemp("examples"), np.random.default_rng(0)
    found: dict[str, list[str]] = {}
    for label, color in zip(LABELS, (RED, GREEN, BLUE), strict=True):
        for number in range(6):
            frames = np.array(color) + noise.normal(0, 25, (8, 48, 48, 3)) + noise.normal(0, 10, 3)
            path = folder / label.replace(" ", "_") / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_video(path, frames=np.clip(frames, 0, 255).astype(np.uint8))
            found.setdefault(label, []).append(str(path))
    return found


@pytest.fixture(scope="module")
def examples(classify, clips) -> ExampleSet:
    return ExampleSet.from_videos(classify, {label: videos[:4] for label, videos in clips.items()})


def best(rows: list[dict]) -> str:
    return rows[0]["label"]


def test_examples_make_right_what_the_texts_get_wrong(classify, clips, examples):
    tests = [(video, label) for label, videos in clips.items() for video in videos[4:]]
    videos = [video for video, _ in tests]
    before = classify(videos, candidate_labels=LABELS)
    after = classify(videos, candidate_labels=LABELS, examples=examples)
    assert sum(best(rows) == label for rows, (_, label) in zip(before, tests, strict=True)) < len(tests)
    assert [best(rows) for rows in after] == [label for _, label in tests]
    batched = classify(videos, candidate_labels=LABELS, examples=examples, batch_size=4)
    for rows, others in zip(after, batched, strict=True):
        assert [row["label"] for row in rows] == [row["label"] for row in others]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in others], abs=1e-4)


def test_every_way_to_give_examples_scores_the_same(classify, clips, examples, tmp_path):
    given = {label: videos[:4] for label, videos in clips.items()}
    video, path = clips["yoga"][5], tmp_path / "set.safetensors"
    examples.save(path)
    expected = classify(video, candidate_labels=LABELS, examples=examples)
    made = pipeline(TASK, model=classify.model, processor=classify.processor, device="cpu", examples=given)
    for rows in (
        classify(video, candidate_labels=LABELS, examples=given),
        classify(video, candidate_labels=LABELS, examples=str(path)),
        made(video, candidate_labels=LABELS),
        classify(video, candidate_labels=LABELS, examples=ExampleSet.from_videos(classify, given, num_workers=2)),
    ):
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    window = next(iter(classify_windows(classify, video, LABELS, window=10, examples=examples)))
    assert window["scores"] == pytest.approx({row["label"]: row["score"] for row in expected}, abs=1e-5)


def test_leave_one_out_is_that_of_regressions_without_the_example(examples):
    """The closed form against regressions that are really fitted without each example."""
    from modeling_mote.processing import example_set

    torch.manual_seed(0)
    for n, p in ((7, 20), (30, 5)):
        rows, wanted, ridge = torch.randn(n, p).double(), torch.randn(n, 3).double(), 0.3
        found = example_set.Ridge(rows).left_out(wanted, ridge, torch.arange(n))
        for index in range(n):
            kept = torch.arange(n) != index
            x, y = rows[kept], wanted[kept]
            weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(p).double(), x.T @ y)
            assert torch.allclose(rows[index] @ weights, found[index], atol=1e-9)
        assert torch.allclose(
            example_set.Ridge(rows).weights(wanted, ridge),
            torch.linalg.solve(rows.T @ rows + ridge * torch.eye(p).double(), rows.T @ wanted),
        )


def world(classes: int, shots: int, noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Frame features [classes, shots + 10, t, d] of clips around a mean per class."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 1, 1, 16, generator=generator)
    return means + noise * torch.randn(classes, shots + 10, 4, 16, generator=generator)


def test_labels_without_examples_win_exactly_when_the_text_says_so(classify):
    names = [f"archery {word}" for word in ("yoga", "running", "swimming", "person", "video", "photo")]
    embeds = encode_classes(classify.model, classify.tokenizer, names)
    frames = world(len(names), 4)
    given = {name: frames[index, :4] for index, name in enumerate(names) if index % 2 == 0}
    examples = ExampleSet.from_features(classify.model, given)
    tests = frames[:, 4:].flatten(0, 1)
    with torch.no_grad():
        temporal = classify.model.get_temporal_features(tests).last_hidden_state
        before = classify.model.score_modulated(tests, temporal, embeds)[0] / classify.model.logit_scale.exp()
        after = examples.adapt(classify.model, embeds, names, before, tests, temporal)
    assert torch.equal(after[:, 1::2], before[:, 1::2])
    assert torch.equal(before.argmax(-1) % 2, after.argmax(-1) % 2)
    assert torch.allclose(before[:, ::2].amax(-1), after[:, ::2].amax(-1), atol=1e-6)
    assert not torch.equal(before[:, ::2].argmax(-1), after[:, ::2].argmax(-1))
    assert after.min() >= -1.0001


def test_examples_of_one_label_or_that_say_nothing_leave_the_texts(classify):
    embeds = encode_classes(classify.model, classify.tokenizer, LABELS)
    examples = ExampleSet.from_features(classify.model, {"yoga": world(1, 3)[0]})
    assert examples.evidence(classify.model, embeds, LABELS).target == "none"
    # Features that have nothing to do with the labels, over texts that are right.
    torch.manual_seed(0)
    from modeling_mote.processing import example_set

    targets = torch.arange(3).repeat(20)
    cosines = 0.3 + 0.6 * F.one_hot(targets, 3).float()
    found = example_set.fit(torch.randn(60, 32), cosines, targets, embeds, torch.arange(3), 14.0)
    moved = found.adapt(cosines, torch.randn(60, 16), torch.randn(60, 16))
    assert (moved.argmax(-1) == targets).all()


def test_a_set_fits_the_model_in_any_precision_and_no_other(classify, examples, make_model, tmp_path):
    path = tmp_path / "set.safetensors"
    examples.save(path)
    same = make_model()
    for model in (same, make_model().merge_experts(), make_model().to(torch.bfloat16)):
        loaded = ExampleSet.load(path, model)
        assert (loaded.labels, loaded.names) == (examples.labels, examples.names)
        assert torch.equal(loaded.frame_embeds, examples.frame_embeds)
    other = make_model()
    with torch.no_grad():
        for parameter in other.temporal_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(ValueError, match=r"set.safetensors.* another model.*from_videos"):
        ExampleSet.load(path, other)
    changed = pipeline(TASK, model=other, processor=classify.processor, device="cpu")
    with pytest.raises(ValueError, match="another model"):
        changed(np.zeros((8, 32, 32, 3), np.uint8), candidate_labels=LABELS, examples=examples)


def test_bfloat16_scores_as_float32(classify, clips, model_folder):
    half = pipeline(TASK, model=str(model_folder), device="cpu", dtype=torch.bfloat16)
    given = {label: videos[:3] for label, videos in clips.items()}
    rows = half(clips["archery"][5], candidate_labels=LABELS, examples=given)
    assert best(rows) == "archery"
    assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-3)


def test_damaged_and_foreign_files_are_refused(classify, examples, tmp_path):
    path = tmp_path / "set.safetensors"
    examples.save(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        ExampleSet.load(tmp_path / "absent.safetensors", classify.model)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.safetensors is damaged"):
        ExampleSet.load(path, classify.model)
    shutil.copy(Path(classify.model.config._name_or_path) / "model.safetensors", path)
    with pytest.raises(ValueError, match=r"set\.safetensors"):
        ExampleSet.load(path, classify.model)


def test_a_video_that_cannot_be_read_is_named(classify, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"an example can't be read: .*broken\.mp4"):
            ExampleSet.from_videos(classify, {"yoga": [clips["yoga"][0], str(broken)]}, num_workers=workers)


def test_a_video_given_twice(classify, clips, tmp_path):
    copy = shutil.copy(clips["yoga"][0], tmp_path / "copy.mp4")
    with pytest.warns(UserWarning, match=r"copy\.mp4 is the same video as .*0\.mp4"):
        found = ExampleSet.from_videos(classify, {"yoga": [clips["yoga"][0], clips["yoga"][1], str(copy)]})
    assert len(found) == 2
    with pytest.raises(ValueError, match=r"'archery'.*copy\.mp4, of 'yoga', are the same"):
        ExampleSet.from_videos(classify, {"archery": clips["yoga"][:1], "yoga": [str(copy)]})


def test_an_example_scores_as_its_label(classify, clips, examples):
    assert best(classify(clips["archery"][0], candidate_labels=LABELS, examples=examples)) == "archery"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one label"),
        (["a.mp4"], "at least one label"),
        ({"yoga": []}, "'yoga' has no example"),
    ],
)
def test_examples_that_make_no_sense(classify, clips, given, message):
    with pytest.raises(ValueError, match=message):
        classify(clips["yoga"][0], candidate_labels=LABELS, examples=given)


def test_labels_of_examples_are_candidates(classify, clips):
    with pytest.raises(ValueError, match="label 'swimming' is not among the 3 candidate labels"):
        classify(clips["yoga"][0], candidate_labels=LABELS, examples={"swimming": clips["yoga"][:1]})


def test_views_lengths_and_lists(classify, clips, examples, tmp_path, write_video):
    """Several views, videos of several lengths, and lists that follow one another."""
    arrays = [np.random.default_rng(seed).integers(0, 255, (8, 48, 48, 3), np.uint8) for seed in (1, 2)]
    given = {"yoga": arrays, "archery": clips["archery"][0]}
    rows = classify(clips["yoga"][5], candidate_labels=LABELS, examples=given, num_clips=2)
    assert {row["label"] for row in rows} == set(LABELS)
    long = str(write_video(tmp_path / "long.mp4", num_frames=16, size=(48, 48)))
    by_rate = ExampleSet.from_videos(
        classify, {"yoga": [*clips["yoga"][:2], long], "archery": clips["archery"][:1]}, fps=2
    )
    alone = ExampleSet.from_videos(classify, {"yoga": [long]}, fps=2)
    assert torch.allclose(by_rate.temporal_embeds[2], alone.temporal_embeds[0], atol=1e-5)
    reordered = classify(clips["yoga"][5], candidate_labels=LABELS[::-1], examples=examples)
    expected = classify(clips["yoga"][5], candidate_labels=LABELS, examples=examples)
    assert {row["label"]: row["score"] for row in reordered} == pytest.approx(
        {row["label"]: row["score"] for row in expected}, abs=1e-4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(clips["yoga"][5], candidate_labels=[*LABELS, "running"], examples=examples)
