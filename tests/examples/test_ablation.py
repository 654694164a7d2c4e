"""The ablation: its heads start alike, its scores are the model's, its tests are exact, and the command resumes."""

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

STEPS = 14  # the schedule's first ten are at a learning rate of 0
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "experiments" / "ablation.py"


@pytest.fixture(scope="module", autouse=True)
def experiments():
    """The scripts import each other as they do when one of them is run."""
    sys.path.insert(0, str(SCRIPT.parent))
    import worlds

    worlds.quiet()
    yield
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def data():
    """A small world whose frames are random mixtures of class features, so that scores are neither 0 nor 1."""
    import worlds

    config = worlds.MovingShapes.BUILDER_CONFIG_CLASS(train_objects=6, motions_per_object=2)
    draw = torch.Generator().manual_seed(0)
    names = [" ".join(thing) for thing in worlds.OBJECTS]
    names += [f"{name} {motion}" for name in names for motion in worlds.MOTIONS]
    common = torch.randn(64, generator=draw)
    text = dict(zip(names, F.normalize(common + torch.randn(len(names), 64, generator=draw), dim=-1), strict=True))
    classes = {split: config.classes(split) for split in worlds.SPLITS}
    labels = {split: torch.arange(len(each)).repeat_interleave(2) for split, each in classes.items()}
    frames = {}
    for split, each in classes.items():
        own = torch.stack([text[worlds.class_name(*parts)] for parts in each])[labels[split]]
        noise = 0.6 * torch.randn(len(own), 1, 64, generator=draw) + 0.6 * torch.randn(len(own), 8, 64, generator=draw)
        frames[split] = 3.5 * own[:, None] + noise
    return worlds.Data(classes, frames, labels, text)


@pytest.fixture(scope="module")
def mote(data):
    import survey

    return survey.train(survey.VARIANTS["mote"], 0, data, STEPS)


# ---------------------------------------------------------------------------------------------------- heads and scores


def test_heads_of_a_seed_start_from_the_same_weights(data):
    """Wherever they have such weights; one expert is the first of four."""
    import heads
    import paired

    whole = heads.paired_model(heads.MOTE, 3, data).temporal_model.state_dict()
    for name in ("plain", "attention", "frozen"):
        variant = paired.HEADS[name]
        own = heads.paired_model(variant, 3, data).temporal_model.state_dict()
        assert len(own) == len(whole) - 16 * (variant.feed_forwards == "none"), name
        for key, weight in own.items():
            assert torch.equal(weight, whole[key][: len(weight)]), (name, key)
    wide = heads.paired_model(heads.CONTROL, 3, data, 2.0).temporal_model.state_dict()
    torch.testing.assert_close(wide["layers.0.mlp.up_proj"], 2 * whole["layers.0.mlp.up_proj"][:1])


@pytest.fixture(scope="module")
def trained(data):
    """Trains a head of the deciding run; its model, and the weights that it started from."""
    import heads
    import paired

    @functools.cache
    def train(name):
        model = heads.paired_model(paired.HEADS[name], 0, data)
        drawn = {key: weight.clone() for key, weight in model.temporal_model.state_dict().items()}
        heads.fit(model, {"frame_embeds": data.frame_embeds["train"]}, data.labels["train"], STEPS, 0)
        return model, drawn

    return train


@pytest.mark.parametrize("name", ["plain", "control", "attention", "frozen", "experts", "no_merging"])
def test_heads_train_with_what_they_name(trained, name):
    import paired

    model, drawn = trained(name)
    moved = {key for key, weight in model.temporal_model.state_dict().items() if not torch.equal(weight, drawn[key])}
    in_feed_forwards = {key for key in drawn if ".mlp." in key}
    assert "layers.0.self_attn.q_proj.weight" in moved
    assert in_feed_forwards <= moved if name not in ("attention", "frozen") else not (in_feed_forwards & moved)
    variant = paired.HEADS[name]
    assert len(in_feed_forwards) == (0 if name == "attention" else 16)
    weights = (model.config.merging_loss_weight, model.config.mse_loss_weight)
    assert weights == (variant.merging_loss_weight, variant.mse_loss_weight)
    theirs = trained("mote")[0].temporal_model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(model.temporal_model.layers[0].self_attn.q_proj.weight, theirs)


