"""Modulation per label: a class's cosine knows no other candidate, and the paper's rule stays the default."""

import pytest
import torch
import torch.nn.functional as F

from modeling_mote import MoTEForVideoClassification
from modeling_mote.export import Classifier
from modeling_mote.modulation_search import choose_modulation_temperature
from modeling_mote.video_features import embed_frames


@pytest.fixture
def by_label(make_model) -> MoTEForVideoClassification:
    # Heads that move features far, and a gamma that keeps some of it, so that the rule shows.
    return make_model(modulation_scope="label", modulation_temperature=0.5).eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(6, 8, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("leading", [(6,), (2, 3)])
@torch.no_grad()
def test_logits_are_the_rule_written_out(by_label, candidates, frames, leading):
    frames = frames.unflatten(0, leading)
    output = by_label(frame_embeds=frames, class_embeds=3 * candidates)
    still = frames.mean(-2)
    moved = by_label.get_temporal_features(frames).last_hidden_state.mean(-2)
    columns, rhos = [], []
    for label in candidates:
        rho = torch.exp(-(1 - (by_label.seen_classes.weight @ label).max()) / 0.5)
        columns.append(F.cosine_similarity(still + rho * moved, label, dim=-1))
        rhos.append(rho)
    cosines = torch.stack(columns, -1)
    cosines = cosines.mean(1) if len(leading) > 1 else cosines
    torch.testing.assert_close(output.logits, by_label.logit_scale.exp() * cosines, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.modulation, torch.stack(rhos))
    assert 0 < output.modulation.min() < output.modulation.max() < 0.9
    torch.testing.assert_close(output.video_embeds, F.normalize(still + moved, dim=-1))


@torch.no_grad()
def test_a_part_of_the_list_keeps_its_logits(by_label, candidates, frames):
    whole = by_label(frame_embeds=frames, class_embeds=candidates).logits
    part = by_label(frame_embeds=frames, class_embeds=candidates[:2]).logits
    torch.testing.assert_close(part, whole[:, :2])
    by_label.config.modulation_scope = "list"  # the paper's: there it does not
    whole = by_label(frame_embeds=frames, class_embeds=candidates).logits
    part = by_label(frame_embeds=frames, class_embeds=candidates[:2]).logits
    assert (part - whole[:, :2]).abs().max() > 0.01


@torch.no_grad()
def test_training_classes_and_parts_of_them_lose_nothing(by_label, frames):
    rows, own = by_label.seen_classes.weight, by_label(frame_embeds=frames).logits
    torch.testing.assert_close(by_label(frame_embeds=frames, class_embeds=rows).logits, own)
    torch.testing.assert_close(by_label(frame_embeds=frames, class_embeds=rows[:2]).logits, own[:, :2])
    by_label.config.modulation_scope = "list"
    assert (by_label(frame_embeds=frames, class_embeds=rows[:2]).modulation < 0.99).any()


@torch.no_grad()
def test_nothing_is_modulated_in_training_or_without_training_classes(by_label, make_model, candidates, frames):
    mixture = torch.full((2, 4), 0.25)
    plain = by_label.train()(frame_embeds=frames, class_embeds=candidates, mixture=mixture)
    assert torch.equal(plain.modulation, torch.ones(6))
    bare = make_model(classes=None, modulation_scope="label").eval()
    assert torch.equal(bare(frame_embeds=frames, class_embeds=candidates).modulation, torch.ones(6))


def test_a_video_has_no_one_feature_for_a_list(by_label, candidates, frames):
    with pytest.raises(ValueError, match="no one feature for a list"):
        by_label.get_video_features(frame_embeds=frames, class_embeds=candidates)
    assert by_label.get_video_features(frame_embeds=frames).pooler_output.shape == (6, 64)


def test_scope_is_saved_and_checked(by_label, make_config, tmp_path):
    by_label.save_pretrained(tmp_path)
    assert MoTEForVideoClassification.from_pretrained(tmp_path).config.modulation_scope == "label"
    assert make_config().modulation_scope == "list"
    with pytest.raises(ValueError, match="modulation_scope must be one of list, label; got 'video'"):
        make_config(modulation_scope="video")


@torch.no_grad()
def test_everything_that_scores_frames_scores_as_the_model_does(by_label, candidates, frames):
    expected = by_label(frame_embeds=frames, class_embeds=candidates)
    moved = by_label.get_temporal_features(frames).last_hidden_state
    found = Classifier(by_label)(frames.mean(1), moved.mean(1), candidates)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["modulation"], expected.modulation)
    torch.testing.assert_close(found["video_embeds"], expected.video_embeds)
    _, logits = embed_frames(by_label, frames[:, None], candidates)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    labels, losses = expected.logits.argmin(-1), {}
    for temperature in (0.01, 0.2, 1.0):
        by_label.config.modulation_temperature = temperature
        logits = by_label(frame_embeds=frames, class_embeds=candidates).logits
        losses[temperature] = F.cross_entropy(logits, labels).item()
    chosen = choose_modulation_temperature(by_label, frames, candidates, labels, tuple(losses))
    assert losses[chosen] == min(losses.values()) and len(set(losses.values())) == 3
