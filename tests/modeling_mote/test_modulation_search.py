"""The modulation temperature chosen on a few labelled clips of the target."""

import pytest
import torch
import torch.nn.functional as F

from modeling_mote.modulation_search import TEMPERATURES, choose_modulation_temperature


@pytest.fixture
def frames() -> torch.Tensor:
    """Frame features of twelve clips, [12, 8, d]."""
    return torch.randn(12, 8, 64, generator=torch.Generator().manual_seed(5))


def labels_under(model, frames, candidates, temperature):
    """What the model answers at a temperature, [b]."""
    kept, model.config.modulation_temperature = model.config.modulation_temperature, temperature
    with torch.no_grad():
        answers = model(frame_embeds=frames, class_embeds=candidates).logits.argmax(-1)
    model.config.modulation_temperature = kept
    return answers


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_least_cross_entropy_of_the_models_own_scores(classifier, candidates, frames, views, merged):
    if merged:
        classifier.merge_experts()
    frames = frames.unflatten(0, (-1, views)) if views > 1 else frames
    labels = torch.arange(len(frames))
    chosen = choose_modulation_temperature(classifier, frames, candidates, labels)
    losses = {}
    for temperature in TEMPERATURES:
        classifier.config.modulation_temperature = temperature
        logits = classifier(frame_embeds=frames, class_embeds=candidates).logits
        losses[temperature] = F.cross_entropy(logits, labels).item()
    assert len(set(losses.values())) > 1
    assert losses[chosen] == min(losses.values())


def test_follows_whom_the_target_proves_right(classifier, candidates, frames):
    """Where CLIP alone is right the temporal part is turned off, where the whole head is, it is kept."""
    with torch.no_grad():
        clip = (F.normalize(frames.mean(1), dim=-1) @ candidates.T).argmax(-1)
    head = labels_under(classifier, frames, candidates, 100.0)
    assert (clip != head).any()
    low, high = (choose_modulation_temperature(classifier, frames, candidates, labels) for labels in (clip, head))
    assert low < high


def test_setting_is_left_alone(classifier, candidates, frames):
    classifier.config.modulation_temperature = 0.07
    choose_modulation_temperature(classifier, frames, candidates, torch.zeros(12, dtype=torch.long))
    with pytest.raises(ValueError, match="frame_embeds"):
        choose_modulation_temperature(classifier, frames[..., :3], candidates, torch.zeros(12, dtype=torch.long))
    assert classifier.config.modulation_temperature == 0.07


def test_a_model_that_modulates_nothing_is_refused(make_model, classifier, candidates, frames):
    labels = torch.zeros(12, dtype=torch.long)
    for model in (make_model(classes=None), classifier.train()):
        with pytest.raises(ValueError, match="training classes are set"):
            choose_modulation_temperature(model, frames, candidates, labels)