@pytest.mark.parametrize("name", ["mote", "still", "structure"])
def test_heads_trained_together_are_those_trained_alone(data, name):
    import heads
    import paired

    clips, labels = data.frame_embeds["train"], data.labels["train"]
    alone, together = ([heads.paired_model(paired.VARIANTS[name], seed, data) for seed in (0, 1)] for _ in range(2))
    for seed, model in enumerate(alone):
        heads.fit(model, {"frame_embeds": clips}, labels, STEPS, seed)
    drawn = {key: weight.clone() for key, weight in together[1].temporal_model.state_dict().items()}
    heads.fit_together(together, clips, labels, STEPS, (0, 1))
    for one, other in zip(alone, together, strict=True):
        assert not other.training and other.config._attn_implementation == one.config._attn_implementation
        theirs = other.temporal_model.state_dict()
        for key, weight in one.temporal_model.state_dict().items():
            if not key.endswith("k_proj.bias"):  # adds the same to every score: its gradient is rounding alone
                torch.testing.assert_close(theirs[key], weight, rtol=0, atol=1e-5)
    key = "layers.0.self_attn.q_proj.weight"
    assert (theirs[key] - drawn[key]).abs().max() > 1e-3


def test_candidates_are_what_they_say(data):
    """The still penalty's loss and the centred frames' features, written out a second way."""
    import heads

    frames, labels = data.frame_embeds["train"][:6], data.labels["train"][:6]
    attention, still, centred = (
        heads.paired_model(variant, 0, data).train() for variant in (heads.ATTENTION, heads.STILL, heads.CENTRED)
    )
    mixtures = dict(zip(("mixture", "merge_mixture"), heads.draws(attention, 0, 3), strict=True))
    of_attention, of_still = (
        model(frame_embeds=frames, labels=labels, **mixtures).loss for model in (attention, still)
    )
    mean_frame = torch.stack([clip.sum(0) / len(clip) for clip in frames])
    on_still = attention.temporal_model(mean_frame[:, None].repeat(1, 8, 1)).last_hidden_state
    assert (of_still - of_attention).item() == pytest.approx(0.3 * (on_still**2).sum().item() / on_still.numel())
    expected = attention.temporal_model(frames - mean_frame[:, None]).last_hidden_state
    torch.testing.assert_close(centred.get_temporal_features(frames).last_hidden_state, expected)
    torch.testing.assert_close(
        attention.get_temporal_features(frames).last_hidden_state, still.temporal_model(frames)[0]
    )


def test_development_heads_are_what_they_say(data):
    """The part less that of the clip held still, and the distillation's loss, written out a second way."""
    import heads

    frames, labels = data.frame_embeds["train"][:6], data.labels["train"][:6]
    attention, difference, structure = (
        heads.paired_model(variant, 0, data).train()
        for variant in (heads.ATTENTION, heads.DIFFERENCE, heads.STRUCTURE)
    )
    held = frames.mean(1, keepdim=True).repeat(1, 8, 1)
    of_clip, of_held = (attention.temporal_model(each).last_hidden_state for each in (frames, held))
    torch.testing.assert_close(difference.get_temporal_features(frames).last_hidden_state, of_clip - of_held)
    assert difference.get_temporal_features(held).last_hidden_state.abs().max() < 1e-5

    mixtures = dict(zip(("mixture", "merge_mixture"), heads.draws(attention, 0, 3), strict=True))
    plain = attention(frame_embeds=frames, labels=labels, **mixtures).loss
    torch.manual_seed(5)
    added = structure(frame_embeds=frames, labels=labels, **mixtures).loss - plain
    torch.manual_seed(5)
    directions = torch.randn(200, data.width)
    clip = torch.distributions.Categorical(logits=10 * F.cosine_similarity(frames.mean(1)[:, None], directions, -1))
    video = (frames + of_clip).mean(1)
    ours = torch.distributions.Categorical(logits=10 * F.cosine_similarity(video[:, None], directions, -1))
    expected = 0.4 * torch.distributions.kl_divergence(clip, ours).mean()
    torch.testing.assert_close(added, expected, rtol=1e-3, atol=1e-5)


