"""The zero-shot pipeline on real files: inputs, labels, batching, the class-feature cache, both model classes."""

import copy
import itertools
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Video
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mote import MoTEForVideoClassification
from modeling_mote.processing import ZeroShotVideoClassificationPipeline, classify_windows, encode_classes, prompts
from modeling_mote.processing.video_decoding import VideoDecodeError, decode_video

TASK = "zero-shot-video-classification"
LABELS = ["archery", "yoga", "flipping the pancake"]


@pytest.fixture(scope="module")
def classify(model_folder: Path) -> ZeroShotVideoClassificationPipeline:
    return pipeline(TASK, model=str(model_folder), device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    sizes = {"one.mp4": (48, 64, 16), "two.mkv": (64, 48, 9), "short.avi": (40, 40, 3)}
    return [
        str(write_video(folder / name, num_frames=length, size=(height, width), codec="mpeg4"))
        for name, (height, width, length) in sizes.items()
    ]


def assert_same(results: list, expected: list, tolerance: float = 1e-6) -> None:
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        assert [row["label"] for row in result] == [row["label"] for row in other]
        assert [row["score"] for row in result] == pytest.approx([row["score"] for row in other], abs=tolerance)


def test_scores_are_the_models(classify, clips):
    result = classify(clips[0], candidate_labels=LABELS)
    assert [set(row) for row in result] == [{"label", "score", "similarity"}] * 3
    assert sorted(row["label"] for row in result) == sorted(LABELS)
    assert result == sorted(result, key=lambda row: -row["score"])
    inputs = classify.processor(videos=clips[0], return_tensors="pt")
    class_embeds = encode_classes(classify.model, classify.processor, LABELS)
    with torch.no_grad():
        outputs = classify.model(**inputs, class_embeds=class_embeds)
    assert outputs.modulation is not None and (outputs.modulation != 1).all()  # the labels reach the video side
    expected = dict(zip(LABELS, outputs.logits_per_video[0].softmax(-1).tolist(), strict=True))
    assert {row["label"]: row["score"] for row in result} == pytest.approx(expected, abs=1e-6)
    cosines = outputs.logits_per_video[0] / classify.model.logit_scale.exp()
    expected = dict(zip(LABELS, cosines.tolist(), strict=True))
    assert {row["label"]: row["similarity"] for row in result} == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def calibrated(classify):
    classify.model.config.calibration = {
        "temperature": 0.5,
        "sigmoid": [2.0, -1.0],
        "known": [3.0, 0.0, 0.25, 0.0, 0.0, 0.5],
        "residuals": [0.1, 1.0, 2.0],
        "ranks": [1, 10, 19],
        "num_clips": 19,
        "num_labels": 5,
    }
    yield classify
    classify.model.config.calibration = None


def test_calibrated_scores(calibrated, clips):
    plain = calibrated(clips[0], candidate_labels=LABELS, function_to_apply="none")
    cosines = torch.tensor([row["similarity"] for row in plain])
    result = calibrated(clips[0], candidate_labels=LABELS)
    assert [row["score"] for row in result] == pytest.approx((cosines / 0.5).softmax(0).tolist(), abs=1e-5)
    by_label = calibrated(clips[0], candidate_labels=LABELS, multi_label=True)
    assert [row["score"] for row in by_label] == pytest.approx((2 * cosines - 1).sigmoid().tolist(), abs=1e-5)

    known = float((3 * cosines.max() + 0.25 * math.log(3) + 0.5).sigmoid())
    rows = {row["label"]: row for row in calibrated([clips[0]], candidate_labels=LABELS, unknown=True)[0]}
    assert rows["none of these"] == {"label": "none of these", "score": pytest.approx(1 - known), "similarity": None}
    assert sum(row["score"] for row in rows.values()) == pytest.approx(1)
    assert rows[result[0]["label"]]["score"] == pytest.approx(known * result[0]["score"], abs=1e-5)
    (window,) = classify_windows(calibrated, clips[0], LABELS, window=60, unknown=True)
    assert window["scores"] == pytest.approx({label: row["score"] for label, row in rows.items()}, abs=1e-5)

    assert calibrated(clips[0], candidate_labels=LABELS, threshold=0.999) == []
    assert len(calibrated(clips[0], candidate_labels=LABELS, coverage=0.9)) == 3  # -log 1/3 is below 2
    assert calibrated(clips[0], candidate_labels=LABELS, coverage=0.05) == []  # and above 0.1


def test_options_of_the_pipeline_hold_unless_a_call_has_others(calibrated, clips):
    parts = {"model": calibrated.model, "processor": calibrated.processor}
    fixed = pipeline(TASK, **parts, candidate_labels=LABELS, top_k=2, unknown=True)
    full = calibrated(clips[0], candidate_labels=LABELS, unknown=True)
    assert_same([fixed(clips[0])], [full[:2]])
    assert_same([fixed(clips[0], top_k=None)], [full])
    assert_same([fixed(clips[0], threshold=0)], [full[:2]])
    assert "none of these" not in {row["label"] for row in fixed(clips[0], unknown=False, top_k=None)}


def test_none_of_these_is_asked_of_the_texts(calibrated, clips):
    def of_none(**options):
        rows = calibrated(clips[0], candidate_labels=LABELS, unknown=True, **options)
        return {row["label"]: row["score"] for row in rows}

    alone, moved = of_none(), of_none(examples={LABELS[0]: [clips[1]], LABELS[1]: [clips[2]]})
    assert moved["none of these"] == pytest.approx(alone["none of these"], abs=1e-6)
    assert moved != pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("option", [{"unknown": True}, {"coverage": 0.9}, {"multi_label": True}])
def test_without_a_calibration(classify, clips, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name} needs a calibration.*mote calibrate"):
        classify(clips[0], candidate_labels=LABELS, **option)


def test_described_labels_answer_with_their_names(classify, clips):
    described = {"vaulting": ["person running", "flipping the pancake"], "yoga": None, "sleeping": "swimming"}
    result = classify(clips[0], candidate_labels=described)
    inputs = classify.processor(videos=clips[0], return_tensors="pt")
    class_embeds = encode_classes(classify.model, classify.processor, described)
    with torch.no_grad():
        outputs = classify.model(**inputs, class_embeds=class_embeds)
    expected = dict(zip(described, outputs.logits_per_video[0].softmax(-1).tolist(), strict=True))
    assert {row["label"]: row["score"] for row in result} == pytest.approx(expected, abs=1e-6)
    (window,) = classify_windows(classify, clips[0], described, window=60)  # the same frames
    assert window["scores"] == pytest.approx(expected, abs=1e-5)

    other = classify(clips[0], candidate_labels=described | {"sleeping": "archery"})  # not the features kept before
    assert abs(score_of(other, "sleeping") - score_of(result, "sleeping")) > 1e-4
    undescribed = classify(clips, candidate_labels=dict.fromkeys(LABELS))
    assert_same(undescribed, classify(clips, candidate_labels=LABELS), tolerance=0)


def score_of(result: list, label: str) -> float:
    return next(row["score"] for row in result if row["label"] == label)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_any_number_of_labels(classify, clips, count):
    words = ("running", "swimming", "archery", "yoga", "pancake", "person", "photo")
    labels = [" ".join(pair) for pair in itertools.permutations(words, 2)][:count]
    result = classify(clips[0], candidate_labels=labels)
    assert len(result) == count and sum(row["score"] for row in result) == pytest.approx(1)


def test_labels_as_a_string_and_set_once(classify, model_folder, clips):
    expected = classify(clips[0], candidate_labels=LABELS)
    assert_same([classify(clips[0], candidate_labels="archery, yoga , flipping the pancake")], [expected])
    fixed = pipeline(TASK, model=str(model_folder), candidate_labels=LABELS, top_k=2)
    assert_same([fixed(clips[0])], [expected[:2]])
    assert_same([fixed(clips[0], top_k=1)], [expected[:1]])
    assert len(fixed(clips[0], candidate_labels="yoga")) == 1


def test_top_k(classify, clips):
    full = classify(clips[0], candidate_labels=LABELS)
    assert_same([classify(clips[0], candidate_labels=LABELS, top_k=2)], [full[:2]])
    assert_same([classify(clips[0], candidate_labels=LABELS, top_k=9)], [full])


def test_every_form_of_input(classify, clips):
    expected = classify(clips[0], candidate_labels=LABELS)
    frames = decode_video(clips[0])[0]
    forms = [
        Path(clips[0]),
        Path(clips[0]).read_bytes(),
        {"path": clips[0], "bytes": None},
        {"path": None, "bytes": Path(clips[0]).read_bytes()},
        frames,
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        [Image.fromarray(frame) for frame in frames],
        tuple(Image.fromarray(frame) for frame in frames),
        list(frames),
    ]
    for form in forms:
        assert_same([classify(form, candidate_labels=LABELS)], [expected])
    assert_same(classify(forms, candidate_labels=LABELS), [expected] * len(forms))
    assert_same(classify(np.stack([frames, frames]), candidate_labels=LABELS), [expected] * 2)
    assert_same([classify(videos=clips[0], candidate_labels=LABELS)], [expected])
    assert_same([classify(inputs=clips[0], candidate_labels=LABELS)], [expected])


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 3, "num_workers": 2}, {"num_workers": 1}])
def test_batches_and_workers_change_nothing(classify, clips, options):
    alone = [classify(clip, candidate_labels=LABELS) for clip in clips]
    assert_same(classify(clips, candidate_labels=LABELS, **options), alone, 1e-5)
    assert_same(classify(tuple(clips), candidate_labels=LABELS, **options), alone, 1e-5)
    views = {"num_clips": 2, "num_crops": 3}
    expected = [classify(clip, candidate_labels=LABELS, **views) for clip in clips]
    assert_same(classify(clips, candidate_labels=LABELS, **views, **options), expected, 1e-5)


