"""A checkpoint's name → a model that is ready to use, or one sentence that says why not.

Every command, the app, export, search and training load through here, so that what a checkpoint must have is decided
once: MoTE weights that are all there and finite, temporal layers that were trained, a processor that fits.
"""

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    pipeline,
)
from transformers.utils import cached_file, logging

from . import registration, token_merging  # noqa: F401  AutoProcessor and pipeline() know MoTE then
from .configuration_mote import STARTS_FROM, MoTEConfig, check_folder
from .engines import use_engine
from .fastest import use_fastest
from .modeling_mote import MoTEForVideoClassification, MoTEModel
from .processing import MoTEProcessor, MoTEVideoProcessor, ZeroShotVideoClassificationPipeline

TRAIN_FIRST = "train it first with `mote train`, or convert the authors' checkpoint with `mote convert`"


class CheckpointError(ValueError):
    """A checkpoint that can't be used for what was asked; the message names it and says what to do."""


def model_type_of(model: str) -> str:
    """The `model_type` in a checkpoint's config.json, before any weight is read.

    Args:
        model: folder or Hub id.

    Raises:
        CheckpointError: if there is no such checkpoint, or it has no config.
    """
    path = Path(model)
    if path.is_file():
        raise CheckpointError(
            f"{model} is a file, not a checkpoint folder: convert the authors' .pt files with `mote convert`."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(f"{model} is no checkpoint: {_what_else(path)}.")
    try:
        check_folder(model)
        config, _ = PreTrainedConfig.get_config_dict(model)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError) as error:
        what = "Its config.json can't be read" if path.is_dir() else "It is no folder here, and not had from the Hub"
        raise CheckpointError(f"{model} can't be loaded. {what}: {first_sentence(error)}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{model} can't be loaded. Its config.json is no dictionary.")
    return str(config.get("model_type"))


def _what_else(folder: Path) -> str:
    """What a folder without config.json is."""
    for name in ("model", "best"):
        if (folder / name / "config.json").is_file():
            return f"{folder / name} is one"
    if (folder / "adapter_config.json").is_file():
        return "it holds an adapter; merge it into its checkpoint (merge_and_unload) and save that"
    return "it holds no config.json"


@overload
def load_model(
    model: str, *, classifier: Literal[True], dtype: Any = ..., device: Any = ..., untrained: bool = ...
) -> MoTEForVideoClassification: ...


@overload
def load_model(
    model: str, *, classifier: bool = ..., dtype: Any = ..., device: Any = ..., untrained: bool = ...
) -> MoTEModel: ...


def load_model(
    model: str,
    *,
    classifier: bool = False,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = "cpu",
    untrained: bool = False,
) -> MoTEModel:
    """Load a whole MoTE in evaluation mode.

    Args:
        model: folder or Hub id.
        classifier: a `MoTEForVideoClassification` rather than a `MoTEModel`; both read the same weights.
        dtype: of the weights; "auto" for that of the checkpoint.
        device: where to put it; None for an accelerator, if there is one, else the CPU.
        untrained: accept temporal layers that were never trained, whose scores mean nothing.

    Raises:
        CheckpointError: if the checkpoint is no MoTE, lacks weights, holds others or values that are no finite
            numbers, or its temporal layers were never trained.
    """
    check_is_mote(model)
    cls = MoTEForVideoClassification if classifier else MoTEModel
    with _one_sentence(model), _without_report():
        loaded, info = cls.from_pretrained(model, dtype=dtype, use_safetensors=True, output_loading_info=True)
    for kind, what in (("missing_keys", "lacks {} of MoTE's weights"), ("unexpected_keys", "holds {} other weights")):
        if names := sorted(info[kind]):
            raise CheckpointError(f"{model} {what.format(len(names))}, {names[0]} to begin with.")
    for name, tensor in loaded.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{model} is damaged: {name} holds values that are no finite numbers.")
    if not untrained and not loaded.temporal_layers_trained:
        raise CheckpointError(
            f"The temporal layers of {model} were never trained, so its scores mean nothing: {TRAIN_FIRST}."
        )
    return loaded.to(find_device(device)).eval()


