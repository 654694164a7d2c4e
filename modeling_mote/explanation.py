"""Why a video has a label's score: what each frame adds to it and would take away, and a map of the patches.

>>> classify = pipeline("zero-shot-video-classification", model="org/mote-vitb16")
>>> why = explain(classify, "clip.mp4", "archery", candidate_labels=["archery", "yoga"])
>>> why.frame_shares.sum(), why.similarity
(tensor(0.2713), 0.2713)
>>> why.save("why.png")

**Shares** are exact. A video's feature is the mean of its t tokens z, so its similarity to a label, the cosine with
the label's feature c (of length 1), is a sum over frames:

    cos(mean z, c) = sum over i of  z_i · c / (t |mean z|)

With modulation z_i = e_i + rho h_i, the rho that the score has; of v views each counts 1 / v. A token knows the other
frames, through the temporal layers: a share is where the similarity was collected, not what it would be without.

**Effects** are what it would be without: the similarity less that of the clip with this one frame blank, all in the
clip's mean colour.

**Maps** are the rollout of attention and its gradient (Chefer, Gur and Wolf, arXiv 2103.15679, eq. 5 and 6): where the
image tower's class token looks, weighted in every layer by how much the similarity would rise with that attention. The
gradient comes back through the temporal layers, so that a patch counts for what it means to the whole clip.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .processing import ZeroShotVideoClassificationPipeline
from .processing.builders.moving_shapes import encode_mp4
from .processing.files import whole_file, write_whole
from .processing.module_state import tokens_merged_per_layer
from .processing.timeline import COLORS
from .processing.video_inputs import is_one_video
from .processing.video_options import READING_OPTIONS
from .video_scores import over_training_classes

OPTIONS = ("prompts", *READING_OPTIONS)
SUFFIXES = (".png", ".mp4")
COLUMNS = 8  # frames side by side in a picture
NAMED = 5  # candidate labels that an error lists


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a label's similarity is made of.

    Shapes: t frames, h and w pixels of a frame as the model sees it, r rows and s columns of patches; with several
    views (`num_clips`, `num_crops`) a dimension v stands before t everywhere.

    Args:
        label: what was explained.
        candidate_labels: all the labels it was scored beside.
        score: the label's among them, from 0 to 1, as the pipeline gives it by default.
        similarity: its cosine with the video, a mean over views; with `against`, less that of the other label.
        against: the other label, or None.
        frame_shares: what each frame's token adds to `similarity`, which they sum to; may be negative. float32 [t].
        frame_effects: what `similarity` loses if the frame is blank; negative if it gains. float32 [t].
        patch_map: how much the similarity rests on each patch, from 0 to 1, the clip's highest. float32 [t, r, s].
        frames: what the model saw, uint8 [t, 3, h, w].
        seconds: when each frame is shown, float32 [t]; None if the video has no clock.
    """

    label: str
    candidate_labels: tuple[str, ...]
    score: float
    similarity: float
    against: str | None
    frame_shares: torch.Tensor
    frame_effects: torch.Tensor
    patch_map: torch.Tensor
    frames: torch.Tensor
    seconds: torch.Tensor | None

    def pixel_map(self) -> torch.Tensor:
        """The patch map at the size of the frames, float32 [t, h, w]: bilinear between the patches' middles."""
        rows = self.patch_map.flatten(0, -3)[:, None]
        resized = F.interpolate(rows, size=self.frames.shape[-2:], mode="bilinear", align_corners=False)
        return resized[:, 0].unflatten(0, self.patch_map.shape[:-2])

    def plot(self) -> Any:
        """Draw the frames, their maps below them, and the shares below these.

        Returns:
            a `matplotlib.figure.Figure`; `savefig` writes it.
        """
        return _plot(self)

    def save(self, path: str | Path) -> None:
        """Write a picture of everything (.png), or a film that goes through the frames (.mp4).

        Args:
            path: the file to make or replace.

        Raises:
            ValueError: if it has another suffix.
            OSError: if it can't be written.
        """
        kind = Path(path).suffix.lower()
        if kind not in SUFFIXES:
            raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}.")
        if kind == ".png":
            with whole_file(path) as partial:
                self.plot().savefig(partial, format="png")
        else:
            write_whole(path, encode_mp4(_film(self), FILM_RATE))