def test_generators_and_datasets(classify, clips):
    expected = classify(clips, candidate_labels=LABELS)
    stream = classify((clip for clip in clips), candidate_labels=LABELS)
    assert not isinstance(stream, list)
    assert_same(list(stream), expected)
    assert_same(list(classify(map(str, clips), candidate_labels=LABELS)), expected)
    dataset = Dataset.from_dict({"video": clips}).cast_column("video", Video(decode=False))
    assert dataset[0]["video"] == {"path": clips[0], "bytes": None}
    assert_same(classify(dataset["video"], candidate_labels=LABELS), expected)
    lazily = classify(KeyDataset(dataset, "video"), candidate_labels=LABELS, batch_size=2)
    assert_same(list(lazily), expected, 1e-5)
    assert classify([], candidate_labels=LABELS) == []


def test_frames_and_views_reach_the_model(classify, clips):
    seen = []
    handle = classify.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["pixel_values_videos"].shape)), with_kwargs=True
    )
    classify(clips[0], candidate_labels=LABELS)
    classify(clips[0], candidate_labels=LABELS, num_frames=3)
    classify(clips[0], candidate_labels=LABELS, num_clips=2, num_crops=3)
    handle.remove()
    assert seen == [(1, 4, 3, 32, 32), (1, 3, 3, 32, 32), (1, 6, 4, 3, 32, 32)]


