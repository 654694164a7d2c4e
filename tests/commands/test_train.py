"""`mote train`: what it computes, on one process or two, interrupted or not, and how it says no."""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_mote import MoTEForVideoClassification, frame_features, training
from modeling_mote.loading import load_to_train
from modeling_mote.processing.builders import load_videos
from modeling_mote.processing.clips import VideoClips, collate_clips
from modeling_mote.processing.files import only_run
from modeling_mote.training import step_generator

from .conftest import moving_square
from .mini_hub import MiniHub

PIXELS = {"augment": True, "sampling": "train", "clip_lr": 1e-3}


@pytest.fixture
def options(clip_folder, train_list, validation_list, tmp_path):
    """Options of a run of two epochs of three steps of four clips."""
    return {
        "model": str(clip_folder),
        "output": str(tmp_path / "run"),
        "data": str(train_list),
        "validation_data": str(validation_list),
        "num_frames": 4,
        "epochs": 2,
        "warmup_epochs": 0,
        "batch_size": 4,
        "num_workers": 0,
    }


@pytest.fixture
def read_log(options):
    def read(folder=None):
        path = Path(folder or options["output"]) / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read


@pytest.fixture
def run(run_here, options, tmp_path, read_log):
    """`run(name, **changes)`: trains in this process, in a folder of that name; the log's rows."""

    def train(name="run", **changes):
        assert run_here("train", options | {"output": str(tmp_path / name)} | changes) == 0
        return read_log(tmp_path / name)

    return train


def litter(folder: Path) -> list[Path]:
    """Hidden files and folders but the lock, which stays."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def losses(rows):
    return [row["loss"] for row in rows]


def weights(folder: Path, part: str = "") -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if part in name}


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


# ------------------------------------------------------------------------------------------------------------ one run


def test_a_run_leaves_a_model_a_log_and_curves(run, tmp_path, clip_folder, capsys):
    rows = run()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [("validation" in row) for row in rows] == [False, False, True, False, False, True]
    assert rows[2]["validation"] == {"accuracy": rows[2]["validation"]["accuracy"], "scored": 7, "listed": 7} | {
        "bad_clips": {}
    }
    for folder in (tmp_path / "run" / "model", tmp_path / "run" / "best"):
        model = MoTEForVideoClassification.from_pretrained(folder)
        assert model.config.id2label == {0: "left", 1: "right", 2: "still"} and model.config.num_frames == 4
        record = json.loads((folder / "training.json").read_text())
        assert record["arguments"]["batch_size"] == 4 and len(record["clips_sha256"]) == 64
        card = (folder / "README.md").read_text()
        assert card.startswith("---") and "](../curves.png)" in card and "{{" not in card
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > picture.height > 100
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 3
    trained, clip = weights(tmp_path / "run" / "model"), weights(clip_folder)
    for name, tensor in clip.items():
        assert torch.equal(trained[name], tensor), f"{name} is frozen"
    assert f"top-1 {100 * rows[-1]['validation']['accuracy']:.1f} % on 7 clips" in capsys.readouterr().out
    assert litter(tmp_path / "run") == []


def test_the_best_model_is_that_of_the_best_validation(run, tmp_path):
    rows = run(epochs=8, lr=1e-2, clip_lr=1e-2)
    accuracies = {row["step"]: row["validation"]["accuracy"] for row in rows if "validation" in row}
    record = json.loads((tmp_path / "run" / "best" / "training.json").read_text())
    assert len(set(accuracies.values())) > 1
    assert record["validation"]["accuracy"] == max(accuracies.values())
    assert record["step"] == min(step for step, value in accuracies.items() if value == max(accuracies.values()))


def test_checkpoints_are_kept_by_number(run, tmp_path):
    run(save_every=1, keep=3)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000005",
        "step-00000006",
    ]


def test_the_image_tower_trains_at_its_own_rate_and_the_text_tower_not_at_all(run, tmp_path, clip_folder):
    rows = run(clip_lr=1e-4, lr=1e-3)
    assert rows[0]["lr"] == {"head": 1e-3, "clip": 1e-4} and 0 < rows[3]["lr"]["clip"] < 1e-4
    trained, clip = weights(tmp_path / "run" / "model"), weights(clip_folder)
    moved = {name for name, tensor in clip.items() if not torch.equal(trained[name], tensor)}
    assert moved == {name for name in clip if name.startswith(("vision_model", "visual_projection", "logit_scale"))}


def test_the_first_loss_is_the_models_own(run, options, tmp_path):
    """The log's first loss, computed here from what the paper needs: the model, the clips and the draws."""
    rows = run(max_steps=1)
    torch.manual_seed(0)
    from accelerate.utils import set_seed

    set_seed(0)
    model, processor = load_to_train(options["model"], options["num_frames"])
    saved = MoTEForVideoClassification.from_pretrained(tmp_path / "run" / "model")
    model.set_training_classes(list(saved.config.id2label.values()), saved.seen_classes.weight)
    order = torch.randperm(12, generator=step_generator(0, 0)).tolist()[:4]
    clips = VideoClips(load_videos(options["data"], "train"), processor.video_processor, 4, "val")
    batch = collate_clips([clips[index] for index in order])
    mixture, merge_mixture = model.draw_mixtures(step_generator(1, 0))
    model.train()
    loss = model(
        **clips.inputs(batch),
        labels=batch["labels"],
        mixture=mixture,
        merge_mixture=merge_mixture,
    ).loss
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


