"""The evaluation script: exact numbers on any number of processes, nothing half-set, nothing passed over."""

import csv
import io
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoProcessor, CLIPModel

from modeling_mote import MoTEForVideoClassification, MoTEModel, evaluation, scoring
from modeling_mote.blending import blend_with_clip
from modeling_mote.convert_mote_original import convert
from modeling_mote.loading import load_pipeline
from modeling_mote.processing import encode_classes
from modeling_mote.processing.calibration import fit_calibration
from modeling_mote.processing.label_sets import LabelSet, load_label_set, read_label_file
from modeling_mote.processing.protocols import half_classes_accuracy, half_classes_score, score_views
from modeling_mote.protocol_data import reword
from modeling_mote.result_pictures import confusion_picture
from modeling_mote.results import (
    beside_table,
    checkpoint_name,
    full_name,
    result_folder,
    results_table,
    write_result,
)

from .mini_hub import MiniHub
from .tiny import save_mote, save_trained

# The test lists that the clips of a UCF101 in miniature are in: 7, 5 and 3 videos; one is broken, one is missing.
UCF = {"Archery": (1, 2, 3), "Biking": (1, 1, 2), "Bowling": (1, 2, 1), "Diving": (2, 3, 1), "Fencing": (1, 3, 2)}
BROKEN, MISSING = "v_Bowling_g01_c01", "v_Diving_g01_c01"


@pytest.fixture(scope="session")
def ucf(tmp_path_factory, write_video):
    """UCF101's official lists and folders, with 15 videos of five classes."""
    root = tmp_path_factory.mktemp("ucf101")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    names = [name.replace(" ", "") for name in load_label_set("ucf101").classes]
    (lists / "classInd.txt").write_text("".join(f"{index} {name}\n" for index, name in enumerate(names, start=1)))
    tests: dict[int, list[str]] = {1: [], 2: [], 3: []}
    draw = np.random.default_rng(0)
    for name, folds in UCF.items():
        raw = name.replace(" ", "")
        (root / "UCF-101" / raw).mkdir(parents=True)
        for clip, fold in enumerate(folds, start=1):
            stem = f"v_{raw}_g{clip:02d}_c01"
            tests[fold].append(f"{raw}/{stem}.avi\n")
            file = root / "UCF-101" / raw / f"{stem}.mp4"
            if stem == BROKEN:
                file.write_bytes(b"no video")
            elif stem != MISSING:
                frames = draw.integers(0, 255, (1, 8, 8, 3), dtype=np.uint8).repeat(5, 1).repeat(6, 2)
                shifts = draw.integers(-3, 4)
                write_video(file, frames=[np.roll(frames[0], index * shifts, axis=1) for index in range(11)])
    for fold, lines in tests.items():
        (lists / f"testlist0{fold}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, clip_folder):
    """A MoTE trained on three classes, its image tower too."""
    return save_trained(tmp_path_factory.mktemp("trained") / "model", clip_folder)


@pytest.fixture(scope="module")
def options(ucf, checkpoint, tmp_path_factory):
    return {
        "protocol": "ucf101-zero-shot",
        "model": str(checkpoint),
        "data_dir": str(ucf),
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "num_workers": 0,
        "allow_empty_classes": True,
    }


@pytest.fixture(scope="module")
def run(options, fresh_accelerate, tmp_path_factory):
    """`run(**changes)`: the result, and the scores [n, c] of each list, NaN for videos that could not be read."""

    def score(**changes):
        kept = []

        def keep(folder, result, tables, bad):
            kept.extend(scores for _, scores, _ in tables)
            write_result(folder, result, tables, bad)

        given = options | {"output": str(tmp_path_factory.mktemp("result"))} | changes
        fresh_accelerate()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "write_result", keep)
            given = {name: value for name, value in given.items() if value is not None}
            result, _ = evaluation.evaluate(accelerator=Accelerator(cpu=True), **given)
            return result, kept

    return score


@pytest.fixture
def refused(options, refusal, tmp_path):
    """`refused(**changes)`: the sentence with which the command stops, its exit code being 1."""

    def refuse(**changes):
        given = options | {"output": tmp_path / "result"} | changes
        return refusal("evaluate", {name: value for name, value in given.items() if value is not None})

    return refuse


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    """Result, scores and folder of the protocol as it is."""
    folder = tmp_path_factory.mktemp("plain") / "result"
    return *run(output=str(folder)), folder


