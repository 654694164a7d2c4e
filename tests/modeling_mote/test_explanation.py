"""Explanations: shares and effects are the model's own numbers, maps survive deletion, and the model is left alone."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from modeling_mote import MoTEForVideoClassification, explain
from modeling_mote.processing import (
    ExampleSet,
    MoTEProcessor,
    MoTEVideoProcessor,
    VideoDecodeError,
    ZeroShotVideoClassificationPipeline,
    encode_classes,
)
from modeling_mote.processing.builders.moving_shapes import TRAINED_MOTIONS, class_name, render_clip

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["left", "right", "still", "red", "green"]
PROMPTS = "a photo video example demonstration of person using doing during performing practicing ."


@pytest.fixture(scope="module")
def make_processor(word_tokenizer):
    words = [*PROMPTS.split(), *LABELS, "ball", "rolls", "slowly"]
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}

    def make(**options) -> MoTEProcessor:
        videos = MoTEVideoProcessor(**{"num_frames": 8, "short_video": "loop", **sizes, **options})
        return MoTEProcessor(videos, word_tokenizer(words, 16, start=97))

    return make


@pytest.fixture
def make_classify(make_model, make_processor):
    def make(model=None, **options) -> ZeroShotVideoClassificationPipeline:
        model, processor = model or make_model(), make_processor(**options)
        return ZeroShotVideoClassificationPipeline(model=model, processor=processor, tokenizer=processor.tokenizer)

    return make


@pytest.fixture
def classify(make_classify):
    return make_classify()


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """20 frames [t, h, w, c] of 40 × 48, of which no two are alike."""
    return np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), dtype=np.uint8)


def inputs(classify, video, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline gives the model: pixels [1, v, t, 3, h, w] and class features [c, d]."""
    pixels = classify.preprocess(video, **options)["pixel_values_videos"]
    return (pixels if pixels.dim() == 6 else pixels[:, None]), classify.class_features(LABELS)


@torch.no_grad()
def cosines(model, pixels, classes) -> torch.Tensor:
    logits = model(pixel_values_videos=pixels, class_embeds=classes).logits
    return logits[0] / model.logit_scale.exp()


# ----------------------------------------------------------------------------------------------- shares and effects


@pytest.mark.parametrize("views", [{}, {"num_clips": 2, "num_crops": 3}])
@pytest.mark.parametrize("kind", ["plain", "list", "label", "merged"])
def test_shares_are_the_terms_of_the_models_own_cosine(make_model, make_classify, video, kind, views):
    model = make_model(classes=None if kind == "plain" else 20, modulation_temperature=0.5)
    model.config.modulation_scope = "label" if kind == "label" else "list"
    if kind == "merged":
        model.merge_experts()
    classify = make_classify(model)
    pixels, classes = inputs(classify, video, **views)
    own = cosines(model, pixels, classes)
    with torch.no_grad():
        frames = model.get_frame_features(pixels).pooler_output
        temporal = model.get_temporal_features(frames).last_hidden_state
        rho = model.get_modulation(frames, classes)
    assert (kind == "plain") == bool((rho == 1).all())
    why = explain(classify, video, "right", LABELS, **views)
    rho = rho[1] if kind == "label" else rho[..., None, None]
    tokens = (frames + rho * temporal)[0]  # [v, t, d]
    terms = tokens @ classes[1] / tokens.mean(1).norm(dim=-1)[:, None] / tokens.shape[:2].numel()
    torch.testing.assert_close(why.frame_shares, terms if views else terms[0], rtol=1e-4, atol=1e-6)
    assert float(why.frame_shares.sum()) == pytest.approx(float(own[1]), abs=1e-6)
    assert why.similarity == pytest.approx(float(own[1]), abs=1e-6)
    best = classify(video, candidate_labels=LABELS, **views)
    assert why.score == pytest.approx(next(row["score"] for row in best if row["label"] == "right"), abs=1e-6)
    leading = (6,) if views else ()
    assert why.frame_shares.shape == why.frame_effects.shape == (*leading, 8)
    assert why.patch_map.shape == (*leading, 8, 2, 2) and why.pixel_map().shape == (*leading, 8, 32, 32)
    assert why.frames.shape == (*leading, 8, 3, 32, 32) and why.frames.dtype == torch.uint8
    assert why.seconds is None  # an array has no clock
    assert why.frame_shares.std() > 1e-4  # equal shares would be a sum as well