def test_frames_follow_the_model_where_the_processor_has_none(make_model, processor, clips):
    processor.num_frames = None
    classify = ZeroShotVideoClassificationPipeline(make_model(), processor=processor, device="cpu")
    inputs = classify.preprocess(clips[0])
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 32, 32)


def test_short_videos_follow_the_processor(classify, clips):
    assert len(classify(clips[2], candidate_labels=LABELS)) == 3  # the saved processor says "loop"
    with pytest.raises(ValueError, match=r"short\.avi has 3 frames, fewer than num_frames=4"):
        classify(clips[2], candidate_labels=LABELS, short_video="error")


def test_class_features_are_computed_once(classify, clips):
    encoded = []
    handle = classify.model.text_model.register_forward_hook(lambda *args: encoded.append(1))
    try:
        classify(clips, candidate_labels=["swimming", "yoga"])
        assert len(encoded) == 1  # 2 labels × 28 prompts fit one batch; 3 videos
        classify(clips[0], candidate_labels="swimming, yoga")
        assert len(encoded) == 1
        classify(clips[0], candidate_labels=["yoga", "swimming"])
        classify(clips[0], candidate_labels=["yoga", "swimming"], prompts="clip")
        assert len(encoded) == 3
    finally:
        handle.remove()


def test_threads_share_a_pipeline(classify, clips):
    lists = [[f"running {index}", "yoga"] for index in range(12)]  # more than are kept
    expected = [(classify.class_features(labels), classify(clips[0], candidate_labels=labels)) for labels in lists]
    order = np.random.default_rng(0).integers(len(lists), size=400).tolist()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            features = list(pool.map(lambda index: classify.class_features(lists[index]), order))
            scores = list(pool.map(lambda index: classify(clips[0], candidate_labels=lists[index]), order[:40]))
    finally:
        sys.setswitchinterval(interval)
    for index, computed in zip(order, features, strict=True):
        torch.testing.assert_close(computed, expected[index][0])
    assert_same(scores, [expected[index][1] for index in order[:40]], 1e-5)