def assert_alike(found, expected):
    """Equal, but for the last digits of numbers, which depend on the clips of a batch."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-6) if isinstance(expected, float) else expected)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------------------- one process


def test_the_scores_are_the_protocols(plain, checkpoint, clip_folder, ucf):
    """Recomputed here from the design: blended weights, 28 prompts, three clips, modulation, double softmax."""
    result, (first, *_), _ = plain
    model, clip = MoTEModel.from_pretrained(checkpoint).eval(), CLIPModel.from_pretrained(clip_folder)
    moved = 0
    with torch.no_grad():
        pretrained = clip.state_dict()
        for name, tensor in model.state_dict().items():
            if name.startswith(("vision_model", "visual_projection", "logit_scale")):
                moved += not torch.equal(tensor, pretrained[name])
                tensor.copy_(0.99 * tensor + 0.01 * pretrained[name])
        processor = AutoProcessor.from_pretrained(checkpoint)
        classes = encode_classes(model, processor, list(load_label_set("ucf101").classes))
        file = ucf / "UCF-101" / "Archery" / "v_Archery_g01_c01.mp4"
        pixels = processor(videos=str(file), sampling="uniform", num_clips=3, return_tensors="pt").pixel_values_videos
        views = model.get_video_features(pixels, class_embeds=classes).pooler_output
        expected = score_views(F.normalize(views, dim=-1) @ classes.T)[0].numpy()
    assert moved > 10
    spread = expected.max() - expected.min()
    assert np.abs(first[0] - expected).max() < 1e-4 * spread
    assert result["alpha"] == 0.99 and result["clip"] == str(clip_folder)


def test_the_result_and_its_files(plain):
    result, _, out = plain
    assert json.loads((out / "result.json").read_text()) == result
    assert (result["num_scored"], result["num_listed"]) == (13, 15)
    assert [(part["config"], part["num_scored"], part["num_listed"]) for part in result["parts"]] == [
        ("split1", 6, 7),
        ("split2", 4, 5),
        ("split3", 3, 3),
    ]
    accuracies = [part["top1"] for part in result["parts"]]
    assert result["top1"] == {"mean": pytest.approx(np.mean(accuracies)), "std": pytest.approx(np.std(accuracies))}
    assert result["deviations"] == {"allow_empty_classes": True}
    assert (result["views"], result["prompts"], result["score_rule"]) == ("3x1", "mote_28", "views")
    assert result["decoders"] == {"pyav": 13} and result["modulation"] and result["num_processes"] == 1
    ucf101 = load_label_set("ucf101")
    for part in result["parts"]:
        assert (part["label_set"], part["label_set_sha256"], part["names_sha256"]) == ("ucf101", *[ucf101.sha256] * 2)
    assert len({part["list_sha256"] for part in result["parts"]}) == 3
    bad = read_csv(out / "bad_videos.csv")
    assert [(row["part"], Path(row["video"]).stem) for row in bad] == [("split1", BROKEN), ("split2", MISSING)]
    assert all(row["reason"] for row in bad)
    row = results_table({"mine": result}).splitlines()[-1]
    top1, std = 100 * result["top1"]["mean"], 100 * result["top1"]["std"]
    scored = 100 * np.mean([part["top1_scored"] for part in result["parts"]])
    assert row.startswith(f"| mine | 13 of 15 | 3x1 | 8 | 0.99 | on | {top1:.1f} ± {std:.1f} | {scored:.1f} | ")
    with Image.open(out / "confusion.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 100
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "bad_videos.csv",
        "confusion.png",
        "per_class.csv",
        "reliability.png",
        "result.json",
    ]


def test_bad_videos_are_wrong_and_the_accuracy_over_the_others_beside(plain):
    result, scores, folder = plain
    names = load_label_set("ucf101").classes
    per_class = {(row["part"], row["class"]): row for row in read_csv(folder / "per_class.csv")}
    assert len(per_class) == 3 * 101
    for fold, (part, table) in enumerate(zip(result["parts"], scores, strict=True), start=1):
        labels = [names.index(name) for name, folds in UCF.items() for each in folds if each == fold]
        right = [not np.isnan(row).any() and row.argmax() == label for row, label in zip(table, labels, strict=True)]
        assert part["top1"] == pytest.approx(sum(right) / len(labels))
        assert part["top1_scored"] == pytest.approx(sum(right) / part["num_scored"])
        for name, folds in UCF.items():
            row = per_class[part["config"], name]
            assert int(row["listed"]) == folds.count(fold)
            if folds.count(fold):
                hits = sum(hit for hit, label in zip(right, labels, strict=True) if names[label] == name)
                assert int(row["right"]) == hits and float(row["accuracy"]) == pytest.approx(hits / folds.count(fold))


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 0.5}, {"modulate": False}, {"merge_temperature": "0.6"}, {"labels": "REPHRASED"}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_flag_changes_is_in_the_result(run, plain, changes, tmp_path):
    (unchanged, (first, *_), _), words = plain, ""
    if "labels" in changes:
        changes = {"labels": str(tmp_path / "rephrased.txt")}
        names = list(load_label_set("ucf101").classes)
        names[names.index("Archery")] = "person using a bow"
        names[names.index("YoYo")] = "yoyo"  # a name in a file becomes words, and the tiny tokenizer knows no "Yo"
        (tmp_path / "rephrased.txt").write_text("\n".join(names))
        words = read_label_file(tmp_path / "rephrased.txt").sha256
    result, (other, *_) = run(**changes)
    name = {"modulate": "modulation"}.get(next(iter(changes)), next(iter(changes)))
    value = {"labels": f"rephrased.txt {words[:8]}"}.get(name, next(iter(changes.values())))
    assert result["deviations"] == {name: value, "allow_empty_classes": True}
    assert np.nanmax(np.abs(other - first)) > 1e-7
    for part, before in zip(result["parts"], unchanged["parts"], strict=True):
        assert part["label_set_sha256"] == before["label_set_sha256"]
        assert (part["names_sha256"] != before["names_sha256"]) == (name == "labels")
    assert result["checkpoint_sha256"] == unchanged["checkpoint_sha256"]


def test_alpha_1_needs_no_clip_and_leaves_the_weights(run, checkpoint, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(checkpoint, alone)
    (alone / "training.json").unlink()
    result, _ = run(model=str(alone), alpha=1.0)
    assert result["alpha"] == 1.0 and result["clip"] is None and result["deviations"]["alpha"] == 1.0


def test_the_temperature_inf_is_the_uniform_merge(run, plain):
    _, (first, *_), _ = plain
    _, (other, *_) = run(merge_temperature="inf")
    np.testing.assert_allclose(other, first, rtol=1e-6)


def test_a_second_run_encodes_no_text(run, count_calls, tmp_path, train_list):
    given = {"protocol": "half-classes", "data": str(train_list), "data_dir": None}
    given |= {"cache_dir": str(tmp_path / "cache")}
    with count_calls("CLIPTextModel") as first:
        run(**given)
    with count_calls("CLIPTextModel") as second:
        run(**given, alpha=0.5)
    assert first[0] > 0 and second[0] == 0


def test_half_classes_on_data_of_the_users_choice(run, checkpoint, write_list, train_list, clip_folder):
    table = train_list.with_name("six.csv")
    rows = [row.split(",") for row in train_list.read_text().splitlines()[1:]]
    names = ("archery", "biking", "bowling", "diving", "fencing", "left")
    lines = [f"{path},{names[index % 6]}" for index, (path, _) in enumerate(rows)]
    table.write_text("\n".join(["path,label", *lines, "missing.mp4,left"]) + "\n")
    given = {"protocol": "half-classes", "data": str(table), "data_dir": None}
    result, (scores,) = run(**given)
    labels = [index % 6 for index in range(12)] + [5]
    expected = half_classes_accuracy(scores, labels)
    assert result["top1"] == {"mean": expected["top1"], "std": expected["top1_std"]}
    assert len(result["parts"][0]["top1_splits"]) == 10 and result["score_rule"] == "half_classes"
    assert (result["num_scored"], result["num_listed"]) == (12, 13)
    model = MoTEModel.from_pretrained(checkpoint).eval()
    blend_with_clip(model, CLIPModel.from_pretrained(clip_folder), 0.99)
    processor = AutoProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        classes = encode_classes(model, processor, sorted(names))
        file = str(train_list.parent / "clip00.mp4")
        pixels = processor(videos=file, sampling="uniform", num_clips=3, return_tensors="pt").pixel_values_videos
        views = model.get_video_features(pixels, class_embeds=classes).pooler_output
        np.testing.assert_allclose(scores[0], half_classes_score(views, classes)[0], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- own data, and what is beside a number


@pytest.fixture(scope="module")
def own_data(tmp_path_factory, write_video) -> Path:
    """A folder for each of three classes, with two short videos each, and one that is none."""
    root = tmp_path_factory.mktemp("own")
    draw = np.random.default_rng(3)
    for name in ("left", "right", "standing_still"):
        (root / name).mkdir()
        for number in range(2):
            frames = draw.integers(0, 255, (12, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
            write_video(root / name / f"{number}.mp4", frames=frames)
    (root / "left" / "none.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def own(own_data):
    return {"protocol": "own-data", "data": str(own_data), "data_dir": None, "allow_empty_classes": False}


def test_own_data_is_scored_as_the_pipeline_scores(run, own, own_data, checkpoint):
    result, (scores,) = run(**own)
    assert (result["alpha"], result["clip"], result["views"], result["deviations"]) == (1.0, None, "1x1", {})
    assert (result["num_scored"], result["num_listed"]) == (6, 7)
    classify = load_pipeline(str(checkpoint), "cpu")
    names, files = ["left", "right", "standing still"], sorted(own_data.glob("*/[01].mp4"))
    answers = classify([str(file) for file in files], candidate_labels=names)
    right, sure, hits = 0, [], []
    for file, answer, row in zip(files, answers, [row for row in scores if not np.isnan(row).any()], strict=True):
        assert [names[index] for index in (-row).argsort()] == [each["label"] for each in answer]
        hits.append(answer[0]["label"] == file.parent.name.replace("_", " "))
        sure.append(answer[0]["score"])
        right += hits[-1]
    assert result["top1"] == {"mean": pytest.approx(right / 7), "std": None} and result["top5"]["mean"] == 6 / 7
    bins = [math.ceil(15 * each) for each in sure]
    gaps = [abs(sum(h - s for h, s, b in zip(hits, sure, bins, strict=True) if b == each)) for each in set(bins)]
    assert result["ece"]["mean"] == pytest.approx(sum(gaps) / 6, abs=1e-5)
    classes = encode_classes(classify.model, classify.processor, names)
    wins = []
    for file in files:
        pixels = classify.processor(videos=str(file), return_tensors="pt").pixel_values_videos
        with torch.no_grad():
            video = classify.model.get_video_features(pixels, class_embeds=classes).pooler_output
        wins.append((F.normalize(video, dim=-1) @ classes.T)[0].numpy())
    truths = [names.index(file.parent.name.replace("_", " ")) for file in files]
    left_out = [np.delete(row, truth).max() for row, truth in zip(wins, truths, strict=True)]
    pairs = [np.sign(row.max() - other) / 2 + 0.5 for row in wins for other in left_out]
    assert result["auroc_label_listed"]["mean"] == pytest.approx(np.mean(pairs), abs=0.03)


def test_a_calibration_changes_the_scores_error_and_no_rank(run, own, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibrated = tmp_path / "calibrated"
    shutil.copytree(checkpoint, calibrated)
    config = json.loads((calibrated / "config.json").read_text())
    draw = np.random.default_rng(0)
    fitted = fit_calibration(draw.random((40, 3)), draw.integers(0, 3, 40))  # of clips that tell nothing
    (calibrated / "config.json").write_text(json.dumps(config | {"calibration": fitted.to_dict()}))
    plain_result, (scores,) = run(**own, output=None, model=str(checkpoint))
    result, (again,) = run(**own, output=None, model=str(calibrated))
    np.testing.assert_allclose(again, scores, rtol=1e-6)
    assert result["top1"] == plain_result["top1"]
    assert (plain_result["calibrated"], result["calibrated"]) == (False, True)
    bins = [found["parts"][0]["reliability"] for found in (plain_result, result)]
    sure = [sum(each["count"] * each["confidence"] for each in found) / 6 for found in bins]
    assert sure[1] < 0.5 and sure[1] < sure[0]  # nearer to one third
    assert result["ece"] != plain_result["ece"]
    (folder,) = (tmp_path / "results" / "own-data").glob("calibrated-*")
    assert "calibration_" in folder.name


def test_baselines_come_from_the_same_frames(run, own, checkpoint, clip_folder, tmp_path, count_calls):
    with count_calls("CLIPVisionModel") as alone:
        plain_result, _ = run(**own)
    result, _ = run(**own, baseline=True)
    assert result["top1"] == plain_result["top1"] and "baselines" not in plain_result
    assert list(result["baselines"]) == ["clip", "rho_0", "rho_1"]
    assert result["baseline_clip"] == {"name": str(clip_folder), "image_tower_trained": True}
    off, _ = run(**own, modulate=False)
    assert result["baselines"]["rho_1"] == {metric: off[metric] for metric in ("top1", "top5")}

    frozen = str(save_mote(tmp_path / "frozen", clip_folder))
    model = MoTEModel.from_pretrained(frozen)
    clip = CLIPModel.from_pretrained(clip_folder)
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    model.save_pretrained(frozen)
    with count_calls("CLIPVisionModel") as beside:
        same, _ = run(**own, model=frozen, baseline=True, clip=str(clip_folder))
    assert beside[0] == alone[0] > 0  # no frame was encoded twice
    assert same["baseline_clip"]["image_tower_trained"] is False
    assert same["baselines"]["clip"] == same["baselines"]["rho_0"]
    row = beside_table(same).splitlines()[2]
    assert row.startswith(
        f"| {clip_folder}, mean over frames | {100 * same['baselines']['clip']['top1']['mean']:.1f} |"
    )


def test_the_baseline_is_clip_by_the_mean_over_frames(options, own, own_data, checkpoint, clip_folder):
    """Scores of a model whose image tower was trained, beside CLIP's own of the same videos, worked out here."""
    rules = evaluation.get_protocol("own-data")
    lists = evaluation.load_lists(rules, str(own_data), None, None, "test", None, False)
    model, processor, _ = evaluation.load_to_score(rules, str(checkpoint), None, None, None)
    asked = evaluation.Scoring(rules, lists, model, processor, True, {})
    asked.add_clip(str(checkpoint), None)
    variants = asked.variants(0, options["cache_dir"])
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = processor(videos=str(own_data / "left" / "0.mp4"), return_tensors="pt").pixel_values_videos
    score = scoring.ClipScorer(model, variants, "views", Accelerator(cpu=True))
    found, cosines = score(pixels)
    with torch.no_grad():
        classes = encode_classes(clip, processor, ["left", "right", "standing still"])
        own_frames = model.get_image_features(pixel_values=pixels[0]).pooler_output
        frames = {"clip": clip.get_image_features(pixel_values=pixels[0]).pooler_output, "rho_0": own_frames}
        expected = {name: F.normalize(each.mean(0), dim=-1) @ classes.T for name, each in frames.items()}
        logits = model(pixel_values_videos=pixels, class_embeds=classes).logits_per_video
    for name, each in expected.items():
        np.testing.assert_allclose(found[name][0], score_views(each[None, None])[0], rtol=1e-6)
    assert np.abs(found["clip"] - found["rho_0"]).max() > 1e-6
    np.testing.assert_allclose(cosines, (logits / model.logit_scale.exp()).detach(), atol=1e-6)