@pytest.mark.parametrize("scope", ["list", "label"])
def test_effects_are_what_blank_frames_cost(make_model, make_classify, video, scope):
    model = make_model(modulation_temperature=0.5, modulation_scope=scope)
    classify = make_classify(model)
    pixels, classes = inputs(classify, video)
    lost = []
    for frame in range(8):
        blank = pixels.clone()
        blank[0, 0, frame] = pixels.mean((0, 1, 2, 4, 5))[:, None, None]
        lost.append(cosines(model, pixels, classes) - cosines(model, blank, classes))
    lost = torch.stack(lost)  # [t, c]
    torch.testing.assert_close(
        explain(classify, video, "still", LABELS).frame_effects, lost[:, 2], rtol=1e-3, atol=1e-6
    )
    why = explain(classify, video, "still", LABELS, against="left")
    torch.testing.assert_close(why.frame_effects, lost[:, 2] - lost[:, 0], rtol=1e-3, atol=1e-6)
    assert lost.abs().max() > 0.001


def test_against_another_label(classify, video):
    own = cosines(classify.model, *inputs(classify, video))
    one, other = (explain(classify, video, label, LABELS) for label in ("right", "red"))
    why = explain(classify, video, "right", LABELS, against="red")
    assert why.similarity == pytest.approx(float(own[1] - own[3]), abs=1e-6)
    torch.testing.assert_close(why.frame_shares, one.frame_shares - other.frame_shares)
    assert why.score == one.score and why.against == "red"
    assert not torch.allclose(one.patch_map, other.patch_map, atol=0.01)  # each label has its own reasons


def test_bfloat16(make_model, make_classify, video):
    classify = make_classify(make_model().to(torch.bfloat16))
    why = explain(classify, video, "right", LABELS)
    assert float(why.frame_shares.sum()) == pytest.approx(why.similarity, abs=0.01)
    exact = explain(make_classify(make_model()), video, "right", LABELS)
    assert why.frame_shares.dtype == why.patch_map.dtype == torch.float32
    torch.testing.assert_close(why.frame_shares, exact.frame_shares, rtol=0.1, atol=0.005)
    assert torch.corrcoef(torch.stack([why.patch_map.flatten(), exact.patch_map.flatten()]))[0, 1] > 0.9


def test_what_is_explained_by_default(classify, video):
    best = classify(video, candidate_labels=LABELS)[0]
    why = explain(classify, video, candidate_labels=LABELS)
    assert (why.label, why.candidate_labels) == (best["label"], tuple(LABELS))
    model = classify.model
    why = explain(classify, video)  # over the training classes, by the features that they were set with
    with torch.no_grad():
        logits = model(pixel_values_videos=inputs(classify, video)[0]).logits[0]
    assert why.label == model.config.id2label[int(logits.argmax())] and len(why.candidate_labels) == 20
    assert why.score == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)


def test_arrays_of_floats_and_labels_with_spaces(classify, video):
    exact, floats = (explain(classify, each, " right  ", LABELS) for each in (video, video.astype(np.float32)))
    assert exact.label == "right" and floats.frames.dtype == torch.uint8
    torch.testing.assert_close(floats.frame_shares, exact.frame_shares, rtol=0.05, atol=1e-4)
    assert (floats.frames.float() - exact.frames.float()).abs().mean() < 1


def test_descriptions_and_prompts_are_the_pipelines(classify, video):
    described = {"left": ["a red ball rolls slowly", "a ball"], "right": None}
    rows = classify(video, candidate_labels=described, prompts="plain")
    why = explain(classify, video, "left", described, prompts="plain")
    assert why.score == pytest.approx(next(row["score"] for row in rows if row["label"] == "left"), abs=1e-6)


def test_examples_are_left_out_and_said_to_be(classify, video):
    expected = explain(classify, video, "red", LABELS)
    examples = ExampleSet.from_videos(classify, {"red": [video[:10]], "green": [video[10:]]})
    options = {"processor": classify.processor, "tokenizer": classify.tokenizer, "examples": examples}
    made_with = ZeroShotVideoClassificationPipeline(model=classify.model, **options)
    with pytest.warns(UserWarning, match="the examples of the pipeline are left out"):
        why = explain(made_with, video, "red", LABELS)
    assert (why.score, why.similarity) == (expected.score, expected.similarity)
    with pytest.raises(ValueError, match="examples only correct: leave them out"):
        explain(classify, video, "red", LABELS, examples=examples)