# ---------------------------------------------------------------------------------------- a folder of one's own videos


@pytest.fixture
def own_videos(tmp_path, write_video):
    """Folders `left_turn`, `right_turn` and `still_life` of five clips each."""
    for label, name in enumerate(("left_turn", "right_turn", "still_life")):
        for number in range(5):
            file = tmp_path / "my_videos" / name / f"{number}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_video(file, frames=moving_square(label, seed=number))
    return tmp_path / "my_videos"


def test_a_folder_of_videos_needs_no_other_option(run_here, own_videos, clip_folder, tmp_path, capfd):
    """Clips are held out, the batch fits the data, every step trains, and the names are words."""
    output = tmp_path / "mine"
    code = run_here("train", {"data": own_videos, "model": clip_folder, "output": output, "epochs": 3})
    said = capfd.readouterr()
    assert code == 0, said.err
    assert "12 clips of 3 classes, 3 clips held out of my_videos at random to validate on" in said.out
    assert said.err.count("left_turn → left turn") == 1
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert len(log) == 3 * 3 and min(row["lr"]["head"] for row in log) > 0  # three steps of four clips per epoch
    assert log[-1]["validation"]["listed"] == 3
    model = MoTEForVideoClassification.from_pretrained(output / "model")
    assert list(model.config.id2label.values()) == ["left turn", "right turn", "still life"]
    assert model.temporal_layers_trained
    record = json.loads((output / "model" / "training.json").read_text())
    assert record["clip_seconds"] > 0
    assert record["settings"]["batch_size"] == 4 and record["validated_on"] == "held out of my_videos at random"
    assert "left_turn is left turn" in record["class_names"]
    card = (output / "model" / "README.md").read_text()
    assert str(tmp_path) not in card and "# MoTE trained on my_videos" in card
    assert 'candidate_labels=["left turn", "right turn", "still life"]' in card and "archery" not in card


def test_all_clips_are_trained_on_if_asked_and_no_plot_is_empty(run, own_videos, tmp_path):
    changes = {"data": own_videos, "validation_data": None, "max_steps": 1}
    widths = {}
    for name, more in {"all": {"validation_split": "none"}, "held out": {}}.items():
        rows = run(name, **changes | more)
        assert ("validation" in rows[0]) == (name == "held out")
        with Image.open(tmp_path / name / "curves.png") as picture:
            widths[name] = picture.width
    assert widths["all"] * 3 == widths["held out"] * 2  # two panels, and three
    assert json.loads((tmp_path / "all" / "model" / "training.json").read_text())["clips"] == 15


def test_the_authors_schedule_says_that_it_leaves_an_epoch_at_zero(run, capsys):
    rows = run(schedule="authors", warmup_epochs=1)
    assert [row["lr"]["head"] > 0 for row in rows] == [False] * 3 + [True] * 3
    assert "With 3 steps per epoch, the authors schedule leaves the learning rate" in capsys.readouterr().err
    assert all(row["lr"]["head"] > 0 for row in run("smooth", warmup_epochs=1))
    assert "at 0" not in capsys.readouterr().err


def test_a_mote_with_merged_experts_is_trained_further(run, tmp_path):
    run("first")
    folder = tmp_path / "first" / "model"
    model = MoTEForVideoClassification.from_pretrained(folder)
    model.merge_experts().save_pretrained(folder)
    rows = run("second", model=folder, lr=1e-2, epochs=4)
    assert losses(rows)[-1] < losses(rows)[0]
    trained = MoTEForVideoClassification.from_pretrained(tmp_path / "second" / "model")
    assert trained.config.temporal_config.experts_merged


# ----------------------------------------------------------------------------------------------------------- features


