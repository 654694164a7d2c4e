"""MoTE (arXiv 2410.10589): CLIP, and a small temporal Transformer whose feed-forwards are mixtures of experts.

Shapes, throughout: b videos, v views, t frames, c candidate classes, n training classes, d = `projection_dim`,
L temporal layers, E experts. A `mixture` is a tensor [L, E]: how much of each expert a layer is made of. Everything
the method does is a choice of it.

`forward` is made of public steps, each of which can be called by itself:

    frame_embeds = model.get_frame_features(pixel_values_videos).pooler_output  # e, [b, t, d] or [b, v, t, d]
    temporal_embeds = model.get_temporal_features(frame_embeds, mixture).last_hidden_state  # h(e + pos), as e
    classes = model.normalize_classes(class_embeds)  # [c, d]
    modulation = model.get_modulation(frame_embeds, classes)  # rho, [b] or [b, v]
    tokens = model.modulate(frame_embeds, temporal_embeds, modulation)  # z = rho h(e + pos) + e, as e
    logits = model.score(tokens.mean(-2), classes)  # [b, c]

The last three are `score_modulated` in one, which also knows modulation per label (`config.modulation_scope`).

The training classes are rows of `seen_classes.weight`, their names are in `config.id2label`, and a digest of both in
`config.training_classes_sha256` ties them together. It is checked when a checkpoint is loaded, when it is saved and
before the first score; `set_training_classes` is the one way to change either, also to rename a class.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPPreTrainedModel,
    image_text_contrastive_loss,
)
from transformers.utils import ModelOutput, is_torchdynamo_compiling, logging
from transformers.utils.generic import can_return_tuple, maybe_autocast
from transformers.utils.output_capturing import capture_outputs

from .configuration_mote import MoTEConfig, MoTETemporalConfig, check_folder

logger = logging.get_logger(__name__)


class _NestedOutput(ModelOutput):
    """An output whose tuple holds tuples where it holds outputs."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class MoTEVideoFeatures(_NestedOutput, BaseModelOutputWithPooling):
    """Video features.

    Args:
        last_hidden_state: video tokens z = rho h(e + pos) + e, [b, t, d] or [b, v, t, d].
        pooler_output: their mean over frames, not normalised, [b, d] or [b, v, d].
        hidden_states, attentions: the image tower's, one row per frame, if asked for.
        modulation: rho, float32, [b] or [b, v].
        frame_embeds: CLIP's frame features e, not normalised, as `last_hidden_state`.
        vision_model_output: output of the image tower; None if `frame_embeds` were given.
        temporal_model_output: output of the temporal Transformer, h(e + pos) as `last_hidden_state`; its states and
            attentions have one row per video and view.
    """

    modulation: torch.Tensor | None = None
    frame_embeds: torch.Tensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    temporal_model_output: BaseModelOutput | None = None


@dataclass
class MoTEOutput(_NestedOutput):
    """Output of [`MoTEModel`].

    Args:
        loss: contrastive loss of b videos and their b texts, if `return_loss`, [].
        logits_per_video: exp(logit_scale) · cosine, averaged over views, [b, c].
        logits_per_text: its transpose, [c, b].
        text_embeds: L2-normalised class features, [c, d].
        video_embeds: L2-normalised video features, [b, d] or [b, v, d].
        modulation: rho, float32, [b] or [b, v]; per label [c].
        text_model_output, vision_model_output, temporal_model_output: the towers' own outputs.
    """

    loss: torch.Tensor | None = None
    logits_per_video: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    modulation: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    temporal_model_output: BaseModelOutput | None = None


