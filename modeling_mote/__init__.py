"""MoTE for transformers: importing this package registers it with the Auto classes and `pipeline()`."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
)

from .configuration_mote import MoTEConfig, MoTETemporalConfig
from .modeling_mote import MoTEForVideoClassification, MoTEModel, MoTETemporalModel

__version__ = "0.1.0"

AutoConfig.register("mote", MoTEConfig, exist_ok=True)
AutoConfig.register("mote_temporal_model", MoTETemporalConfig, exist_ok=True)
AutoModel.register(MoTEConfig, MoTEModel, exist_ok=True)
AutoModel.register(MoTETemporalConfig, MoTETemporalModel, exist_ok=True)
AutoModelForVideoClassification.register(MoTEConfig, MoTEForVideoClassification, exist_ok=True)
MoTEConfig.register_for_auto_class()
MoTEModel.register_for_auto_class("AutoModel")
MoTEForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")

__all__ = ["MoTEConfig", "MoTEForVideoClassification", "MoTEModel", "MoTETemporalConfig", "MoTETemporalModel"]