def test_gradient_accumulation_is_a_true_mean(run, tmp_path, monkeypatch):
    """Two forwards of two clips are one of four, where both forwards draw the same experts."""
    whole = run("whole", max_grad_norm=1e9)

    def one_draw(seed, step, rank=0):
        return step_generator(seed, step // 2 if seed == 1 else step, rank)

    monkeypatch.setattr(training, "step_generator", one_draw)
    accumulated = run("accumulated", batch_size=2, gradient_accumulation=2, max_grad_norm=1e9)
    assert losses(accumulated) == pytest.approx(losses(whole), rel=1e-5)
    assert [row["grad_norm"] for row in accumulated] == pytest.approx([row["grad_norm"] for row in whole], rel=1e-4)
    monkeypatch.undo()
    own_draws = run("own", batch_size=2, gradient_accumulation=2)
    assert losses(own_draws) != pytest.approx(losses(whole), rel=1e-3)


def test_gradient_clipping_bounds_the_gradient_and_logs_its_norm(run, tmp_path):
    free, clipped = run("free", max_grad_norm=1e9), run("clipped", max_grad_norm=1e-7)
    assert free[0]["loss"] == clipped[0]["loss"] and free[0]["grad_norm"] == clipped[0]["grad_norm"] > 1e-3
    norms = {}
    for name in ("free", "clipped"):
        file = tmp_path / name / "checkpoints" / "step-00000003" / "optimizer.bin"
        moments = [state["exp_avg"] for state in torch.load(file, weights_only=True)["state"].values()]
        norms[name] = torch.cat([moment.flatten() for moment in moments]).norm()
    assert norms["clipped"] < 1e-7 < 1e-3 < norms["free"]


def test_label_smoothing_reaches_the_loss_and_the_checkpoint(run, tmp_path):
    plain, smooth = run("plain", max_steps=1), run("smooth", max_steps=1, label_smoothing=0.2)
    assert smooth[0]["loss"] != pytest.approx(plain[0]["loss"], rel=1e-4)
    assert MoTEForVideoClassification.from_pretrained(tmp_path / "smooth" / "model").config.label_smoothing == 0.2


def test_still_penalty_reaches_the_loss_and_the_checkpoint_and_resumes(run, refusal, options, tmp_path):
    """A cut run goes on as the whole one, to the bit, and with another weight not at all."""
    plain = run("plain", max_steps=1, still_penalty=0)
    whole = run("whole", still_penalty=0.3, save_every=1, max_steps=3)
    assert losses(whole)[0] > losses(plain)[0]
    run("cut", still_penalty=0.3, save_every=1, max_steps=2)
    assert losses(run("cut", still_penalty=0.3, save_every=1, max_steps=3)) == losses(whole)
    trained = MoTEForVideoClassification.from_pretrained(tmp_path / "cut" / "model")
    assert trained.config.still_penalty_weight == 0.3
    other = options | {"output": str(tmp_path / "cut"), "still_penalty": 0.1}
    assert "another still_penalty" in refusal("train", other)


def test_ema_saves_the_average_of_the_weights(run, tmp_path):
    rows = run("averaged", ema=0.5, save_every=1, keep=6, max_steps=3)
    plain = run("plain", max_steps=3)
    assert losses(rows) == losses(plain)
    steps = [weights(tmp_path / "averaged" / "checkpoints" / f"step-{step:08d}", "temporal") for step in (1, 2, 3)]
    saved = weights(tmp_path / "averaged" / "model", "temporal")
    for name, tensor in saved.items():
        expected = 0.25 * steps[0][name] + 0.25 * steps[1][name] + 0.5 * steps[2][name]
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(
        saved["temporal_model.position_embedding.weight"], steps[2]["temporal_model.position_embedding.weight"]
    )


def test_activation_checkpointing_runs_layers_again_and_changes_nothing(run, count_calls):
    with count_calls("MoTEExperts") as plain_calls:
        plain = run("plain", **PIXELS)
    with count_calls("MoTEExperts") as calls:
        checkpointing = run("checkpointing", **PIXELS, activation_checkpointing=True)
    assert losses(checkpointing) == losses(plain)
    assert calls[0] == plain_calls[0] + 6 * 2 * 4  # steps, passes, layers


def test_draws_of_the_ranks_differ_from_the_shared_one(run):
    assert losses(run("shared")) != losses(run("per-rank", draws="per-rank"))


def test_bfloat16_rounds(run):
    plain, rounded = run("plain", **PIXELS), losses(run("bf16", **PIXELS, mixed_precision="bf16"))
    assert rounded != losses(plain) and rounded == pytest.approx(losses(plain), rel=0.05)


def test_tensorboard_has_the_curves(run, tmp_path):
    rows = run(tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(rows), rel=1e-6)
    assert [event.value for event in events.Scalars("lr/head")] == pytest.approx([row["lr"]["head"] for row in rows])
    assert [event.step for event in events.Scalars("validation/top1")] == [3, 6]


def test_frames_and_augmentation_do_not_depend_on_the_workers(run):
    assert losses(run("workers", **PIXELS, num_workers=2)) == losses(run("none", **PIXELS))


# ----------------------------------------------------------------------------------------------------- cached features


def test_cached_features_give_the_losses_of_pixels_and_are_encoded_once(run, tmp_path, count_calls):
    cache = str(tmp_path / "cache")
    with count_calls("CLIPVisionModel") as first:
        cached = run("cached", cache_dir=cache)
    with count_calls("CLIPVisionModel") as second, count_calls("CLIPTextModel") as texts:
        again = run("again", cache_dir=cache)
    with count_calls("CLIPVisionModel") as third:
        pixels = run("pixels", cache_features=False)
    assert losses(cached) == pytest.approx(losses(pixels), rel=1e-5) and losses(again) == losses(cached)
    assert [row.get("validation") for row in cached] == [row.get("validation") for row in pixels]
    assert (first[0], second[0], texts[0], third[0]) == (3 + 2, 0, 0, 6 + 2 * 2)


def test_changed_weights_frames_or_files_are_encoded_again(run, tmp_path, make_clip, write_list):
    cache = tmp_path / "cache"

    def encoded():
        return len(list(cache.glob("frames-*")))

    changes = [
        {},
        {"lr": 1e-2},
        {"num_frames": 3},
        {"model": str(make_clip(tmp_path / "other", seed=1))},
        {"data": str(write_list("others", 12, seed=2))},
        {"mixed_precision": "bf16"},
    ]
    counts = []
    for number, change in enumerate(changes):
        run(f"run{number}", cache_dir=str(cache), validation_split="none", max_steps=1, **change)
        counts.append(encoded())
    assert counts == [1, 1, 2, 3, 4, 5]


def test_a_killed_encoding_goes_on_where_it_was(run, tmp_path, count_calls, monkeypatch):
    monkeypatch.setattr(frame_features, "SHARD", 2)
    cache = tmp_path / "cache"
    whole = run("whole", cache_dir=str(cache), validation_split="none")
    files = sorted(cache.glob("frames-*/*"))
    assert len(files) == 6
    files[2].unlink()
    files[5].unlink()
    with count_calls("CLIPVisionModel") as calls:
        assert losses(run("again", cache_dir=str(cache), validation_split="none")) == losses(whole)
    assert calls[0] == 2


# ----------------------------------------------------------------------------------------------------------- bad files


@pytest.fixture(scope="module")
def bad_list(write_list):
    """12 clips of which the first two of step 1, one process' whole share of two, are no videos."""
    order = torch.randperm(12, generator=step_generator(0, 0)).tolist()
    return write_list("bad", 12, bad=order[:2])


@pytest.mark.parametrize("changes", [{}, PIXELS], ids=["cached", "pixels"])
def test_bad_files_are_skipped_counted_and_named_once(run, bad_list, train_list, changes, tmp_path, capsys):
    rows = run(data=str(bad_list), max_bad_fraction=0.5, lr=0.0, **changes | {"clip_lr": 0.0})
    said = capsys.readouterr().out
    assert sum(row["skipped"] for row in rows) == 4 and rows[0]["skipped"] == 2
    named = [name for row in rows for name in row.get("bad_clips", {})]
    assert sorted(named) == sorted(set(named)) and len(named) == 2
    record = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert sorted(record["bad_clips"]) == sorted(named)
    for name in named:
        assert said.count(f"skipped {name}") == 1
    assert "2 training clips could not be read" in said


def test_the_loss_is_the_mean_over_what_was_read(run, bad_list, options, monkeypatch):
    """The two clips read of step 1 alone make its loss, with and without accumulation over a batch that is all bad."""
    rows = run("run", data=str(bad_list), max_bad_fraction=0.5, max_steps=1)
    order = torch.randperm(12, generator=step_generator(0, 0)).tolist()
    batches = training.Batches.__iter__
    monkeypatch.setattr(training.Batches, "__iter__", lambda self: iter([[(0, index) for index in order[2:4]]]))
    alone = run("alone", data=str(bad_list), batch_size=4, max_steps=1, max_bad_fraction=0.5)
    monkeypatch.setattr(training.Batches, "__iter__", batches)
    monkeypatch.setattr(training, "step_generator", lambda seed, step, rank=0: step_generator(seed, step // 2))
    halves = run(
        "halves", data=str(bad_list), batch_size=2, gradient_accumulation=2, max_steps=1, max_bad_fraction=0.5
    )
    assert rows[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)
    assert halves[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)


def test_a_step_without_any_clip_moves_nothing(run, bad_list, tmp_path):
    rows = run(data=str(bad_list), batch_size=2, max_bad_fraction=0.5, max_steps=2, save_every=1, max_grad_norm=1.0)
    first, second = (weights(tmp_path / "run" / "checkpoints" / f"step-{step:08d}") for step in (1, 2))
    assert rows[0]["loss"] is None and rows[0]["skipped"] == 2
    assert rows[1]["loss"] > 0 and not torch.equal(
        first["temporal_model.position_embedding.weight"], second["temporal_model.position_embedding.weight"]
    )
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        picture.load()


def test_too_many_bad_files_stop_the_run(refusal, options, bad_list, tmp_path):
    message = refusal("train", options | {"data": str(bad_list), "max_bad_fraction": 0.1})
    assert "2 of 12 training clips can't be read, more than max_bad_fraction allows" in message
    assert "run `mote check` on the data" in message
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_bad_validation_clips_count_as_wrong_and_are_named(run, write_list):
    rows = run(validation_data=str(write_list("half", 4, bad=[1])), max_steps=1)
    validation = rows[0]["validation"]
    assert (validation["scored"], validation["listed"], list(validation["bad_clips"])) == (3, 4, ["clip01.mp4"])
    assert validation["accuracy"] in (0, 1 / 4, 2 / 4, 3 / 4)


# ------------------------------------------------------------------------------------------------------------ few-shot


def test_few_shot_draws_k_clips_a_class_and_repeats_them(run, tmp_path, count_calls):
    with count_calls("CLIPVisionModel") as calls:
        rows = run(shots=2, validation_split="none", batch_size=3)
    assert len(rows) == 2 * 12 // 3 and calls[0] == 2  # 6 clips, each encoded once
    with open(tmp_path / "run" / "few_shot.csv", newline="") as file:
        chosen = list(csv.DictReader(file))
    assert sorted(row["label"] for row in chosen) == ["left"] * 2 + ["right"] * 2 + ["still"] * 2
    assert len({row["path"] for row in chosen}) == 6
    run("same", shots=2, validation_split="none", max_steps=1)
    run("other", shots=2, validation_split="none", max_steps=1, seed=1)
    lists = {name: (tmp_path / name / "few_shot.csv").read_text() for name in ("run", "same", "other")}
    assert lists["run"] == lists["same"] != lists["other"]
    record = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert record["arguments"]["shots"] == 2 and record["clips"] == 12


def test_a_few_shot_list_can_be_trained_on(run, options, tmp_path, train_list):
    table = train_list.with_name("parts.csv")
    with open(train_list, newline="") as file:
        rows = list(csv.DictReader(file))
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "start", "end"), *((row["path"], row["label"], 0.25, 1.25) for row in rows)]
        )
    first = run("first", data=str(table), shots=4, validation_split="none")
    chosen = tmp_path / "first" / "few_shot.csv"
    assert "0.25,1.25" in chosen.read_text()
    second = run("second", data=str(chosen), data_dir=str(train_list.parent), validation_split="none")
    assert losses(second) == losses(first)