@pytest.fixture
def own(make_model, processor) -> ZeroShotVideoClassificationPipeline:
    """A pipeline whose model a test may change."""
    return ZeroShotVideoClassificationPipeline(make_model(), processor=processor, device="cpu")


def assert_fresh(classify: ZeroShotVideoClassificationPipeline) -> torch.Tensor:
    """The class features are those of the model as it is now."""
    features = classify.class_features(LABELS)
    assert torch.equal(features, encode_classes(classify.model, classify.tokenizer, LABELS))
    return features


def test_class_features_follow_any_change_of_the_weights(own):
    """Through `.data`, as averages of weights are swapped in, one value of each weight in turn, and back."""
    before = assert_fresh(own)
    assert own.class_features(LABELS) is before
    changed = 0
    token = own.tokenizer.convert_tokens_to_ids("yoga")
    for name, weight in [*own.model.text_model.named_parameters(), *own.model.text_projection.named_parameters()]:
        row = weight.data[token if "token_embedding" in name else 0]
        kept = row.clone()
        row.view(-1)[:1].copy_(kept.view(-1)[:1] + 0.5)
        changed += not torch.equal(assert_fresh(own), before)
        row.copy_(kept)
        assert torch.equal(assert_fresh(own), before)
    assert changed > 25  # not the biases of keys, on which no attention depends
    weight = own.model.text_model.embeddings.token_embedding.weight
    weight.data.copy_(weight.data.flip(0))  # the same values in other places
    assert not torch.equal(assert_fresh(own), before)
    own.model.half()
    assert not torch.equal(assert_fresh(own), before)


def test_few_label_lists_are_kept(own):
    for index in range(20):
        own.class_features([f"yoga {index}"])
    assert len(own._class_features) == 8


def test_class_features_follow_adapters(make_model, processor):
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make_model(), options)
    model.add_adapter("other", options)
    classify = ZeroShotVideoClassificationPipeline(model, processor=processor, device="cpu")
    first = assert_fresh(classify)
    with model.disable_adapter():
        bare = assert_fresh(classify)
    assert torch.equal(assert_fresh(classify), first)
    model.set_adapter("other")
    assert len({features.sum().item() for features in (first, bare, assert_fresh(classify))}) == 3
    model.set_adapter("default")
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 3.0)
    assert not torch.equal(assert_fresh(classify), first)


