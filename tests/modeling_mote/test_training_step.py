"""The model in training: the three-term loss, its draws, checkpointing, precision, and fine-tuning on new classes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers.utils import logging

from modeling_mote import MoTEForVideoClassification, MoTEModel
from modeling_mote.modeling_mote import merging_weights

LABELS = torch.tensor([3, 11])


@pytest.fixture
def learner(classifier):
    return classifier.train()


@pytest.fixture
def draws(classifier):
    """A fixed draw: the `mixture` and the `merge_mixture` of a step."""
    routed = F.one_hot(torch.tensor([2, 0]), 4).float()
    return {"mixture": routed, "merge_mixture": torch.stack([merging_weights(4, -2.4), merging_weights(4, 0.6)])}


def written_out(model, videos, labels, mixture, merge_mixture, smoothing=0.0):
    """Eq. 10 from the two passes' tokens, with the logarithms written out."""
    frames = model.get_frame_features(videos).pooler_output
    tokens = [
        model.get_video_features(frame_embeds=frames, mixture=m).last_hidden_state for m in (mixture, merge_mixture)
    ]
    losses = []
    for z in tokens:
        pooled = z.mean(1)
        cosine = pooled @ model.seen_classes.weight.T / pooled.norm(dim=-1, keepdim=True)
        log_p = (model.logit_scale.exp() * cosine).log_softmax(-1)
        picked = -log_p[torch.arange(len(labels)), labels]
        losses.append(((1 - smoothing) * picked - smoothing * log_p.mean(-1)).mean())
    return losses[0], losses[1], ((tokens[1] - frames) ** 2).mean()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


# --- the loss ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(0.5, 0.1), (0.0, 2.0)])
def test_loss_is_the_three_term_formula(make_model, videos, draws, smoothing, weights):
    model = make_model(label_smoothing=smoothing, merging_loss_weight=weights[0], mse_loss_weight=weights[1]).train()
    output = model(videos, labels=LABELS, **draws)
    routed, merged, mse = written_out(model, videos, LABELS, **draws, smoothing=smoothing)
    expected = routed + weights[0] * merged + weights[1] * mse
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)
    output.loss.backward()
    got = gradients(model)
    model.zero_grad()
    expected.backward()
    same(got, gradients(model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("others", [(0.5, 0.1), (0.0, 0.0)])
def test_still_penalty_is_on_what_is_added_to_clips_held_still(make_model, videos, draws, others):
    """The formula written out: every frame is the clip's mean frame, encoded before."""
    weights = dict(zip(("merging_loss_weight", "mse_loss_weight"), others, strict=True))
    plain, model = (make_model(**weights, still_penalty_weight=weight).train() for weight in (0.0, 0.3))
    model.load_state_dict(plain.state_dict())
    frames = model.get_frame_features(videos).pooler_output
    still = torch.stack([clip.sum(0) / len(clip) for clip in frames])[:, None].repeat(1, frames.shape[1], 1)
    temporal = model.temporal_model(still, mixture=draws["merge_mixture"]).last_hidden_state
    expected = plain(videos, labels=LABELS, **draws).loss + 0.3 * (temporal**2).sum() / temporal.numel()
    loss = model(videos, labels=LABELS, **draws).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert torch.equal(model.eval()(videos, labels=LABELS).loss, plain.eval()(videos, labels=LABELS).loss)


def test_logits_are_the_routed_pass(learner, videos, draws):
    output = learner(videos, labels=LABELS, **draws)
    routed = learner(videos, mixture=draws["mixture"])
    assert torch.equal(output.logits, routed.logits) and routed.loss is None
    tokens = learner.get_video_features(videos, mixture=draws["mixture"])
    assert torch.equal(output.video_embeds, F.normalize(tokens.pooler_output, dim=-1))
    assert not torch.allclose(output.logits, learner(videos, mixture=draws["merge_mixture"]).logits, atol=1e-3)


def test_both_passes_interpolate_positions(learner, videos, draws):
    frames = videos[:, :5]
    output = learner(frames, labels=LABELS, interpolate_frame_positions=True, **draws)
    with torch.no_grad():
        learner.temporal_model.position_embedding.weight[:5] = learner.temporal_model.positions(5, trained_frames=8)
    torch.testing.assert_close(output.loss, learner(frames, labels=LABELS, **draws).loss)


def test_frames_are_encoded_once(learner, videos, draws):
    calls = []
    learner.vision_model.register_forward_hook(lambda *_: calls.append("frames"))
    learner.temporal_model.register_forward_hook(lambda *_: calls.append("temporal"))
    learner(videos, labels=LABELS, **draws)
    assert calls == ["frames", "temporal", "temporal"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_evaluation_loss_is_plain_cross_entropy(make_model, videos, candidates, smoothing):
    model = make_model(label_smoothing=smoothing)
    output = model(videos, labels=LABELS)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, LABELS))
    output = model(videos, labels=LABELS, class_embeds=candidates)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, LABELS))