def check_is_mote(model: str) -> None:
    """Say what a checkpoint is if it is no MoTE, from its config alone.

    Raises:
        CheckpointError: naming the checkpoint and its model type.
    """
    kind = model_type_of(model)
    if kind == CLIPConfig.model_type:
        raise CheckpointError(f"{model} is a bare CLIP, whose temporal layers are not there yet: {TRAIN_FIRST}.")
    if kind != MoTEConfig.model_type:
        raise CheckpointError(f"{model} holds a model of type {kind!r}, not a MoTE. {STARTS_FROM}.")


def load_processor(model: str) -> MoTEProcessor:
    """The processor saved with a MoTE.

    Raises:
        CheckpointError: if there is none.
    """
    if Path(model).is_dir() and not (Path(model) / "processor_config.json").is_file():
        raise CheckpointError(f"{model} holds no processor_config.json: save a MoTEProcessor beside the model.")
    with _one_sentence(model):
        processor = AutoProcessor.from_pretrained(model)
    if not isinstance(processor, MoTEProcessor):
        raise CheckpointError(f"{model} holds a {type(processor).__name__}: save a MoTEProcessor beside the model.")
    return processor


def load_checkpoint(model: str, **options: Any) -> tuple[MoTEModel, MoTEProcessor]:
    """Model and processor of a MoTE checkpoint.

    Args:
        model: folder or Hub id.
        **options: see `load_model`.

    Raises:
        CheckpointError: see `load_model` and `load_processor`.
    """
    return load_model(model, **options), load_processor(model)


def load_pipeline(
    model: str,
    device: torch.device | str | None = None,
    merge: bool = True,
    merge_tokens: int = 0,
    engine: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> ZeroShotVideoClassificationPipeline:
    """The zero-shot video classification pipeline of a checkpoint.

    Args:
        model: folder or Hub id.
        device: see `load_model`; an accelerator by default, if there is one.
        merge: fold the experts, which the scores do not depend on and every forward is faster for.
        merge_tokens: pairs of tokens that each layer of the image tower merges, see `token_merging`: faster, and other
            scores.
        engine: what runs the image tower, see `engines.ENGINES`, or "fastest"; PyTorch by default.
        say: is told about the engine.

    Raises:
        CheckpointError: see `load_model` and `load_processor`.
        ValueError, OSError: for a number of tokens that can't be merged, and see `use_engine`.
    """
    loaded, processor = load_checkpoint(model, device=device)
    token_merging.merge_tokens(loaded, merge_tokens)
    if merge:
        fold_experts(loaded)
    if engine == "fastest":
        use_fastest(loaded, say=say)
    elif engine is not None:
        say(str(use_engine(loaded, engine, say=say)))
    return pipeline(  # type: ignore[call-overload]
        "zero-shot-video-classification", model=loaded, processor=processor, device=loaded.device
    )


def fold_experts(model: MoTEModel) -> None:
    """Fold a model's experts for good, if that is still to do and its weights are not quantised."""
    quantised = getattr(model.config, "quantization_config", None) is not None
    if not quantised and not model.config.temporal_config.experts_merged:
        model.merge_experts()


def load_to_train(
    model: str, num_frames: int, label_smoothing: float = 0.0, still_penalty: float = 0.0
) -> tuple[MoTEForVideoClassification, MoTEProcessor]:
    """What a training starts from: a MoTE, or a CLIP that gets new temporal layers and a processor of its size.

    Args:
        model: folder or Hub id of either.
        num_frames: frames per clip.
        label_smoothing: of both cross-entropies.
        still_penalty: `config.still_penalty_weight`.

    Returns:
        the model in float32, and its processor, which repeats frames of short videos.

    Raises:
        CheckpointError: for any other kind of model, or one that lacks weights.
    """
    kind = model_type_of(model)
    if kind not in (CLIPConfig.model_type, MoTEConfig.model_type):
        raise CheckpointError(f"{model} holds a model of type {kind!r}. {STARTS_FROM}.")
    with _one_sentence(model), _without_report():
        loaded, info = MoTEForVideoClassification.from_pretrained(
            model,
            num_frames=num_frames,
            label_smoothing=label_smoothing,
            still_penalty_weight=still_penalty,
            dtype=torch.float32,
            output_loading_info=True,
        )
    new = ("temporal_model.", "seen_classes.") if kind == CLIPConfig.model_type else ()
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith(new))
    if lacking:
        raise CheckpointError(f"{model} lacks {len(lacking)} of its weights, {lacking[0]} to begin with.")
    if kind == MoTEConfig.model_type:
        processor = load_processor(model)
        processor.num_frames = num_frames
        return loaded, processor
    return loaded, new_processor(model, loaded.config, num_frames)