@pytest.mark.parametrize("scope", ["list", "label"])
def test_cosines_are_those_of_a_forward(own_data, checkpoint, scope):
    """Of one view, and averaged over several; also where every label has a modulation of its own."""
    model = MoTEModel.from_pretrained(checkpoint, modulation_scope=scope).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    classes = encode_classes(model, processor, ["archery", "still", "diving"])
    score = scoring.ClipScorer(model, {"own": scoring.Variant(classes)}, "half_classes", Accelerator(cpu=True))
    for views in (1, 3):
        file = str(own_data / "left" / "0.mp4")
        pixels = processor(videos=file, num_clips=views, return_tensors="pt").pixel_values_videos
        with torch.no_grad():
            logits = (
                MoTEForVideoClassification.from_pretrained(checkpoint, modulation_scope=scope)
                .eval()(pixel_values_videos=pixels, class_embeds=classes)
                .logits
            )
        found, cosines = score(pixels)
        np.testing.assert_allclose(cosines, (logits / model.logit_scale.exp()).detach(), atol=1e-6)
        np.testing.assert_allclose(found["own"], 100 * cosines, rtol=1e-5)


def test_wordings_are_scored_from_the_same_frames(run, own, tmp_path, count_calls):
    (tmp_path / "described.csv").write_text(
        "name,description\nstanding still,still\nleft,moving left\nleft,to the left\nright,\n"
    )
    (tmp_path / "renamed.txt").write_text("photo left\nphoto right\nphoto still\n")
    files = [str(tmp_path / name) for name in ("described.csv", "renamed.txt")]
    with count_calls("CLIPVisionModel") as alone:
        single = {file: run(**own, labels=file)[0] for file in files}
    with count_calls("CLIPVisionModel") as together:
        result, _ = run(**own, wordings=files)
    assert together[0] == alone[0] / 2
    found = result["wordings"]
    assert [each["file"] for each in found["files"]] == files
    for each in found["files"]:
        assert each["top1"] == single[each["file"]]["top1"]
        assert each["names_sha256"] == [single[each["file"]]["parts"][0]["names_sha256"]]
    values = [each["top1"]["mean"] for each in found["files"]]
    assert found["spread"]["top1"] == {
        "mean": pytest.approx(np.mean(values)),
        "std": pytest.approx(np.std(values)),
        "min": min(values),
        "max": max(values),
    }
    table = beside_table(result)
    assert f"| lowest-highest | {100 * min(values):.1f}-{100 * max(values):.1f} |" in table
    assert f"| mean ± std of 2 wordings | {100 * np.mean(values):.1f} ± {100 * np.std(values):.1f} |" in table