@dataclass
class MoTEVideoClassifierOutput(_NestedOutput):
    """Output of [`MoTEForVideoClassification`].

    Args:
        loss: if `labels` are given, the training loss (Eq. 10) in training mode, else plain cross-entropy, [].
        logits: exp(logit_scale) · cosine to the classes, averaged over views, [b, n] or [b, c]; of the routed pass.
        hidden_states, attentions: the image tower's, one row per frame, if asked for.
        video_embeds: L2-normalised video features, [b, d] or [b, v, d].
        modulation: rho, float32, [b] or [b, v]; per label [c].
        temporal_model_output: output of the temporal Transformer (of the routed pass).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    video_embeds: torch.Tensor | None = None
    modulation: torch.Tensor | None = None
    temporal_model_output: BaseModelOutput | None = None


def temporal_feature_modulation(
    frame_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    training_class_embeds: torch.Tensor,
    top_k: int = 5,
    temperature: float = 0.05,
) -> torch.Tensor:
    """How much of the temporal branch a video keeps under a candidate list (the paper's Eq. 11).

    The candidate classes nearest to the video are compared with the training classes nearest to it: the further apart,
    the less the temporal layers, which only ever saw the training classes, are trusted.

    Args:
        frame_embeds: frame features, [..., t, d].
        class_embeds: L2-normalised candidate class features, [c, d].
        training_class_embeds: L2-normalised training class features, [n, d].
        top_k: neighbours on either side; fewer if there are fewer classes.
        temperature: gamma; a mean similarity m gives rho = exp(-(1 - m) / gamma).

    Returns:
        rho in float32, [...].
    """
    with maybe_autocast(frame_embeds.device.type, enabled=False):
        video = F.normalize(frame_embeds.float().mean(-2), dim=-1)
        candidates, seen = class_embeds.float(), training_class_embeds.float()
        near_candidates = (video @ candidates.T).topk(min(top_k, candidates.shape[0]), dim=-1).indices
        near_seen = (video @ seen.T).topk(min(top_k, seen.shape[0]), dim=-1).indices
        similarity = candidates[near_candidates] @ seen[near_seen].transpose(-1, -2)  # [..., k candidates, k training]
        closeness = similarity.amax(-1).mean(-1)
        return torch.exp(-(1.0 - closeness) / temperature)


def label_modulation(
    class_embeds: torch.Tensor, training_class_embeds: torch.Tensor, temperature: float = 0.05
) -> torch.Tensor:
    """How much of the temporal branch each candidate class keeps: rho_c = exp(-(1 - m_c) / gamma).

    m_c is the class's largest similarity to a training class. Not the paper's: neither the video nor any other
    candidate enters, so that the cosine to a class is the same in every list.

    Args:
        class_embeds: L2-normalised candidate class features, [c, d].
        training_class_embeds: L2-normalised training class features, [n, d].
        temperature: gamma.

    Returns:
        rho in float32, [c].
    """
    with maybe_autocast(class_embeds.device.type, enabled=False):
        closeness = (class_embeds.float() @ training_class_embeds.float().T).amax(-1).clamp(max=1.0)
        return torch.exp(-(1.0 - closeness) / temperature)


def _label_cosines(
    video_embeds: torch.Tensor, temporal_embeds: torch.Tensor, class_embeds: torch.Tensor, modulation: torch.Tensor
) -> torch.Tensor:
    """cos(e + rho_c h, y_c) of e + h and h, [..., d], classes [c, d] and rho [c]: [..., c], without [..., c, d]."""
    lost = 1.0 - modulation  # e + rho h = (e + h) - lost h
    dots = video_embeds @ class_embeds.T - lost * (temporal_embeds @ class_embeds.T)
    squares = video_embeds.square().sum(-1, keepdim=True) + lost.square() * temporal_embeds.square().sum(-1, True)
    squares = squares - 2 * lost * (video_embeds * temporal_embeds).sum(-1, keepdim=True)
    return dots / squares.clamp(min=1e-24).sqrt()


def distinct_frames(frames: torch.Tensor) -> tuple[list[int], list[int]]:
    """Which frames are equal, bit for bit, to an earlier one.

    Args:
        frames: [n, 3, h, w].

    Returns:
        the indices of the m others, and for each of the n frames its place among these.
    """
    pixels = frames.flatten(1)
    some = pixels[:, :: max(1, pixels.shape[1] // 256)].contiguous().view(torch.uint8).numpy()  # tell most apart
    alike: dict[bytes, list[int]] = {}  # {some pixels: places of the frames that have them}
    first: list[int] = []
    places: list[int] = []
    for index, frame in enumerate(pixels):
        candidates = alike.setdefault(some[index].tobytes(), [])
        place = next((each for each in candidates if torch.equal(pixels[first[each]], frame)), None)
        if place is None:
            place = len(first)
            candidates.append(place)
            first.append(index)
        places.append(place)
    return first, places


class MoTEExperts(nn.Module):
    """The feed-forwards of one layer: E experts d → 4d → d as stacked parameters that are mixed in weight space."""

    def __init__(self, config: MoTETemporalConfig):
        super().__init__()
        e, width, hidden = config.num_experts, config.hidden_size, config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(e, hidden, width))
        self.up_proj_bias = nn.Parameter(torch.empty(e, hidden))
        self.down_proj = nn.Parameter(torch.empty(e, width, hidden))
        self.down_proj_bias = nn.Parameter(torch.empty(e, width))
        self.activation_fn = ACT2FN[config.hidden_act]

    def merge(self, mixture: torch.Tensor) -> list[torch.Tensor]:
        """One feed-forward's weights: the experts' sum weighted by `mixture` [E], in float32 (Eq. 6 and 7)."""
        merged = []
        with maybe_autocast(mixture.device.type, enabled=False):
            for weight in (self.up_proj, self.up_proj_bias, self.down_proj, self.down_proj_bias):
                rows = mixture.float() @ weight.float().flatten(1)
                merged.append(rows.view(weight.shape[1:]).to(weight.dtype))
        return merged

    def forward(self, hidden_states: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        # Merged anew in every forward: no cache could see every way in which weights are edited.
        up, up_bias, down, down_bias = self.merge(mixture)
        return F.linear(self.activation_fn(F.linear(hidden_states, up, up_bias)), down, down_bias)


class MoTETemporalLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer layer over frames: shared attention, then the mixture of experts."""

    def __init__(self, config: MoTETemporalConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)  # type: ignore[arg-type]  # it reads any config of these fields
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config) if config.experts_merged else MoTEExperts(config)

    def forward(self, hidden_states: torch.Tensor, mixture: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        normed = self.layer_norm2(hidden_states)
        # Not by the type of `mlp`: an adapter may wrap it.
        return hidden_states + (self.mlp(normed) if mixture is None else self.mlp(normed, mixture))


class MoTEPreTrainedModel(CLIPPreTrainedModel):
    """Weight initialisation, saving and loading that every MoTE model shares."""

    config: MoTEConfig
    base_model_prefix = "mote"
    input_modalities: tuple[str, ...] = ("video", "text")  # type: ignore[assignment]
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer divides it by its accumulation steps
    _can_compile_fullgraph = True
    _no_split_modules = [*CLIPPreTrainedModel._no_split_modules, "MoTETemporalLayer"]
    _keep_in_fp32_modules_strict = ["seen_classes"]

    @classmethod
    def is_custom_code(cls) -> bool:
        # For code from elsewhere transformers skips modules without own weights, lest loaded ones be overwritten;
        # `init` never overwrites them, and the rules below need those modules.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, MoTETemporalLayer):
            # Redraws what CLIP's rule drew for the attention: q, k, v as one Xavier-uniform [3d, d] matrix.
            std, attention = module.self_attn.config.initializer_range, module.self_attn
            bound = math.sqrt(6 / (4 * attention.embed_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                init.uniform_(projection.weight, -bound, bound)
                init.zeros_(projection.bias)
            init.normal_(attention.out_proj.weight, std=std)
            init.zeros_(attention.out_proj.bias)
            if isinstance(module.mlp, CLIPMLP):
                for linear in (module.mlp.fc1, module.mlp.fc2):
                    init.normal_(linear.weight, std=std)
                    init.zeros_(linear.bias)
        elif isinstance(module, MoTEExperts):
            std = self.config.initializer_range
            for weight, bias in ((module.up_proj, module.up_proj_bias), (module.down_proj, module.down_proj_bias)):
                init.normal_(weight, std=std)
                init.zeros_(bias)
        elif isinstance(module, MoTETemporalModel):
            init.normal_(module.position_embedding.weight, std=self.config.initializer_range)
        elif isinstance(module, MoTESeenClasses):
            init.copy_(module.weight, module.initial_rows(*module.weight.shape))

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As [`PreTrainedModel.save_pretrained`], with the whole `auto_map`: one folder serves every Auto class."""
        if isinstance(self.config, MoTEConfig) and self._auto_class is not None:
            self.config.auto_map = {
                "AutoConfig": "configuration_mote.MoTEConfig",
                "AutoModel": "modeling_mote.MoTEModel",
                "AutoModelForVideoClassification": "modeling_mote.MoTEForVideoClassification",
            }
        return super().save_pretrained(save_directory, *args, **kwargs)


class MoTETemporalModel(MoTEPreTrainedModel):
    """The temporal Transformer h: learned frame positions, then layers whose feed-forwards are mixtures of experts."""

    config: MoTETemporalConfig  # type: ignore[assignment]
    base_model_prefix = "temporal_model"  # loads by itself from a whole MoTE's checkpoint
    main_input_name = "frame_embeds"
    input_modalities = ("video",)
    _can_record_outputs = {"hidden_states": MoTETemporalLayer, "attentions": CLIPAttention}

    def __init__(self, config: MoTETemporalConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_frames, config.hidden_size)
        self.layers = nn.ModuleList([MoTETemporalLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def draw_routing(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Multinomial routing (the paper's section 3.2): one expert per layer, i of 1…E with probability ∝ exp(i).

        Args:
            generator: source of the draw; PyTorch's own if None.

        Returns:
            one-hot mixture, float32, on the generator's device, [L, E].
        """
        layers, experts = len(self.layers), self.config.num_experts
        odds = torch.softmax(torch.arange(1, experts + 1, dtype=torch.float32, device=_device_of(generator)), dim=0)
        chosen = torch.multinomial(odds.expand(max(layers, 1), -1), 1, generator=generator)[:layers]
        return torch.zeros(layers, experts, device=chosen.device).scatter(1, chosen, 1.0)

    def draw_merging(
        self, temperatures: Sequence[float | str], generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Weight Merging Regularization (Eq. 7): the mixture softmax(i / tau), tau drawn uniformly for each layer.

        Args:
            temperatures: values tau to draw from; `"inf"` gives the uniform merge.
            generator: source of the draw; PyTorch's own if None.

        Returns:
            mixture, float32, [L, E].
        """
        device = _device_of(generator)
        choices = torch.stack([merging_weights(self.config.num_experts, tau) for tau in temperatures]).to(device)
        return choices[torch.randint(len(choices), (len(self.layers),), generator=generator, device=device)]

    def positions(
        self, num_frames: int, trained_frames: int | None = None, device: torch.device | None = None
    ) -> torch.Tensor:
        """Rows of the position table for t frames, [t, d]; resampled linearly from `trained_frames`, if given."""
        rows = num_frames if trained_frames is None else trained_frames
        if rows > self.config.max_frames:
            raise ValueError(
                f"{num_frames} frames, but the temporal layers have positions for {self.config.max_frames} "
                "(temporal_config.max_frames): sample fewer, or pass interpolate_frame_positions=True."
            )
        # Looked up by the module, not sliced from its weight, which may be offloaded.
        table = self.position_embedding(torch.arange(rows, device=device))
        if rows == num_frames:
            return table
        resampled = F.interpolate(table.T[None].float(), size=num_frames, mode="linear", align_corners=True)
        return resampled[0].T.to(table.dtype)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        frame_embeds: torch.Tensor,
        mixture: torch.Tensor | None = None,
        trained_frames: int | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Mix frames over time.

        Args:
            frame_embeds: frame features, [b, t, d].
            mixture: how much of each expert every layer uses, [L, E]; None is the uniform merge.
            trained_frames: resample the positions of that many frames to t; None takes the first t rows.
            **kwargs: passed to the attention.

        Returns:
            `last_hidden_state` h(e + pos), [b, t, d].

        Raises:
            ValueError: if t exceeds `config.max_frames` without resampling, `mixture` has another shape, or the
                experts were merged.
        """
        if mixture is not None:
            shape = (len(self.layers), self.config.num_experts)
            if self.config.experts_merged:
                raise ValueError("The experts of this model were merged: it has no mixture to choose.")
            if tuple(mixture.shape) != shape:
                raise ValueError(f"mixture must be [layers, experts] = {list(shape)}, got {list(mixture.shape)}.")
            mixture = mixture.to(frame_embeds.device)
        elif not self.config.experts_merged:
            shape = (len(self.layers), self.config.num_experts)
            mixture = frame_embeds.new_full(shape, 1 / self.config.num_experts, dtype=torch.float32)
        positions = self.positions(frame_embeds.shape[-2], trained_frames, frame_embeds.device)
        hidden_states = frame_embeds.to(positions.dtype) + positions
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, None if mixture is None else mixture[index], **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def merging_weights(num_experts: int, temperature: float | str) -> torch.Tensor:
    """softmax(i / tau) over experts i = 1…E (Eq. 7): [E], float32; tau > 0 favours late ones, tau < 0 early ones."""
    temperature = float(temperature)
    if temperature == 0 or math.isnan(temperature):
        raise ValueError(
            f"temperature must be a number other than 0, or infinity for the uniform merge; got {temperature}."
        )
    return torch.softmax(torch.arange(1, num_experts + 1, dtype=torch.float32) / temperature, dim=0)


class MoTESeenClasses(nn.Module):
    """Text features of the training classes, [n, d]: classifier and reference of modulation; never trained."""

    weight: torch.Tensor

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.register_buffer("weight", self.initial_rows(num_classes, width))

    @staticmethod
    def initial_rows(num_classes: int, width: int) -> torch.Tensor:
        """Unit vectors that stand in until `set_training_classes`: never scored, and the same on every machine."""
        return F.one_hot(torch.arange(num_classes) % width, width).float()

    @staticmethod
    def are_initial(rows: torch.Tensor) -> bool:
        """Whether rows [n, d] are those that stand in."""
        return torch.equal(rows.cpu(), MoTESeenClasses.initial_rows(*rows.shape))

    def _apply(self, fn, recurse=True):
        # .half() and .to(bfloat16) move the features but keep them float32, as modulation needs them.
        kept = self.weight
        super()._apply(fn, recurse)
        if self.weight.dtype != torch.float32:
            self.weight = kept.to(self.weight.device)
        return self


ADAPTERS_LOSE_CLASSES = (
    "An adapter's files hold no training classes, and these were set after the checkpoint was loaded: save the "
    'checkpoint with them first and load that, or add the adapter with modules_to_save=["seen_classes"].'
)


def training_classes_digest(id2label: Mapping[Any, str], rows: torch.Tensor) -> str:
    """SHA-256 of the class names in their order and of their text features [n, d], as hexadecimal digits."""
    names = json.dumps([name for _, name in sorted((int(index), name) for index, name in id2label.items())])
    values = rows.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return hashlib.sha256(names.encode() + b"\0" + values).hexdigest()


def _follow_loaded_rows(model: nn.Module, incompatible_keys: Any) -> None:
    """After `load_state_dict`: the config says whether training classes came with it."""
    mote: Any = model
    config, rows = mote.config, mote.seen_classes.weight
    if rows.is_meta or any(key.endswith("seen_classes.weight") for key in incompatible_keys.missing_keys):
        return
    mote._checked_classes = None
    digest, initial = training_classes_digest(config.id2label, rows), MoTESeenClasses.are_initial(rows)
    if initial and config.training_classes_sha256 not in (None, digest):
        config.training_classes_set, config.training_classes_sha256 = False, None
    elif not initial and not config.training_classes_set:
        config.training_classes_set, config.training_classes_sha256 = True, digest
    # Else they were set before: whether the names fit these rows is checked before the first score.


class MoTEModel(MoTEPreTrainedModel, CLIPModel):
    """CLIP with MoTE's temporal layers: features of videos and of text, and their similarity.

    A bare CLIP checkpoint loads as it is (`MoTEModel.from_pretrained("openai/clip-vit-base-patch16")`): only
    `temporal_model.*` is new.
    """

    main_input_name = "input_ids"

    def __init__(self, config: MoTEConfig):
        config.validate_architecture()  # a field set after construction was not checked yet
        super().__init__(config)
        self.temporal_model = MoTETemporalModel._from_config(config.temporal_config)
        self.seen_classes = MoTESeenClasses(config.num_labels, config.projection_dim)  # type: ignore[arg-type]
        self._checked_classes: tuple | None = None  # the names and the digest that were last found to fit the rows
        self._loaded_classes: str | None = None  # digest of the training classes that the checkpoint holds
        self.register_load_state_dict_post_hook(_follow_loaded_rows)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As [`PreTrainedModel.from_pretrained`]; of a bare CLIP checkpoint's model the temporal part alone is new.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if the checkpoint is neither a MoTE nor a CLIP, or the names of its training classes are not
                those that their text features were saved under.
        """
        if pretrained_model_name_or_path is not None:
            check_folder(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        rows_are_new = "seen_classes.weight" in info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}
        if rows_are_new and model.config.training_classes_set:
            logger.warning(
                f"{pretrained_model_name_or_path} holds no text features of the classes in id2label, so this model "
                "has no training classes: call set_training_classes(names, embeds)."
            )
            model.config.training_classes_set, model.config.training_classes_sha256 = False, None
        elif not rows_are_new and not model.config.training_classes_set:  # other names were asked for
            rows = model.seen_classes.weight
            model.seen_classes.weight = MoTESeenClasses.initial_rows(*rows.shape).to(rows.device)
        model.check_training_classes()
        model._loaded_classes = model.config.training_classes_sha256
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As [`PreTrainedModel.save_pretrained`].

        Raises:
            ValueError: if the names of the training classes are not those that their text features were set with.
        """
        self.check_training_classes()
        if getattr(self, "_hf_peft_config_loaded", False) and self._adapters_lose_classes():
            raise ValueError(ADAPTERS_LOSE_CLASSES)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @property
    @torch.no_grad()
    def temporal_layers_trained(self) -> bool:
        """Whether every temporal layer was ever trained; if not, the scores mean nothing.

        The weights say it themselves, also in a checkpoint and once the experts are merged: the first training step
        moves the biases of the layer norms from exactly zero. Layers that carry an adapter count as trained.
        """

        def bias(norm: nn.Module) -> torch.Tensor:
            # The norm of zeros, asked of the module: its weights may be offloaded.
            weight: Any = norm.weight
            return norm(torch.zeros_like(weight, device="cpu" if weight.is_meta else weight.device))

        layers: Any = self.temporal_model.layers
        if any("lora_" in name for name, _ in layers.named_parameters()):
            return True
        return all(bool(bias(layer.layer_norm1).any() or bias(layer.layer_norm2).any()) for layer in layers)

    def draw_mixtures(self, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws the two mixtures of a training step: the routed pass' and the merged pass'.

        Args:
            generator: source of both draws; PyTorch's own if None.

        Returns:
            `mixture` and `merge_mixture`, float32, each [L, E].
        """
        routing = self.temporal_model.draw_routing(generator)
        return routing, self.temporal_model.draw_merging(self.config.merge_temperatures, generator)

    @can_return_tuple
    def get_frame_features(
        self, pixel_values_videos: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """CLIP's projected image features of every frame.

        On a CPU, without gradients, frames that are equal go through the image tower once.

        Args:
            pixel_values_videos: [b, t, 3, h, w] or [b, v, t, 3, h, w].
            interpolate_pos_encoding: whether to resample the image tower's positions to frames of another size.
            **kwargs: passed to the image tower (`output_hidden_states`, ...).

        Returns:
            `pooler_output` e, not normalised, [b, t, d] or [b, v, t, d]; the image tower's states, a frame a row.
        """
        if pixel_values_videos.dim() not in (5, 6):
            raise ValueError(
                "pixel_values_videos must be [videos, frames, channels, height, width], or with views after videos, "
                f"got {list(pixel_values_videos.shape)}."
            )
        leading = pixel_values_videos.shape[:-3]
        frames, places = pixel_values_videos.flatten(0, -4), None
        if self._may_skip_frames(frames, **kwargs):
            first, places = distinct_frames(frames)
            frames = frames if len(first) == len(frames) else frames[first]
        outputs = self.get_image_features(
            pixel_values=frames,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **{**kwargs, "return_dict": True},
        )
        if places is not None and len(frames) < len(places):
            outputs.pooler_output = outputs.pooler_output[places]
            if outputs.last_hidden_state is not None:  # an engine gives pooled features alone
                outputs.last_hidden_state = outputs.last_hidden_state[places]
        outputs.pooler_output = outputs.pooler_output.unflatten(0, leading)
        return outputs

    def _may_skip_frames(self, frames: torch.Tensor, **kwargs) -> bool:
        """Whether to look for equal frames: not in a graph, nor where it would make a device wait or hide states."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return False  # and nothing is asked of the frames: a graph would hold their number for ever
        recorded = [
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        ]
        return len(frames) > 1 and frames.device.type == "cpu" and not (torch.is_grad_enabled() or any(recorded))

    @can_return_tuple
    def get_temporal_features(
        self,
        frame_embeds: torch.Tensor,
        mixture: torch.Tensor | None = None,
        interpolate_frame_positions: bool = False,
        **kwargs,
    ) -> BaseModelOutput:
        """The temporal Transformer's features of frames, h(e + pos).

        Args:
            frame_embeds: frame features e, [b, t, d] or [b, v, t, d].
            mixture: how much of each expert every temporal layer uses, [L, E]; None is the uniform merge.
            interpolate_frame_positions: whether to resample the positions of `config.num_frames` frames to t.
            **kwargs: passed to the temporal layers (`output_hidden_states`, ...).

        Returns:
            `last_hidden_state`, as `frame_embeds`; hidden states and attentions have one row per video and view.

        Raises:
            ValueError: for inputs of a wrong shape, or more frames than positions.
        """
        self._check_frames(frame_embeds, interpolate_frame_positions)
        outputs = self.temporal_model(
            frame_embeds.flatten(0, -3),
            mixture=mixture,
            trained_frames=self.config.num_frames if interpolate_frame_positions else None,
            **{**kwargs, "return_dict": True},
        )
        outputs.last_hidden_state = outputs.last_hidden_state.unflatten(0, frame_embeds.shape[:-2])
        return outputs

    def normalize_classes(self, class_embeds: torch.Tensor) -> torch.Tensor:
        """Checks class features [c, d] and L2-normalises them, in float32 on the model's device.

        Raises:
            ValueError: if they have another shape.
        """
        width = self.config.projection_dim
        if class_embeds.dim() != 2 or class_embeds.shape[1] != width or class_embeds.shape[0] == 0:
            raise ValueError(
                f"class_embeds must be [classes, {width}] with at least one class, got {list(class_embeds.shape)}."
            )
        return F.normalize(class_embeds.to(self.seen_classes.weight.device, torch.float32), dim=-1)

    def get_modulation(
        self, frame_embeds: torch.Tensor, class_embeds: torch.Tensor | None = None, temperature: float | None = None
    ) -> torch.Tensor:
        """Temporal feature modulation rho (Eq. 11): how much of the temporal features a candidate list keeps.

        It is 1 without candidates, without training classes to compare them with, and in training. With
        `config.modulation_scope` "label" every candidate has a rho of its own, see [`label_modulation`].

        Args:
            frame_embeds: frame features, [b, t, d] or [b, v, t, d]; only their mean over t matters.
            class_embeds: L2-normalised features of the candidate classes, [c, d].
            temperature: gamma; `config.modulation_temperature` by default.

        Returns:
            rho, float32, [b] or [b, v]; per label [c].
        """
        if class_embeds is None or self.training or not self.config.training_classes_set:
            return frame_embeds.new_ones(frame_embeds.shape[:-2], dtype=torch.float32)
        rows = self._training_class_rows()
        temperature = self.config.modulation_temperature if temperature is None else temperature
        if self.config.modulation_scope == "label":
            return label_modulation(class_embeds, rows, temperature)
        return temporal_feature_modulation(frame_embeds, class_embeds, rows, self.config.modulation_top_k, temperature)

    @staticmethod
    def modulate(frame_embeds: torch.Tensor, temporal_embeds: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Video tokens z = rho h(e + pos) + e.

        Args:
            frame_embeds: frame features e, [b, t, d] or [b, v, t, d].
            temporal_embeds: temporal features h(e + pos), as `frame_embeds`.
            modulation: rho, [b] or [b, v].

        Returns:
            z, as `frame_embeds`.
        """
        moved = modulation[..., None, None] * temporal_embeds.float()
        return moved.to(temporal_embeds.dtype) + frame_embeds

    def score(
        self,
        video_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        temporal_embeds: torch.Tensor | None = None,
        modulation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """exp(logit_scale) · cosine of videos to classes, averaged over views.

        Args:
            video_embeds: video features, L2-normalised or not, [b, d] or [b, v, d].
            class_embeds: L2-normalised class features, [c, d].
            temporal_embeds: for modulation per label, the temporal features h within `video_embeds` e + h, pooled
                alike; the cosines are then those of e + rho_c h to class c.
            modulation: rho_c, [c]; together with `temporal_embeds`.

        Returns:
            logits, float32, [b, c].
        """
        with maybe_autocast(video_embeds.device.type, enabled=False):
            if temporal_embeds is None or modulation is None:
                cosines = F.normalize(video_embeds.float(), dim=-1) @ class_embeds.float().T
            else:
                cosines = _label_cosines(
                    video_embeds.float(), temporal_embeds.float(), class_embeds.float(), modulation.float()
                )
            cosines = cosines if cosines.dim() == 2 else cosines.mean(1)
            return self.logit_scale.float().exp() * cosines

    @property
    def modulates_per_label(self) -> bool:
        """Whether candidates have a rho each: `config.modulation_scope` is "label", and there is modulation at all."""
        return self.config.modulation_scope == "label" and self.config.training_classes_set and not self.training

    def score_modulated(
        self,
        frame_embeds: torch.Tensor,
        temporal_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
        temperature: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The steps `get_modulation`, `modulate` and `score` in one, whatever `config.modulation_scope` is.

        Args:
            frame_embeds: frame features e, [b, t, d] or [b, v, t, d]; t may be 1, of their means.
            temporal_embeds: temporal features h(e + pos), as `frame_embeds`.
            class_embeds: L2-normalised features of the candidate classes, [c, d].
            temperature: gamma; `config.modulation_temperature` by default.

        Returns:
            logits [b, c]; rho, [b] or [b, v], per label [c]; pooled video features, [b, d] or [b, v, d], per label
            without modulation.
        """
        modulation = self.get_modulation(frame_embeds, class_embeds, temperature)
        if self.modulates_per_label:
            video, temporal = (frame_embeds + temporal_embeds).mean(-2), temporal_embeds.mean(-2)
            return self.score(video, class_embeds, temporal, modulation), modulation, video
        video = self.modulate(frame_embeds, temporal_embeds, modulation).mean(-2)
        return self.score(video, class_embeds), modulation, video

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        class_embeds: torch.Tensor | None = None,
        frame_embeds: torch.Tensor | None = None,
        mixture: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        interpolate_frame_positions: bool = False,
        **kwargs,
    ) -> MoTEVideoFeatures:
        """Features of videos.

        They depend on the candidate classes through temporal feature modulation (Eq. 11). Without `class_embeds` rho
        is 1 and the features depend on the video alone, which is what search and clustering need.

        Args:
            pixel_values_videos: [b, t, 3, h, w] or [b, v, t, 3, h, w].
            class_embeds: candidate class features to modulate for in evaluation, [c, d] (normalised here).
            frame_embeds: frame features to use in place of `pixel_values_videos`, [b, t, d] or [b, v, t, d].
            mixture: how much of each expert every temporal layer uses, [L, E]; None is the uniform merge.
            interpolate_pos_encoding: whether to resample the image tower's positions to frames of another size.
            interpolate_frame_positions: whether to resample the positions of `config.num_frames` frames to t.
            **kwargs: passed to the towers and the temporal layers (`output_hidden_states`, ...).

        Returns:
            [`MoTEVideoFeatures`]: tokens, their mean (not normalised), rho, frame features.

        Raises:
            ValueError: for inputs of a wrong shape, more frames than positions, or classes where
                `config.modulation_scope` is "label": a video then has no one feature for a list.
        """
        classes = None if class_embeds is None else self.normalize_classes(class_embeds)
        if classes is not None and self.modulates_per_label:
            raise ValueError(
                "With config.modulation_scope 'label' a video has no one feature for a list of classes: leave "
                "class_embeds out, take the scores of a forward, or set the scope to 'list'."
            )
        return self._video_features(
            pixel_values_videos,
            classes,
            frame_embeds,
            mixture,
            interpolate_pos_encoding,
            interpolate_frame_positions,
            **kwargs,
        )

    def _video_features(
        self,
        pixel_values_videos: torch.Tensor | None,
        classes: torch.Tensor | None,
        frame_embeds: torch.Tensor | None,
        mixture: torch.Tensor | None,
        interpolate_pos_encoding: bool,
        interpolate_frame_positions: bool,
        **kwargs,
    ) -> MoTEVideoFeatures:
        """As `get_video_features`, of class features that are L2-normalised already."""
        kwargs["return_dict"] = True
        vision: Any = None
        if frame_embeds is None:
            if pixel_values_videos is None:
                raise ValueError("Pass pixel_values_videos, or frame_embeds computed by get_frame_features.")
            vision = self.get_frame_features(pixel_values_videos, interpolate_pos_encoding, **kwargs)
            frame_embeds = vision.pooler_output
        temporal: Any = self.get_temporal_features(frame_embeds, mixture, interpolate_frame_positions, **kwargs)
        # Per label, no candidate changes the features: their rho enters with the scores.
        modulation = self.get_modulation(frame_embeds, None if self.modulates_per_label else classes)
        tokens = self.modulate(frame_embeds, temporal.last_hidden_state, modulation)
        return MoTEVideoFeatures(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(-2),
            hidden_states=None if vision is None else vision.hidden_states,
            attentions=None if vision is None else vision.attentions,
            modulation=modulation,
            frame_embeds=frame_embeds,
            vision_model_output=vision,
            temporal_model_output=temporal,
        )

    def _logits(
        self, video: Any, classes: torch.Tensor, candidates: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [b, c] of `_video_features`, and rho."""
        if candidates is None or not self.modulates_per_label:
            return self.score(video.pooler_output, classes), video.modulation
        modulation = self.get_modulation(video.frame_embeds, candidates)
        temporal = video.temporal_model_output.last_hidden_state.mean(-2)
        return self.score(video.pooler_output, classes, temporal, modulation), modulation

    def _check_frames(self, frame_embeds: torch.Tensor, interpolate_frame_positions: bool) -> None:
        if frame_embeds.dim() not in (3, 4) or frame_embeds.shape[-1] != self.config.projection_dim:
            raise ValueError(
                f"frame_embeds must be [videos, frames, {self.config.projection_dim}], or with views after videos, "
                f"got {list(frame_embeds.shape)}."
            )
        frames, trained = frame_embeds.shape[-2], self.config.num_frames
        if interpolate_frame_positions or is_torchdynamo_compiling():
            return
        if trained < frames <= self.config.temporal_config.max_frames:
            logger.warning_once(
                f"{frames} frames, but the model was trained on {trained} (config.num_frames): the positions beyond "
                "were never trained. Pass interpolate_frame_positions=True to resample the trained ones."
            )

    def check_training_classes(self) -> None:
        """Makes sure that the names in `config.id2label` and the text features in `seen_classes.weight` fit.

        Raises:
            ValueError: if they were not set together.
        """
        config, rows, names = self.config, self.seen_classes.weight, self.config.id2label or {}
        state = (config.training_classes_sha256, *names.values())
        if not config.training_classes_set or state == self._checked_classes or rows.is_meta:
            return
        digest = training_classes_digest(names, rows)
        initial = MoTESeenClasses.are_initial(rows)
        if config.training_classes_sha256 is None and not initial:  # saved by a release that recorded none
            config.training_classes_sha256 = digest
        elif config.training_classes_sha256 not in (None, digest) and initial:
            raise ValueError(
                "config.json says that training classes are set, but the weights hold no text features of them: load "
                "the weights that it was saved with, or call set_training_classes(names, embeds)."
            )
        elif config.training_classes_sha256 not in (None, digest):
            raise ValueError(
                "The names in config.id2label are not those that the text features in seen_classes.weight were set "
                "with: call set_training_classes(names, embeds); to rename the classes, with "
                "embeds=model.seen_classes.weight."
            )
        self._checked_classes = (config.training_classes_sha256, *names.values())

    def _training_class_rows(self) -> torch.Tensor:
        """Text features of the training classes, [n, d], which fit their names."""
        if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
            self.check_training_classes()
            if self.training and self._adapters_lose_classes():
                logger.warning_once(ADAPTERS_LOSE_CLASSES)
        return self.seen_classes.weight

    def _adapters_lose_classes(self) -> bool:
        """Whether adapters are trained on classes that neither their files nor the checkpoint below them hold."""
        return (
            self.config.training_classes_sha256 != self._loaded_classes
            and not hasattr(self.seen_classes, "modules_to_save")
            and any("lora_" in name for name, _ in self.named_parameters())
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        class_embeds: torch.Tensor | None = None,
        frame_embeds: torch.Tensor | None = None,
        mixture: torch.Tensor | None = None,
        interpolate_frame_positions: bool = False,
        **kwargs,
    ) -> MoTEOutput:
        """Similarity of videos to texts, or to class features computed once.

        In evaluation the temporal branch is modulated for these candidates, if training classes were set and no loss
        is asked for: a video's features then depend on the candidate list.

        Args:
            input_ids: tokens of c texts, [c, length]; or pass `class_embeds`.
            pixel_values_videos: [b, t, 3, h, w] or [b, v, t, 3, h, w].
            attention_mask: 1 for the tokens to attend to, [c, length].
            position_ids: positions of the tokens, [c, length].
            return_loss: whether to return CLIP's contrastive loss; text i then belongs to video i.
            interpolate_pos_encoding: whether to resample the image tower's positions to frames of another size.
            class_embeds: class features, [c, d] (normalised here), in place of `input_ids`.
            frame_embeds: frame features, [b, t, d] or [b, v, t, d], in place of `pixel_values_videos`.
            mixture: how much of each expert every temporal layer uses, [L, E]; None: drawn in training, else uniform.
            interpolate_frame_positions: whether to resample the positions of `config.num_frames` frames to t.
            **kwargs: passed to the towers and the temporal layers (`output_hidden_states`, ...).

        Returns:
            [`MoTEOutput`].

        Raises:
            ValueError: if both or neither of `input_ids` and `class_embeds` are given, or a shape is wrong.
        """
        if (input_ids is None) == (class_embeds is None):
            raise ValueError("Pass either input_ids (texts) or class_embeds (features of classes).")
        kwargs["return_dict"] = True
        text_outputs = None
        if class_embeds is None:
            text_outputs = self.get_text_features(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
            class_embeds = text_outputs.pooler_output
        class_embeds = self.normalize_classes(class_embeds)
        if mixture is None and self.training and not self.config.temporal_config.experts_merged:
            mixture = self.temporal_model.draw_routing()
        candidates = None if return_loss else class_embeds
        video: Any = self._video_features(
            pixel_values_videos,
            candidates,
            frame_embeds,
            mixture,
            interpolate_pos_encoding,
            interpolate_frame_positions,
            **kwargs,
        )
        logits_per_video, modulation = self._logits(video, class_embeds, candidates)
        loss = None
        if return_loss:
            if len(class_embeds) != len(logits_per_video):
                raise ValueError(
                    f"return_loss pairs text i with video i, but there are {len(class_embeds)} texts and "
                    f"{len(logits_per_video)} videos."
                )
            loss = image_text_contrastive_loss(logits_per_video.T)
        return MoTEOutput(
            loss=loss,
            logits_per_video=logits_per_video,
            logits_per_text=logits_per_video.T,
            text_embeds=class_embeds,
            video_embeds=F.normalize(video.pooler_output.float(), dim=-1),
            modulation=modulation,
            text_model_output=text_outputs,
            vision_model_output=video.vision_model_output,
            temporal_model_output=video.temporal_model_output,
        )

    @torch.no_grad()
    def set_training_classes(self, names: Sequence[str], embeds: torch.Tensor) -> None:
        """Makes `names` the training classes: the classifier's rows, modulation's reference, and `id2label`.

        Also how a finished MoTE is fine-tuned on new classes (by adapters: save and load it again before adding them,
        so that they lie on a checkpoint that holds the classes), and how classes are renamed: the new names with
        `embeds=model.seen_classes.weight`.

        Args:
            names: n class names, distinct.
            embeds: their text features (see `modeling_mote.processing.encode_classes`), [n, d]; stored L2-normalised
                in float32.

        Raises:
            ValueError: for no name, an empty or repeated one, or features of another shape, not finite or zero.
        """
        names = list(names)
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError("names must hold at least one class name, and no empty one.")
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"names holds {repeated!r} more than once; each training class needs its own name.")
        expected = (len(names), self.config.projection_dim)
        if tuple(embeds.shape) != expected:
            raise ValueError(f"embeds must be [names, projection_dim] = {list(expected)}, got {list(embeds.shape)}.")
        rows = embeds.detach().to(self.seen_classes.weight.device, torch.float32)
        if not torch.isfinite(rows).all() or (rows.norm(dim=-1) == 0).any():
            raise ValueError("embeds must be finite, and no row may be zero.")
        seen: Any = self.seen_classes
        if hasattr(seen, "modules_to_save"):  # PEFT's wrapper
            seen = seen.modules_to_save[seen.active_adapter]
        seen.weight = F.normalize(rows, dim=-1)
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: index for index, name in enumerate(names)}
        self.config.training_classes_set = True
        self.config.training_classes_sha256 = training_classes_digest(self.config.id2label, self.seen_classes.weight)

    @torch.no_grad()
    def merge_experts(
        self,
        temperature: float | str | None = None,
        weights: torch.Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
    ) -> "MoTEModel":
        """Folds the experts of every layer into one feed-forward, in place: smaller, with the scores of that mixture.

        A dial between general and specialised: uniform (the paper's), a temperature (Eq. 7), or any weights.

        Args:
            temperature: tau of softmax(i / tau), the same in every layer.
            weights: share of each expert, [E] for every layer or [L, E]; used as they are, not normalised.

        Returns:
            the model itself.

        Raises:
            ValueError: if the experts were merged before, both arguments are given, the weights don't fit, or the
                model is quantised.
        """
        temporal, config = self.temporal_model, self.config.temporal_config
        if config.experts_merged:
            raise ValueError("The experts of this model were merged already.")
        if temperature is not None and weights is not None:
            raise ValueError("Pass temperature or weights, not both.")
        if weights is None:
            weights = merging_weights(config.num_experts, "inf" if temperature is None else temperature)
        if not all(isinstance(layer.mlp, MoTEExperts) for layer in temporal.layers):
            raise ValueError("An adapter wraps the experts: merge or unload it first.")
        quantised = not all(p.is_floating_point() for layer in temporal.layers for p in layer.mlp.parameters())
        if quantised or getattr(self.config, "quantization_config", None) is not None:
            raise ValueError(
                "The weights of this model are quantised: load it without quantisation, merge_experts(), save, and "
                "quantise what was saved."
            )
        mixture = torch.as_tensor(weights, dtype=torch.float32)
        layers = len(temporal.layers)
        if mixture.shape not in ((config.num_experts,), (layers, config.num_experts)) or not mixture.isfinite().all():
            raise ValueError(
                f"weights must be finite, [{config.num_experts}] or [{layers}, {config.num_experts}]; "
                f"got {list(mixture.shape)}."
            )
        config.experts_merged, config.num_experts = True, 1
        for layer, shares in zip(temporal.layers, mixture.expand(layers, -1), strict=True):
            trained = layer.mlp.up_proj.requires_grad
            up, up_bias, down, down_bias = layer.mlp.merge(shares.to(layer.mlp.up_proj.device))
            merged = CLIPMLP(config).to(up.device, up.dtype).train(layer.mlp.training)
            merged.fc1.weight, merged.fc1.bias = nn.Parameter(up), nn.Parameter(up_bias)
            merged.fc2.weight, merged.fc2.bias = nn.Parameter(down), nn.Parameter(down_bias)
            layer.mlp = merged.requires_grad_(trained)
        return self


class MoTEForVideoClassification(MoTEModel):
    """MoTE as a video classifier over its training classes, or over any classes whose features are passed."""

    main_input_name = "pixel_values_videos"

    def __init__(self, config: MoTEConfig):
        super().__init__(config)
        self._freeze_text_tower()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As [`MoTEModel.from_pretrained`]; the text tower, which `forward` never uses, takes no gradient."""
        loaded = super().from_pretrained(*args, **kwargs)
        model: MoTEForVideoClassification = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_text_tower()  # loading replaced the parameters
        return loaded

    def _freeze_text_tower(self) -> None:
        # The classes' text features are fixed. DDP waits for every parameter that takes a gradient.
        self.text_model.requires_grad_(False)
        self.text_projection.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """The image tower's patch embedding: this model's input is frames."""
        return self.vision_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vision_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        class_embeds: torch.Tensor | None = None,
        frame_embeds: torch.Tensor | None = None,
        mixture: torch.Tensor | None = None,
        merge_mixture: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        interpolate_frame_positions: bool = False,
        **kwargs,
    ) -> MoTEVideoClassifierOutput:
        """Scores of videos over classes, and the loss if `labels` are given.

        In training the frames are encoded once and the temporal layers run twice: routed to one expert per layer, and
        merged at a random temperature. loss = CE(routed) + lambda · CE(merged) + eta · MSE(merged tokens, frame
        features) (Eq. 10), and with a `still_penalty_weight` that times the mean square of the temporal part on clips
        held still. Once the experts are merged for good, the loss is the cross-entropy alone.

        Args:
            pixel_values_videos: [b, t, 3, h, w] or [b, v, t, 3, h, w].
            labels: index of each video's class, [b]; needed in training, where scores alone are a random draw's.
            class_embeds: class features to score in place of the training classes', [c, d] (normalised here).
            frame_embeds: frame features, [b, t, d] or [b, v, t, d], in place of `pixel_values_videos`.
            mixture: fixes the routed pass' draw (in evaluation: the only pass), [L, E].
            merge_mixture: fixes the merged pass' draw, [L, E]; training only.
            interpolate_pos_encoding: whether to resample the image tower's positions to frames of another size.
            interpolate_frame_positions: whether to resample the positions of `config.num_frames` frames to t.
            **kwargs: passed to the towers and the temporal layers (`output_hidden_states`, ...).

        Returns:
            [`MoTEVideoClassifierOutput`].

        Raises:
            ValueError: if there are no classes to score, or a shape or the labels are wrong.
        """
        routed = self.training and not self.config.temporal_config.experts_merged
        if merge_mixture is not None and (labels is None or not routed):
            raise ValueError(
                "merge_mixture fixes the merged pass of a training step: it needs train() mode, labels and unmerged "
                "experts."
            )
        if class_embeds is not None:
            classes = self.normalize_classes(class_embeds)
        elif self.config.training_classes_set:
            classes = self._training_class_rows()
        else:
            raise ValueError(
                "This model has no training classes yet: call set_training_classes(names, embeds) once, or pass "
                "class_embeds."
            )
        if routed and labels is None and mixture is None and not torch.compiler.is_compiling():
            logger.warning_once(
                "In train() mode without labels there is no loss, and the scores are those of one random expert per "
                "layer: call eval() to score. Trainer's label_smoothing_factor and compute_loss_func take the labels "
                "away, and with them the merged pass of MoTE's loss: smooth labels by config.label_smoothing."
            )
        if mixture is None and routed:
            mixture = self.temporal_model.draw_routing()
        candidates = None if class_embeds is None else classes  # all the training classes give rho = 1
        video: Any = self._video_features(
            pixel_values_videos,
            candidates,
            frame_embeds,
            mixture,
            interpolate_pos_encoding,
            interpolate_frame_positions,
            **kwargs,
        )
        logits, modulation = self._logits(video, classes, candidates)
        loss = None
        if labels is not None:
            indices = self._check_labels(labels, logits)
            smoothing = self.config.label_smoothing if self.training else 0.0
            loss = F.cross_entropy(logits, indices, label_smoothing=smoothing)
            # Without weight the merged pass would add nothing but its time.
            weights = (
                self.config.merging_loss_weight,
                self.config.mse_loss_weight,
                self.config.still_penalty_weight,
            )
            if routed and any(weights):
                loss = loss + self._merged_pass_loss(
                    video.frame_embeds, classes, indices, merge_mixture, interpolate_frame_positions
                )
        return MoTEVideoClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=video.hidden_states,
            attentions=video.attentions,
            video_embeds=F.normalize(video.pooler_output.float(), dim=-1),
            modulation=modulation,
            temporal_model_output=video.temporal_model_output,
        )

    def _merged_pass_loss(
        self,
        frame_embeds: torch.Tensor,
        classes: torch.Tensor,
        labels: torch.Tensor,
        merge_mixture: torch.Tensor | None,
        interpolate_frame_positions: bool,
    ) -> torch.Tensor:
        """lambda · CE(merged) + eta · MSE(merged tokens, frame features) (Eq. 10), and the still penalty."""
        config = self.config
        if merge_mixture is None:
            merge_mixture = self.temporal_model.draw_merging(config.merge_temperatures)
        merged: Any = self._video_features(None, None, frame_embeds, merge_mixture, False, interpolate_frame_positions)
        logits = self.score(merged.pooler_output, classes)
        merging = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        mse = F.mse_loss(merged.last_hidden_state.float(), frame_embeds.float())
        loss = config.merging_loss_weight * merging + config.mse_loss_weight * mse
        if not config.still_penalty_weight:
            return loss
        still = frame_embeds.mean(-2, keepdim=True).expand_as(frame_embeds)
        temporal: Any = self.get_temporal_features(still, merge_mixture, interpolate_frame_positions)
        return loss + config.still_penalty_weight * temporal.last_hidden_state.float().square().mean()

    def _check_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Labels [b] as int64, if they are what the cross-entropy of logits [b, c] needs."""
        self.config.validate_problem_type()
        if labels.shape != logits.shape[:1] or labels.dtype == torch.bool or labels.is_floating_point():
            raise ValueError(
                f"labels must hold the index of one class for each of {len(logits)} videos, as integers of shape "
                f"[{len(logits)}]; got {labels.dtype} of shape {list(labels.shape)}."
            )
        return labels.to(logits.device, torch.int64)


__all__ = [
    "MoTEForVideoClassification",
    "MoTEModel",
    "MoTEOutput",
    "MoTEPreTrainedModel",
    "MoTETemporalModel",
    "MoTEVideoClassifierOutput",
    "MoTEVideoFeatures",
    "merging_weights",
    "temporal_feature_modulation",
    "training_classes_digest",
]