def test_one_class_is_a_classification_too(make_model, videos):
    model = make_model(classes=1, num_labels=1)
    labels = torch.zeros(2, dtype=torch.long)
    assert model(videos, labels=labels).loss.item() == 0.0
    assert model.train()(videos, labels=labels).loss.item() > 0.0  # the mean squared error remains
    assert model.config.problem_type is None


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.zeros(2, 20), r"got torch.float32 of shape \[2, 20\]"),
        (torch.zeros(2), r"got torch.float32 of shape \[2\]"),
        (torch.zeros(2, dtype=torch.bool), "got torch.bool"),
        (torch.zeros(2, 1, dtype=torch.long), r"of shape \[2, 1\]"),
        (torch.zeros(3, dtype=torch.long), r"one class for each of 2 videos, as integers of shape \[2\]"),
        (torch.tensor(1), r"of shape \[\]"),
    ],
)
def test_labels_that_are_no_class_indices_are_refused(classifier, videos, labels, sentence):
    for mode in (True, False):
        with pytest.raises(ValueError, match=f"labels must hold the index of .*{sentence}"):
            classifier.train(mode)(videos, labels=labels)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_of_other_integers(classifier, videos, dtype):
    assert classifier(videos, labels=LABELS.to(dtype)).loss == classifier(videos, labels=LABELS).loss


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_other_kinds_of_problem_are_refused(classifier, videos, tmp_path, kind):
    classifier.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"one class per video .*{kind}.* is not supported"):
        MoTEForVideoClassification.from_pretrained(tmp_path, problem_type=kind)
    classifier.config.problem_type = kind  # set later
    with pytest.raises(ValueError, match=f"one class per video .*{kind}.* is not supported"):
        classifier(videos, labels=LABELS)
    classifier.config.problem_type = "single_label_classification"
    assert classifier(videos, labels=LABELS).loss.isfinite()


def test_scores_in_training_say_what_they_are(learner, videos, draws, caplog):
    """Whoever forgot eval(), or took the labels away, gets the scores of a random expert."""
    logging.warning_once.cache_clear()
    learner(videos, labels=LABELS)
    learner(videos, mixture=draws["mixture"])  # a loss of one's own, over a draw of one's own
    assert not caplog.records
    for _ in range(2):
        assert learner(videos).loss is None
    assert [record.getMessage()[:34] for record in caplog.records] == ["In train() mode without labels the"]


def test_other_classes_in_training(learner, videos, candidates, draws):
    output = learner(videos, labels=torch.tensor([3, 11]), class_embeds=candidates, **draws)
    assert output.logits.shape == (2, 12) and output.modulation.tolist() == [1.0, 1.0]
    learner.set_training_classes([str(i) for i in range(12)], candidates)
    torch.testing.assert_close(output.loss, learner(videos, labels=LABELS, **draws).loss)


def test_views_train_too(learner, videos, draws):
    views = torch.stack([videos, videos], dim=1)
    output = learner(views, labels=LABELS, **draws)
    torch.testing.assert_close(output.loss, learner(videos, labels=LABELS, **draws).loss)


def test_frame_features_train_as_pixels_do(learner, videos, draws):
    frames = learner.get_frame_features(videos).pooler_output.detach()
    from_pixels = learner(videos, labels=LABELS, **draws).loss
    torch.testing.assert_close(learner(frame_embeds=frames, labels=LABELS, **draws).loss, from_pixels)


def test_class_features_are_not_trained(learner, videos):
    rows = learner.seen_classes.weight.clone()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.1)
    learner(videos, labels=LABELS).loss.backward()
    optimizer.step()
    assert torch.equal(learner.seen_classes.weight, rows)
    assert all(p.grad is None for name, p in learner.named_parameters() if name.startswith("text"))
    unused = [n for n, p in learner.named_parameters() if p.grad is None and not n.startswith("text")]
    assert unused == []


# --- the draws ---


