"""Configuration of MoTE: CLIP's two towers plus a temporal Transformer whose feed-forwards are mixtures of experts."""

import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import transformers
from packaging.version import Version

if Version(transformers.__version__) < Version("5.23"):  # said before an import below fails
    raise ImportError(
        f"MoTE needs transformers 5.23 or newer, and this is {transformers.__version__}: "
        'pip install --upgrade "transformers>=5.23".'
    )

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

STARTS_FROM = (
    "MoTE starts from a CLIP (model type 'clip', such as openai/clip-vit-base-patch16), or goes on from a MoTE "
    "(model type 'mote')"
)

MODULATION_SCOPES = ("list", "label")

# Keys that transformers itself writes into, or accepts for, any config without declaring them as fields.
_TRANSFORMERS_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "text_config_dict",
    "torch_dtype",
    "vision_config_dict",
}


def check_folder(model: str | os.PathLike) -> None:
    """Refuse a folder that does not exist, rather than ask the Hub for it.

    Raises:
        FileNotFoundError: naming it.
    """
    name = str(model)
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name):
        raise FileNotFoundError(f"There is no folder {name}. {STARTS_FROM}.")


class _CheckedConfig(PreTrainedConfig):
    """A config that refuses an argument it has no field for, where transformers would keep it and hide a typo.

    A file may hold more: fields of a later version, or of other tools. Those are kept and saved again.
    """

    _foreign: ClassVar[dict[str, Any]] = {}  # of an instance: keys of its file that this version has no field for

    @classmethod
    def _knows(cls, key: str) -> bool:
        return key.startswith("_") or key in _TRANSFORMERS_KEYS or key in {field.name for field in fields(cls)}

    def __post_init__(self, **kwargs):
        unknown = sorted(key for key in kwargs if not self._knows(key))
        if unknown:
            inherited = {field.name for field in fields(PreTrainedConfig)}
            own = ", ".join(field.name for field in fields(self) if field.name not in inherited)
            raise ValueError(f"{type(self).__name__} has no field {', '.join(unknown)}; its fields are {own}.")
        super().__post_init__(**kwargs)
        self.validate_architecture()  # `@strict` calls it too, but wraps its ValueError in an error that is none

    def validate_architecture(self):
        """Checks what `@strict`'s types can't; run again at every save."""

    @classmethod
    def take_foreign(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Removes from a file's values those that this config has no field for, and returns them."""
        return {key: values.pop(key) for key in list(values) if not cls._knows(key)}

    def keep_foreign(self, foreign: dict[str, Any]) -> None:
        """Keeps values of a file for the next save, and says so once."""
        if foreign:
            logger.warning_once(
                f"This version of {type(self).__name__} has no field {', '.join(sorted(foreign))}; what the file says "
                "of it has no effect, and is kept when the config is saved."
            )
            self.__dict__["_foreign"] = foreign

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As [`PreTrainedConfig.from_dict`]; `config_dict` may hold unknown keys, which are kept."""
        values = dict(config_dict)
        foreign = cls.take_foreign(values)
        loaded = super().from_dict(values, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).keep_foreign(foreign)
        return loaded

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike):
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict[str, Any]:
        """The fields, what transformers keeps beside them, and what the file held beyond: it can be loaded again."""
        known = {key: value for key, value in super().to_dict().items() if self._knows(key) and key != "_foreign"}
        return {**self._foreign, **known}


@strict
class MoTETemporalConfig(_CheckedConfig):
    r"""
    Configuration of the temporal Transformer `h` (the paper's section 3.1; sizes of ViT-B/16 by default).

    Args:
        hidden_size: width d; always CLIP's `projection_dim`.
        intermediate_size: width of each expert's hidden layer, 4 d in the paper.
        num_hidden_layers: temporal layers L: 4 for ViT-B/16, 6 for ViT-L/14.
        num_attention_heads: heads of the attention over frames.
        num_experts: experts E in each layer; 1 where `experts_merged`.
        max_frames: rows of the learned frame-position table.
        hidden_act: activation of the experts.
        layer_norm_eps: epsilon of the temporal layer norms (CLIP's towers keep 1e-5).
        attention_dropout: dropout on attention weights; the paper uses none.
        initializer_range: standard deviation of every matrix but the attention's q, k, v.
        initializer_factor: unused by the temporal layers; CLIP's weight initialisation reads it on every sub-config.
        experts_merged: whether the experts were folded into one feed-forward (`merge_experts()`).
    """

    model_type = "mote_temporal_model"
    base_config_key = "temporal_config"

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_experts: int = 4
    max_frames: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-12
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    experts_merged: bool = False

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_experts", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"temporal_config.{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_hidden_layers < 0:
            raise ValueError(f"temporal_config.num_hidden_layers must not be negative, got {self.num_hidden_layers}.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"temporal_config.hidden_size ({self.hidden_size}) is not a multiple of "
                f"temporal_config.num_attention_heads ({self.num_attention_heads})."
            )
        if self.experts_merged and self.num_experts != 1:
            raise ValueError(f"temporal_config.num_experts must be 1 once merged, got {self.num_experts}.")


@strict
class MoTEConfig(_CheckedConfig, CLIPConfig):
    r"""
    Configuration of [`MoTEModel`] and [`MoTEForVideoClassification`]: [`CLIPConfig`] with a `temporal_config`.

    From a bare CLIP config the temporal one is derived: width = `projection_dim`, heads = text width / 64 (at
    least 1), 6 layers where the width is 768 or more, else 4. A partial `temporal_config` overrides what it names.

    Args:
        projection_dim: width d of frame, class and video features.
        temporal_config: a [`MoTETemporalConfig`] or a dictionary of its fields.
        num_frames: frames t that the model was trained with; the video processor samples as many.
        modulation_top_k: class features looked up on either side by temporal feature modulation (K in Eq. 11).
        modulation_temperature: its temperature gamma (Eq. 11).
        modulation_scope: `"list"`, the paper's: one rho per video for the whole list of candidates; or `"label"`: one
            per candidate, rho_c = exp(-(1 - its largest similarity to a training class) / gamma), so that a label's
            cosine does not depend on the other labels. `modulation_top_k` has no part in it.
        merging_loss_weight: weight lambda of the merged pass' cross-entropy (Eq. 10).
        mse_loss_weight: weight eta of the mean squared error between merged video tokens and frame features (Eq. 10).
        still_penalty_weight: weight of the mean square of the merged pass' temporal part h on clips held still, whose
            every frame is the clip's mean frame. 0 leaves it out: the paper has no such term.
        merge_temperatures: temperatures tau that a training step draws from (Eq. 7); infinity is spelled `"inf"`,
            which JSON can hold.
        label_smoothing: label smoothing of both cross-entropies.
        calibration: what the scores mean, as `Calibration.to_dict` of `processing/calibration.py` gives it; None if it
            was never fitted.
        training_classes_set: whether `seen_classes.weight` holds the text features of the classes in `id2label`;
            written by `set_training_classes`. Other names given to `from_pretrained` make it False, with a warning.
        training_classes_sha256: digest of those names and features, by which the model knows that they belong
            together; written by `set_training_classes`.

    Raises:
        ValueError: for an unknown argument, or a value the model can't be built with. Unknown keys of a saved
            `config.json` are kept and saved again, with a warning.
    """

    model_type = "mote"
    keys_to_ignore_at_inference = [
        "hidden_states",
        "attentions",
        "text_embeds",
        "video_embeds",
        "modulation",
        "logits_per_text",
        "text_model_output",
        "vision_model_output",
        "temporal_model_output",
    ]
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": CLIPVisionConfig,
        "text_config": CLIPTextConfig,
        "temporal_config": MoTETemporalConfig,
    }

    projection_dim: int = 512
    temporal_config: dict | PreTrainedConfig | None = None
    num_frames: int = 8
    modulation_top_k: int = 5
    modulation_temperature: int | float = 0.05
    modulation_scope: str = "list"
    merging_loss_weight: int | float = 0.5
    mse_loss_weight: int | float = 0.1
    still_penalty_weight: int | float = 0.0
    merge_temperatures: list | tuple = (-9.6, -4.8, -2.4, -1.2, -0.6, 0.6, 1.2, 2.4, 4.8, 9.6, "inf")
    label_smoothing: int | float = 0.0
    calibration: dict | None = None
    training_classes_set: bool = False
    training_classes_sha256: str | None = None

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads `config.json`; that of a bare CLIP checkpoint becomes the start of a MoTE config.

        Raises:
            ValueError: if it is another model's.
            OSError: if there is none.
        """
        check_folder(pretrained_model_name_or_path)
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = config_dict.get("model_type")
        if kind == CLIPConfig.model_type:
            config_dict = {key: value for key, value in config_dict.items() if cls._knows(key)}
            config_dict.pop("architectures", None)
            config_dict.pop("auto_map", None)
            config_dict["model_type"] = cls.model_type
        elif kind != cls.model_type:
            raise ValueError(f"{pretrained_model_name_or_path} holds a model of type {kind!r}. {STARTS_FROM}.")
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As [`PreTrainedConfig.from_dict`]; other names than the file's classes make a model without classes."""
        values = dict(config_dict)
        temporal, foreign = values.get("temporal_config"), {}
        if isinstance(temporal, dict):
            values["temporal_config"] = temporal = dict(temporal)
            foreign = MoTETemporalConfig.take_foreign(temporal)
        names = {int(index): name for index, name in (values.get("id2label") or {}).items()}
        loaded = super().from_dict(values, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.temporal_config.keep_foreign(foreign)
        if config.training_classes_set and {int(index): name for index, name in config.id2label.items()} != names:
            logger.warning(
                "The classes asked for are not those whose text features the checkpoint holds, so this model has no "
                "training classes: call set_training_classes(names, embeds)."
            )
            config.training_classes_set, config.training_classes_sha256 = False, None
        return loaded

    def __post_init__(self, **kwargs):
        self.merge_temperatures = ["inf" if tau in ("inf", math.inf) else tau for tau in self.merge_temperatures]
        if not isinstance(self.temporal_config, PreTrainedConfig):
            # text_config is still what the caller gave; CLIPConfig turns it into a CLIPTextConfig below.
            text_config = self.text_config or kwargs.get("text_config_dict") or {}
            text_config = text_config.to_dict() if isinstance(text_config, PreTrainedConfig) else text_config
            text_width = text_config.get("hidden_size", CLIPTextConfig.hidden_size)
            width = self.projection_dim
            derived = {
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": 6 if width >= 768 else 4,
                "num_attention_heads": max(1, text_width // 64),
            }
            self.temporal_config = MoTETemporalConfig(**{**derived, **(self.temporal_config or {})})
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict`-powered validation."""
        temporal = self.temporal_config
        if temporal.hidden_size != self.projection_dim:
            raise ValueError(
                f"temporal_config.hidden_size ({temporal.hidden_size}) must equal projection_dim "
                f"({self.projection_dim}): the temporal layers read CLIP's projected frame features."
            )
        if not 1 <= self.num_frames <= temporal.max_frames:
            raise ValueError(
                f"num_frames must be between 1 and temporal_config.max_frames ({temporal.max_frames}), "
                f"got {self.num_frames}."
            )
        if self.modulation_top_k < 1:
            raise ValueError(f"modulation_top_k must be at least 1, got {self.modulation_top_k}.")
        if not self.modulation_temperature > 0:
            raise ValueError(f"modulation_temperature must be positive, got {self.modulation_temperature}.")
        if self.modulation_scope not in MODULATION_SCOPES:
            raise ValueError(
                f"modulation_scope must be one of {', '.join(MODULATION_SCOPES)}; got {self.modulation_scope!r}."
            )
        if not 0 <= self.still_penalty_weight < math.inf:
            raise ValueError(
                f"still_penalty_weight must not be negative, and be a finite number, got {self.still_penalty_weight}."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")
        self.validate_problem_type()
        valid = [
            tau == "inf" or (isinstance(tau, (int, float)) and math.isfinite(tau) and tau != 0)
            for tau in self.merge_temperatures
        ]
        if not valid or not all(valid):
            raise ValueError(
                'merge_temperatures must hold finite numbers other than 0, or "inf", and at least one: '
                f"got {self.merge_temperatures}."
            )

    def validate_problem_type(self):
        """Checks that nothing but one class per video is asked for."""
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"MoTE learns and scores one class per video (a softmax over cosines): problem_type "
                f"{self.problem_type!r} is not supported; leave it out."
            )


__all__ = ["STARTS_FROM", "MoTEConfig", "MoTETemporalConfig", "check_folder"]
