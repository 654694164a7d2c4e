"""The notebook, run in a real kernel from a clone in which `make demo` was done, and what it shows."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mote.processing.builders.moving_shapes import encode_mp4, render_clip

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"

nbformat = pytest.importorskip("nbformat", reason="nbformat is absent: pip install nbclient ipykernel ipywidgets")


def read() -> "nbformat.NotebookNode":
    return nbformat.read(NOTEBOOK, as_version=4)


def test_is_kept_without_results():
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_runs_in_a_kernel(shapes_model, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is absent: pip install nbclient ipykernel ipywidgets")
    pytest.importorskip("ipykernel", reason="ipykernel is absent: pip install nbclient ipykernel ipywidgets")
    pytest.importorskip("ipywidgets", reason="ipywidgets is absent: pip install nbclient ipykernel ipywidgets")
    examples, demo = tmp_path / "examples", tmp_path / "runs" / "moving_shapes"
    examples.mkdir()
    shutil.copytree(shapes_model, demo / "model")
    (demo / "example.mp4").write_bytes(encode_mp4(render_clip("red", "bar", "growing", np.random.default_rng(0)), 8))
    notebook = read()
    where = {"metadata": {"path": str(examples)}}  # Jupyter starts the kernel in the notebook's folder
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []  # neither warnings nor bars
    data = [output.data for output in outputs if "data" in output]
    pictures = [Image.open(io.BytesIO(base64.b64decode(each["image/png"]))) for each in data if "image/png" in each]
    assert len(pictures) == 3  # scores, frames, timeline
    assert all(np.asarray(picture.convert("L")).std() > 5 for picture in pictures)
    assert any("application/vnd.jupyter.widget-view+json" in each for each in data)  # the bars are widgets
    texts = [each["text/plain"] for each in data]
    assert any(text.startswith("ZeroShotVideoClassificationPipeline: {'model': 'MoTEModel'") for text in texts)
    assert any(text.startswith("[{'start': 0.0") for text in texts)
    (found,) = [output.text for output in outputs if output.get("name") == "stdout"]
    # Untrained temporal layers still tell colours and shapes, as CLIP does.
    for line in found.splitlines():
        query, answer = line.split(" -> ")
        assert query.split()[:2] == answer.split()[:2]


def test_names_what_the_demo_writes():
    source = read().cells[1].source
    assert 'MODEL = "../runs/moving_shapes/model"' in source
    assert 'VIDEO = "../runs/moving_shapes/example.mp4"' in source