def test_a_file_has_times(make_classify, write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=16, fps=8)
    why = explain(make_classify(), str(path), "left", LABELS, num_frames=4, num_clips=2)
    assert why.seconds.shape == (2, 4)
    torch.testing.assert_close(why.seconds[0], torch.tensor([0.0, 0.5, 1.0, 1.5]))


# ------------------------------------------------------------------------------------------------------------- maps


def test_maps_are_the_rollout_of_eager_attention(make_classify, make_model, video):
    classify = make_classify()
    why = explain(classify, video, "right", LABELS)
    eager = make_model()
    eager.set_attn_implementation("eager")
    pixels, classes = inputs(classify, video)
    output = eager(pixel_values_videos=pixels, class_embeds=classes, output_attentions=True)
    cosine = output.logits[0, 1] / eager.logit_scale.exp()
    gradients = torch.autograd.grad(cosine, output.attentions)
    whole = torch.eye(5).expand(8, 5, 5)
    for attention, gradient in zip(output.attentions, gradients, strict=True):
        whole = whole + (attention * gradient).clamp(min=0).mean(1) @ whole
    relevance = whole[:, 0, 1:].detach()
    torch.testing.assert_close(why.patch_map, (relevance / relevance.max()).view(8, 2, 2), rtol=1e-3, atol=1e-4)


def test_pixel_maps_are_between_the_patches(classify, video):
    why = explain(classify, video, "right", LABELS)
    assert float(why.patch_map.max()) == 1 and float(why.patch_map.min()) >= 0
    pixels = why.pixel_map()
    torch.testing.assert_close(pixels[:, :8, :8], why.patch_map[:, :1, :1].expand(8, 8, 8))  # up to a patch's middle
    torch.testing.assert_close(pixels[:, 24:, 24:], why.patch_map[:, 1:, 1:].expand(8, 8, 8))