def explain(
    classify: Any,
    video: Any,
    label: str | None = None,
    candidate_labels: Any = None,
    *,
    against: str | None = None,
    processor: Any = None,
    **options: Any,
) -> Explanation:
    """Say what the score of a label rests on, frame by frame and patch by patch.

    Two forwards and one backward per view, and the temporal layers once per frame. The model is left as it was: its
    modes, gradients and weights. What is explained is the similarity to the label's text: examples that a pipeline was
    made with are left out, with a warning, and the score is that of the text alone.

    Args:
        classify: a zero-shot video classification pipeline, or a MoTE with `processor`.
        video: one video, in any form that the pipeline takes.
        label: one of the candidates; the best one by default.
        candidate_labels: as the pipeline takes them; by default those that it was made with, else the classes that the
            model was trained on. With modulation, the similarity depends on the list.
        against: another candidate: explains why `label` rather than this one, by the difference of their similarities.
        processor: of the model, if `classify` is one.
        **options: `prompts` and how the video is read (`num_frames`, `num_clips`, …), as the pipeline takes them.

    Returns:
        [`Explanation`].

    Raises:
        ValueError: if `label` or `against` is no candidate, there are no candidates, an option is unknown or wrong,
            several videos are passed, the temporal layers of the model were never trained, or its image tower merges
            tokens.
        VideoDecodeError: if the video can't be decoded, naming it.
    """
    if "examples" in options:
        raise ValueError(
            "explain explains the similarity to a label's text, which examples only correct: leave them out"
        )
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ValueError(f"unknown argument {unknown[0]!r} of explain: it takes {', '.join(OPTIONS)}")
    if not is_one_video(video):
        raise ValueError("explain takes one video: a path, a URL, bytes, an array, a tensor or a list of frames")
    model = classify if isinstance(classify, nn.Module) else classify.model
    if tokens_merged_per_layer(model):
        raise ValueError("merged tokens have no place in a frame: call merge_tokens(model, 0) before explain")
    with torch.inference_mode(False), _modes_kept(model):  # in inference mode there is no gradient to be had
        pipe = _as_pipeline(classify, processor)
        pipe, reading, forward = _candidates(pipe, candidate_labels, options)
        labels = tuple(forward["candidate_labels"])
        # Those that the pipeline keeps may be of an inference mode.
        classes = pipe.model.normalize_classes(pipe.class_features(**forward)).clone()
        other = None if against is None else _index(labels, against, "against")
        wanted = None if label is None else _index(labels, label, "label")
        pixels, seconds = _read(pipe, video, reading)
        views = pipe.processor.video_processor.normalize_pixels(pixels.to(pipe.device)).to(pipe.dtype)
        rows = {row["label"]: row for row in pipe.rank({"pixel_values_videos": views[None]}, **forward)[0]}
        cosines = torch.tensor([rows[each]["similarity"] for each in labels])
        wanted = int(cosines.argmax()) if wanted is None else wanted
        if wanted == other:
            raise ValueError(f"label and against are both {labels[wanted]!r}: pass two labels")
        found = [_explain_view(pipe.model, view, classes, wanted, other) for view in views]
    shares, effects, maps = (torch.stack(each) for each in zip(*found, strict=True))
    arrays: dict[str, Any] = {
        "frame_shares": shares / len(views),
        "frame_effects": effects / len(views),
        "patch_map": maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny),
        "frames": _as_bytes(pixels, pipe.processor.video_processor.do_rescale),
        "seconds": seconds,
    }
    if len(views) == 1:
        arrays = {name: None if values is None else values[0] for name, values in arrays.items()}
    return Explanation(
        label=labels[wanted],
        candidate_labels=labels,
        score=rows[labels[wanted]]["score"],
        similarity=float(_beside(cosines, wanted, other)),
        against=None if other is None else labels[other],
        **arrays,
    )


# --------------------------------------------------------------------------------------------------- what is explained


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards whatever mode each module was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _as_pipeline(classify: Any, processor: Any) -> Any:
    if not isinstance(classify, nn.Module):
        return classify
    if processor is None:
        raise ValueError("explain needs processor= beside a model, or a zero-shot-video-classification pipeline")
    spread = getattr(classify, "hf_device_map", None) is not None  # over several devices, where it stays
    return ZeroShotVideoClassificationPipeline(
        model=classify,
        processor=processor,
        tokenizer=processor.tokenizer,
        device=None if spread else classify.device,
    )