def test_descriptions_are_matched_by_name(run, own, tmp_path):
    """In any order; the answers' classes and their order stay those of the data."""
    rows = {"left": "moving left", "right": "to right", "standing_still": "still"}
    results = []
    for number, names in enumerate((list(rows), list(rows)[::-1])):
        (tmp_path / f"{number}.csv").write_text(
            "\n".join(["name,description", *(f"{name},{rows[name]}" for name in names)])
        )
        results.append(run(**own, labels=str(tmp_path / f"{number}.csv")))
    (first, (scores,)), (second, (again,)) = results
    np.testing.assert_array_equal(scores, again)
    assert first["parts"][0]["names_sha256"] == second["parts"][0]["names_sha256"]
    assert first["parts"][0]["names_sha256"] != first["parts"][0]["label_set_sha256"]
    plain_result, (other,) = run(**own)
    assert np.nanmax(np.abs(other - scores)) > 1e-7
    assert plain_result["run_sha256"] != first["run_sha256"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name,description\nleft,a\nright,b\n", "lacks 1 of the 3 classes of labels, 'standing still' to begin with"),
        ("name,description\nleft,a\nrihgt,b\nstanding still,c\n", "describes 'rihgt', which is no class of labels"),
        ("name\nright\nto left\nstill\n", "has 'right' as class 0, which is class 1 of labels: keep the order"),
        ("name\nto left\nto right\n", "names 2 classes, but labels has 3"),
    ],
)
def test_wordings_that_do_not_fit_are_refused(refused, own, tmp_path, content, sentence):
    (tmp_path / "w.csv").write_text(content)
    given = {name: value for name, value in own.items() if name != "allow_empty_classes"}
    assert sentence in refused(**given, labels_file=str(tmp_path / "w.csv"), allow_empty_classes=None)