def test_class_features_follow_the_tokenizer(own, word_tokenizer):
    before = assert_fresh(own)
    own.tokenizer = copy.deepcopy(own.tokenizer)
    assert torch.equal(assert_fresh(own), before)
    words = sorted(word for word in own.tokenizer.get_vocab() if word.isalpha() or word == ".")
    own.tokenizer = word_tokenizer(words, model_max_length=24)  # the same words under other ids
    assert not torch.equal(assert_fresh(own), before)


def test_prompts(classify, clips):
    named = classify(clips[0], candidate_labels=LABELS, prompts="clip")
    assert_same([classify(clips[0], candidate_labels=LABELS, prompts=["a photo of {}."])], [named])
    default = classify(clips[0], candidate_labels=LABELS)
    assert_same([classify(clips[0], candidate_labels=LABELS, prompts=prompts.PROMPT_SETS["mote_28"])], [default])
    assert [row["score"] for row in named] != pytest.approx([row["score"] for row in default], abs=1e-7)


def test_a_classifier_gives_the_same(classify, make_model, processor, clips):
    other = ZeroShotVideoClassificationPipeline(
        make_model(MoTEForVideoClassification), processor=processor, device="cpu"
    )
    expected = [classify(clip, candidate_labels=LABELS) for clip in clips]
    assert_same(other(clips, candidate_labels=LABELS), expected)


def test_transformers_own_pipeline_scores_the_training_classes(model_folder, clips):
    """The same folder serves "video-classification", with the frames of the saved processor, short videos too."""
    closed_set = pipeline("video-classification", model=str(model_folder))
    results = [closed_set(clip) for clip in clips]
    zero_shot = pipeline(TASK, model=str(model_folder))
    assert_same(results, zero_shot(clips, candidate_labels=["running", "swimming"]), 1e-5)


def test_a_model_in_training_mode_is_evaluated(classify, make_model, processor, clips):
    other = ZeroShotVideoClassificationPipeline(make_model().train(), processor=processor, device="cpu")
    state = torch.random.get_rng_state()
    assert_same([other(clips[0], candidate_labels=LABELS)], [classify(clips[0], candidate_labels=LABELS)])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bfloat16(model_folder, clips):
    classify = pipeline(TASK, model=str(model_folder), dtype=torch.bfloat16)
    result = classify(clips, candidate_labels=LABELS, batch_size=3)
    assert all(sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-5) for rows in result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "candidate_labels is missing"),
        ({"candidate_labels": []}, "no label was given"),
        ({"candidate_labels": ["yoga", ""]}, "label 2 of 2 is empty"),
        ({"candidate_labels": "yoga, yoga"}, "label 'yoga' was given twice"),
        ({"candidate_labels": LABELS, "top_k": 0}, "top_k is 0"),
        ({"candidate_labels": LABELS, "prompts": "mote_29"}, "unknown prompt set 'mote_29'"),
        ({"candidate_labels": LABELS, "candidate_label": "x"}, "unknown argument 'candidate_label'"),
        ({"candidate_labels": LABELS, "num_crops": 2}, "num_crops is 2"),
    ],
)
def test_bad_arguments_are_one_sentence(classify, clips, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        classify(clips[0], **arguments)
    assert "\n" not in str(caught.value)


def test_a_model_that_was_never_trained_is_refused(make_model, processor):
    model = make_model()
    for layer in model.temporal_model.layers:
        torch.nn.init.zeros_(layer.layer_norm1.bias)
    with pytest.raises(ValueError, match="were never trained, so its scores would mean nothing: train it"):
        ZeroShotVideoClassificationPipeline(model, processor=processor, device="cpu")


def test_a_rate_in_place_of_a_number_of_frames(make_model, processor, clips):
    processor.video_processor.num_frames, processor.video_processor.fps = None, 2
    classify = ZeroShotVideoClassificationPipeline(make_model(), processor=processor, device="cpu")
    assert classify.preprocess(clips[0])["pixel_values_videos"].shape[1] == 4  # of 2 s
    assert classify.preprocess(clips[0], fps=1)["pixel_values_videos"].shape[1] == 2
    assert classify.preprocess(clips[0], num_frames=3)["pixel_values_videos"].shape[1] == 3


def test_no_video(classify, model_folder, tokenizer):
    with pytest.raises(ValueError, match="no video was given"):
        classify(candidate_labels=LABELS)
    with pytest.raises(ValueError, match="needs processor="):
        ZeroShotVideoClassificationPipeline(classify.model, tokenizer=tokenizer)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 2, "num_workers": 1}])