def test_scores_are_the_models_own(data, mote):
    """Every column as `MoTEForVideoClassification` itself scores it, with modulation and without."""
    import survey
    import worlds

    measured = survey.evaluate(mote, data, "mote", seed=0)
    splits = dict(zip(("trained", "compositions", "objects", "motions"), worlds.SPLITS[1:], strict=True))
    mote.config.modulation_scope = "list"
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
    assert 0 < measured["off"]["one_list_trained"] <= measured["off"]["trained"] <= 1


def test_experts_and_their_ensemble(data, mote):
    import survey

    measured = survey.evaluate(mote, data, "mote", seed=0)
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


def test_a_unit_holds_its_clips_and_both_modulations(data, mote):
    import paired
    import worlds

    found = paired.measure(mote, data)
    right = {split: paired.unpacked(found["right"][split], len(data.labels[split])) for split in worlds.SPLITS[1:]}
    for split, column in zip(worlds.SPLITS[1:], ("trained", *worlds.UNSEEN), strict=True):
        assert right[split].mean() == pytest.approx(found["columns"]["off"][column], abs=1e-4)
    assert set(found["columns"]["by_label_0.1"]) == set(worlds.COLUMNS)
    assert found["columns"]["by_label_0.1"] != found["columns"]["modulated_0.1"] != found["columns"]["off"]
    assert found["norms"]["attention"] > 0 and found["norms"]["feed_forward"] > 0


def test_same_seed_same_head(data):
    import survey

    first, second = (survey.train(survey.MOTE, 1, data, STEPS).temporal_model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


# ---------------------------------------------------------------------------------------------------------- statistics


def test_sign_flips_are_counted_exactly():
    import paired_report

    assert paired_report.sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert paired_report.sign_flip_p([0.4] * 10) == 2 / 1024
    values = [0.3, -0.1, 0.25, 0.5, -0.45, 0.2]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((-1, 1), repeat=6)
    ]
    assert paired_report.sign_flip_p(values) == np.mean([each >= abs(sum(values)) - 1e-12 for each in sums])
    assert paired_report.sign_flip_p([0.0, 0.0]) == 1


def test_holm_is_step_down():
    import paired_report

    assert paired_report.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired_report.holm([0.6, 0.5]) == [1.0, 1.0]


def test_resamples_draw_classes_and_clips_within_them():
    import paired_report

    weights = paired_report.weights_of_clips(5, 4, 2, 50, np.random.default_rng(0))
    assert weights.shape == (2, 50, 20) and (weights.sum(-1) == 20).all()
    per_class = weights.reshape(2, 50, 5, 4).sum(-1)
    assert (per_class % 4 == 0).all() and (per_class[0] == per_class[1]).all()  # both drawings: the same classes
    assert (weights[0] != weights[1]).any()  # and clips of their own


def run_of(seeds=4, blocks=((0, 1.0),), better=0.1):
    """A run of random clips in which MoTE alone is better, by so much."""
    import paired
    import paired_report
    import worlds

    draw, sizes, rows = np.random.default_rng(1), {"test": (3, 24), **dict.fromkeys(worlds.SPLITS[2:], (4, 40))}, []
    for unit in paired.units(seeds, (10, 20), blocks):
        chance = 0.5 + better * (unit.head == "mote")
        right = {split: torch.from_numpy(draw.random(n) < chance) for split, (_, n) in sizes.items()}
        columns = {
            column: right[split].double().mean().item()
            for split, column in zip(worlds.SPLITS[1:], ("trained", *worlds.UNSEEN), strict=True)
        }
        columns["trade_off"] = worlds.trade_off(columns)
        values = [columns.get(column, 0.5) for column in worlds.COLUMNS]
        rows.append(
            {
                **dataclasses.asdict(unit),
                "columns": dict.fromkeys(("off", "dropped", *paired_report.MODES), values),
                "norms": {"attention": 1.0, "feed_forward": 0.1},
                "right": paired.packed(right),
            }
        )
    reference = {"clip": [0.5] * len(worlds.COLUMNS), "probe": 0.9}
    about = {
        "heads": list(paired.HEADS),
        "seeds": list(range(seeds)),
        "lengths": [10, 20],
        "clips": {split: n for split, (_, n) in sizes.items()},
        "classes": {split: classes for split, (classes, _) in sizes.items()},
        "references": {"0": reference, "1": reference},
    }
    return paired_report.Run(about, rows)


