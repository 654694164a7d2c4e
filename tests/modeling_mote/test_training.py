"""The authors' schedule, parameter groups and the generators of the mixtures."""

import json

import pytest
import torch

from modeling_mote import MoTEConfig, MoTEForVideoClassification
from modeling_mote.training import freeze, lr_at, parameter_groups, step_generator


@pytest.mark.shared
def test_schedule_equals_the_authors(shared):
    reference = json.loads((shared / "reference" / "lr_schedule.json").read_text())
    n = reference["iters_per_epoch"]
    for epoch, iteration, image_tower, head in reference["rows"]:
        assert lr_at(epoch, iteration, n) == pytest.approx(head, rel=1e-12, abs=1e-18)
        scaled = lr_at(epoch, iteration, n, lr=reference["lr"] * reference["clip_ratio"])
        assert scaled == pytest.approx(image_tower, rel=1e-12, abs=1e-18)


def test_schedule_moves_on_every_tenth_iteration_only():
    rates = [lr_at(1, i, 40) for i in range(40)]
    assert [i for i in range(1, 40) if rates[i] != rates[i - 1]] == [9, 19, 29, 39]
    assert lr_at(0, 0, 40) == 0 and lr_at(5, 0, 40) == 5e-5
    with pytest.raises(ValueError, match=r"\[0, 40\)"):
        lr_at(0, 40, 40)


def tiny_model() -> MoTEForVideoClassification:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MoTEForVideoClassification(
        MoTEConfig(
            text_config={**tower, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=32,
        )
    )


def test_groups_hold_every_trainable_parameter_once():
    model = tiny_model()
    freeze(model)
    groups = {group["name"]: group for group in parameter_groups(model, lr=5e-5, clip_lr=3.5e-6)}
    held = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in groups["head"]["params"]} == {
        id(parameter) for parameter in model.temporal_model.parameters()
    }
    assert id(model.logit_scale) in {id(parameter) for parameter in groups["clip"]["params"]}
    assert not any(parameter.requires_grad for parameter in model.text_model.parameters())
    assert all(group["weight_decay"] == 0.2 for group in groups.values())


def test_frozen_image_tower_leaves_the_head_alone():
    model = tiny_model()
    freeze(model, image_tower=True)
    groups = parameter_groups(model, lr=1e-3, clip_lr=1e-5)
    assert [group["name"] for group in groups] == ["head"]


def test_step_generators_repeat_and_differ():
    def draw(*key):
        return torch.rand(4, generator=step_generator(*key)).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, step, rank)) for seed in range(3) for step in range(3) for rank in range(3)}) == 27
