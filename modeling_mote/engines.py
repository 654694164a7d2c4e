"""Engines: what runs the image tower, PyTorch or another program, behind the same model.

>>> model = load_model("runs/mine/model")
>>> use_engine(model, "onnxruntime")  # from here on in the pipeline, windows, features, scores
>>> drop_engine(model)  # PyTorch again

An engine takes the place of the image tower's forward, pixels [n, 3, h, w] to pooled features [n, w]. It is 95 % and
more of a video's time. All the rest stays PyTorch's: the projection, the temporal layers, modulation and scores. So
does what asks the tower for more than pooled features: gradients, hidden states, frames of another size.

The graph that an engine runs is exported once per image tower and kept in the cache, in a folder named by a
fingerprint of the weights, beside a record with the checksums of its files.

Shapes: n frames, w = width of the image tower, d = `projection_dim`.
"""

import copy
import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .checked_folder import find_damage, write_checksums
from .feature_cache import CACHE_DIR, fingerprint
from .modeling_mote import MoTEModel
from .processing.files import whole_folder

# What runs, and in which numbers. The graph is float32 or int8; bfloat16 is how a float32 one is run.
ENGINES = {
    "torch": ("torch", "float32"),
    "torch-bfloat16": ("torch", "bfloat16"),
    "onnxruntime": ("onnxruntime", "float32"),
    "onnxruntime-int8": ("onnxruntime", "int8"),
    "openvino": ("openvino", "float32"),
    "openvino-bfloat16": ("openvino", "bfloat16"),
}
LIBRARIES = {  # what a program needs beyond PyTorch: to write the graph, then to run it; and the extra that has it
    "torch": ((), ""),
    "onnxruntime": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "openvino": (("onnx", "onnxscript", "openvino"), "openvino"),
}
TOLERANCE = 1e-4  # in float32: how far a frame's unit vector may move, and with it any cosine
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # instruction sets that multiply in it
KEY = "key.txt"  # what a graph depends on, in its folder
CHECK_FRAMES = 4
WRITERS = ("torch", "transformers", "onnx", "onnxscript")  # of graphs

Run = Callable[[torch.Tensor], torch.Tensor]  # pixels [n, 3, h, w] -> pooled features [n, w], float32


@dataclass(frozen=True)
class Engine:
    """What runs the image tower, and what is known of it.

    Attributes:
        name: one of `ENGINES`.
        error: how far it moved a frame's L2-normalised feature from PyTorch's in float32, the largest of some frames:
            no cosine of a frame with a text moves by more.
        seconds: what making its graph took; 0 if it was in the cache.
    """

    name: str
    error: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.name == "torch":
            return "PyTorch in float32 runs the image tower."
        made = f"; its graph was made in {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.name} runs the image tower: {moves(self.error)}{made}."


def moves(error: float) -> str:
    """An engine's error in words."""
    return f"on {CHECK_FRAMES} frames checked, it moves no cosine by more than {error:.0e}"


# ---------------------------------------------------------------------------------------------------- on and off