def test_intervals_are_of_the_statistic_that_is_reported():
    import paired
    import paired_report

    run, claim = run_of(better=0.3), paired.Claim("mote", "plain", "")
    low, high = run.interval(1.0, 10, claim)
    assert 0 < low < np.mean(run.differences(1.0, 10, claim)) < high
    assert run.interval(1.0, 10, paired.Claim("mote", "mote", "")) == (0.0, 0.0)
    # Without resampling, a bootstrap's score is the column itself.
    accuracies = {split: run.right(1.0, 0, 10, "mote", split).mean(1) for split in run.about["clips"]}
    assert paired_report.trade_offs(accuracies) == pytest.approx(run.values(1.0, 10, "mote", "trade_off"))


def test_a_head_counts_once_it_is_whole(tmp_path):
    import paired
    import paired_report

    run = run_of(seeds=2, blocks=((0, 1.0), (1, 1.0)))
    assert run.drawings(1.0, 10, *paired.HEADS) == run.drawings(1.0, 20, *paired.HEADS) == [0, 1]
    rows = list(run.rows.values())
    cut = paired_report.Run(run.about, [row for row in rows if row["head"] != "frozen" or row["seed"] == 0])
    assert cut.drawings(1.0, 10, "frozen") == [] and cut.drawings(1.0, 10, "mote", "plain") == [0, 1]
    assert cut.whole_heads(1.0, 10) == [head for head in paired.HEADS if head != "frozen"]
    # What is not there yet counts among the claims that are tested together.
    whole, part = paired_report.verdicts(run, 1.0), paired_report.verdicts(cut, 1.0)
    assert len(whole) == len(part) + 2 == 16
    assert min(each["holm"] for each in part) == min(1, 16 * min(each["p"] for each in part))
    assert "not computed yet" in paired_report.report(cut, tmp_path / "page.md", tmp_path)
    cut.about["title"] = "here"
    shown = paired_report.report_places([cut], "elsewhere", paired.CLAIMS, tmp_path / "page.md")
    assert shown.count("| here: ") == len(part) and "MoTE is above an expert that never learns" not in shown
    cut = paired_report.Run(run.about, rows[:-1])
    assert cut.drawings(1.0, 20, "plain") == [0, 1] and cut.drawings(1.0, 20, "mote") == [0]
    with pytest.raises(ValueError, match="No two heads"):
        paired_report.report(paired_report.Run(run.about, rows[:3]), tmp_path / "page.md", tmp_path)


def test_report_names_what_is_shown_and_what_is_not(tmp_path):
    import paired
    import paired_report

    run = run_of(seeds=10, better=0.35)
    tables = paired_report.report(run, tmp_path / "page.md", tmp_path)
    line = next(line for line in tables.splitlines() if line.startswith(f"| {paired.CLAIMS[0].says} |"))
    assert line.count(" yes |") == 2
    line = next(line for line in tables.splitlines() if line.startswith(f"| {paired.CLAIMS[5].says} |"))
    assert line.count(" not shown |") == 2
    for name in ("heads.png", "claims.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.md").read_text()
    paired_report.report(run, tmp_path / "page.md", tmp_path)
    assert (tmp_path / "page.md").read_text() == page


# ------------------------------------------------------------------------------------------------------------- command


