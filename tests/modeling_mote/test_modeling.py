"""The model in evaluation: initialisation, draws, merging, modulation, frames, views and what it refuses."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel
from transformers.utils import logging

from modeling_mote import MoTEForVideoClassification, MoTEModel, MoTETemporalModel
from modeling_mote.modeling_mote import merging_weights, temporal_feature_modulation

UNIFORM = torch.full((2, 4), 0.25)
TEMPERATURES = [-9.6, -4.8, -2.4, -1.2, -0.6, 0.6, 1.2, 2.4, 4.8, 9.6, math.inf]


def scaled(reference: torch.Tensor, tolerance: float = 1e-5) -> dict[str, float]:
    return {"rtol": 0, "atol": tolerance * max(1.0, reference.abs().max().item())}


def expected_modulation(frames, candidates, seen, k=5, gamma=0.05):
    """Eq. 11 written with loops, for one video [t, d]."""
    video = frames.mean(0) / frames.mean(0).norm()
    near = sorted(candidates, key=lambda row: -(row @ video).item())[:k]
    reference = sorted(seen, key=lambda row: -(row @ video).item())[:k]
    best = [max((row @ other).item() for other in reference) for row in near]
    return math.exp(-(1 - sum(best) / len(best)) / gamma)


# --- from CLIP, and initialisation ---


@pytest.mark.parametrize("cls", [MoTEModel, MoTEForVideoClassification])
def test_from_a_bare_clip_only_the_temporal_part_is_new(clip_folder, cls):
    model, info = cls.from_pretrained(clip_folder, output_loading_info=True)
    new = {key for key in info["missing_keys"] if not key.startswith("temporal_model.")}
    assert new == {"seen_classes.weight"}
    assert any(key.startswith("temporal_model.") for key in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.training_classes_set is False
    own = model.state_dict()
    for key, value in CLIPModel.from_pretrained(clip_folder).state_dict().items():
        assert torch.equal(own[key], value), key


@pytest.mark.parametrize("source", ["config", "clip", "temporal"])
def test_initialisation(source, clip_folder, make_config):
    torch.manual_seed(0)
    if source == "clip":
        temporal = MoTEModel.from_pretrained(clip_folder, temporal_config={"num_hidden_layers": 3}).temporal_model
    elif source == "config":
        temporal = MoTEModel(make_config(temporal_config={"num_hidden_layers": 3})).temporal_model
    else:
        temporal = MoTETemporalModel(make_config(temporal_config={"num_hidden_layers": 3}).temporal_config)
    width = temporal.config.hidden_size
    bound = math.sqrt(6 / (3 * width + width))  # torch.nn.init.xavier_uniform_ of a [3d, d] matrix
    for layer in temporal.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            assert 0.98 * bound < projection.weight.abs().max() <= bound
            assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        for matrix in (attention.out_proj.weight, *mlp.up_proj, *mlp.down_proj):
            assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(matrix.mean().item()) < 0.002 and matrix.abs().max() > 0.05
        biases = [module.bias for module in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)]
        for bias in (*biases, mlp.up_proj_bias, mlp.down_proj_bias, layer.layer_norm1.bias, layer.layer_norm2.bias):
            assert not bias.any()
        assert (layer.layer_norm1.weight == 1).all() and (layer.layer_norm2.weight == 1).all()
        assert layer.layer_norm1.eps == layer.layer_norm2.eps == 1e-12
        for stacked in (mlp.up_proj, mlp.down_proj):
            assert not any(torch.equal(stacked[i], stacked[j]) for i in range(4) for j in range(i))
    assert temporal.position_embedding.weight.shape == (77, width)
    assert temporal.position_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(temporal.layers[0].mlp.up_proj, temporal.layers[1].mlp.up_proj)


def test_temporal_part_loads_by_itself(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    temporal, info = MoTETemporalModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    expected = classifier.temporal_model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in temporal.state_dict().items())


# --- draws ---


def test_routing_probabilities_grow_exponentially(classifier):
    temporal = classifier.temporal_model
    torch.manual_seed(0)
    drawn = torch.stack([temporal.draw_routing() for _ in range(4000)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and (drawn.sum(-1) == 1).all()
    expected = torch.tensor([math.exp(i) for i in (1, 2, 3, 4)])
    shares = drawn.mean((0, 1))
    assert torch.allclose(shares, expected / expected.sum(), atol=0.015)  # 5 standard deviations of 8,000 draws
    same = (drawn[:, 0] == drawn[:, 1]).all(-1).float().mean()
    assert abs(same - ((expected / expected.sum()) ** 2).sum()) < 0.04  # the layers draw on their own


def test_merging_draws_every_temperature_alike(classifier):
    torch.manual_seed(0)
    drawn = [classifier.draw_mixtures()[1] for _ in range(2200)]
    choices = {round(merging_weights(4, tau)[0].item(), 5): tau for tau in TEMPERATURES}
    counts = Counter(
        (layer, choices[round(row[0].item(), 5)]) for mixture in drawn for layer, row in enumerate(mixture)
    )
    assert len(counts) == 2 * 11
    assert all(abs(count - 200) < 70 for count in counts.values())  # 5 standard deviations
    equal = sum(torch.equal(mixture[0], mixture[1]) for mixture in drawn)
    assert abs(equal - 200) < 70  # the layers draw on their own


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_merging_weights_are_the_softmax_of_ranks(tau):
    odds = [math.exp(i / tau) for i in range(1, 5)]
    assert merging_weights(4, tau).tolist() == pytest.approx([o / sum(odds) for o in odds], rel=1e-6)
    assert merging_weights(4, "inf").tolist() == [0.25] * 4


@pytest.mark.parametrize("tau", [0, 0.0, math.nan, "hot"])
def test_impossible_temperatures_are_refused(tau, classifier):
    with pytest.raises(ValueError):
        merging_weights(4, tau)
    with pytest.raises(ValueError):
        classifier.merge_experts(temperature=tau)
    assert classifier.config.temporal_config.num_experts == 4


def test_draws_from_a_generator_leave_the_global_one(classifier):
    before = torch.get_rng_state()
    first = classifier.draw_mixtures(torch.Generator().manual_seed(3))
    second = classifier.draw_mixtures(torch.Generator().manual_seed(3))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    one = classifier.draw_mixtures()
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(one, classifier.draw_mixtures(), strict=True))


# --- experts ---


def test_experts_are_averaged_in_weight_space(classifier, videos):
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    mlp, x = classifier.temporal_model.layers[0].mlp, torch.randn(3, 64)
    up, up_bias, down, down_bias = (
        sum(share * expert for share, expert in zip(shares[0], weight, strict=True))
        for weight in (mlp.up_proj, mlp.up_proj_bias, mlp.down_proj, mlp.down_proj_bias)
    )
    hidden = x @ up.T + up_bias
    expected = (hidden * torch.sigmoid(1.702 * hidden)) @ down.T + down_bias
    torch.testing.assert_close(mlp(x, shares[0]), expected, **scaled(expected))
    one_hot = classifier.get_video_features(videos, mixture=F.one_hot(torch.tensor([3, 0]), 4).float()).pooler_output
    assert not torch.allclose(one_hot, classifier.get_video_features(videos).pooler_output, atol=1e-3)


@torch.no_grad()
def test_no_mixture_is_the_uniform_one(classifier, videos, candidates):
    uniform = classifier(videos, class_embeds=candidates, mixture=UNIFORM).logits
    torch.testing.assert_close(classifier(videos, class_embeds=candidates).logits, uniform, **scaled(uniform))


def test_mixture_of_a_wrong_shape_is_refused(classifier, videos):
    for mixture in (torch.full((4,), 0.25), torch.full((2, 3), 1 / 3), torch.full((3, 4), 0.25)):
        with pytest.raises(ValueError, match=r"mixture must be \[layers, experts\] = \[2, 4\]"):
            classifier(videos, mixture=mixture)


def edit_in_place(model):
    model.temporal_model.layers[1].mlp.down_proj.mul_(2.0)


def edit_data(model):
    model.temporal_model.layers[1].mlp.up_proj.data.mul_(2.0)


def replace_data(model):
    for parameter in model.temporal_model.parameters():
        parameter.data = torch.randn_like(parameter)


def replace_parameter(model):
    model.temporal_model.layers[0].mlp.up_proj_bias = torch.nn.Parameter(torch.randn(4, 96))


def load(model):
    state = {key: value + 0.1 if "mlp" in key else value for key, value in model.state_dict().items()}
    model.load_state_dict(state)


def load_assigned(model):
    state = {key: value + 0.1 if "mlp" in key else value for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def copy_average(model):
    for parameter in model.parameters():
        parameter.detach().copy_(0.5 * parameter)


def optimise(model):
    with torch.enable_grad():
        optimizer = torch.optim.AdamW(model.temporal_model.parameters(), lr=0.1)
        model(
            frame_embeds=torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)), labels=torch.tensor([0, 1])
        ).loss.backward()
        optimizer.step()


@torch.no_grad()
@pytest.mark.parametrize(
    "edit",
    [edit_in_place, edit_data, replace_data, replace_parameter, load, load_assigned, copy_average, optimise],
)
def test_merge_is_never_stale(classifier, videos, edit):
    before = classifier(videos).logits
    edit(classifier)
    after = classifier(videos).logits
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, classifier(videos, mixture=UNIFORM).logits, **scaled(after))


@torch.no_grad()
def test_merge_knows_new_weights_at_an_old_address(classifier, videos):
    parameter = dict(classifier.named_parameters())["temporal_model.layers.0.mlp.up_proj"]
    memory = parameter.detach().clone().numpy()
    parameter.data = torch.from_numpy(memory)
    before = classifier(videos).logits
    memory *= 2
    parameter.data = torch.from_numpy(memory)
    after = classifier(videos).logits
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, classifier(videos, mixture=UNIFORM).logits, **scaled(after))


@torch.no_grad()
def test_weights_averaged_over_training_and_put_back(classifier, make_model, videos):
    """As EMA libraries do in evaluation: `p.data.copy_`, of which nothing can be told."""
    expected, other = classifier(videos).logits, make_model(seed=1)
    kept = [parameter.detach().clone() for parameter in classifier.parameters()]
    for parameter, average in zip(classifier.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(average)
    torch.testing.assert_close(classifier(videos).logits, other(videos).logits)
    for parameter, value in zip(classifier.parameters(), kept, strict=True):
        parameter.data.copy_(value)
    assert torch.equal(classifier(videos).logits, expected)


@torch.no_grad()
def test_the_uniform_merge_is_exact(make_model):
    """Four experts: quarters, whose sums lose a bit at most, so equal experts stay as they are."""
    experts = make_model().temporal_model.layers[0].mlp
    for weight in experts.parameters():
        weight.copy_(weight[:1].expand_as(weight))
    for merged, weight in zip(experts.merge(torch.full((4,), 0.25)), experts.parameters(), strict=True):
        assert torch.equal(merged, weight[0])


@torch.no_grad()
def test_merge_stays_out_of_the_state_dict(classifier, videos, tmp_path):
    keys = set(classifier.state_dict())
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    classifier(videos)
    assert set(classifier.state_dict()) == keys
    assert sum(parameter.numel() for parameter in classifier.parameters()) == parameters


@torch.no_grad()
def test_ensembles_of_functional_weights_are_merged_too(classifier):
    """`torch.func` passes weights that have no storage of their own."""
    temporal, features = classifier.temporal_model, torch.randn(2, 8, 64)
    temporal.set_attn_implementation("eager")
    expected = temporal(features).last_hidden_state
    state = {key: torch.stack([value, 2 * value]) for key, value in temporal.state_dict().items()}

    def forward(weights):
        return torch.func.functional_call(temporal, weights, (features,)).last_hidden_state

    both = torch.func.vmap(forward)(state)
    torch.testing.assert_close(both[0], expected, **scaled(expected))
    assert not torch.allclose(both[1], expected, atol=1e-2)
    torch.testing.assert_close(temporal(features).last_hidden_state, expected, **scaled(expected))


# --- evaluation ---


@torch.no_grad()
@pytest.mark.parametrize("cls", [MoTEModel, MoTEForVideoClassification])
def test_evaluation_draws_no_random_number(make_model, videos, candidates, cls):
    model = make_model(cls)
    before = torch.get_rng_state()
    first = model(pixel_values_videos=videos, class_embeds=candidates)
    assert torch.equal(torch.get_rng_state(), before)
    second = model(pixel_values_videos=videos, class_embeds=candidates)
    assert torch.equal(first[0], second[0]) and torch.equal(first.video_embeds, second.video_embeds)


@torch.no_grad()
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 400])
@pytest.mark.parametrize("seen", [1, 3, 20])
def test_any_number_of_classes(make_model, make_classes, videos, classes, seen):
    model, candidates = make_model(classes=seen, num_labels=seen), make_classes(classes, seed=9)
    output = model(videos, class_embeds=candidates)
    assert output.logits.shape == (2, classes) and output.logits.isfinite().all()
    frames = model.get_frame_features(videos).pooler_output
    expected = [expected_modulation(video, candidates, model.seen_classes.weight) for video in frames]
    assert output.modulation.tolist() == pytest.approx(expected, rel=1e-4)
    assert model(videos).logits.shape == (2, seen)


@torch.no_grad()
def test_modulation_reads_its_config(make_model, videos, candidates):
    model = make_model(modulation_top_k=2, modulation_temperature=0.3)
    frames = model.get_frame_features(videos).pooler_output
    expected = [expected_modulation(video, candidates, model.seen_classes.weight, 2, 0.3) for video in frames]
    assert model(videos, class_embeds=candidates).modulation.tolist() == pytest.approx(expected, rel=1e-4)
    assert max(expected) < 0.95  # else the test would not tell modulation from none


@torch.no_grad()
def test_scores_follow_the_formula(classifier, videos, candidates):
    frames = classifier.get_frame_features(videos).pooler_output
    flat = classifier.get_image_features(videos.flatten(0, 1)).pooler_output.view(2, 8, 64)
    torch.testing.assert_close(frames, flat)
    positions = classifier.temporal_model.position_embedding.weight[:8]
    hidden = frames + positions
    for layer in classifier.temporal_model.layers:
        hidden = hidden + layer.self_attn(layer.layer_norm1(hidden))[0]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden), torch.full((4,), 0.25))
    rho = temporal_feature_modulation(frames, candidates, classifier.seen_classes.weight)
    tokens = rho[:, None, None] * hidden + frames
    features = F.normalize(tokens.mean(1), dim=-1)
    logits = classifier.logit_scale.exp() * features @ candidates.T
    output = classifier(videos, class_embeds=candidates)
    torch.testing.assert_close(output.logits, logits, **scaled(logits))
    torch.testing.assert_close(output.video_embeds, features, **scaled(features))
    got = classifier.get_video_features(videos, class_embeds=candidates)
    torch.testing.assert_close(got.last_hidden_state, tokens, **scaled(tokens))
    torch.testing.assert_close(got.pooler_output, tokens.mean(1), **scaled(tokens))
    assert torch.equal(got.frame_embeds, frames)
    assert (got.pooler_output.norm(dim=-1) - 1).abs().max() > 0.01  # not normalised


@torch.no_grad()
@pytest.mark.parametrize("leading", [(2,), (2, 3)])
def test_forward_is_its_steps(classifier, candidates, leading):
    pixels = torch.randn(*leading, 8, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    frames = classifier.get_frame_features(pixels).pooler_output
    mixture = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    temporal = classifier.get_temporal_features(frames, mixture).last_hidden_state
    assert temporal.shape == frames.shape == (*leading, 8, 64)
    classes = classifier.normalize_classes(3 * candidates)
    modulation = classifier.get_modulation(frames, classes)
    assert modulation.shape == leading and (modulation < 0.9).all()
    tokens = classifier.modulate(frames, temporal, modulation)
    output = classifier(pixels, class_embeds=candidates, mixture=mixture)
    torch.testing.assert_close(classifier.score(tokens.mean(-2), classes), output.logits, **scaled(output.logits))
    torch.testing.assert_close(modulation, output.modulation)
    # From means over the frames alone, as exported graphs have them.
    means = classifier.modulate(frames.mean(-2, True), temporal.mean(-2, True), modulation)
    torch.testing.assert_close(means.squeeze(-2), tokens.mean(-2), **scaled(tokens))
    torch.testing.assert_close(classifier.get_modulation(frames.mean(-2, True), classes), modulation)
    assert (classifier.get_modulation(frames, classes, temperature=1e6) > 0.99).all()
    assert torch.equal(classifier.get_modulation(frames), torch.ones(leading))


@torch.no_grad()
def test_classes_are_normalised_wherever_they_come_from(make_model, videos, candidates):
    for model in (make_model(MoTEModel), make_model()):
        expected = model(pixel_values_videos=videos, class_embeds=candidates)
        output = model(pixel_values_videos=videos, class_embeds=7 * candidates)
        torch.testing.assert_close(output[0], expected[0], **scaled(expected[0]))
        torch.testing.assert_close(output.modulation, expected.modulation)
        features = model.get_video_features(videos, class_embeds=7 * candidates)
        torch.testing.assert_close(features.modulation, expected.modulation)


@torch.no_grad()
def test_model_scores_texts(make_model, videos):
    model = make_model(MoTEModel)
    input_ids = torch.randint(2, 97, (3, 16), generator=torch.Generator().manual_seed(0))
    input_ids[:, -1] = 98
    output = model(input_ids, videos)
    texts = F.normalize(model.get_text_features(input_ids).pooler_output, dim=-1)
    torch.testing.assert_close(output.text_embeds, texts)
    torch.testing.assert_close(output.logits_per_video, model(None, videos, class_embeds=texts).logits_per_video)
    assert torch.equal(output.logits_per_text, output.logits_per_video.T)
    torch.testing.assert_close(output.video_embeds.norm(dim=-1), torch.ones(2))
    assert (output.modulation < 0.99).all()
    with pytest.raises(ValueError, match="either input_ids"):
        model(None, videos)
    with pytest.raises(ValueError, match="either input_ids"):
        model(input_ids, videos, class_embeds=texts)


@torch.no_grad()
def test_rho_is_one_without_training_classes(make_model, videos, candidates):
    for cls in (MoTEModel, MoTEForVideoClassification):
        fresh = make_model(cls, classes=None)
        output = fresh(pixel_values_videos=videos, class_embeds=candidates)
        assert output.modulation.tolist() == [1.0, 1.0]
        fresh.set_training_classes([f"class {i}" for i in range(20)], torch.randn(20, 64))
        assert (fresh(pixel_values_videos=videos, class_embeds=candidates).modulation < 0.9).all()


@torch.no_grad()
def test_rho_is_one_without_classes_with_a_loss_and_in_training(make_model, videos, candidates):
    model, classifier = make_model(MoTEModel), make_model()
    assert (model(None, videos, class_embeds=candidates).modulation < 0.9).all()
    ones = torch.ones(2)
    assert torch.equal(model.get_video_features(videos).modulation, ones)
    assert torch.equal(model(None, videos, class_embeds=candidates[:2], return_loss=True).modulation, ones)
    assert torch.equal(classifier(videos).modulation, ones)
    for each in (model.train(), classifier.train()):
        assert torch.equal(each(pixel_values_videos=videos, class_embeds=candidates).modulation, ones)
        assert torch.equal(each.get_video_features(videos, class_embeds=candidates).modulation, ones)


@torch.no_grad()
def test_training_classes_as_candidates_give_rho_one(classifier, videos):
    candidates = classifier(videos, class_embeds=classifier.seen_classes.weight)
    torch.testing.assert_close(candidates.modulation, torch.ones(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(candidates.logits, classifier(videos).logits, rtol=1e-4, atol=1e-4)


def test_contrastive_loss(make_model, videos, candidates):
    model = make_model(MoTEModel)
    output = model(None, videos, class_embeds=candidates[:2], return_loss=True)
    logits, pairs = output.logits_per_video, torch.arange(2)
    expected = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="pairs text i with video i"):
        model(None, videos, class_embeds=candidates, return_loss=True)
    assert model(None, videos, class_embeds=candidates[:2]).loss is None


@torch.no_grad()
@pytest.mark.parametrize("cls", [MoTEModel, MoTEForVideoClassification])
def test_views(make_model, candidates, cls):
    model = make_model(cls)
    views = torch.randn(2, 3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    output = model(pixel_values_videos=views, class_embeds=candidates)
    scores = output.logits if cls is MoTEForVideoClassification else output.logits_per_video
    singles = [model(pixel_values_videos=views[:, v], class_embeds=candidates) for v in range(3)]
    mean = torch.stack([single[0] for single in singles]).mean(0)
    torch.testing.assert_close(scores, mean, **scaled(mean))
    assert output.modulation.shape == (2, 3) and output.video_embeds.shape == (2, 3, 64)
    for v, single in enumerate(singles):
        torch.testing.assert_close(output.modulation[:, v], single.modulation)
        torch.testing.assert_close(output.video_embeds[:, v], single.video_embeds, **scaled(single.video_embeds))
    embeds = model.get_frame_features(views).pooler_output
    assert embeds.shape == (2, 3, 8, 64)
    again = model(frame_embeds=embeds, class_embeds=candidates)
    torch.testing.assert_close(again[0], output[0], **scaled(output[0]))
    assert model.get_video_features(views).last_hidden_state.shape == (2, 3, 8, 64)


@torch.no_grad()
def test_a_batch_gives_what_its_videos_give(classifier, videos, candidates):
    batch = classifier(videos, class_embeds=candidates)
    for index in range(2):
        alone = classifier(videos[index : index + 1], class_embeds=candidates)
        torch.testing.assert_close(batch.logits[index : index + 1], alone.logits, **scaled(alone.logits))
        torch.testing.assert_close(batch.modulation[index : index + 1], alone.modulation)


# --- frames ---


def ask(model, frames, **kwargs):
    features = torch.randn(1, frames, 64, generator=torch.Generator().manual_seed(frames))
    return model.get_video_features(frame_embeds=features, **kwargs).last_hidden_state


@torch.no_grad()
def test_more_frames_than_trained_warn_once(classifier, caplog):
    logging.warning_once.cache_clear()
    for frames in (1, 8):
        assert ask(classifier, frames).shape == (1, frames, 64)
    assert not caplog.records
    for _ in range(3):
        assert ask(classifier, 16).isfinite().all()
    assert [record.getMessage()[:9] for record in caplog.records] == ["16 frames"]
    ask(classifier, 24, interpolate_frame_positions=True)
    assert len(caplog.records) == 1


@torch.no_grad()
def test_more_frames_than_positions_are_refused(classifier):
    assert ask(classifier, 77).shape == (1, 77, 64)
    with pytest.raises(ValueError, match="78 frames, .* 77 .*interpolate_frame_positions=True"):
        ask(classifier, 78)
    assert ask(classifier, 78, interpolate_frame_positions=True).shape == (1, 78, 64)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 8, 16, 100])
def test_interpolated_positions(classifier, frames):
    temporal = classifier.temporal_model
    table = temporal.position_embedding.weight[:8]
    for index, position in enumerate(temporal.positions(frames, trained_frames=8)):
        at = 0.0 if frames == 1 else index * 7 / (frames - 1)
        low, high, part = math.floor(at), math.ceil(at), at - math.floor(at)
        expected = (1 - part) * table[low] + part * table[high]
        torch.testing.assert_close(position, expected, rtol=0, atol=1e-5)
    same = ask(classifier, 8, interpolate_frame_positions=True)
    assert torch.equal(same, ask(classifier, 8))


@torch.no_grad()
def test_positions_enter_the_temporal_layers_only(classifier, videos):
    before = classifier.get_video_features(videos)
    classifier.temporal_model.position_embedding.weight.add_(torch.randn(77, 64))
    after = classifier.get_video_features(videos)
    assert torch.equal(before.frame_embeds, after.frame_embeds)
    moved = after.last_hidden_state - before.last_hidden_state
    temporal = after.temporal_model_output.last_hidden_state - before.temporal_model_output.last_hidden_state
    torch.testing.assert_close(moved, temporal, **scaled(temporal))


@torch.no_grad()
def test_order_of_frames_matters(classifier, videos):
    forward, backward = (classifier(frames).logits for frames in (videos, videos.flip(1)))
    assert not torch.allclose(forward, backward, atol=1e-3)


# --- refusals ---


def test_wrong_inputs_are_refused_in_one_sentence(classifier, videos, candidates):
    cases = [
        ({"pixel_values_videos": videos[0]}, "pixel_values_videos must be"),
        ({"frame_embeds": torch.randn(2, 8, 32)}, r"frame_embeds must be \[videos, frames, 64\]"),
        ({"frame_embeds": torch.randn(8, 64)}, "frame_embeds must be"),
        ({"pixel_values_videos": None}, "Pass pixel_values_videos"),
        ({"pixel_values_videos": videos, "class_embeds": candidates[:, :32]}, r"class_embeds must be \[classes, 64\]"),
        ({"pixel_values_videos": videos, "class_embeds": candidates[0]}, "class_embeds must be"),
        ({"pixel_values_videos": videos, "class_embeds": candidates[:0]}, "at least one class"),
        ({"pixel_values_videos": videos, "merge_mixture": UNIFORM}, "merge_mixture fixes the merged pass"),
    ]
    for inputs, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            classifier(**inputs)


def test_a_classifier_without_training_classes_refuses(clip_folder, make_model, videos, candidates):
    for model in (MoTEForVideoClassification.from_pretrained(clip_folder), make_model(classes=None)):
        for mode in (True, False):
            with pytest.raises(ValueError, match="no training classes yet: call set_training_classes"):
                model.train(mode)(videos)
        assert model(videos, class_embeds=candidates).logits.shape == (2, 12)


# --- training classes ---


@torch.no_grad()
def test_set_training_classes_replaces_rows_and_names(classifier, videos, tmp_path):
    rows = 3 * torch.randn(7, 64)
    names = ["walking", "running", "a", "b", "c", "d", "e"]
    classifier(videos)
    classifier.set_training_classes(names, rows)
    assert classifier.config.num_labels == 7 and classifier.config.training_classes_set
    assert classifier.config.id2label == dict(enumerate(names))
    assert classifier.config.label2id["running"] == 1
    torch.testing.assert_close(classifier.seen_classes.weight, F.normalize(rows, dim=-1))
    expected = classifier(videos).logits
    assert expected.shape == (2, 7)
    classifier.save_pretrained(tmp_path)
    again = MoTEForVideoClassification.from_pretrained(tmp_path)
    assert torch.equal(again(videos).logits, expected)
    assert again.config.id2label == dict(enumerate(names)) and again.config.training_classes_set
    assert "seen_classes.weight" not in dict(again.named_parameters())


@pytest.mark.parametrize(
    ("names", "embeds", "sentence"),
    [
        ([], torch.ones(0, 64), "at least one"),
        (["a", " "], torch.ones(2, 64), "no empty one"),
        (["a", None], torch.ones(2, 64), "no empty one"),
        (["a", "a"], torch.ones(2, 64), "'a' more than once"),
        (["a", "b"], torch.ones(3, 64), r"\[2, 64\], got \[3, 64\]"),
        (["a", "b"], torch.ones(2, 32), r"got \[2, 32\]"),
        (["a", "b"], torch.ones(64), r"got \[64\]"),
        (["a", "b"], torch.full((2, 64), math.nan), "finite"),
        (["a", "b"], torch.zeros(2, 64), "zero"),
    ],
)
def test_set_training_classes_refuses(classifier, names, embeds, sentence):
    before = classifier.seen_classes.weight.clone(), dict(classifier.config.id2label)
    with pytest.raises(ValueError, match=sentence):
        classifier.set_training_classes(names, embeds)
    assert torch.equal(classifier.seen_classes.weight, before[0]) and classifier.config.id2label == before[1]


def test_training_classes_are_detached_copies(classifier):
    rows = torch.nn.Parameter(F.normalize(torch.randn(4, 64), dim=-1))
    classifier.set_training_classes(list("abcd"), rows)
    with torch.no_grad():
        rows.zero_()
    assert not classifier.seen_classes.weight.requires_grad
    torch.testing.assert_close(classifier.seen_classes.weight.norm(dim=-1), torch.ones(4))


def test_a_swapped_head_has_no_training_classes(classifier, tmp_path, videos, candidates):
    classifier.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MoTEForVideoClassification.from_pretrained(tmp_path, num_labels=3)
    swapped = MoTEForVideoClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert swapped.config.training_classes_set is False
    assert swapped(videos, class_embeds=candidates).modulation.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="set_training_classes"):
        swapped(videos)


# --- merge_experts ---


def shares_of(kind: str) -> tuple[dict, torch.Tensor]:
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    return {
        "uniform": ({}, UNIFORM),
        "tau": ({"temperature": -0.6}, merging_weights(4, -0.6).expand(2, -1)),
        "infinite": ({"temperature": "inf"}, UNIFORM),
        "one row": ({"weights": rows[1].tolist()}, rows[1].expand(2, -1)),
        "row a layer": ({"weights": rows}, rows),
        "rows as lists": ({"weights": rows.tolist()}, rows),
        "not normalised": ({"weights": [1.0, 1.0, 1.0, 1.0]}, torch.ones(2, 4)),
    }[kind]


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["uniform", "tau", "infinite", "one row", "row a layer", "rows as lists", "not normalised"]
)
def test_merged_experts_score_as_the_mixture(classifier, videos, candidates, tmp_path, kind):
    arguments, mixture = shares_of(kind)
    expected = classifier(videos, class_embeds=candidates, mixture=mixture).logits
    size = sum(parameter.numel() for parameter in classifier.parameters())
    assert classifier.merge_experts(**arguments) is classifier
    assert sum(parameter.numel() for parameter in classifier.parameters()) < size
    merged = classifier(videos, class_embeds=candidates).logits
    torch.testing.assert_close(merged, expected, **scaled(expected))
    assert not classifier.training and not classifier.temporal_model.layers[0].mlp.training
    classifier.save_pretrained(tmp_path)
    again, info = MoTEForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(videos, class_embeds=candidates).logits, merged)
    assert again.config.temporal_config.experts_merged and again.config.temporal_config.num_experts == 1


def test_merging_twice_or_wrongly_is_refused(classifier, videos):
    for weights in ([0.5, 0.5], torch.ones(3, 4), [math.nan] * 4, torch.ones(1, 2, 4)):
        with pytest.raises(ValueError, match="weights must be finite"):
            classifier.merge_experts(weights=weights)
    with pytest.raises(ValueError, match="not both"):
        classifier.merge_experts(temperature=1.0, weights=[0.25] * 4)
    assert not classifier.config.temporal_config.experts_merged
    classifier.merge_experts()
    with pytest.raises(ValueError, match="merged already"):
        classifier.merge_experts()
    with pytest.raises(ValueError, match="no mixture to choose"):
        classifier(videos, mixture=torch.ones(2, 1))


def test_merging_keeps_what_was_frozen_and_the_precision(make_model):
    frozen = make_model().requires_grad_(False).merge_experts()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in make_model().merge_experts().temporal_model.parameters())
    half = make_model().to(torch.bfloat16).merge_experts()
    assert half.temporal_model.layers[0].mlp.fc1.weight.dtype == torch.bfloat16


def test_one_expert_is_a_plain_feed_forward(make_model, videos):
    model = make_model(temporal_config={"num_hidden_layers": 2, "num_experts": 1})
    with torch.no_grad():
        expected = model(videos).logits
        torch.testing.assert_close(model.merge_experts()(videos).logits, expected, **scaled(expected))


def test_no_temporal_layers_is_mean_pooling_of_frames_and_positions(make_model, videos):
    model = make_model(temporal_config={"num_hidden_layers": 0})
    tokens = model.get_video_features(videos)
    expected = 2 * tokens.frame_embeds + model.temporal_model.position_embedding.weight[:8]
    torch.testing.assert_close(tokens.last_hidden_state, expected)
    assert model.train()(videos, labels=torch.tensor([0, 1])).loss.isfinite()


# --- whether the temporal layers were trained ---


def test_weights_say_whether_the_temporal_layers_were_trained(
    clip_folder, make_config, make_classes, videos, tmp_path
):
    for fresh in (
        MoTEForVideoClassification.from_pretrained(clip_folder),
        MoTEModel(make_config()),
        MoTEModel(make_config()).half(),
    ):
        assert not fresh.temporal_layers_trained
    model = MoTEForVideoClassification.from_pretrained(clip_folder)
    model.set_training_classes(["a", "b"], make_classes(2, seed=8))
    model.save_pretrained(tmp_path / "untrained")
    again = MoTEForVideoClassification.from_pretrained(tmp_path / "untrained")
    assert not again.temporal_layers_trained and not copy.deepcopy(again).merge_experts().temporal_layers_trained
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.train()(videos, labels=torch.tensor([0, 1])).loss.backward()
    assert not model.temporal_layers_trained
    optimizer.step()
    assert model.temporal_layers_trained
    again.load_state_dict(model.state_dict())
    assert again.temporal_layers_trained
    model.merge_experts().save_pretrained(tmp_path / "trained")
    assert MoTEModel.from_pretrained(tmp_path / "trained", dtype=torch.bfloat16).temporal_layers_trained
    assert not MoTEModel(MoTEModel.from_pretrained(tmp_path / "trained").config).temporal_layers_trained


def test_one_layer_without_weights_is_not_trained(classifier, tmp_path):
    state = {key: value for key, value in classifier.state_dict().items() if "layers.1." not in key}
    classifier.save_pretrained(tmp_path, state_dict=state)
    assert classifier.temporal_layers_trained
    assert not MoTEModel.from_pretrained(tmp_path).temporal_layers_trained


def test_offloaded_layers_know_whether_they_were_trained(classifier, make_config):
    from accelerate import cpu_offload

    for model, trained in ((classifier, True), (MoTEModel(make_config()).eval(), False)):
        offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
        assert offloaded.temporal_layers_trained is trained