def test_one_description_file_serves_several_lists(tmp_path):
    """Kinetics-600's three splits have classes in common; a file of all of them words each."""
    label_sets = [load_label_set(f"kinetics600_split{number}") for number in (1, 2)]
    names = sorted({name for each in label_sets for name in each.classes})
    lines = [f'"{name}","somebody does {name}"' for name in names]
    (tmp_path / "all.csv").write_text("\n".join(["name,description", *lines]))
    for wording, label_set in zip(reword(label_sets, str(tmp_path / "all.csv")), label_sets, strict=True):
        assert wording.classes == label_set.classes
        assert all(texts == (f"somebody does {name}",) for name, texts in wording.candidates.items())


def test_own_data_prints_every_class(run_here, options, own, tmp_path, capsys):
    given = options | own | {"output": tmp_path / "result", "baseline": True}
    given = {name: value for name, value in given.items() if value not in (None, False)}
    assert run_here("evaluate", given) == 0
    printed = capsys.readouterr().out
    rows = {row["class"]: row for row in read_csv(tmp_path / "result" / "per_class.csv")}
    assert set(rows) == {"left", "right", "standing still"} and rows["left"]["listed"] == "3"
    for name, row in rows.items():
        assert f"| {name} | {row['listed']} | {row['right']} | {100 * float(row['accuracy']):.1f} |" in printed
    assert "mean over frames of its own image tower |" in printed and "| these weights, rho = 0 |" in printed
    assert "| ECE % | AUROC, label listed |" in printed


# ----------------------------------------------------------------------------------------------------------- few-shot


