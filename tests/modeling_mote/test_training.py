"""The authors' schedule, parameter groups and the generators of the mixtures."""

import json
import math

import pytest
import torch
from accelerate import Accelerator

from modeling_mote import MoTEConfig, MoTEForVideoClassification
from modeling_mote.training import (
    Batches,
    TrainStep,
    fitting_batch_size,
    freeze,
    lr_at,
    parameter_groups,
    smooth_lr_at,
    step_generator,
)


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


# ------------------------------------------------------------------------------------------- schedules of few steps


def rates(schedule, per_epoch, epochs=5, warmup=1.0):
    return [
        schedule(*divmod(step, per_epoch), per_epoch, epochs, warmup, lr=1.0) for step in range(epochs * per_epoch)
    ]


def test_every_step_of_a_small_data_set_trains():
    """The authors' schedule leaves an epoch of fewer than ten steps at the rate of its beginning, which is 0."""
    assert rates(lr_at, 4)[:4] == [0, 0, 0, 0]
    smooth = rates(smooth_lr_at, 4)
    assert smooth[:4] == [0.25, 0.5, 0.75, 1.0] and min(smooth) > 0
    assert smooth[4:] == sorted(smooth[4:], reverse=True) and smooth[4] == 1
    assert smooth[12] == pytest.approx(0.5)  # the middle of the cosine
    assert rates(smooth_lr_at, 1)[:2] == [1.0, 1.0]
    assert rates(smooth_lr_at, 3, warmup=0)[0] == 1.0
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        smooth_lr_at(0, 4, 4)


@pytest.mark.parametrize("schedule", [lr_at, smooth_lr_at])
def test_schedules_agree_where_the_authors_moves(schedule):
    """After a warm-up of whole epochs, at the first step of an epoch."""
    n, epochs = 40, 6
    expected = [0.5 * (1 + math.cos(math.pi * (epoch - 2) / (epochs - 2))) for epoch in range(2, epochs)]
    assert [schedule(epoch, 0, n, epochs, 2, 1.0) for epoch in range(2, epochs)] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------- batches


def test_batches_are_shared_out_whole_and_drawn_anew_in_each_epoch():
    """Of 11 clips an epoch sees 8, none twice; two processes together take what one takes; a later start cuts off."""

    def batches(batch_size, rank=0, world=1, start=0):
        return list(Batches(11, batch_size, epochs=3, rank=rank, world=world, start=start))

    one, (first, second) = batches(4), (batches(2, rank, 2) for rank in (0, 1))
    assert one == [mine + other for mine, other in zip(first, second, strict=True)]
    assert [{epoch for epoch, _ in batch} for batch in one] == [{0}, {0}, {1}, {1}, {2}, {2}]
    epochs = [[index for _, index in one[i] + one[i + 1]] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 and set(epoch) <= set(range(11)) for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1
    for start in range(6):
        assert batches(4, start=start) == one[start:]
    with pytest.raises(ValueError, match="11 training clips are fewer than one batch of 12"):
        Batches(11, 6, epochs=1, world=2)


@pytest.mark.parametrize(
    "num_clips, parts, expected",
    [(1920, 1, 64), (300, 1, 30), (300, 2, 15), (30, 1, 4), (3, 1, 3), (3, 2, 1), (1, 1, 1)],
)
def test_batch_sizes_that_fit(num_clips, parts, expected):
    assert fitting_batch_size(num_clips, parts) == expected


# ------------------------------------------------------------------------------------------- one step


class Features:
    """Frame features in memory, as a data set of clips."""

    input_name = "frame_embeds"

    def inputs(self, batch, device="cpu"):
        return {"frame_embeds": batch["frame_embeds"].to(device)}


def test_a_model_with_merged_experts_trains_by_its_own_loss(make_model):
    """There is nothing to route: the loss is the cross-entropy of the one feed-forward per layer (r09)."""
    model = make_model()
    model.merge_experts()
    freeze(model, image_tower=True)
    accelerator = Accelerator(cpu=True)
    take_step = TrainStep(model, torch.optim.AdamW(parameter_groups(model, 1e-2, 0.0)), accelerator)
    torch.manual_seed(0)
    embeds, labels = torch.randn(4, 8, 64), torch.tensor([0, 1, 2, 3])
    expected = model.eval()(frame_embeds=embeds, labels=labels).loss.item()
    batch = {"frame_embeds": embeds, "labels": labels, "errors": []}
    losses = [take_step(step, [batch], Features()).loss for step in range(5)]
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[-1] < losses[0]


def test_the_sum_of_parts_is_the_step_of_the_whole(make_model):
    """Two forwards of unequal parts give the gradient's norm and loss of one, all with the same draws."""
    results = []
    torch.manual_seed(0)
    embeds, labels = torch.randn(4, 8, 64), torch.tensor([0, 1, 2, 3])
    for parts in ([4], [1, 3], [4, 0]):
        model = make_model()
        model.config.merge_temperatures = ["inf"]
        freeze(model, image_tower=True)
        take_step = TrainStep(
            model, torch.optim.SGD(parameter_groups(model, 0.1, 0.0)), Accelerator(cpu=True), max_grad_norm=1e9
        )
        expert = torch.eye(4)[[0, 0]]
        model.draw_mixtures = lambda generator, expert=expert: (expert, torch.full((2, 4), 0.25))
        batches, start = [], 0
        for size in parts:
            rows = slice(start, start + size)
            batches.append({"frame_embeds": embeds[rows], "labels": labels[rows], "errors": []})
            start += size
        results.append(take_step(0, batches, Features()))
    assert [result.read for result in results] == [4, 4, 4]
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(results[0].grad_norm, rel=1e-4)


def test_a_loss_that_is_no_number_stops(make_model):
    model = make_model()
    take_step = TrainStep(model, torch.optim.SGD(parameter_groups(model, 0.1, 0.1)), Accelerator(cpu=True))
    batch = {"frame_embeds": torch.full((1, 8, 64), float("nan")), "labels": torch.tensor([0]), "errors": []}
    with pytest.raises(ValueError, match="The loss is nan at step 3: lower lr, or set max_grad_norm"):
        take_step(2, [batch], Features())