def test_each_forward_draws_for_the_whole_batch(learner, videos):
    torch.manual_seed(0)
    routed, merged = learner.draw_mixtures()
    torch.manual_seed(0)
    drawn = learner(videos, labels=LABELS)
    fixed = learner(videos, labels=LABELS, mixture=routed, merge_mixture=merged)
    assert torch.equal(drawn.loss, fixed.loss) and torch.equal(drawn.logits, fixed.logits)
    losses = {learner(videos, labels=LABELS).logits[0, 0].item() for _ in range(12)}
    assert len(losses) > 2  # draws differ
    twice = learner(torch.cat([videos, videos]), labels=torch.cat([LABELS, LABELS]))
    torch.testing.assert_close(twice.logits[:2], twice.logits[2:])


def test_the_model_draws_in_training_too(make_model, videos, candidates):
    model = make_model(MoTEModel).train()
    assert len({model(None, videos, class_embeds=candidates).logits_per_video[0, 0].item() for _ in range(12)}) > 2


def test_the_contrastive_loss_trains_every_part(make_model, videos):
    model = make_model(MoTEModel).train()
    input_ids = torch.randint(2, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    input_ids[:, -1] = 98
    model(input_ids, videos, return_loss=True).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("mode", "labels"), [(False, LABELS), (True, None)])
def test_merge_mixture_out_of_place_is_refused(classifier, videos, draws, mode, labels):
    with pytest.raises(ValueError, match="merge_mixture fixes"):
        classifier.train(mode)(videos, labels=labels, **draws)


# --- activation checkpointing ---


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_exact_also_with_random_draws(classifier, videos, reentrant):
    plain, saving = classifier.train(), copy.deepcopy(classifier).train()
    saving.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert saving.is_activation_checkpointing
    results = []
    for model in (plain, saving):
        frames = videos.clone().requires_grad_()
        torch.manual_seed(11)
        loss = model(frames, labels=LABELS).loss
        loss.backward()
        results.append((loss, frames.grad, gradients(model), torch.get_rng_state()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    same(results[0][2], results[1][2], rtol=0, atol=0)
    assert torch.equal(results[0][3], results[1][3])


def test_checkpointed_layers_run_again_in_the_backward_pass(learner, videos):
    learner.activation_checkpointing_enable()
    calls = []
    for layer in learner.temporal_model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = learner(videos, labels=LABELS).loss
    assert len(calls) == 4  # two layers, two passes
    loss.backward()
    assert len(calls) == 8


# --- learning ---


def fit(model, videos, labels, steps=12, lr=2e-3):
    """Trains the temporal part on one batch, and leaves the model in eval mode."""
    optimizer = torch.optim.AdamW(model.temporal_model.parameters(), lr=lr)
    frames = model.get_frame_features(videos).pooler_output.detach()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(frame_embeds=frames, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def test_fine_tuning_a_finished_model_on_new_classes(make_model, make_classes, videos, tmp_path):
    finished = make_model()
    finished.save_pretrained(tmp_path / "finished")
    model = MoTEForVideoClassification.from_pretrained(tmp_path / "finished")
    model.set_training_classes(["new a", "new b", "new c"], make_classes(3, seed=8))
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        before = model(videos, labels=labels).loss.item()
    fit(model, videos, labels)
    with torch.no_grad():
        output = model(videos, labels=labels)
    assert output.loss.item() < 0.5 * before and output.logits.argmax(-1).tolist() == [2, 0]
    model.save_pretrained(tmp_path / "tuned")
    again = MoTEForVideoClassification.from_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        assert torch.equal(again(videos).logits, output.logits)
    assert list(again.config.label2id) == ["new a", "new b", "new c"]


def test_a_fresh_model_from_clip_learns(clip_folder, make_classes, videos):
    torch.manual_seed(0)
    model = MoTEForVideoClassification.from_pretrained(clip_folder)
    model.set_training_classes(["a", "b", "c"], make_classes(3, seed=8))
    with torch.no_grad():
        before = model(videos, labels=torch.tensor([2, 0])).loss.item()
    fit(model, videos, torch.tensor([2, 0]), lr=1e-2)
    with torch.no_grad():
        assert model(videos, labels=torch.tensor([2, 0])).loss.item() < before


def test_a_merged_model_trains(classifier, videos, draws):
    model = classifier.merge_experts().train()
    output = model(videos, labels=LABELS)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, LABELS))
    before = torch.get_rng_state()
    model(videos, labels=LABELS).loss.backward()
    assert torch.equal(torch.get_rng_state(), before)  # nothing is left to draw
    assert model.temporal_model.layers[1].mlp.fc2.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="unmerged experts"):
        model(videos, labels=LABELS, merge_mixture=draws["merge_mixture"])