@pytest.fixture
def trained_with(checkpoint, tmp_path):
    """`trained_with(**changes)`: the checkpoint with other options in its training.json, or None of it."""

    def copy(record=True, **changes):
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(checkpoint, folder)
        training = json.loads((folder / "training.json").read_text())
        training["arguments"] |= changes
        (folder / "training.json").write_text(json.dumps(training))
        if not record:
            (folder / "training.json").unlink()
        return str(folder)

    return copy


@pytest.mark.slow
def test_few_shot_scores_what_was_trained_with_its_shots(run, trained_with, refused):
    given = {"protocol": "ucf101-few-shot", "model": trained_with(shots=4)}
    result, _ = run(**given)
    assert result["deviations"] == {"shots": 4, "allow_empty_classes": True, "training_classes": "others"}
    assert full_name(result).startswith("ucf101-few-shot, allow_empty_classes=True, shots=4")
    assert result["views"] == "1x1" and result["num_listed"] == 7
    unknown, _ = run(protocol="ucf101-few-shot", model=trained_with(record=False), alpha=1.0)
    assert unknown["deviations"]["shots"] == "not recorded"
    for shots in (None, 3):
        message = refused(**given | {"model": trained_with(shots=shots)})
        assert "scores a model trained on 2 or 4 or 8 or 16 clips per class" in message
        assert f"was trained with shots {shots}" in message


# --------------------------------------------------------------------------------------------------------- model cards


@pytest.mark.slow
def test_the_card_gets_the_result_once(options, run_here, checkpoint, tmp_path):
    card = tmp_path / "README.md"
    shutil.copy(checkpoint / "README.md", card)
    card.write_text(card.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1) + "Text that stays.\n")

    def run(name, **changes):
        assert run_here("evaluate", options | {"card": card, "output": tmp_path / name} | changes) == 0
        return json.loads((tmp_path / name / "result.json").read_text())

    result = run("first")
    run("other", alpha=0.5)
    first = card.read_text()
    run("again")
    assert card.read_text().count("top1, 3x1 views") == 2 and len(card.read_text()) == len(first)
    loaded = ModelCard.load(card)
    loaded.data.to_yaml()
    assert loaded.data.license == "apache-2.0" and "Text that stays." in loaded.text
    entries = {(entry.dataset_name, entry.metric_name): entry for entry in loaded.data.eval_results}
    assert len(entries) == 4
    name = "top1, 3x1 views, 13 of 15 scored"
    entry = entries["ucf101-zero-shot, allow_empty_classes=True", name]
    assert entry.metric_value == round(100 * result["top1"]["mean"], 2) and entry.dataset_type == "ucf101"
    assert ("ucf101-zero-shot, alpha=0.5, allow_empty_classes=True", name) in entries
    index = loaded.data.to_dict()["model-index"]
    assert [len(each["metrics"]) for each in index[0]["results"]] == [2, 2]
    assert index[0]["results"][0]["task"]["type"] == loaded.data.pipeline_tag == "video-classification"


# ------------------------------------------------------------------------------------------------------- two processes


def without_what_may_differ(result):
    return {key: value for key, value in result.items() if key not in ("num_processes", "command")}


def test_two_processes_score_each_video_once(run, plain, run_on_two, options, tmp_path, train_list):
    half = {"protocol": "half-classes", "data": str(train_list)}
    two = {"batch_size": 2, "num_workers": 1}
    cases = [
        options | two | {"output": str(tmp_path / "zero-shot")},
        options | half | {"output": str(tmp_path / "half")},
    ]
    cases[1].pop("data_dir")
    run_on_two([("evaluate", case) for case in cases])
    run(**half, data_dir=None, output=str(tmp_path / "half one"))
    for folder, expected in ((tmp_path / "zero-shot", plain[2]), (tmp_path / "half", tmp_path / "half one")):
        one, other = (json.loads((each / "result.json").read_text()) for each in (expected, folder))
        assert (one["num_processes"], other["num_processes"]) == (1, 2)
        assert_alike(without_what_may_differ(other), without_what_may_differ(one))
        for file in ("per_class.csv", "bad_videos.csv"):
            assert (folder / file).read_text() == (expected / file).read_text()


# ------------------------------------------------------------------------------------------------------------ blending