def _candidates(pipe: Any, candidate_labels: Any, options: dict[str, Any]) -> tuple[Any, dict, dict]:
    """The pipeline over the labels; its options of reading; and the labels, with the prompts if they are given."""
    reading, forward, _ = pipe._sanitize_parameters(candidate_labels=candidate_labels, **options)
    reading, forward = pipe._preprocess_params | reading, pipe._forward_params | forward
    if forward.get("examples") is not None:
        warnings.warn(
            "the examples of the pipeline are left out: the similarity to the label's text is explained", stacklevel=3
        )
    if "candidate_labels" not in forward:
        pipe, forward["candidate_labels"] = over_training_classes(pipe)
    return pipe, reading, {name: forward[name] for name in ("candidate_labels", "prompts") if name in forward}


def _index(labels: Sequence[str], label: str, argument: str) -> int:
    label = " ".join(label.split())  # as the candidates are read
    if label not in labels:
        listed = ", ".join(repr(each) for each in labels[:NAMED]) + (", …" if len(labels) > NAMED else "")
        raise ValueError(
            f"{argument} {label!r} is none of the {len(labels)} candidate labels ({listed}): add it to them"
        )
    return labels.index(label)


def _read(pipe: Any, video: Any, reading: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The views, uint8 [v, t, 3, h, w], and when their frames are shown, [v, t], if it is known."""
    processor = pipe.processor.video_processor
    if reading.get("num_frames") is None and reading.get("fps") is None:
        reading = {**reading, "num_frames": processor.frames_per_clip(pipe.model.config)}
    options = processor.reading_options(**reading)
    pixels, metadata = processor.read(video, options=options)
    if metadata.fps is None:
        return pixels, None
    clips = torch.tensor(metadata.timestamps, dtype=torch.float32).unflatten(0, (options["num_clips"], -1))
    return pixels, clips.repeat_interleave(options["num_crops"], 0)


def _as_bytes(pixels: torch.Tensor, rescaled: bool) -> torch.Tensor:
    """Frames to look at, uint8; of arrays of floats, which may be from 0 to 1 if the processor does not rescale."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * (1 if rescaled else 255)).round().clamp(0, 255).byte()


def _beside(values: torch.Tensor, label: int, against: int | None) -> torch.Tensor:
    """The label's of values [..., c], less the other label's if there is one, [...]."""
    return values[..., label] if against is None else values[..., label] - values[..., against]


def _explain_view(
    model: Any, pixels: torch.Tensor, classes: torch.Tensor, label: int, against: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares [t], effects [t] and map [t, r, s] of one view [t, 3, h, w]."""
    with torch.enable_grad(), _recorded(model.vision_model.encoder.layers) as layers:
        pixels = pixels.detach().clone().requires_grad_()  # the gradient flows though every weight may be frozen
        frames = model.get_frame_features(pixels[None]).pooler_output
        temporal = model.get_temporal_features(frames).last_hidden_state
        shares = _shares(model, frames, temporal, classes, label)
        if against is not None:
            shares = shares - _shares(model, frames, temporal, classes, against)
        gradients = torch.autograd.grad(shares.sum(), [layer["out"] for layer in layers])
    relevance = _rollout(layers, gradients)[:, 1:]  # without the class token
    patch = model.config.vision_config.patch_size
    grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    effects = _beside(_effects(model, pixels.detach(), frames[0].detach(), classes), label, against)
    return shares.detach().cpu(), effects.cpu(), relevance.unflatten(1, grid).cpu()


def _shares(
    model: Any, frames: torch.Tensor, temporal: torch.Tensor, classes: torch.Tensor, label: int
) -> torch.Tensor:
    """z_i · c / (t |mean z|) of one video [1, t, d] and one class, float32 [t]."""
    rho = model.get_modulation(frames, classes)
    tokens = model.modulate(frames, temporal, rho[label : label + 1] if model.modulates_per_label else rho)[0]
    pooled = tokens.mean(-2).float()  # in the model's dtype, as its score is
    return tokens.float() @ classes[label] / (len(tokens) * pooled.norm())


@torch.no_grad()
def _effects(model: Any, pixels: torch.Tensor, frames: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """What the cosine with every class loses if one frame of the clip [t, 3, h, w] is blank, float32 [t, c]."""
    blank = pixels.mean((0, 2, 3), keepdim=True).expand(1, 1, *pixels.shape[1:])
    blank = model.get_frame_features(blank).pooler_output[0, 0]
    clips = frames.repeat(len(frames) + 1, 1, 1)  # the last one stays whole
    clips.diagonal()[:] = blank[:, None]  # frame i of clip i
    logits, _, _ = model.score_modulated(clips, model.get_temporal_features(clips).last_hidden_state, classes)
    cosines = logits.float() / model.logit_scale.float().exp()
    return cosines[-1] - cosines[:-1]


@contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[list[dict[str, torch.Tensor]]]:
    """What each layer's attention computes with: queries, keys, values, and `out`, what it gives before `out_proj`.

    Hooks on the projections see it whichever attention is in use; only eager attention would give its weights.
    """
    records: list[dict[str, Any]] = [
        {"scale": layer.self_attn.scale, "heads": layer.self_attn.num_heads} for layer in layers
    ]
    hooks = []

    def keep(record: dict[str, Any], name: str) -> Any:
        return lambda module, inputs, output: record.update({name: inputs[0] if name == "out" else output})

    try:
        for layer, record in zip(layers, records, strict=True):
            for name in ("q", "k", "v", "out"):
                projection = getattr(layer.self_attn, f"{name}_proj")
                hooks.append(projection.register_forward_hook(keep(record, name)))
        yield records
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _rollout(layers: Sequence[dict[str, Any]], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The class token's row of (I + A_L) … (I + A_1), A the heads' mean of (attention · gradient)+: [t, tokens]."""
    row = torch.zeros(layers[0]["q"].shape[:2], device=gradients[0].device)
    row[:, 0] = 1
    for layer, gradient in zip(reversed(layers), reversed(gradients), strict=True):
        split = [_heads(each, layer["heads"]) for each in (layer["q"], layer["k"], layer["v"], gradient)]
        queries, keys, values, out = split  # [t, heads, tokens, d / heads]
        attention = (queries @ keys.transpose(-1, -2) * layer["scale"]).softmax(-1)
        raised = out @ values.transpose(-1, -2)  # the gradient of the attention
        row = row + (row[:, None] @ (attention * raised).clamp(min=0).mean(1))[:, 0]
    return row


def _heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[t, tokens, d] as float32 [t, heads, tokens, d / heads]."""
    return states.detach().float().unflatten(-1, (heads, -1)).transpose(1, 2)


# ------------------------------------------------------------------------------------------------------------ pictures

FILM_RATE, FILM_REPEATS = 4, 3  # pictures in a second; how many of them show one frame
BARS = {"share": COLORS[0], "effect": COLORS[1]}


def _title(why: Explanation) -> str:
    """The label and its numbers, in lines that fit."""
    numbers = f"score {why.score:.3f} among {len(why.candidate_labels)}, similarity {why.similarity:.3f}"
    if why.against is not None:
        numbers = f"score {why.score:.3f}, similarity {why.similarity:+.3f} beside {why.against!r}"
    return textwrap.fill(f"{why.label!r}: {numbers}", 90)


def _views(why: Explanation) -> list[list[dict[str, Any]]]:
    """Each view's frames: `image` [h, w, 3], `map` [h, w], `share`, `effect` and `time`, a text."""
    dims = why.frame_shares.shape
    flat = {"image": why.frames.movedim(-3, -1), "map": why.pixel_map()}
    flat |= {"share": why.frame_shares, "effect": why.frame_effects}
    flat = {name: values if len(dims) > 1 else values[None] for name, values in flat.items()}
    seconds = None if why.seconds is None else why.seconds.reshape(flat["share"].shape)
    return [
        [
            {name: values[view][frame].numpy() for name, values in flat.items()}
            | {"time": f"frame {frame + 1}" if seconds is None else f"{float(seconds[view][frame]):.2f} s"}
            for frame in range(dims[-1])
        ]
        for view in range(len(flat["share"]))
    ]


def _plot(why: Explanation) -> Any:
    from matplotlib.figure import Figure  # only who draws needs matplotlib

    class Picture(Figure):
        """A figure that notebooks show without pyplot, which would keep it."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    views = _views(why)
    rows = [view[start : start + COLUMNS] for view in views for start in range(0, len(view), COLUMNS)]
    columns = max(map(len, rows))
    aspect = why.frames.shape[-2] / why.frames.shape[-1]
    width = 1.4 * max(columns, 4)
    tall = width / columns * aspect
    figure = Picture(figsize=(width, 0.7 + len(rows) * (2 * tall + 1.2)), dpi=110, layout="constrained")
    title = figure.suptitle(_title(why), fontsize=11)
    title.set_parse_math(False)  # a label may cost $5
    grid = figure.add_gridspec(3 * len(rows), columns, height_ratios=[tall, tall, 1.1] * len(rows))
    limits = _limits(why)
    for number, row in enumerate(rows):
        for column, each in enumerate(row):
            names = ("frame", "map") if column == 0 else ("", "")
            _draw_image(figure.add_subplot(grid[3 * number, column], ylabel=names[0]), each)
            _draw_map(figure.add_subplot(grid[3 * number + 1, column], ylabel=names[1]), each)
        _draw_bars(figure.add_subplot(grid[3 * number + 2, :]), row, columns, limits)
    _name_bars(figure)
    return figure


def _film(why: Explanation) -> np.ndarray:
    """One picture per frame and view, uint8 [n, height, width, 3]: the frame, its map, and the shares of its view."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures: list[np.ndarray] = []
    for view in _views(why):
        for number, each in enumerate(view):
            figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
            canvas = FigureCanvasAgg(figure)
            figure.suptitle(_title(why), fontsize=10).set_parse_math(False)
            grid = figure.add_gridspec(2, 2, height_ratios=[4, 1.2])
            _draw_image(figure.add_subplot(grid[0, 0]), each)
            _draw_map(figure.add_subplot(grid[0, 1]), each)
            _draw_bars(figure.add_subplot(grid[1, :]), view, len(view), _limits(why), now=number)
            _name_bars(figure)
            canvas.draw()
            pictures += [np.asarray(canvas.buffer_rgba())[..., :3].copy()] * FILM_REPEATS
    return np.stack(pictures)


def _limits(why: Explanation) -> tuple[float, float]:
    """The lowest and highest bar that is drawn, with room for numbers."""
    drawn = torch.cat([why.frame_shares.flatten(), why.frame_effects.flatten(), torch.zeros(1)])
    low, high = float(drawn.min()), float(drawn.max())
    room = 0.3 * max(high - low, 1e-6)
    return low - (room if low < 0 else 0), high + room


def _draw_image(axes: Any, each: dict[str, Any]) -> None:
    axes.imshow(each["image"])
    _bare(axes)


def _draw_map(axes: Any, each: dict[str, Any]) -> None:
    """The map's colours, the stronger the more a patch counts, over the frame in grey."""
    grey = each["image"].astype(np.float32).mean(-1)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axes.imshow(each["map"], cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.75 * each["map"].clip(0, 1))
    _bare(axes)


def _bare(axes: Any) -> None:
    """Without scales and lines; its name stays."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw_bars(
    axes: Any, row: Sequence[dict[str, Any]], columns: int, limits: tuple[float, float], now: int | None = None
) -> None:
    """Two bars per frame, under it when it is shown; in a film those of other frames are pale."""
    for place, each in enumerate(row):
        pale = now is not None and now != place
        for side, (name, color) in zip((-0.2, 0.2), BARS.items(), strict=True):
            value = float(each[name])
            axes.bar(place + side, value, 0.38, color=color, alpha=0.35 if pale else 1, label="" if place else name)
            if columns <= COLUMNS:
                below = "bottom" if value >= 0 else "top"
                axes.text(place + side, value, f"{value:+.2g}", ha="center", va=below, fontsize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    every = max(1, len(row) // (2 * COLUMNS))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=limits, yticks=[])
    axes.set_xticks(range(0, len(row), every), [each["time"] for each in row][::every], fontsize=8)
    axes.spines[:].set_visible(False)


def _name_bars(figure: Any) -> None:
    """Below everything, what the two bars of a frame are."""
    bars, names = figure.axes[-1].get_legend_handles_labels()
    meant = {"share": "share: what its token adds", "effect": "effect: what is lost if the frame is blank"}
    figure.legend(
        bars, [meant[name] for name in names], loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )


__all__ = ["Explanation", "explain"]