@pytest.fixture(scope="module")
def shapes(word_tokenizer):
    """The demo's CLIP with temporal layers trained in a few seconds on objects in motion; clips; and all labels."""
    folder = ROOT / "examples" / "moving_shapes_clip"
    things = [("red", "bar"), ("green", "star"), ("blue", "cross"), ("yellow", "moon")]
    kinds = [(*thing, motion) for thing in things for motion in TRAINED_MOTIONS]
    labels, tokenizer = [class_name(*kind) for kind in kinds], AutoTokenizer.from_pretrained(folder)

    def clips(count: int, seed: int) -> list[np.ndarray]:
        draws = (np.random.default_rng([seed, index]) for index in range(count))
        return [render_clip(*kinds[index % len(kinds)], draw, 8, 32) for index, draw in enumerate(draws)]

    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = MoTEProcessor(MoTEVideoProcessor(num_frames=8, **sizes), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MoTEForVideoClassification.from_pretrained(folder)
        model.set_training_classes(labels, encode_classes(model, tokenizer, labels))
        pixels = processor(videos=clips(320, seed=1), return_tensors="pt")["pixel_values_videos"]
        with torch.no_grad():
            frames = model.eval().get_frame_features(pixels).pooler_output
        optimizer = torch.optim.AdamW(model.temporal_model.parameters(), lr=2e-3)
        for _ in range(80):
            chosen = torch.randint(len(frames), (64,))
            model.train()(frame_embeds=frames[chosen], labels=chosen % len(labels)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval().merge_experts()
    pipe = ZeroShotVideoClassificationPipeline(model=model, processor=processor, tokenizer=tokenizer)
    return pipe, list(zip(clips(100, seed=2), (labels * 4)[:100], strict=True)), labels


@pytest.mark.slow
def test_deleting_what_is_relevant_lowers_the_score_faster(shapes):
    classify, clips, labels = shapes
    sys.path.insert(0, str(ROOT / "examples" / "experiments"))
    try:
        import deletion
    finally:
        sys.path.pop(0)
    right = [classify(video, candidate_labels=labels, top_k=1)[0]["label"] == label for video, label in clips[:32]]
    assert sum(right) > 12  # of 32 labels: what explains a model that knows nothing proves nothing
    deleted = {"patch_map": (1 / 8, 1 / 4, 1 / 2), "frame_effects": (1 / 4, 1 / 2)}
    for name, area in deletion.measure(classify, clips, labels, deleted).items():
        first, random, last = area.mean(0)  # [orders, 2]: of similarity and score
        assert (first < random).all() and (random < last).all(), (name, area.mean(0))
        if name == "patch_map":
            assert (first < 0.7 * random).all()


# -------------------------------------------------------------------------------------------------- the model is left


def test_model_is_left_as_it_was(make_model, make_processor, video):
    model, processor = make_model(), make_processor()
    model.requires_grad_(False)
    model.temporal_model.train()
    model.logit_scale.grad = torch.tensor(7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    with torch.inference_mode():
        why = explain(model, video, "right", LABELS, processor=processor)
    assert float(why.patch_map.max()) == 1
    assert not torch.is_grad_enabled() or not why.frame_shares.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all(not weight.requires_grad for weight in model.parameters())
    assert float(model.logit_scale.grad) == 7
    assert all(weight.grad is None for name, weight in model.named_parameters() if name != "logit_scale")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_and_hooks_are_left_alone_after_an_error(make_model, make_processor, video):
    model = make_model().train()
    with pytest.raises(ValueError, match="78 frames"):
        explain(model, np.concatenate([video] * 4), "right", LABELS, processor=make_processor(), num_frames=78)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.vision_model.modules())


# ------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_and_a_film(classify, video, tmp_path):
    why = explain(classify, video, "costs $5 or $6", {"right": None, "costs $5 or $6": "a ball"}, num_frames=4)
    why.save(tmp_path / "why.PNG")
    with Image.open(tmp_path / "why.PNG") as picture:
        assert picture.format == "PNG" and picture.width > 500 and picture.height > 300
    why.save(tmp_path / "why.mp4")
    with av.open(str(tmp_path / "why.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
    assert len(frames) == 12 and all(np.abs(frames[i] - frames[i + 3]).mean() > 1 for i in (1, 4, 7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["why.PNG", "why.mp4"]


def test_every_frame_of_every_view_is_drawn(classify, video):
    why = explain(classify, video, "right", LABELS, num_clips=2, num_frames=10)
    figure = why.plot()  # of each view, a row of eight frames and one of two
    pictures = [axes for axes in figure.axes if axes.get_images()]
    strips = [axes for axes in figure.axes if not axes.get_images()]
    assert len(pictures) == 2 * 2 * 10 and len(strips) == 4
    bars = [[bar.get_height() for bar in axes.patches] for axes in strips]
    drawn = torch.tensor(bars[0] + bars[1] + bars[2] + bars[3], dtype=torch.float32).view(2, 10, 2)
    torch.testing.assert_close(drawn, torch.stack([why.frame_shares, why.frame_effects], -1))
    title = figure.get_suptitle()
    assert "'right'" in title and f"{why.similarity:.3f}" in title and f"{why.score:.3f}" in title


# -------------------------------------------------------------------------------------------------------------- errors


def test_one_sentence_for_what_is_wrong(classify, make_model, make_processor, video, tmp_path):
    def refusal(*arguments, **options) -> str:
        with pytest.raises(ValueError) as refused:
            explain(*arguments, **options)
        return str(refused.value)

    listed = "is none of the 5 candidate labels ('left', 'right', 'still', 'red', 'green'): add it to them"
    assert refusal(classify, video, "dog", LABELS) == f"label 'dog' {listed}"
    assert refusal(classify, video, "left", LABELS, against="dog") == f"against 'dog' {listed}"
    assert refusal(classify, video, "class 99").startswith(
        "label 'class 99' is none of the 20 candidate labels ('clas"
    )
    assert refusal(classify, video, "left", LABELS, against="left") == (
        "label and against are both 'left': pass two labels"
    )
    assert "unknown argument 'top_k' of explain: it takes prompts" in refusal(classify, video, "left", LABELS, top_k=1)
    assert "explain takes one video" in refusal(classify, [video, video], "left", LABELS)
    model = make_model(classes=None)
    assert "needs processor=" in refusal(model, video, "left", LABELS)
    assert "no training classes: name labels" in refusal(model, video, processor=make_processor())
    untrained = MoTEForVideoClassification(make_model().config).train()
    assert "were never trained" in refusal(untrained, video, "left", LABELS, processor=make_processor())
    assert untrained.training
    (tmp_path / "none.mp4").write_text("no video")
    with pytest.raises(VideoDecodeError, match="none.mp4"):
        explain(classify, str(tmp_path / "none.mp4"), "left", LABELS)
    with pytest.raises(ValueError, match=r"why.gif must end in .png or .mp4"):
        explain(classify, video, "left", LABELS).save(tmp_path / "why.gif")
    assert not (tmp_path / "why.gif").exists()
