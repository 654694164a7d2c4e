"""`mote explain` as users run it: a picture, a film, a table, and one sentence for what is wrong."""

import av
import numpy as np
import pytest
from PIL import Image

from modeling_mote import explain
from modeling_mote.commands import main
from modeling_mote.commands.command_line import run_command
from modeling_mote.loading import load_pipeline

from .tiny import save_mote

LABELS = "red bar growing, blue star spinning, green moon shrinking"


@pytest.fixture
def call(capsys):
    """`call(*arguments)`: exit code, stdout and stderr of the command, run in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command("explain", [str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", num_frames=16, fps=8)


def test_a_picture_and_the_table_that_it_shows(call, shapes_model, video, tmp_path):
    options = ["--model", shapes_model, "--labels", LABELS, "--label", "blue star spinning", "--device", "cpu"]
    code, said, _ = call(video, *options, "--output", tmp_path / "why.png")
    assert code == 0
    why = explain(load_pipeline(str(shapes_model), "cpu"), str(video), "blue star spinning", LABELS)
    head, columns, *rows = said.splitlines()
    assert head == (f"'blue star spinning': score {why.score:.3f} among 3 labels, similarity {why.similarity:.4f}")
    assert columns.split() == ["view", "frame", "seconds", "share", "effect"]
    numbers = np.array([[float(cell) for cell in row.split()] for row in rows])
    assert numbers[:, 1].tolist() == list(range(1, 9))
    assert numbers[:, 2] == pytest.approx(why.seconds.numpy(), abs=0.006)
    assert numbers[:, 3] == pytest.approx(why.frame_shares.numpy(), abs=6e-5)
    assert numbers[:, 4] == pytest.approx(why.frame_effects.numpy(), abs=6e-5)
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["why.png"]


def test_a_film_of_the_best_training_class_beside_another(call, shapes_model, video, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("red bar growing\nblue star spinning\n")
    output = tmp_path / "why.mp4"
    code, said, _ = call(video, "--model", shapes_model, "--output", output, "--num_frames", 3)
    best = said.splitlines()[0]
    assert code == 0 and "among 2 labels" in best  # those that it was trained on
    with av.open(str(output)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 9
    other = "blue star spinning" if "red bar" in best else "red bar growing"
    options = ["--labels_file", file, "--against", other, "--num_frames", 3]
    code, said, _ = call(video, "--model", shapes_model, "--output", tmp_path / "why.png", *options)
    assert code == 0 and f"beside '{other}'" in said and len(said.splitlines()) == 2 + 3


def test_one_sentence_for_what_is_wrong(call, shapes_model, clip_folder, video, tmp_path):
    (tmp_path / "none.mp4").write_text("no video")
    given = {"--model": shapes_model, "--labels": LABELS, "--label": "red bar growing", "--output": "why.png"}

    def refusal(video=video, **changed: object) -> str:
        options = given | {f"--{name}": value for name, value in changed.items()}
        options["--output"] = tmp_path / str(options["--output"])
        code, _, said = call(video, *(part for pair in options.items() if pair[1] for part in pair))
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1, said
        assert [path.name for path in tmp_path.iterdir()] == ["none.mp4"]  # nothing is written
        return errors[0]

    assert "label 'a dog' is none of the 3 candidate labels ('red bar growing', " in refusal(label="a dog")
    assert "against 'a cat' is none of the 3 candidate labels" in refusal(against="a cat")
    assert refusal(output="why.gif").endswith("why.gif must end in .png or .mp4.")
    assert "its folder does not exist" in refusal(output="nowhere/why.png")
    assert "none.mp4" in refusal(video=tmp_path / "none.mp4")
    assert "missing.mp4" in refusal(video=tmp_path / "missing.mp4")
    assert "holds 2 videos: name one file" in refusal(video=folder_of_two(tmp_path, video))
    assert "bare CLIP, whose temporal layers are not there yet" in refusal(model=clip_folder)


def folder_of_two(tmp_path, video):
    folder = tmp_path.with_name(f"{tmp_path.name}-two")
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(video.read_bytes())
    return folder


def test_temporal_layers_that_were_never_trained(call, clip_folder, video, tmp_path):
    model, output = save_mote(tmp_path / "untrained", clip_folder, trained=False), tmp_path / "why.png"
    code, _, said = call(video, "--model", model, "--labels", "left, right", "--output", output)
    assert code == 1 and "were never trained, so its scores mean nothing" in said and not output.exists()


def test_the_command_is_listed(capsys):
    assert main(["--help"]) == 0
    assert "explain" in capsys.readouterr().out