def use_engine(
    model: MoTEModel,
    name: str,
    cache_dir: str | os.PathLike[str] | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> Engine:
    """Run a model's image tower by an engine from here on; another one that it had is dropped.

    The tower takes no gradients any more. Its weights must stay as they are: a forward after they were edited in
    place, moved or cast is refused. (Edits through `.data` are not seen: call this again after them.)

    Args:
        model: on the CPU, in float32.
        name: one of `ENGINES`: `onnxruntime` needs the extra `export`, `openvino` the extra `openvino`, and bfloat16 a
            CPU that has instructions for it.
        cache_dir: folder of the cache; by default `$MOTE_CACHE`, or `mote` in the Hugging Face home.
        say: is told when a graph has to be made, which takes a while.

    Returns:
        The engine, with its error: measured now, on frames of smooth noise.

    Raises:
        ValueError: if there is no such engine, a library is missing, the model is elsewhere or in another
            dtype, or the engine is off by more than `TOLERANCE` in float32.
        OSError: if the cache can't be written.
    """
    check_engine(name)
    check_model(model)
    tower: Any = model.vision_model
    drop_engine(model)
    tower.requires_grad_(False)
    if name == "torch":
        return Engine(name)
    run, seconds = make_run(model, name, Path(cache_dir or CACHE_DIR) / "engines", say)
    error = find_error(model, run)
    if ENGINES[name][1] == "float32" and not error <= TOLERANCE:
        raise ValueError(f"{name} moves a frame's unit vector by {error:.1e}, more than {TOLERANCE:g}: don't use it.")
    tower.forward = EngineForward(tower, run)
    tower.engine = name  # which module_state and fingerprint see: caches tell its features from others
    return Engine(name, error, seconds)


def drop_engine(model: MoTEModel) -> None:
    """Run a model's image tower by PyTorch again, if another engine ran it."""
    own = vars(model.vision_model)
    if isinstance(own.get("forward"), EngineForward):  # accelerate may have put another one there
        del own["forward"], own["engine"]


def check_engine(name: str) -> None:
    """Refuse an engine that there is not, or that can't run here.

    Raises:
        ValueError: naming what is missing and what to do.
    """
    if name not in ENGINES:
        raise ValueError(f"There is no engine {name!r}: choose {', '.join(ENGINES)}.")
    program, precision = ENGINES[name]
    libraries, extra = LIBRARIES[program]
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        raise ValueError(f"The engine {name} needs {' and '.join(missing)}: pip install 'mote-transformers[{extra}]'.")
    if precision == "bfloat16" and not BFLOAT16.intersection(instruction_sets()):
        raise ValueError(
            f"{name} would be slower than float32 here: this CPU has no instructions for bfloat16 (AVX512_BF16, AMX)."
        )


def check_model(model: MoTEModel) -> None:
    """Refuse a model that engines can't run.

    Raises:
        ValueError: saying where it is, and in which dtype.
    """
    weight = model.visual_projection.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"Engines run float32 models on the CPU, and this one is {weight.dtype} on {weight.device}: load it so "
            "(--device cpu), or leave the engine out."
        )


