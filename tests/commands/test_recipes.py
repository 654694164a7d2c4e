"""The recipes are the authors' settings, to the letter."""

import re
from pathlib import Path

import pytest
import yaml

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
# Design, section 6: epochs, clips a step, peak rates of the head and of the image tower with the logit scale.
AUTHORS = {"kinetics400_vitb16.yaml": (30, 192, 5e-5, 3.5e-6), "kinetics400_vitl14.yaml": (20, 144, 5e-5, 3e-6)}


@pytest.fixture
def arguments(train_script):
    def parse(name, *given):
        return train_script.parse_arguments([f"--config={RECIPES / name}", *given])

    return parse


def header(name: str) -> str:
    lines = (RECIPES / name).read_text().splitlines()
    comment = [line.lstrip("# ") for line in lines if line.startswith("#")]
    return " ".join(comment)


def test_there_are_recipes():
    assert set(AUTHORS) < set(NAMES) and "few_shot_ucf101.yaml" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_an_option_and_every_value_arrives(name, arguments):
    recipe = yaml.safe_load((RECIPES / name).read_text())
    parsed = arguments(name)
    assert {key: getattr(parsed, key) for key in recipe} == recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_how_to_run_it_on_what_and_what_the_authors_report(name):
    said = header(name)
    assert "accelerate launch" in said and f"examples/train.py --config examples/recipes/{name}" in said
    assert re.search(r"Hardware: .*(GPU|RTX)", said)
    assert re.search(r"as the authors report it \(never measured here\): \d\d\.\d", said)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_wins_over_the_recipe(name, arguments):
    parsed = arguments(name, "--lr", "1e-4", "--augment", "false", "--batch_size=2")
    assert (parsed.lr, parsed.augment, parsed.batch_size) == (1e-4, False, 2)


@pytest.mark.parametrize("name", AUTHORS)
def test_kinetics_recipes_are_the_authors(name, arguments):
    parsed = arguments(name)
    epochs, clips, lr, clip_lr = AUTHORS[name]
    processes = int(re.search(r"--num_processes (\d+)", header(name))[1])
    assert parsed.batch_size * processes * parsed.gradient_accumulation == clips
    assert (parsed.epochs, parsed.warmup_epochs, parsed.lr, parsed.clip_lr) == (epochs, 5, lr, clip_lr)
    assert (parsed.weight_decay, parsed.num_frames, parsed.prompts) == (0.2, 8, "mote_28")
    assert (parsed.augment, parsed.sampling, parsed.flip, parsed.draws) == (True, "train", 0.5, "per-rank")
    assert (parsed.data, parsed.data_name, parsed.train_split) == ("kinetics", "kinetics400", "train")
    assert parsed.label_smoothing == 0 and parsed.ema is None and parsed.max_grad_norm is None and not parsed.cached


@pytest.mark.parametrize("name", AUTHORS)
def test_the_optimizer_of_a_recipe(name, arguments, train_script, clip_folder):
    """Two groups, decay on all of both, at the recipe's rates; the text tower is in neither."""
    parsed = arguments(name, f"--model={clip_folder}")
    model, _ = train_script.load_model(parsed)
    train_script.freeze(model, image_tower=parsed.clip_lr == 0)
    groups = train_script.parameter_groups(model, parsed.lr, parsed.clip_lr, parsed.weight_decay)
    assert {group["name"]: group["peak_lr"] for group in groups} == {"head": 5e-5, "clip": AUTHORS[name][3]}
    assert all(group["weight_decay"] == 0.2 for group in groups)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        assert (id(parameter) in trained) == (not parameter_name.startswith("text_")), parameter_name


def test_few_shot_recipe(arguments):
    parsed = arguments("few_shot_ucf101.yaml", "--shots", "16")
    assert (parsed.epochs, parsed.shots, parsed.data, parsed.data_name) == (10, 16, "ucf101", "split1")
    assert parsed.model == "openai/clip-vit-base-patch16" and parsed.num_frames == 8


@pytest.mark.parametrize(
    "line, value", [("mixed_precision: no", "no"), ("lr: 5e-5", 5e-5), ("ema:", None), ("max_steps: null", None)]
)
def test_values_are_read_as_they_are_written(line, value, train_script, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line + "\n")
    assert getattr(train_script.parse_arguments([f"--config={recipe}"]), line.split(":")[0]) == value


@pytest.mark.parametrize("line", ["draws: each", "epochs: many", "augment: perhaps"])
def test_a_value_that_the_option_does_not_take(line, train_script, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line + "\n")
    with pytest.raises(SystemExit):
        train_script.parse_arguments([f"--config={recipe}"])
    assert f"--{line.split(':')[0]}" in capsys.readouterr().err