def read_record(model: str, name: str) -> dict[str, Any]:
    """What was recorded with a checkpoint when it was made.

    Args:
        model: folder or Hub id.
        name: `training.json` of `mote train`, or `conversion.json` of `mote convert`.

    Returns:
        the record; {} if there is none.

    Raises:
        CheckpointError: if it is damaged.
    """
    path = Path(model) / name
    if not Path(model).is_dir():
        path = Path(cached_file(model, name, _raise_exceptions_for_missing_entries=False) or path)
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({first_sentence(error)}): restore or remove it.") from error
    return record if isinstance(record, dict) else {}


def load_clip(clip: str) -> CLIPModel:
    """A whole CLIP in float32.

    Args:
        clip: folder or Hub id.

    Raises:
        CheckpointError: for any other kind of model, or one that lacks weights.
    """
    kind = model_type_of(clip)
    if kind != CLIPConfig.model_type:
        raise CheckpointError(f"{clip} holds a model of type {kind!r}, not a CLIP (model type 'clip').")
    with _one_sentence(clip), _without_report():
        loaded: Any = CLIPModel.from_pretrained(clip, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise CheckpointError(f"{clip} lacks {len(lacking)} of its weights, {lacking[0]} to begin with.")
    return model


def new_processor(clip: str, config: MoTEConfig, num_frames: int) -> MoTEProcessor:
    """The processor of a MoTE that starts from a CLIP: that CLIP's tokenizer, and frames of its size and colours.

    Args:
        clip: folder or Hub id of the CLIP.
        config: of the MoTE.
        num_frames: frames per clip.

    Raises:
        CheckpointError: if the CLIP has no tokenizer.
    """
    side: Any = config.vision_config.image_size
    with _one_sentence(clip):
        tokenizer = AutoTokenizer.from_pretrained(clip)
    # Without files of one, transformers makes a tokenizer that knows no word.
    if set(tokenizer("a photo of a person").input_ids) <= set(tokenizer.all_special_ids):
        raise CheckpointError(f"{clip} has no tokenizer: save the CLIP's tokenizer in it.")
    try:
        pixels: Any = AutoImageProcessor.from_pretrained(clip)
    except (OSError, ValueError):  # none is saved with it: CLIP's own colours
        pixels = MoTEVideoProcessor
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=pixels.image_mean,
        image_std=pixels.image_std,
        num_frames=num_frames,
        short_video="loop",
    )
    return MoTEProcessor(video_processor, tokenizer)


def find_device(device: torch.device | str | None) -> torch.device:
    """The device of a name; an accelerator for None, if there is one, else the CPU.

    Raises:
        ValueError: if it does not work here.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Device {device} does not work here: {first_sentence(error)}.") from error


def first_sentence(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _one_sentence(model: str):
    """Whatever transformers raises while it loads becomes a sentence that names the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    except RuntimeError as error:  # sizes of weights
        raise CheckpointError(
            f"{model} does not load: its weights do not fit its config.json ({first_sentence(error)})."
        ) from error
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{model} does not load: its config.json holds a wrong value ({reason}).") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{model} does not load: its weights are damaged ({first_sentence(error)}); copy or download them again."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{model} does not load: {first_sentence(error)}.") from error


@contextmanager
def _without_report():
    """Without transformers' table of missing weights: what matters of it becomes a sentence."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


__all__ = [
    "CheckpointError",
    "check_is_mote",
    "find_device",
    "first_sentence",
    "fold_experts",
    "load_checkpoint",
    "load_clip",
    "load_model",
    "load_pipeline",
    "load_processor",
    "load_to_train",
    "model_type_of",
    "new_processor",
    "read_record",
]