def instruction_sets() -> list[str]:
    """The instruction sets of this CPU that engines are fast by: `avx2`, `avx512_vnni`, `amx_bf16`, ..."""
    known = ("avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "i8mm")
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return [name for name in known if found.get(name)]


class EngineForward:
    """An image tower's forward while an engine runs it.

    Args:
        tower: CLIP's.
        run: the engine.
    """

    def __init__(self, tower: Any, run: Run) -> None:
        self.tower, self.run = tower, run
        self.side = tower.config.image_size
        self.weights = _state(tower)

    def __call__(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """As the tower's own, of pixels [n, 3, h, w]; without `last_hidden_state`, which engines don't give."""
        if _state(self.tower) != self.weights:
            raise ValueError(
                "The image tower's weights were edited or moved after an engine took them: call use_engine again, or "
                "drop_engine."
            )
        recorded = ("output_hidden_states", "output_attentions")
        more = any(kwargs.get(name, getattr(self.tower.config, name)) for name in recorded)
        square = tuple(pixel_values.shape[-3:]) == (3, self.side, self.side)
        if more or not square or (torch.is_grad_enabled() and pixel_values.requires_grad):
            return type(self.tower).forward(
                self.tower, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
        pooled = self.run(pixel_values.detach().float().contiguous())
        return BaseModelOutputWithPooling(pooler_output=pooled.to(pixel_values.dtype))


def _state(tower: nn.Module) -> list[tuple[int, int]]:
    """Where the weights lie and how often they were edited."""
    return [(weight.data_ptr(), weight._version) for weight in tower.parameters()]


@torch.no_grad()
def find_error(model: MoTEModel, run: Run) -> float:
    """How far an engine moves a frame's L2-normalised feature from PyTorch's, the largest of `CHECK_FRAMES` frames."""
    pixels = check_frames(model, CHECK_FRAMES)
    expected, found = (
        F.normalize(model.visual_projection(pooled), dim=-1)
        for pooled in (model.vision_model(pixel_values=pixels).pooler_output, run(pixels))
    )
    return (found - expected).norm(dim=-1).max().item()


def check_frames(model: MoTEModel, count: int) -> torch.Tensor:
    """Frames of smooth noise, normalised as pictures are, [count, 3, h, w]."""
    config: Any = model.config
    coarse = torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=config.vision_config.image_size, mode="bilinear")


# ------------------------------------------------------------------------------------------------------------- engines


def make_run(model: MoTEModel, name: str, folder: Path, say: Callable[[str], Any]) -> tuple[Run, float]:
    """An engine for a model's image tower, and the seconds that making its graph took, 0 if it was there.

    Args:
        model: whose tower it runs.
        name: of the engine.
        folder: of the cache.
        say: is told when a graph has to be made.
    """
    program, precision = ENGINES[name]
    if program == "torch":
        return torch_run(model), 0.0
    start = time.perf_counter()
    graph, made = find_graph(model, "int8" if precision == "int8" else "float32", folder, say)
    seconds = time.perf_counter() - start if made else 0.0
    return (onnxruntime_run(graph) if program == "onnxruntime" else openvino_run(graph, precision)), seconds


def torch_run(model: MoTEModel) -> Run:
    """The image tower in bfloat16, beside the model's own."""
    tower = copy.deepcopy(model.vision_model).bfloat16()
    return lambda pixels: tower(pixel_values=pixels.bfloat16()).pooler_output.float()


def onnxruntime_run(graph: Path) -> Run:
    """ONNX Runtime on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])


def openvino_run(graph: Path, precision: str) -> Run:
    """OpenVINO on as many threads as PyTorch has; in float32 also on CPUs where it would choose bfloat16."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    # A request serves one thread at a time, and costs nothing to make.
    return lambda pixels: torch.from_numpy(compiled.create_infer_request().infer({0: pixels.numpy()})[0].copy())


# --------------------------------------------------------------------------------------------------------------- cache


def find_graph(model: MoTEModel, precision: str, folder: Path, say: Callable[[str], Any]) -> tuple[Path, bool]:
    """The ONNX graph of a model's image tower in the cache, and whether it had to be made.

    Args:
        model: on the CPU, in float32.
        precision: `float32` or `int8`.
        folder: of the cache.
        say: is told when it has to be made.

    Raises:
        OSError: if the cache can't be written.
    """
    key = graph_key(model, precision)
    place = folder / key[:32]
    graph = place / ("frames.int8.onnx" if precision == "int8" else "frames.onnx")
    if place.exists():
        problem = what_is_wrong(place, key)
        if problem is None:
            return graph, False
        warnings.warn(f"{place} {problem}; it is made anew.", stacklevel=2)
    say(f"Exporting the image tower in {precision}, once: it is kept in {place}.")
    source = None if precision == "float32" else find_graph(model, "float32", folder, say)[0].parent
    with whole_folder(place) as partial_folder:
        write_graph(model, partial_folder, source)
        (partial_folder / KEY).write_text(key, encoding="utf-8")
        write_checksums(partial_folder)
    return graph, True


def graph_key(model: MoTEModel, precision: str) -> str:
    """What the graph of an image tower depends on: its weights and config, the precision, and what writes graphs."""
    writers = versions(WRITERS if precision == "float32" else (*WRITERS, "onnxruntime"))  # which makes int8 of float32
    return fingerprint(model.vision_model, model.config.vision_config.to_dict(), precision, writers)


def write_graph(model: MoTEModel, folder: Path, float32: Path | None) -> None:
    """Write `frames.onnx`; or, from the folder that has it, `frames.int8.onnx`. Weights lie beside either."""
    # Exporting and quantising import much: only where a graph is to be made.
    from .export import export_program, frames_graph, quantize_graphs, quiet, write_onnx

    with quiet():
        if float32 is None:
            graph = frames_graph(model)
            write_onnx(export_program(graph, {}), graph, folder / "frames.onnx")
        else:
            quantize_graphs(float32, ["frames"], folder)


def what_is_wrong(place: Path, key: str) -> str | None:
    """Why a folder of the cache can't be used for a key, in words; None if it can."""
    if problem := find_damage(place):
        return f"is damaged ({problem})"
    return None if (place / KEY).read_text(encoding="utf-8") == key else "holds the graph of another model"


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of packages, of those that are installed."""
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name) is not None}


__all__ = ["ENGINES", "Engine", "check_engine", "drop_engine", "use_engine"]