def test_a_bad_video_is_named(classify, clips, tmp_path, options):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(VideoDecodeError, match=r"^\S*broken\.mp4") as caught:
        classify([clips[0], str(broken)], candidate_labels=LABELS, **options)
    assert "\n" not in str(caught.value)  # and no traceback of a worker


@pytest.fixture
def spawned() -> Iterator[None]:
    """Processes start as on macOS, Windows and Python 3.14: nothing is inherited, all is pickled."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_workers_that_are_spawned(classify, clips, spawned):
    expected = [classify(clip, candidate_labels=LABELS) for clip in clips[:2]]
    assert_same(classify(clips[:2], candidate_labels=LABELS, num_workers=1, batch_size=2), expected, 1e-5)


def test_a_generator_stays_in_its_process(classify, clips, spawned):
    loader = classify.get_iterator((clip for clip in clips), 1, 2, {}, {}, {}).loader.loader
    assert loader.num_workers == 0 and len(next(iter(loader))["pixel_values_videos"]) == 2


def test_workers_get_no_model(classify, clips):
    """What is pickled for a worker is the processor of videos, not hundreds of megabytes of weights."""
    loader = classify.get_iterator(clips, 1, 2, {}, {}, {}).loader.loader
    packed = pickle.dumps((loader.dataset, loader.collate_fn))
    assert len(packed) < 20_000
    dataset, collate = pickle.loads(packed)
    assert collate([dataset[0], dataset[1]])["pixel_values_videos"].shape == (2, 4, 3, 32, 32)


def test_saved_pipeline_loads_again(classify, clips, tmp_path):
    classify.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    again = pipeline(TASK, model=str(tmp_path))
    assert_same(again(clips, candidate_labels=LABELS), classify(clips, candidate_labels=LABELS))


WITHOUT_PACKAGE = """
import json, sys
sys.modules["processing"] = sys.modules["modeling_mote"] = None  # importing either now fails
from transformers import AutoModel, AutoProcessor
folder, clip, *labels = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
classify = processor.pipeline_class(model, processor=processor, device="cpu")
print(json.dumps(classify(clip, candidate_labels=labels)))
"""


@pytest.mark.slow
def test_without_the_package(classify, model_folder, clips, tmp_path):
    """The saved folder carries the code: another interpreter, in which the packages can't be imported, agrees."""
    for name in (
        "pipeline_mote.py",
        "prompts.py",
        "video_decoding.py",
        "frame_sampling.py",
        "video_inputs.py",
        "module_state.py",
    ):
        assert (model_folder / name).is_file()
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, str(model_folder), clips[0], *LABELS],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == classify(clips[0], candidate_labels=LABELS)


def test_labels_that_look_like_names_of_folders_are_pointed_out(classify, clips):
    with pytest.warns(UserWarning, match="did you mean 'yoga running' rather than 'yoga-running-'"):
        scores = classify(clips[0], candidate_labels=["yoga-running-", "archery"])
    assert {row["label"] for row in scores} == {"yoga-running-", "archery"}  # and taken as they are
