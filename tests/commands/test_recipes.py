"""The recipes are the authors' settings, to the letter."""

import re
from pathlib import Path

import pytest
import yaml

from modeling_mote.commands import train
from modeling_mote.commands.command_line import Parser
from modeling_mote.loading import load_to_train
from modeling_mote.training import freeze, parameter_groups

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
# Design, section 6: epochs, clips a step, peak rates of the head and of the image tower with the logit scale.
AUTHORS = {"kinetics400_vitb16.yaml": (30, 192, 5e-5, 3.5e-6), "kinetics400_vitl14.yaml": (20, 144, 5e-5, 3e-6)}


def parse(*given):
    """The options of `mote train`."""
    parser = Parser("train", train.__doc__)
    train.add_options(parser)
    return parser.parse_args(list(given))


REQUIRED = ("--data=d", "--model=m", "--output=o")


@pytest.fixture
def arguments():
    return lambda name, *given: parse(f"--config={RECIPES / name}", *given)


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
    if recipe["model"].startswith("../"):  # beside the recipe's folder, wherever the command runs
        recipe["model"] = str((RECIPES / recipe["model"]).resolve())
    assert {key: getattr(parsed, key) for key in recipe} == recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_how_to_run_it_on_what_and_what_the_authors_report(name):
    said = header(name)
    assert "accelerate launch" in said and f"examples/train.py --config examples/recipes/{name}" in said
    assert re.search(r"Hardware: .*(GPU|RTX)", said)
    reported = r"as the authors report it \(never measured here\): \d\d\.\d"
    assert re.search("Result, measured here" if name == "moving_shapes.yaml" else reported, said)


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
    assert parsed.label_smoothing == 0 and parsed.ema is None and parsed.max_grad_norm is None
    assert parsed.schedule == "authors" and parsed.clip_lr > 0


@pytest.mark.parametrize("name", AUTHORS)
def test_the_optimizer_of_a_recipe(name, arguments, clip_folder):
    """Two groups, decay on all of both, at the recipe's rates; the text tower is in neither."""
    parsed = arguments(name, f"--model={clip_folder}")
    model, _ = load_to_train(parsed.model, parsed.num_frames)
    freeze(model, image_tower=parsed.clip_lr == 0)
    groups = parameter_groups(model, parsed.lr, parsed.clip_lr, parsed.weight_decay)
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
def test_values_are_read_as_they_are_written(line, value, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line + "\n")
    assert getattr(parse(f"--config={recipe}", *REQUIRED), line.split(":")[0]) == value


@pytest.mark.parametrize("line", ["draws: each", "epochs: many", "augment: perhaps"])
def test_a_value_that_the_option_does_not_take(line, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line + "\n")
    with pytest.raises(SystemExit):
        parse(f"--config={recipe}", *REQUIRED)
    assert f"--{line.split(':')[0]}" in capsys.readouterr().err


def test_the_demo_is_a_recipe_beside_its_clip(arguments):
    parsed = arguments("moving_shapes.yaml")
    assert (Path(parsed.model) / "model.safetensors").is_file() and parsed.data == "moving_shapes"
    assert (parsed.epochs, parsed.batch_size, parsed.lr, parsed.schedule) == (20, 64, 1e-3, "authors")


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--config=nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--config=PROSE"], "must hold lines of `option: value`"),
        (["--config=NESTED"], "must hold lines of `option: value`"),
        (["--config=OTHER"], "has no option epoch; did you mean epochs?"),
        (["--config=BROKEN"], "is no YAML file"),
    ],
)
def test_a_recipe_that_is_none(given, sentence, tmp_path):
    texts = {
        "PROSE": "use the settings of last week",
        "NESTED": "lr: [1, 2]",
        "OTHER": "epoch: 1",
        "BROKEN": "lr: {",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    given = [each.replace("=", f"={tmp_path}/") if each[9:] in texts else each for each in given]
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        parse(*given, *REQUIRED)
