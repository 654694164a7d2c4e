"""Registers MoTE with transformers' Auto classes and `pipeline()`; `import modeling_mote` imports this."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_mote import MoTEConfig, MoTETemporalConfig
from .modeling_mote import MoTEForVideoClassification, MoTEModel, MoTETemporalModel
from .processing import MoTEProcessor, MoTEVideoProcessor, ZeroShotVideoClassificationPipeline

AutoConfig.register("mote", MoTEConfig, exist_ok=True)
AutoConfig.register("mote_temporal_model", MoTETemporalConfig, exist_ok=True)
AutoModel.register(MoTEConfig, MoTEModel, exist_ok=True)
AutoModel.register(MoTETemporalConfig, MoTETemporalModel, exist_ok=True)
AutoModelForVideoClassification.register(MoTEConfig, MoTEForVideoClassification, exist_ok=True)
AutoVideoProcessor.register(MoTEConfig, MoTEVideoProcessor, exist_ok=True)
AutoProcessor.register(MoTEConfig, MoTEProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "zero-shot-video-classification",
    pipeline_class=ZeroShotVideoClassificationPipeline,
    pt_model=AutoModel,
    type="multimodal",
)
# What is saved carries its code: such a folder loads with trust_remote_code=True where this package is not installed.
MoTEConfig.register_for_auto_class()
MoTEModel.register_for_auto_class("AutoModel")
MoTEForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")
MoTEVideoProcessor.register_for_auto_class("AutoVideoProcessor")
MoTEProcessor.register_for_auto_class("AutoProcessor")