def test_blending_equals_the_converters(shared, tmp_path):
    """The converter at alpha 0.99, and its alpha 1 blended here."""
    reference = shared / "reference"
    for alpha in (0.99, 1.0):
        convert(
            checkpoint=str(reference / "original_checkpoint.pt"),
            clip=str(reference / "clip"),
            output=str(tmp_path / str(alpha)),
            alpha=alpha,
        )
    blended, model = (MoTEModel.from_pretrained(tmp_path / str(alpha)) for alpha in (0.99, 1.0))
    expected, before = blended.state_dict(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blend_with_clip(model, CLIPModel.from_pretrained(reference / "clip"), 0.99)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and all(name.startswith(("vision_model", "visual_projection", "logit_scale")) for name in moved)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_blending_stays_between_the_two(alpha, checkpoint, clip_folder):
    with pytest.raises(ValueError, match=f"alpha must be between 0 .* and 1 .*, got {alpha}"):
        blend_with_clip(MoTEModel.from_pretrained(checkpoint), CLIPModel.from_pretrained(clip_folder), alpha)


# ----------------------------------------------------------------------------------------------------------- bad input

BAD_INPUT = {
    "an unknown protocol": ({"protocol": "ucf-101"}, "Unknown protocol 'ucf-101'; choose one of kinetics400-1x1"),
    "data for a benchmark": ({"data": "x.csv"}, "scores ucf101: give its folder as `data_dir`, not as `data`"),
    "no data": ({"protocol": "half-classes"}, "scores data of your choice: name it as `data`"),
    "no data_dir": ({"data_dir": None}, "`data_dir` is missing"),
    "a wrong data_dir": ({"data_dir": "nowhere"}, "nowhere is not a folder"),
    "missing lists": ({"data_dir": "EMPTY"}, "The list classInd.txt is not under"),
    "classes without a clip": ({"allow_empty_classes": None}, "96 of 101 classes have no clip in split test"),
    "no checkpoint": ({"model": "no/where/at/all"}, "no/where/at/all"),
    "damaged weights": ({"model": "NAN"}, "is damaged: temporal_model.position_embedding.weight holds values"),
    "weights of another width": ({"model": "WIDTH"}, "its weights do not fit its config.json"),
    "an untrained model": ({"model": "UNTRAINED"}, "were never trained"),
    "a CLIP of another width": ({"clip": "WIDE CLIP"}, "The CLIP to blend with has another image tower"),
    "no CLIP to blend with": ({"model": "UNRECORDED"}, "name the CLIP that"),
    "blended before": ({"model": "BLENDED"}, "was converted with alpha 0.5, not 0.99: convert it again"),
    "a damaged record": ({"model": "BAD RECORD"}, "conversion.json is damaged"),
    "a temperature of 0": ({"merge_temperature": "0"}, "temperature must be a number other than 0"),
    "a missing file of labels": ({"labels_file": "nowhere.txt"}, "Label file nowhere.txt does not exist"),
    "too few labels": ({"labels_file": "TWO"}, "lacks 99 of the 101 classes of ucf101"),
    "one file for several lists": (
        {"protocol": "kinetics600-zero-shot", "labels_file": "TWO"},
        "there are several lists of classes, which one file can't rephrase in their order",
    ),
    "no such card": ({"card": "nowhere.md"}, "--card nowhere.md: there is no such file"),
    "an output that is a file": ({"output": "TWO"}, "two.txt"),
}


@pytest.mark.parametrize("changes, sentence", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_in_a_sentence(
    changes, sentence, refused, tmp_path, trained_with, checkpoint, clip_folder, make_clip
):
    def damaged():
        model, folder = MoTEModel.from_pretrained(checkpoint), trained_with()
        model.temporal_model.position_embedding.weight.data[0, 0] = torch.nan
        model.save_pretrained(folder)
        return folder

    def another_width():
        folder = Path(trained_with())
        config = json.loads((folder / "config.json").read_text())
        config["projection_dim"] = config["temporal_config"]["hidden_size"] = 24
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    def blended():
        folder = trained_with()
        Path(folder, "conversion.json").write_text('{"alpha": 0.5, "clip": "clip"}')
        return folder

    def bad_record():
        folder = trained_with()
        Path(folder, "conversion.json").write_text("{")
        return folder

    (tmp_path / "two.txt").write_text("archery\nbiking\n")
    (tmp_path / "empty").mkdir()
    made = {
        "EMPTY": lambda: str(tmp_path / "empty"),
        "NAN": damaged,
        "WIDTH": another_width,
        "WIDE CLIP": lambda: str(make_clip(tmp_path / "wide", width=24)),
        "UNRECORDED": lambda: trained_with(record=False),
        "UNTRAINED": lambda: str(save_mote(tmp_path / "untrained", clip_folder, trained=False)),
        "BAD RECORD": bad_record,
        "BLENDED": blended,
        "TWO": lambda: str(tmp_path / "two.txt"),
    }
    changes = {name: made.get(value, lambda value=value: value)() for name, value in changes.items()}
    assert sentence in refused(**changes)
    result = tmp_path / "result"
    assert not result.exists() or [path.name for path in result.iterdir()] == [".lock"]


def test_a_full_disk_loses_no_number(plain, refused, full_disk, tmp_path):
    """`result.json` is written first; the pictures, which are larger, can be made by the same command later."""
    with full_disk(60_000):  # the class features are there
        assert "File too large" in refused()
    files = {path.name for path in (tmp_path / "result").iterdir()}
    assert json.loads((tmp_path / "result" / "result.json").read_text())["num_scored"] == 13
    assert "confusion.png" not in files and any(name.startswith("scores-") for name in files)


# ----------------------------------------------------------------------------------------------------------- work kept


def test_an_interrupted_run_goes_on_with_what_is_missing(run, plain, tmp_path, monkeypatch):
    expected, scores, _ = plain
    output, read = str(tmp_path / "result"), []
    original = scoring.ClipReader.__call__

    def count(reader, index):
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(reader.clips.name(index))
        return original(reader, index)

    monkeypatch.setattr(scoring.ClipReader, "__call__", count)
    with pytest.raises(KeyboardInterrupt):
        run(output=output, batch_size=2)
    log = next(Path(output).glob("scores-*.jsonl"))
    assert len(read) == 5 and "result.json" not in os.listdir(output)
    log.write_bytes(log.read_bytes() + b'{"part": 0, "index": 6, "sco')  # as a kill may cut it
    monkeypatch.setattr(
        scoring.ClipReader, "__call__", lambda reader, index: (read.append(0), original(reader, index))[1]
    )
    result, again = run(output=output, batch_size=2)
    assert len(read) == 5 + 15 - 3  # two batches were kept; what could not be read is tried again
    for found, whole in zip(again, scores, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-6)
    assert_alike(result["parts"], expected["parts"])
    assert not list(Path(output).glob("scores-*"))
    run(output=output)
    assert len(read) == 5 + 15 - 3  # it was there


def test_a_process_that_dies_costs_its_clip(run, plain, tmp_path, monkeypatch):
    expected, (first, *_), _ = plain
    original = scoring.ClipReader.__call__

    def die(reader, index):
        if "v_Biking_g01_c01" in reader.clips.name(index):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(reader, index)

    monkeypatch.setattr(scoring.ClipReader, "__call__", die)
    result, (scores, *_) = run(output=str(tmp_path / "result"), num_workers=2)
    assert (result["num_scored"], result["num_listed"]) == (12, 15)
    bad = {Path(row["video"]).stem: row["reason"] for row in read_csv(tmp_path / "result" / "bad_videos.csv")}
    assert set(bad) == {BROKEN, MISSING, "v_Biking_g01_c01"} and "SIGKILL" in bad["v_Biking_g01_c01"]
    lost = np.isnan(scores).any(axis=1) & ~np.isnan(first).any(axis=1)
    assert lost.sum() == 1
    np.testing.assert_allclose(scores[~lost], first[~lost], rtol=1e-6)


@pytest.mark.slow
def test_results_of_several_checkpoints_lie_side_by_side(run, checkpoint, trained_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MoTEModel.from_pretrained(checkpoint)
    model.temporal_model.position_embedding.weight.data += 1
    other = trained_with()
    model.save_pretrained(other)
    first, _ = run(output=None)
    second, _ = run(output=None, model=other)
    run(output=None, alpha=0.5)
    folders = sorted((tmp_path / "results" / "ucf101-zero-shot").iterdir())
    assert len(folders) == 3
    names = {
        json.loads((folder / "result.json").read_text())["checkpoint_sha256"][:8]: folder.name for folder in folders
    }
    for result in (first, second):
        sha256 = result["checkpoint_sha256"]
        name = checkpoint_name(result["checkpoint"])
        assert (
            tmp_path / result_folder("ucf101-zero-shot", result["deviations"], result["checkpoint"], sha256, "")
        ).is_dir()
        assert sha256[:8] in names and name.lower() in " ".join(names.values())
    taken = str(folders[0])
    held = (folders[0] / "result.json").read_text()
    with pytest.raises(ValueError, match="holds another result"):
        run(output=taken, batch_size=3, modulate=False)
    assert (folders[0] / "result.json").read_text() == held


def test_a_checkpoint_is_called_by_the_last_of_its_path():
    assert checkpoint_name("/home/me/runs/mine/model") == "mine-model"
    assert checkpoint_name("org/mote-vitb16") == "mote-vitb16"
    assert checkpoint_name("runs/mine/") == "mine"


def test_a_class_may_be_called_anything():
    names = ("$\\zzz$", "100% _{", "日本")
    picture = confusion_picture("half-classes", LabelSet("$x", names), np.eye(3), np.arange(3))
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        assert image.format == "PNG"


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_loses_nothing(start, options, tmp_path):
    """As users run it: a script beside the library of its name, with reading processes of their own."""
    output = tmp_path / "result"
    given = options | {"output": str(output), "num_workers": 2, "batch_size": 1, "protocol": "ucf101-zero-shot"}
    process = start("evaluate", given)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size > 100 for path in output.glob("scores-*.jsonl")):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.002)
    out, err = process.communicate(timeout=200)
    if process.returncode == 130:  # it had not been faster
        assert err.splitlines()[-1] == "error: interrupted" and "Traceback" not in err
        assert list(output.glob("scores-*.jsonl"))
        process = start("evaluate", given)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    result = json.loads((output / "result.json").read_text())
    assert "| 13 of 15 | 3x1 |" in out and "evaluate.py --protocol=ucf101-zero-shot" in result["command"]


@pytest.mark.slow
def test_a_checkpoint_of_the_hub_brings_its_records_along(start, options, checkpoint, clip_folder, tmp_path):
    """A repository that was converted at alpha 0.99 is not blended again."""
    with MiniHub() as hub:
        files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        hub.files["lab/converted"] = files | {"conversion.json": b'{"alpha": 0.99, "clip": "lab/clip"}'}
        hub.files["lab/trained"] = files
        results = {}
        for name in hub.files.copy():
            output = tmp_path / name
            given = options | {"model": name, "output": str(output)}
            process = start("evaluate", given, HF_HOME=str(tmp_path / "home"), **hub.environment)
            _, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
            results[name] = json.loads((output / "result.json").read_text())
    assert (results["lab/converted"]["alpha"], results["lab/converted"]["clip"]) == (0.99, None)
    assert (results["lab/trained"]["alpha"], results["lab/trained"]["clip"]) == (0.99, str(clip_folder))
    assert results["lab/trained"]["revision"] == hub.repositories["lab/trained"].branches["main"]