def test_too_few_clips_for_the_shots(refusal, options, tmp_path):
    message = refusal("train", options | {"shots": 5})
    assert message == "shots is 5, but class 'left' has only 4 training clips."


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "changes",
    [{"ema": 0.9, "max_grad_norm": 0.5}, PIXELS | {"gradient_accumulation": 2, "batch_size": 2}],
    ids=["cached, average", "pixels, accumulation"],
)
def test_a_stopped_run_goes_on_to_the_last_digit(run, tmp_path, changes):
    whole = run("whole", **changes)
    for steps in (1, 2, 5):  # within an epoch, and across its end
        run("parts", **changes, max_steps=steps)
    rows = run("parts", **changes)
    for row, expected in zip(rows, whole, strict=True):
        if row["step"] not in (1, 2, 5):  # the last step of a stopped run is validated
            assert row == expected
        assert row["loss"] == expected["loss"]
    assert_equal(weights(tmp_path / "parts" / "model"), weights(tmp_path / "whole" / "model"))
    assert run("parts", **changes) == rows, "a finished run started again stays as it is"


def kill_at(process: subprocess.Popen, ready, whole_session: bool = False) -> None:
    end = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
    (os.killpg if whole_session else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_kill_at_a_random_step(run, start, options, read_log, tmp_path):
    """The same command again gives the log of a run that nobody killed."""
    changes = PIXELS | {"epochs": 12, "num_workers": 1, "save_every": 2, "ema": 0.8, "validation_split": "none"}
    killed = options | changes | {"output": str(tmp_path / "killed")}
    log, at = tmp_path / "killed" / "log.jsonl", random.randint(3, 25)
    kill_at(start("train", killed), lambda: log.is_file() and len(log.read_text().splitlines()) >= at)
    steps = len(log.read_text().splitlines())
    assert at <= steps < 36
    with open(log, "a") as file:
        file.write('{"step": 9, "lo')  # as a kill in the middle of a line leaves it
    whole = run("whole", **changes)
    assert run("killed", **changes) == whole
    assert_equal(weights(tmp_path / "killed" / "model"), weights(tmp_path / "whole" / "model"))


@pytest.mark.slow
def test_kill_while_a_checkpoint_is_written(run, start, options, tmp_path):
    changes = {"epochs": 16, "save_every": 1, "validation_split": "none", "keep": 1}
    killed, checkpoints = options | changes | {"output": str(tmp_path / "killed")}, tmp_path / "killed" / "checkpoints"

    def writing():
        return len(list(checkpoints.glob("step-*"))) and list(checkpoints.glob(".step-*"))

    kill_at(start("train", killed), writing)
    last = max(checkpoints.glob("step-*"))
    partial = checkpoints / f".step-{int(last.name[5:]) + 1:08d}.partial"
    partial.mkdir(exist_ok=True)
    (partial / "model.safetensors").write_bytes((last / "model.safetensors").read_bytes()[:1000])
    assert run("killed", **changes) == run("whole", **changes)
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000048"]


def test_changed_options_are_refused_and_harmless_ones_taken(run, refusal, options, tmp_path, train_list):
    run(max_steps=2)
    before = (tmp_path / "run" / "log.jsonl").read_text()
    message = refusal("train", options | {"lr": 0.5, "epochs": 3})
    assert "was written with another epochs, lr: go on with the same, or choose another output folder" in message
    message = refusal("train", options | {"mixed_precision": "bf16"})
    assert "another mixed_precision" in message
    with open(train_list, "a") as file:
        file.write("clip00.mp4,left\n")
    try:
        assert "another list of training clips" in refusal("train", options)
    finally:
        train_list.write_text("".join(train_list.read_text().splitlines(keepends=True)[:-1]))
    assert (tmp_path / "run" / "log.jsonl").read_text() == before
    assert len(run(save_every=1, keep=1, num_workers=1, tensorboard=True, max_bad_fraction=0.9)) == 6


def test_changed_clips_are_said(run, write_video, own_videos, capsys):
    changes = {"data": own_videos, "validation_data": None}
    run(max_steps=1, **changes)
    run(max_steps=2, **changes)
    assert "have changed" not in capsys.readouterr().err
    write_video(own_videos / "left_turn" / "0.mp4", frames=moving_square(0, seed=77))
    run(**changes)
    assert "Files of training clips have changed since step 2" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path, capsys):
    whole = run("whole", save_every=1)
    run("parts", save_every=1, max_steps=4)
    newest = tmp_path / "parts" / "checkpoints" / "step-00000004"
    (newest / "optimizer.bin").write_bytes(b"")
    rows = run("parts", save_every=1)
    assert "step-00000004 is damaged (optimizer.bin is not what was written)" in capsys.readouterr().err
    assert losses(rows) == losses(whole)


