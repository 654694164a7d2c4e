"""The ablation: its scores are the model's own, its rule is the one it states, and the whole command runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

STEPS = 14  # the schedule's first ten are at a learning rate of 0
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "experiments" / "ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("ablation_script", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.quiet()
    return module


@pytest.fixture(scope="module")
def data(ablation):
    """A small world whose frames are random mixtures of class features, so that scores are neither 0 nor 1."""
    config = ablation.MovingShapes.BUILDER_CONFIG_CLASS(train_objects=6, motions_per_object=2)
    draw = torch.Generator().manual_seed(0)
    names = [" ".join(thing) for thing in ablation.OBJECTS]
    names += [f"{name} {motion}" for name in names for motion in ablation.MOTIONS]
    common = torch.randn(64, generator=draw)
    text = dict(zip(names, F.normalize(common + torch.randn(len(names), 64, generator=draw), dim=-1), strict=True))
    classes = {split: config.classes(split) for split in ablation.SPLITS}
    labels = {split: torch.arange(2 * len(each)) % len(each) for split, each in classes.items()}
    frames = {}
    for split, each in classes.items():
        own = torch.stack([text[ablation.class_name(*parts)] for parts in each])[labels[split]]
        frames[split] = 3.5 * own[:, None] + 0.6 * torch.randn(len(own), 8, 64, generator=draw)
    return ablation.Data(classes, frames, labels, text)


@pytest.fixture(scope="module")
def mote(ablation, data):
    return ablation.train(ablation.VARIANTS["mote"], 0, data, STEPS)


def test_scores_are_the_models_own(ablation, data, mote):
    """Every column as `MoTEForVideoClassification` itself scores it, with modulation and without."""
    measured = ablation.evaluate(mote, data, "mote", seed=0)
    splits = dict(zip(("trained", "compositions", "objects", "motions"), ablation.SPLITS[1:], strict=True))
    with torch.no_grad():
        for column, split in splits.items():
            candidates = data.candidates(data.names(split))
            for mode, temperature in (("modulated", 0.05), ("modulated_wide", 0.5)):
                mote.config.modulation_temperature = temperature
                logits = mote(frame_embeds=data.frame_embeds[split], class_embeds=candidates).logits
                assert measured[mode][column] == pytest.approx(
                    (logits.argmax(-1) == data.labels[split]).double().mean()
                )
            mote.config.modulation_temperature = 0.05
            features = mote.get_video_features(frame_embeds=data.frame_embeds[split]).pooler_output
            found = (F.normalize(features, dim=-1) @ candidates.T).argmax(-1)
            assert measured["off"][column] == pytest.approx((found == data.labels[split]).double().mean())
    logits = mote(frame_embeds=data.frame_embeds["test"]).logits
    assert measured["off"]["trained"] == pytest.approx((logits.argmax(-1) == data.labels["test"]).double().mean())
    assert measured["off"]["trained"] == measured["modulated"]["trained"]
    assert measured["scale"][0] == ablation.plain_clip(data)
    assert measured["scale"][-1] == measured["off"] == measured["dial"][ablation.DIAL.index("inf")]
    assert 0 < measured["off"]["one_list_trained"] <= measured["off"]["trained"] <= 1


def test_experts_and_their_ensemble(ablation, data, mote):
    measured = ablation.evaluate(mote, data, "mote", seed=0)
    with torch.no_grad():
        logits = [
            mote(
                frame_embeds=data.frame_embeds["test"], mixture=F.one_hot(torch.tensor(k), 4).float().expand(4, 4)
            ).logits
            for k in range(4)
        ]
    for k in range(4):
        right = (logits[k].argmax(-1) == data.labels["test"]).double().mean()
        assert measured["alone"][k]["trained"] == pytest.approx(right)
    right = (torch.stack(logits).mean(0).argmax(-1) == data.labels["test"]).double().mean()
    assert measured["logits"]["trained"] == pytest.approx(right)
    assert -1 <= measured["weights_cosine"] <= 1


def test_attention_alone_leaves_its_feed_forwards_out(ablation, data):
    """They are as they were drawn, but for weight decay, and neither training nor scores know them."""
    torch.manual_seed(0)
    drawn = ablation.new_model(ablation.VARIANTS["attention"], data).temporal_model.layers[0].mlp.up_proj[0].detach()
    model = ablation.train(ablation.VARIANTS["attention"], 0, data, STEPS)
    left = model.temporal_model.layers[0].mlp.up_proj[0].detach()
    assert F.cosine_similarity(drawn.flatten(), left.flatten(), dim=0) > 0.9999
    before = ablation.evaluate(model, data, "attention", seed=0)
    with torch.no_grad():
        model.temporal_model.layers[0].mlp.up_proj.add_(1.0)
    assert ablation.evaluate(model, data, "attention", seed=0) == before


@pytest.mark.parametrize("name", ["plain", "control", "experts", "merging", "random_routing", "fixed_point"])
def test_variants_train_with_what_they_name(ablation, data, mote, name):
    """The same seed ends at other weights than MoTE's, unless what a variant changes is not wired."""
    variant = ablation.VARIANTS[name]
    model = ablation.train(variant, 0, data, STEPS)
    config = model.config
    assert config.temporal_config.num_experts == variant.experts
    assert (config.merging_loss_weight, config.mse_loss_weight) == (
        variant.merging_loss_weight,
        variant.mse_loss_weight,
    )
    ours, theirs = model.temporal_model.state_dict(), mote.temporal_model.state_dict()
    assert any(ours[key].shape != theirs[key].shape or not torch.equal(ours[key], theirs[key]) for key in ours)


