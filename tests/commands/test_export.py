"""The exported folder on sizes the command did not check, without PyTorch, and what keeps it from being written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, pipeline

from modeling_mote import MoTEForVideoClassification, MoTEModel
from modeling_mote.export import export_checkpoint, export_program, make_graphs, part_of, write_onnx
from modeling_mote.processing.calibration import fit_calibration

from .tiny import save_mote

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("left", "right", "still", "Archery", "Bowling", "Diving", "Fencing")
GRAPHS = ("video", "text", "classifier")


@pytest.fixture(scope="module")
def checkpoint(clip_folder, tmp_path_factory, write_video) -> Path:
    """The checkpoint, with example.mp4 beside its folder."""
    folder = tmp_path_factory.mktemp("export")
    write_video(folder / "example.mp4", num_frames=20)
    saved = save_mote(folder / "model", clip_folder, NAMES, num_frames=4)
    config = json.loads((saved / "config.json").read_text())
    config["calibration"] = fit_calibration(torch.rand(20, 3), torch.arange(20) % 3).to_dict() | {"temperature": 0.1}
    (saved / "config.json").write_text(json.dumps(config))
    return saved


@pytest.fixture(scope="module")
def model(checkpoint) -> MoTEForVideoClassification:
    return MoTEForVideoClassification.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def exported(checkpoint) -> tuple[Path, str]:
    """The folder that the command wrote in a process of its own, in both formats and int8, and what it printed."""
    output = checkpoint.parent / "exported"
    options = ["--model", checkpoint, "--output", output, "--format", "both", "--quantize"]
    finished = subprocess.run(
        [sys.executable, "-m", "modeling_mote", "export", *map(str, options)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return output, finished.stdout


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def run(request, exported):
    """`run(graph, **inputs)`: the outputs by name, of ONNX Runtime or of the loaded program."""
    folder, _ = exported

    def run_onnx(name: str, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = graphs[name].run(None, {key: value.numpy() for key, value in inputs.items()})
        names = [node.name for node in graphs[name].get_outputs()]
        return {key: torch.from_numpy(value) for key, value in zip(names, outputs, strict=True)}

    if request.param == "onnx":
        graphs = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in GRAPHS}
        return run_onnx
    programs = {name: torch.export.load(folder / f"{name}.pt2").module() for name in GRAPHS}
    return lambda name, **inputs: programs[name](**inputs)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def some_classes(model: MoTEForVideoClassification, count: int) -> torch.Tensor:
    """Class features [c, d] that are not of unit length, near the training classes'."""
    draw = torch.Generator().manual_seed(count)
    near = model.seen_classes.weight[torch.randint(len(NAMES), (count,), generator=draw)]
    return 3 * (near + 0.1 * torch.randn(near.shape, generator=draw))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("b", "t"), [(1, 1), (5, 2), (1, 4), (2, 9), (1, 77)])
def test_videos_and_classes_of_any_number(model, run, b, t):
    pixels = torch.randn(b, t, 3, 32, 32, generator=torch.Generator().manual_seed(t))
    encoded = run("video", pixel_values_videos=pixels)
    plain = model.get_video_features(pixels)
    close(encoded["video_embeds"], F.normalize(plain.pooler_output, dim=-1))
    close(encoded["frame_embeds"] + encoded["temporal_embeds"], plain.pooler_output)
    parts = {name: encoded[name] for name in ("frame_embeds", "temporal_embeds")}
    rhos = []
    for c in (1, 2, 3, 4, 5, 6, 7, 401):
        class_embeds = some_classes(model, c)
        expected = model(pixels, class_embeds=class_embeds)
        found = run("classifier", **parts, class_embeds=class_embeds)
        assert found["logits"].shape == (b, c)
        for name in ("logits", "modulation", "video_embeds"):
            close(found[name], expected[name])
        rhos += found["modulation"].tolist()
    assert min(rhos) < 0.9 and max(rhos) - min(rhos) > 0.05  # modulation did something
    seen = run("classifier", **parts, class_embeds=model.seen_classes.weight)
    close(seen["logits"], model(pixels).logits)
    close(seen["modulation"], torch.ones(b))