def test_a_damaged_log_is_written_anew(run, options, tmp_path):
    """The lines up to a checkpoint are part of it."""
    run(max_steps=3)
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text().replace('"step": 2', '"step": 7'))
    assert [row["step"] for row in run()] == [1, 2, 3, 4, 5, 6]


def test_two_runs_on_one_output(run, refusal, options, tmp_path):
    with only_run(tmp_path / "run"):
        assert f"Another run is writing to {tmp_path / 'run'}" in refusal("train", options)
    run(max_steps=1)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the reader that dies is patched in")
def test_a_reading_process_that_dies(refusal, options, monkeypatch):
    read = VideoClips.read

    def die(self, row, *args, **kwargs):
        if row["path"] == "clip05.mp4":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return read(self, row, *args, **kwargs)

    monkeypatch.setattr(VideoClips, "read", die)
    for changes in ({}, PIXELS):  # while frames are encoded, and in the loop
        message = refusal("train", options | changes | {"num_workers": 1})
        assert message.startswith("A reading process died while it read clip05.mp4") and "num_workers" in message


def test_ctrl_c_is_one_line(run, refusal, options, monkeypatch, tmp_path):
    whole = run("whole")

    def interrupt(self, step, *_):
        if step == 4:
            raise KeyboardInterrupt
        return take_step(self, step, *_)

    take_step = training.TrainStep.__call__
    monkeypatch.setattr(training.TrainStep, "__call__", interrupt)
    assert refusal("train", options, code=130) == "interrupted"
    monkeypatch.undo()
    assert run() == whole


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def on_two(run_on_two, clip_folder, train_list, validation_list, bad_list, tmp_path_factory):
    """{case: (options of one process, folder of the run on two)}: half the batch on each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    common = {"model": str(clip_folder), "data": str(train_list), "validation_data": str(validation_list)}
    common |= {"num_frames": 4, "epochs": 2, "warmup_epochs": 0, "batch_size": 4, "num_workers": 0}
    bad = {"data": str(bad_list), "max_bad_fraction": 0.5}
    cases = {
        "cached": common | {"max_grad_norm": 0.1},
        "pixels": common | PIXELS | {"num_workers": 1, "activation_checkpointing": True},
        "bad, cached": common | bad,
        "bad, pixels": common | bad | PIXELS,
        "per-rank": common | {"draws": "per-rank", "validation_split": "none", "max_steps": 2},
        "average": common | {"ema": 0.9},
    }
    runs = [("train", case | {"output": str(folder / name), "batch_size": 2}) for name, case in cases.items()]
    stopped = cases["average"] | {"output": str(folder / "stopped"), "batch_size": 2}
    run_on_two([*runs, ("train", stopped | {"max_steps": 2}), ("train", stopped)])
    return {name: (cases.get(name), folder / name) for name in [*cases, "stopped"]}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cached", "pixels", "bad, cached", "bad, pixels", "average"])
def test_two_processes_give_the_losses_of_one(case, on_two, run, read_log):
    changes, folder = on_two[case]
    one, two = run("one", **changes), read_log(folder)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for row, expected in zip(two, one, strict=True):
        assert row["lr"] == expected["lr"] and row["skipped"] == expected["skipped"]
        assert row.get("validation") == expected.get("validation")
        assert row.get("bad_clips") == expected.get("bad_clips")
        assert row.get("grad_norm", 0) == pytest.approx(expected.get("grad_norm", 0), rel=1e-4)


@pytest.mark.slow
def test_processes_that_draw_for_themselves_give_other_losses(on_two, read_log):
    shared, own = (losses(read_log(on_two[case][1]))[:2] for case in ("cached", "per-rank"))
    assert own != pytest.approx(shared, rel=1e-5)


@pytest.mark.slow
def test_two_processes_go_on_to_the_last_digit(on_two, read_log):
    whole, stopped = read_log(on_two["average"][1]), read_log(on_two["stopped"][1])
    assert losses(stopped) == losses(whole) and stopped[-1] == whole[-1]
    assert_equal(weights(on_two["stopped"][1] / "model"), weights(on_two["average"][1] / "model"))


@pytest.mark.slow
def test_kill_of_two_processes(launch, options, read_log, tmp_path):
    changes = PIXELS | {"epochs": 12, "batch_size": 2, "num_workers": 1, "save_every": 2, "ema": 0.8}
    killed, whole = (options | changes | {"output": str(tmp_path / name)} for name in ("killed", "whole"))
    log, at = tmp_path / "killed" / "log.jsonl", random.randint(3, 25)
    process = launch("train", killed, start_new_session=True)
    kill_at(process, lambda: log.is_file() and len(log.read_text().splitlines()) >= at, whole_session=True)
    for each in (killed, whole):
        process = launch("train", each)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert_equal(weights(tmp_path / "killed" / "model"), weights(tmp_path / "whole" / "model"))


@pytest.mark.slow
def test_one_process_that_fails_does_not_leave_the_other_hanging(launch, options, tmp_path):
    """Only the first process writes, and its disk is full; the other one waits for it."""
    process = launch("train", options | {"batch_size": 2}, limit=20_000)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert len([line for line in err.splitlines() if "error: " in line and "File too large" in line]) == 1
    assert litter(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"data": "nowhere.csv"}, "--data nowhere.csv: there is no such folder or list"),
        ({"batch_size": 7}, "12 training clips are fewer than one batch of 14: lower batch_size."),
    ],
    ids=["before the work", "by the library"],
)
def test_bad_input_ends_both_processes_and_is_said_once(launch, options, changes, sentence):
    process = launch("train", options | {"batch_size": 2} | changes)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and err.count(f"error: {sentence}") == 1


@pytest.mark.slow
def test_another_number_of_processes_is_refused(on_two, refusal):
    options, folder = on_two["average"]
    message = refusal("train", options | {"output": str(folder), "batch_size": 2})
    assert "was written with another number of processes" in message


# ----------------------------------------------------------------------------------------------------------- bad input


def write_csv(path: Path, lines: str) -> str:
    path.write_text(lines)
    return str(path)


BAD_INPUT = {
    "an empty split": ({"data": "EMPTY"}, "empty has no class"),
    "an empty split of a folder": (
        {"data": "SPLITS", "validation_data": None},
        "hold no file with the suffix of a video",
    ),
    "an unknown label": ({"validation_data": "UNKNOWN"}, "class 'jumping' too, which has no training clip"),
    "two classes of one name": ({"data": "TWICE"}, "'Left' and 'left' are one to the text tower"),
    "a missing list": ({"data": "nowhere.csv"}, "--data nowhere.csv: there is no such folder or list"),
    "a wrong data_dir": ({"data_dir": "nowhere"}, "--data_dir nowhere: there is no such file or folder"),
    "a data_dir without the clips": ({"data_dir": "FOLDER"}, "None of the 12 clips"),
    "a class without a clip": ({"data": "CLASSES"}, "class 'right' too, which has no training clip"),
    "an unknown benchmark": ({"data": "ucf102"}, "no data set of this name; did you mean ucf101?"),
    "too many frames": (
        {"num_frames": 78},
        "num_frames must be between 1 and temporal_config.max_frames (77), got 78",
    ),
    "no checkpoint": ({"model": "no/where/at/all"}, "no/where/at/all"),
    "a checkpoint of another width": ({"model": "WIDTH"}, "its weights do not fit its config.json"),
    "a checkpoint that lacks a weight": (
        {"model": "LACKING"},
        "lacks 1 of its weights, visual_projection.weight to begin with",
    ),
    "more clips a batch than there are": ({"batch_size": 13}, "12 training clips are fewer than one batch of 13"),
    "no validation split": (
        {"validation_data": None, "validation_split": "validation"},
        "has no split validation, so it would be validated on the training clips",
    ),
    "a model of another kind": ({"model": "SIGLIP"}, "holds a model of type 'siglip'"),
    "fp16 without a GPU": ({"mixed_precision": "fp16"}, "fp16"),
    "a warm-up beyond the end": ({"warmup_epochs": 2}, "warmup_epochs must be in [0, epochs), got 2.0 of 2"),
    "an output that is a file": ({"output": __file__}, "is a file: name a folder"),
    "a missing recipe": ({"config": "nowhere.yaml"}, "--config nowhere.yaml: no such file"),
    "a recipe of other options": ({"config": "RECIPE"}, "has no option learning_rate"),
    "a recipe that is none": ({"config": "PROSE"}, "must hold lines of `option: value`"),
}


@pytest.mark.parametrize("changes, sentence", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_in_a_sentence(
    changes, sentence, refusal, options, tmp_path, make_clip, train_list, write_video
):
    made = {
        "EMPTY": lambda: write_csv(tmp_path / "empty.csv", "path,label\n"),
        "UNKNOWN": lambda: write_csv(
            tmp_path / "unknown.csv", f"path,label\n{train_list.parent}/clip00.mp4,jumping\n"
        ),
        "TWICE": lambda: write_csv(tmp_path / "twice.csv", "path,label\na.mp4,left\nb.mp4,Left\n"),
        "RECIPE": lambda: write_csv(tmp_path / "recipe.yaml", "lr: 5e-5\nlearning_rate: 1\n"),
        "PROSE": lambda: write_csv(tmp_path / "prose.yaml", "use the settings of last week\n"),
        "FOLDER": lambda: str(tmp_path),
        "WIDTH": lambda: other_width(tmp_path, make_clip),
        "LACKING": lambda: lacking_weight(tmp_path, make_clip),
        "CLASSES": lambda: class_folders(tmp_path, write_video),
        "SPLITS": lambda: split_folders(tmp_path, write_video),
        "SIGLIP": lambda: other_kind(tmp_path),
    }
    changes = {name: made.get(value, lambda value=value: value)() for name, value in changes.items()}
    given = {name: value for name, value in (options | changes).items() if value is not None}
    assert sentence in refusal("train", given)
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert [path.name for path in left] in ([], [".lock"])


def other_width(folder: Path, make_clip) -> str:
    """A checkpoint whose config.json speaks of another width than its weights have."""
    wide, narrow = make_clip(folder / "wide", width=24), make_clip(folder / "narrow")
    (wide / "config.json").write_text((narrow / "config.json").read_text())
    return str(wide)


def other_kind(folder: Path) -> str:
    (folder / "siglip").mkdir()
    (folder / "siglip" / "config.json").write_text('{"model_type": "siglip"}')
    return str(folder / "siglip")


def lacking_weight(folder: Path, make_clip) -> str:
    clip = make_clip(folder / "lacking")
    tensors = load_file(clip / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, clip / "model.safetensors", {"format": "pt"})
    return str(clip)


def class_folders(folder: Path, write_video) -> str:
    for name in ("left", "right"):
        (folder / "videos" / name).mkdir(parents=True)
    write_video(folder / "videos" / "left" / "a.mp4", 4)
    return str(folder / "videos")


def split_folders(folder: Path, write_video) -> str:
    for split in ("train", "validation"):
        (folder / "splits" / split / "left").mkdir(parents=True)
    write_video(folder / "splits" / "train" / "left" / "a.mp4", 4)
    return str(folder / "splits")


def test_a_run_on_another_checkpoint_than_it_began_with(run, refusal, options, make_clip, tmp_path):
    model = make_clip(tmp_path / "clip")
    run(model=str(model), max_steps=2)
    make_clip(tmp_path / "clip", width=24)
    message = refusal("train", options | {"model": str(model)})
    assert "step-00000002 was written with another weights to start from" in message
    make_clip(tmp_path / "clip", seed=1)
    message = refusal("train", options | {"model": str(model)})
    assert "step-00000002 was written with another weights to start from" in message


@pytest.mark.parametrize(
    "size, validation_split",
    [(20_000, "validation"), (20_000, "none"), (330_000, "none")],
    ids=["best model", "weights of a checkpoint", "moments of a checkpoint"],
)
def test_a_full_disk(run, refusal, options, full_disk, tmp_path, size, validation_split):
    """The run stops with a sentence, leaves nothing half-written, and goes on when there is room again."""
    changes = {"validation_split": validation_split, "save_every": 1}
    with full_disk(size):
        message = refusal("train", options | changes)
    assert "File too large" in message or "can't be written" in message, message
    assert not (tmp_path / "run" / "model").exists()
    assert litter(tmp_path / "run") == []
    assert run(**changes) == run("whole", **changes)


@pytest.mark.slow
def test_errors_go_to_stderr_with_exit_code_1(start, options):
    process = start("train", options | {"data": "nowhere.csv"})
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and out == ""
    assert (
        err.splitlines()[-1].startswith("error: --data nowhere.csv: there is no such folder or list")
        and "Traceback" not in err
    )


# ----------------------------------------------------------------------------------------------------------------- Hub


@pytest.fixture
def hub():
    """A Hub on this machine; `hub.files` is what was pushed, by repository and path."""
    with MiniHub() as server:
        yield server


@pytest.mark.slow
def test_push_to_hub_pushes_the_model_folder(start, options, hub, tmp_path):
    process = start("train", options | {"max_steps": 1, "push_to_hub": "lab/tiny-mote"}, **hub.environment)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    pushed = hub.files["lab/tiny-mote"]
    saved = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert {"README.md", "training.json", "config.json", "model.safetensors", "tokenizer.json"} <= saved.keys()
    assert saved.keys() <= pushed.keys()
    for name in ("model.safetensors", "training.json", "config.json", "tokenizer.json"):
        assert pushed[name] == saved[name]
    card = pushed["README.md"].decode()
    assert 'model="lab/tiny-mote"' in card and 'candidate_labels=["left", "right", "still"]' in card


@pytest.mark.slow
def test_a_hub_that_refuses_shows_before_the_training(start, options, hub, tmp_path):
    environment = hub.environment | {"HF_TOKEN": "wrong"}
    process = start("train", options | {"push_to_hub": "lab/tiny-mote"}, **environment)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1 and err.splitlines()[-1].startswith("error: "), err
    assert "the Hub refused the token" in err and "wrong" not in err and not (tmp_path / "run" / "model").exists()