def test_units_come_head_by_head_block_by_block_and_length_by_length():
    import paired

    units = paired.units(2)
    heads, lengths = len(paired.HEADS), len(paired.LENGTHS)
    assert len(units) == len(set(units)) == 2 * heads * lengths * len(paired.BLOCKS)
    assert {unit.head for unit in units[:2]} == {"plain"} and {unit.seed for unit in units[:2]} == {0, 1}
    assert {(unit.data_seed, unit.init_scale) for unit in units[: 2 * heads]} == {(0, 1.0)}
    assert {unit.steps for unit in units[: len(units) // 2]} == {paired.LENGTHS[0]}
    groups = paired.together(paired.units(paired.TOGETHER + 1))
    assert [len(group) for group in groups[:2]] == [paired.TOGETHER, 1]
    assert all(len({dataclasses.replace(unit, seed=0) for unit in group}) == 1 for group in groups)


def test_units_are_computed_once_per_world(data, tmp_path, monkeypatch):
    import paired
    import survey

    monkeypatch.setattr(paired, "load_world", lambda world, output: data)
    units = [paired.Unit("plain", seed, STEPS, 0, 1.0) for seed in (0, 1)]
    rows = paired.run_units(units, survey.WORLD, tmp_path)
    assert [paired.unit_of(row) for row in rows] == units
    paths = [paired.unit_file(unit, survey.WORLD, tmp_path) for unit in units]
    written = [path.stat().st_mtime_ns for path in paths]
    assert paired.run_units(units, survey.WORLD, tmp_path) == rows
    assert [path.stat().st_mtime_ns for path in paths] == written
    paths[0].unlink()  # its head is kept
    assert paired.run_units(units, survey.WORLD, tmp_path) == rows and paths[1].stat().st_mtime_ns == written[1]
    paired.run_units(units[:1], survey.WORLDS[0], tmp_path)
    paired.run_units([dataclasses.replace(units[0], batch_size=16)], survey.WORLD, tmp_path)
    assert len(list((tmp_path / "units").rglob("*.json"))) == 4


def test_rows_beside_the_page_count_as_computed(tmp_path):
    """No clip is drawn and no head trained for a unit whose row is there; in another world it is another unit."""
    import ablation
    import paired
    import paired_report

    small = ablation.QUICK.world
    units = paired.units(2, (10, 20), ((0, 1.0),))
    rows = list(run_of(seeds=2).rows.values())
    about = paired.about(small, units, {"0": {"clip": [0.5] * 9, "probe": 0.9}})
    there = ablation.Ablation(ablation.QUICK, tmp_path / "run", tmp_path / "report", 1)
    paired_report.keep_runs([(about, rows)], there.rows["paired"])
    assert there.run(small, units, "paired", "trainings") == (about, rows)
    few = [unit for unit in units if unit.head == "mote"]
    assert [paired.unit_of(row) for row in there.run(small, few, "elsewhere", "trainings")[1]] == few
    so_far = dataclasses.replace(there, so_far=True)
    assert so_far.run(dataclasses.replace(small, static_cue=0.0), units, "paired", "trainings")[1] == []
    more = [*units, dataclasses.replace(units[0], seed=2)]
    assert so_far.run(small, more, "paired", "trainings")[1] == rows
    assert not (tmp_path / "run").exists()


def test_rule_of_the_world():
    import survey

    def row(trained, lost):
        return {"plain": {"trained": trained}, "lost": lost}

    unlearned, most, least = row(0.89, 0.5), row(0.95, 0.1), row(1.0, -0.2)
    assert survey.ranked([least, unlearned, most]) == [most, least, unlearned]
    told = [each | {"probe": share} for each, share in ((unlearned, 0.1), (most, 0.6), (least, 0.5))]
    assert survey.hardest(told)["lost"] == least["lost"]


def test_row_of_other_settings_is_refused(tmp_path):
    import survey

    path = tmp_path / "rows" / "mote-0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"settings": survey.settings(survey.WORLD, 7)}))
    assert survey.run_row("mote", 0, survey.WORLD, 7, tmp_path) == {"settings": survey.settings(survey.WORLD, 7)}
    with pytest.raises(ValueError, match="other settings"):
        survey.run_row("mote", 0, survey.WORLD, 8, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--part", "moet"], "no such part"), (["--seeds", "0"], "--seeds"), (["--blocks", "5"], "4")],
)
def test_bad_option_is_one_sentence(options, said, monkeypatch, tmp_path):
    import ablation

    monkeypatch.setattr(sys, "argv", ["ablation.py", "--output", str(tmp_path), *options])
    with pytest.raises(SystemExit) as stop:
        ablation.main()
    assert stop.value.code.startswith("error: ") and said in stop.value.code


def test_page_is_made_again_from_the_stored_rows(tmp_path):
    """The tables of docs/ablation.md are those of the rows beside it."""
    import survey_report

    docs = SCRIPT.parents[2] / "docs"
    page = (docs / "ablation.md").read_text()
    (tmp_path / "ablation.md").write_text(page)
    survey_report.report(json.loads((docs / "ablation" / "survey.json").read_text()), tmp_path / "ablation.md")
    survey_report.report_worlds(json.loads((docs / "ablation" / "worlds.json").read_text()), tmp_path / "ablation.md")
    assert (tmp_path / "ablation.md").read_text() == page


@pytest.mark.slow
def test_quick_run_resumes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(tmp_path / "run")]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert finished.returncode == 0, finished.stderr
    rows = sorted((tmp_path / "run" / "units").rglob("*.json"))
    written = {row: row.stat().st_mtime_ns for row in rows}
    for name in ("heads", "claims"):
        assert (tmp_path / "run" / "ablation" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    tables = (tmp_path / "run" / "ablation.md").read_text()
    assert "one expert, same losses (control)" in tables and "one list: unseen" in tables

    rows[0].unlink()
    for kept in (tmp_path / "run" / "ablation").glob("*.jsonl"):  # or the row would be taken from there
        kept.unlink()
    again = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert again.returncode == 0, again.stderr
    assert rows[0].is_file()
    assert all(row.stat().st_mtime_ns == written[row] for row in rows[1:])
    assert (tmp_path / "run" / "ablation.md").read_text() == tables


# ------------------------------------------------------------------------------------------------- few clips in worlds


@pytest.mark.slow
def test_few_clips_in_worlds_are_measured_as_the_model_scores_them(data, mote, tmp_path):
    import few_in_worlds
    import worlds

    model, shots = mote.eval(), (1, 2)
    splits = few_in_worlds.measure(model, data, data, 0, shots)
    rows = json.loads(json.dumps([{"title": "a world", "seed": seed, "splits": splits} for seed in (0, 1)]))
    assert list(splits) == list(worlds.SPLIT_TITLES)
    for split, found in splits.items():
        with torch.no_grad():
            logits = model(
                frame_embeds=data.frame_embeds[split], class_embeds=data.candidates(data.names(split))
            ).logits
        right = (logits.argmax(-1) == data.labels[split]).double().mean().item()
        assert found["text"] == found["trained"]["top-1"] == found["own"][2]["top-1"] == right
        assert found["lists"][2]["top-1"] >= right  # one of two is easier than one of all
        assert found["examples"][2] >= right  # they are the clips themselves
    page = tmp_path / "page.md"
    shown = few_in_worlds.report(rows, page, tmp_path / "picture.png")
    assert f"| a world: trained classes | {100 * splits['test']['text']:.1f} ± 0.0 |" in page.read_text("utf-8")
    assert shown.count("a world: unseen motions") == 1 + 3 + 3
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_wider_features_have_the_same_cosines(data):
    import heads
    import worlds

    wide = data.widened(256)
    assert (data.width, wide.width) == (64, 256)
    assert worlds.plain_clip(wide) == worlds.plain_clip(data)
    model = heads.paired_model(heads.MOTE, 0, wide, 1.41)
    config = model.config.temporal_config
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (256, 1024, 4)
    assert model.get_video_features(frame_embeds=wide.frame_embeds["test"]).pooler_output.shape[-1] == 256