@pytest.mark.slow
@torch.no_grad()
def test_texts_of_any_number_and_length(model, checkpoint, run):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for texts, padding in (
        (["left"], True),
        (["a video of right .", "still"], True),
        (["a photo of left"] * 9, "max_length"),
    ):
        tokens = tokenizer(texts, padding=padding, return_attention_mask=True, return_tensors="pt")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        expected = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
        close(run("text", **inputs)["text_embeds"], expected)


@pytest.mark.slow
def test_more_frames_than_positions_are_refused(run):
    with pytest.raises(Exception, match=r"(?i)add node|<= 77|77"):
        run("video", pixel_values_videos=torch.zeros(1, 78, 3, 32, 32))


@pytest.mark.slow
def test_axes_are_named(exported):
    inputs = {
        name: {
            node.name: node.shape for node in onnxruntime.InferenceSession(exported[0] / f"{name}.onnx").get_inputs()
        }
        for name in GRAPHS
    }
    assert inputs == {
        "video": {"pixel_values_videos": ["batch", "frames", 3, 32, 32]},
        "text": {"input_ids": ["texts", "length"], "attention_mask": ["texts", "length"]},
        "classifier": {
            "frame_embeds": ["batch", 16],
            "temporal_embeds": ["batch", 16],
            "class_embeds": ["classes", 16],
        },
    }


