"""The fastest engine for a model on the machine at hand: measured once, and remembered.

>>> engine = use_fastest(load_model("runs/mine/model"), say=print)
Fastest here: openvino, 0.79 s per clip, 1.4 x PyTorch (torch 1.1 s); on 4 frames checked, it moves no cosine by more
than 2e-06.

It is a matter of instruction sets, cores and sizes, which no table foresees: bfloat16 pays with AMX, int8 with VNNI,
and neither without. So every engine that is installed and that this CPU has instructions for encodes one clip's
frames, in turns. The fastest of those that keep to PyTorch's features is used.
"""

import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .engines import (
    ENGINES,
    Engine,
    check_engine,
    check_frames,
    check_model,
    drop_engine,
    graph_key,
    instruction_sets,
    moves,
    use_engine,
    versions,
)
from .feature_cache import CACHE_DIR, fingerprint
from .modeling_mote import MoTEModel
from .processing.files import write_whole

LARGEST_ERROR = 0.02  # of a frame's unit vector, and so of any cosine, that the fastest may have
WORTH = 1.1  # how many times as fast as PyTorch's float32 it must be, measured on a machine that is never quite still
ROUNDS = 3


def use_fastest(
    model: MoTEModel,
    cache_dir: str | os.PathLike[str] | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> Engine:
    """Run a model's image tower by what is fastest on this machine, see `engines.use_engine`.

    Args:
        model: on the CPU, in float32; one on an accelerator is left as it is, which is said.
        cache_dir: folder of the cache; by default `$MOTE_CACHE`, or `mote` in the Hugging Face home.
        say: is told in one line what was picked and why, and before that if it has to be measured.

    Returns:
        The engine.

    Raises:
        ValueError: if the model is in another dtype.
        OSError: if the cache can't be written.
    """
    if model.device.type != "cpu":
        say(f"Fastest here: PyTorch in {model.dtype} on {model.device}; the other engines are for CPUs.")
        return Engine("torch")
    check_model(model)
    drop_engine(model)
    path = Path(cache_dir or CACHE_DIR) / "engines" / f"fastest-{machine_key(model)[:32]}.json"
    measured = read_measured(path)
    if measured is None:
        say(f"Measuring which engine is fastest on this machine, once: the result is kept in {path}.")
        measured = measure_engines(model, cache_dir, say)
        write_whole(path, json.dumps(measured, indent=2) + "\n")
    best = pick(measured)
    engine = use_engine(model, best["engine"], cache_dir, say)
    say(describe(measured, best))
    return engine


def candidates() -> list[str]:
    """Engines that are installed here and that this CPU has instructions for, PyTorch's float32 first."""
    found = []
    for name in ENGINES:
        with suppress(ValueError):
            check_engine(name)
            found.append(name)
    return found


@torch.no_grad()
def measure_engines(
    model: MoTEModel, cache_dir: str | os.PathLike[str] | None, say: Callable[[str], Any]
) -> list[dict[str, Any]]:
    """Seconds of every candidate for one clip's frames, medians of alternated rounds, and how far off it is."""
    frames = check_frames(model, model.config.num_frames)
    found: list[dict[str, Any]] = []
    forwards: list[Callable[..., Any]] = []
    for name in candidates():
        try:
            engine = use_engine(model, name, cache_dir, say)
            model.vision_model(frames)  # warms up
        except OSError:
            raise
        except Exception as error:  # of any program; one that fails here is none of the choices
            warnings.warn(f"{name} does not work here: {error}", stacklevel=2)
            continue
        forwards.append(model.vision_model.forward)
        found.append({"engine": name, "error": engine.error})
    drop_engine(model)
    times: list[list[float]] = [[] for _ in forwards]
    for _ in range(ROUNDS):
        for each, forward in zip(times, forwards, strict=True):
            start = time.perf_counter()
            forward(frames)
            each.append(time.perf_counter() - start)
    return [each | {"seconds": statistics.median(seconds)} for each, seconds in zip(found, times, strict=True)]


def pick(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest of those that are near enough to PyTorch in float32, the first; which must be worth its trouble."""
    plain = measured[0]
    near = [each for each in measured if each["error"] <= LARGEST_ERROR]
    best = min(near, key=lambda each: each["seconds"])
    return best if WORTH * best["seconds"] <= plain["seconds"] else plain


def describe(measured: list[dict[str, Any]], best: dict[str, Any]) -> str:
    """What was picked and why, in one line."""
    plain = measured[0]
    others = ", ".join(
        f"{each['engine']} {each['seconds']:.3g} s" + (" (too far off)" if each["error"] > LARGEST_ERROR else "")
        for each in measured
        if each is not best
    )
    what = f"Fastest here: {best['engine']}, {best['seconds']:.3g} s per clip"
    if best is plain:
        return f"{what}; measured beside it: {others or 'nothing, for no other engine is installed'}."
    faster = f"{plain['seconds'] / best['seconds']:.1f} x PyTorch ({others})"
    return f"{what}, {faster}; {moves(best['error'])}."


def machine_key(model: MoTEModel) -> str:
    """What the measurement depends on: the image tower, the machine, its threads, and what is installed."""
    machine = [platform.machine(), platform.processor(), instruction_sets(), os.cpu_count(), torch.get_num_threads()]
    programs = versions(("torch", "onnxruntime", "openvino"))
    return fingerprint([graph_key(model, "float32"), model.config.num_frames, machine, candidates(), programs])


def read_measured(path: Path) -> list[dict[str, Any]] | None:
    """What was measured before; None if there is nothing, or nothing that can be read, which is said."""
    if not path.is_file():
        return None
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        pick(measured)
        return measured
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        warnings.warn(f"{path} is damaged ({error}); it is measured anew.", stacklevel=2)
        return None


__all__ = ["use_fastest"]
