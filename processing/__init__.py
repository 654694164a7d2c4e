"""Video and text in, tensors out."""

from .augmentation import augment_clip, clip_seed, train_transform
from .frame_sampling import sample_indices
from .pipeline_mote import ZeroShotVideoClassificationPipeline
from .processing_mote import MoTEProcessor
from .prompts import PROMPT_SETS, encode_classes, get_prompt_set, parse_labels
from .protocols import PROTOCOLS, get_protocol, half_classes, score_views
from .video_decoding import VideoDecodeError, decode_video, probe_video
from .video_processing_mote import MoTEVideoProcessor

__all__ = [
    "PROMPT_SETS",
    "PROTOCOLS",
    "MoTEProcessor",
    "MoTEVideoProcessor",
    "VideoDecodeError",
    "ZeroShotVideoClassificationPipeline",
    "augment_clip",
    "clip_seed",
    "decode_video",
    "encode_classes",
    "get_prompt_set",
    "get_protocol",
    "half_classes",
    "parse_labels",
    "probe_video",
    "sample_indices",
    "score_views",
    "train_transform",
]