@pytest.mark.slow
def test_what_is_printed_and_recorded(exported, checkpoint):
    folder, printed = exported
    record = json.loads((folder / "export.json").read_text())
    rows = re.findall(r"^\| (\w+\.\w+) \| (.+?) \| (.+?) \|$", printed, flags=re.M)
    assert [name for name, _, _ in rows] == [f"{name}.{suffix}" for suffix in ("onnx", "pt2") for name in GRAPHS]
    assert (
        str(checkpoint.parent / "example.mp4") in printed and "In int8, which is not held to the tolerance" in printed
    )
    assert record["labels"] == list(NAMES) and record["num_frames"] == 4 and len(record["prompts"]) == 28
    differences = record["largest_difference"]
    assert set(differences) == {"onnx", "pt2", "int8"}
    for suffix in ("onnx", "pt2"):
        assert all(value <= 1e-4 for value in differences[suffix].values()) and len(differences[suffix]) == 7
    assert differences["int8"]["classifier.logits"] > differences["onnx"]["classifier.logits"]  # int8 was what ran
    assert (folder / "video.int8.onnx.data").stat().st_size < (folder / "video.onnx.data").stat().st_size
    assert {path.name for path in checkpoint.parent.iterdir()} == {"example.mp4", "model", "exported"}
    installed = str(Path(torch.__file__).parents[1]).encode()
    assert not any(installed in file.read_bytes() for file in folder.iterdir())  # nor anything else of this machine


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises ImportError
"""


@pytest.mark.slow
def test_the_documents_numpy_gives_what_the_pipeline_gives(exported, checkpoint, tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), flags=re.S).group(1)
    (tmp_path / "mote-onnx").symlink_to(exported[0])
    demo = tmp_path / "runs" / "moving_shapes"
    demo.mkdir(parents=True)
    (demo / "example.mp4").symlink_to(checkpoint.parent / "example.mp4")
    code = code.replace("red bar growing", "left").replace("red bar shrinking", "right")
    code += "\nprint(json.dumps(dict(zip(labels, (scores[0] / scores.sum()).tolist()))))"
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, cwd=tmp_path, env=os.environ
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    classify = pipeline("zero-shot-video-classification", model=str(checkpoint))
    for answer in classify(str(checkpoint.parent / "example.mp4"), candidate_labels=["left", "right"]):
        # Pillow's bicubic rounds otherwise than torchvision's.
        assert found[answer["label"]] == pytest.approx(answer["score"], abs=0.005)
    embeds = np.load(exported[0] / "training_class_embeds.npy")
    assert np.allclose(embeds, MoTEModel.from_pretrained(checkpoint).seen_classes.weight)


def test_a_merged_model_without_training_classes(clip_folder, tmp_path):
    folder, said = save_mote(tmp_path / "model", clip_folder, (), num_frames=4), []
    model = MoTEModel.from_pretrained(folder).eval().merge_experts(temperature=0.6)
    model.save_pretrained(folder)
    export_checkpoint(str(folder), tmp_path / "out", format="torch", say=said.append)
    assert "synthetic clips" in said[0]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["labels"] == []
    assert not list((tmp_path / "out").glob("*.onnx*"))
    pixels, class_embeds = torch.randn(2, 4, 3, 32, 32), torch.randn(3, 16)
    programs = {name: torch.export.load(tmp_path / "out" / f"{name}.pt2").module() for name in GRAPHS}
    with torch.no_grad():
        encoded = programs["video"](pixel_values_videos=pixels)
        parts = {name: encoded[name] for name in ("frame_embeds", "temporal_embeds")}
        found = programs["classifier"](**parts, class_embeds=class_embeds)
        expected = model(pixel_values_videos=pixels, class_embeds=class_embeds)
    assert torch.equal(found["modulation"], torch.ones(2))
    close(found["logits"], expected.logits_per_video)


@pytest.mark.slow
def test_a_graph_that_is_off_leaves_nothing(checkpoint, refusal, tmp_path):
    options = {"model": checkpoint, "output": tmp_path / "out", "format": "torch", "tolerance": 1e-12}
    assert re.fullmatch(
        r"\w+\.pt2: \w+ differs from PyTorch by \d\.\de-\d+, more than the tolerance 1e-12; nothing was written\.",
        refusal("export", options),
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(checkpoint, refusal, full_disk, tmp_path):
    with full_disk(4096):
        message = refusal("export", {"model": checkpoint, "output": tmp_path / "out"})
    assert "File too large" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_opset_that_does_not_exist(model, tmp_path):
    graph = make_graphs(part_of(model).merge_experts())["classifier"]
    program = export_program(graph, {})
    with pytest.raises(ValueError, match="opset 999: this PyTorch can't write classifier.onnx in it"):
        write_onnx(program, graph, tmp_path / "classifier.onnx", 999)
    assert not list(tmp_path.iterdir())
    assert write_onnx(program, graph, tmp_path / "classifier.onnx", 18) == 18


def test_a_part_shares_its_tensors_and_leaves_the_model_as_it_is(model):
    whole = set(dict(model.named_parameters()))
    part = part_of(model, "text_model", "text_projection")
    assert set(dict(part.named_parameters())) == {name for name in whole if name.startswith("text_")}
    assert set(dict(model.named_parameters())) == whole
    assert part.text_projection.weight is model.text_projection.weight
    merged = part_of(model).merge_experts()
    assert merged.config.temporal_config.experts_merged and not model.config.temporal_config.experts_merged


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ({"output": "."}, "--output . exists: name a folder that doesn't", 1),
        ({"model": "./no/such"}, "--model ./no/such: there is no such folder", 1),
        ({"model": "CLIP"}, "is a bare CLIP, whose temporal layers are not there yet", 1),
        ({"model": "UNTRAINED"}, "were never trained", 1),
        ({"format": "tflite"}, "invalid choice: 'tflite'", 2),
        ({"format": "torch", "quantize": "true"}, "quantize is about ONNX", 1),
        ({"opset": 17}, "17 is out of range: it must be at least 18", 2),
        ({"videos": "nowhere.mp4"}, "nowhere.mp4 does not exist", 1),
        ({"videos": __file__}, "cannot be opened as a video", 1),
        ({"tolerance": "nan"}, "nan is out of range", 2),
    ],
)
def test_bad_input_is_one_sentence(checkpoint, clip_folder, refusal, tmp_path, options, message, code):
    given = {"model": checkpoint, "output": tmp_path / "out"} | options
    if given["model"] == "UNTRAINED":
        given["model"] = save_mote(tmp_path / "untrained", clip_folder, trained=False)
    given["model"] = clip_folder if given["model"] == "CLIP" else given["model"]
    assert message in refusal("export", given, code)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_one_sentence(checkpoint, refusal, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refusal("export", {"model": checkpoint, "output": tmp_path / "out"})
    assert message == "ONNX needs onnxscript: pip install 'mote-transformers[export]'."


@pytest.mark.slow
def test_real_clips(shared, checkpoint, tmp_path):
    names, said = ("v_Punch_g03_c01.avi", "v_Biking_g01_c01.mp4", "tc_h265_video.mp4"), []
    clips = [str(shared / "videos" / name) for name in names]
    export_checkpoint(str(checkpoint), tmp_path / "out", format="torch", videos=clips, say=said.append)
    assert said[0].startswith("Checked on the 3 clips given; videos x frames 3 x 4, ")
