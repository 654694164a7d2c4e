"""Video and text in, tensors out."""

from .augmentation import augment_clip, clip_seed, train_transform
from .pipeline_mote import ZeroShotVideoClassificationPipeline
from .processing_mote import MoTEProcessor
from .prompts import PROMPT_SETS, encode_classes, get_prompt_set, parse_labels
from .video_processing_mote import MoTEVideoProcessor

__all__ = [
    "PROMPT_SETS",
    "MoTEProcessor",
    "MoTEVideoProcessor",
    "ZeroShotVideoClassificationPipeline",
    "augment_clip",
    "clip_seed",
    "encode_classes",
    "get_prompt_set",
    "parse_labels",
    "train_transform",
]