def test_same_seed_same_head(ablation, data):
    first, second = (ablation.train(ablation.MOTE, 1, data, STEPS).temporal_model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_rule_of_the_world(ablation):
    def row(trained, lost):
        return {"plain": {"trained": trained}, "lost": lost}

    unlearned, most, least = row(0.89, 0.5), row(0.95, 0.1), row(1.0, -0.2)
    assert ablation.ranked([least, unlearned, most]) == [most, least, unlearned]


def test_row_of_other_settings_is_refused(ablation, tmp_path):
    path = tmp_path / "rows" / "mote-0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"settings": ablation.settings(ablation.WORLD, 7)}))
    assert ablation.run_row("mote", 0, ablation.WORLD, 7, tmp_path) == {
        "settings": ablation.settings(ablation.WORLD, 7)
    }
    with pytest.raises(ValueError, match="other settings"):
        ablation.run_row("mote", 0, ablation.WORLD, 8, tmp_path)


def test_head_is_kept_for_its_settings_alone(ablation, data, tmp_path):
    def head(steps):
        model = ablation.trained_head("plain", 0, data, ablation.WORLD, steps, tmp_path)
        return model.temporal_model.layers[0].mlp.up_proj.detach().clone()

    first = head(STEPS)
    path = tmp_path / "heads" / "plain-0.safetensors"
    written = path.stat().st_mtime_ns
    assert torch.equal(head(STEPS), first) and path.stat().st_mtime_ns == written
    assert not torch.equal(head(STEPS + 1), first) and path.stat().st_mtime_ns != written


@pytest.mark.parametrize(("options", "said"), [(["--only", "moet"], "no such row"), (["--seeds", "0"], "--seeds")])
def test_bad_option_is_one_sentence(ablation, options, said, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--output", str(tmp_path), *options])
    with pytest.raises(SystemExit) as stop:
        ablation.main()
    assert stop.value.code.startswith("error: ") and said in stop.value.code


@pytest.mark.slow
def test_quick_run_resumes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(tmp_path / "run")]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert finished.returncode == 0, finished.stderr
    rows = sorted((tmp_path / "run" / "rows").glob("*.json"))
    written = {row: row.stat().st_mtime_ns for row in rows}
    results = json.loads((tmp_path / "run" / "ablation.json").read_text())
    assert len(results["rows"]) == len(rows)
    for name in ("dial", "layers"):
        assert (tmp_path / "run" / "ablation" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    tables = (tmp_path / "run" / "ablation.md").read_text()
    assert "one expert, same extra losses (control)" in tables and "one list: unseen" in tables

    rows[0].unlink()
    again = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert again.returncode == 0, again.stderr
    assert rows[0].is_file()
    assert all(row.stat().st_mtime_ns == written[row] for row in rows[1:])
    assert (tmp_path / "run" / "ablation.md").read_text() == tables