# --- precision ---


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["load", "to", "shorthand"])
def test_half_precision_scores_near_float32(classifier, videos, candidates, tmp_path, dtype, how):
    expected = classifier(videos, class_embeds=candidates)
    closed = classifier(videos).logits
    rows = classifier.seen_classes.weight
    if how == "load":
        classifier.save_pretrained(tmp_path)
        model = MoTEForVideoClassification.from_pretrained(tmp_path, dtype=dtype)
    elif how == "to":
        model = copy.deepcopy(classifier).to(dtype)
    else:
        model = copy.deepcopy(classifier)
        model = model.half() if dtype is torch.float16 else model.bfloat16()
    assert model.temporal_model.layers[0].mlp.up_proj.dtype == model.visual_projection.weight.dtype == dtype
    assert model.seen_classes.weight.dtype == torch.float32 and torch.equal(model.seen_classes.weight, rows)
    output = model(videos, class_embeds=candidates)
    assert output.modulation.dtype == output.logits.dtype == torch.float32
    scale = classifier.logit_scale.exp()
    step = torch.finfo(dtype).eps
    assert (output.logits / model.logit_scale.float().exp() - expected.logits / scale).abs().max() < 8 * step
    assert (output.modulation - expected.modulation).abs().max() < 8 * step / 0.05
    assert (model(videos).logits / model.logit_scale.float().exp() - closed / scale).abs().max() < 8 * step
    features = model.get_video_features(videos)
    assert features.pooler_output.dtype == dtype
    frames = model.get_frame_features(videos).pooler_output.float()  # as a feature cache gives them
    torch.testing.assert_close(
        model(frame_embeds=frames, class_embeds=candidates).logits, output.logits, atol=0.1, rtol=0
    )


def test_half_precision_models_train(classifier, videos):
    model = classifier.to(torch.bfloat16).train()
    loss = model(videos, labels=LABELS).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_dtype_comes_from_the_checkpoint(classifier, tmp_path):
    classifier.to(torch.bfloat16).save_pretrained(tmp_path)
    model = MoTEForVideoClassification.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == torch.bfloat16 and model.seen_classes.weight.dtype == torch.float32
    assert MoTEForVideoClassification.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_autocast_leaves_merge_modulation_and_scores_in_float32(classifier, videos, candidates):
    experts = classifier.temporal_model.layers[0].mlp
    shares = merging_weights(4, 0.6)
    merged = experts.merge(shares)
    expected = classifier(videos, class_embeds=candidates)
    frames = classifier.get_frame_features(videos).pooler_output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(experts.merge(shares), merged, strict=True))
        cast = classifier(videos, class_embeds=candidates)
        given = classifier(frame_embeds=frames, class_embeds=candidates)
        cached = classifier(frame_embeds=frames, class_embeds=candidates)
    assert cast.logits.dtype == cast.modulation.dtype == torch.float32
    assert (cast.logits - expected.logits).abs().max() < 8 * torch.finfo(
        torch.bfloat16
    ).eps * classifier.logit_scale.exp()
    assert torch.equal(given.modulation, expected.modulation)  # from the same frames: to the last bit
    assert torch.equal(given.logits, cached.logits)
    after = classifier(videos, class_embeds=candidates)
    torch.testing.assert_close(after.logits, expected.logits)  # nothing cast was kept


def test_autocast_trains(learner, videos, draws):
    plain = learner(videos, labels=LABELS, **draws).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = learner(videos, labels=LABELS, **draws).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(plain.item(), rel=0.05)


@pytest.mark.parametrize(("weights", "passes"), [((0.5, 0.1), 2), ((0.5, 0.0), 2), ((0.0, 0.1), 2), ((0.0, 0.0), 1)])
def test_merged_pass_without_weight_is_not_computed(make_model, weights, passes):
    """Its gradient was zero: experts that were not drawn still get one, as DDP and AdamW's decay need."""
    model = make_model(merging_loss_weight=weights[0], mse_loss_weight=weights[1]).train()
    calls = []
    model.temporal_model.register_forward_hook(lambda *_: calls.append(1))
    frames, mixture = torch.randn(3, 8, 64), torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    model(frame_embeds=frames, labels=torch.tensor([0, 1, 2]), mixture=mixture).loss.backward()
    assert len(calls) == passes
    assert all(parameter.grad is not None for parameter in model.temporal_model.parameters())
