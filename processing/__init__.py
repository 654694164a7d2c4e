"""Video and text in, tensors out."""

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .answers import AnswerOptions
    from .augmentation import augment_clip, clip_seed, train_transform
    from .calibration import Calibration, fit_calibration
    from .class_names import parse_labels, to_words
    from .example_set import ExampleSet
    from .frame_sampling import sample_indices
    from .live import classify_stream
    from .long_video import classify_windows
    from .pipeline_mote import ZeroShotVideoClassificationPipeline
    from .processing_mote import MoTEProcessor
    from .prompts import PROMPT_SETS, encode_classes, encode_texts, get_prompt_set
    from .protocols import PROTOCOLS, get_protocol, half_classes, score_views
    from .timeline import merge_windows, plot_timeline, smooth_windows
    from .video_decoding import decode_video, probe_video
    from .video_processing_mote import MoTEVideoProcessor
    from .video_source import VideoDecodeError

__getattr__ = lazy_names(
    __name__,
    {
        "AnswerOptions": "answers",
        "Calibration": "calibration",
        "ExampleSet": "example_set",
        "MoTEProcessor": "processing_mote",
        "MoTEVideoProcessor": "video_processing_mote",
        "PROMPT_SETS": "prompts",
        "PROTOCOLS": "protocols",
        "VideoDecodeError": "video_source",
        "ZeroShotVideoClassificationPipeline": "pipeline_mote",
        "augment_clip": "augmentation",
        "classify_stream": "live",
        "classify_windows": "long_video",
        "clip_seed": "augmentation",
        "decode_video": "video_decoding",
        "encode_classes": "prompts",
        "encode_texts": "prompts",
        "fit_calibration": "calibration",
        "get_prompt_set": "prompts",
        "get_protocol": "protocols",
        "half_classes": "protocols",
        "merge_windows": "timeline",
        "parse_labels": "class_names",
        "plot_timeline": "timeline",
        "probe_video": "video_decoding",
        "sample_indices": "frame_sampling",
        "score_views": "protocols",
        "smooth_windows": "timeline",
        "to_words": "class_names",
        "train_transform": "augmentation",
    },
)

__all__ = [
    "PROMPT_SETS",
    "PROTOCOLS",
    "AnswerOptions",
    "Calibration",
    "ExampleSet",
    "MoTEProcessor",
    "MoTEVideoProcessor",
    "VideoDecodeError",
    "ZeroShotVideoClassificationPipeline",
    "augment_clip",
    "classify_stream",
    "classify_windows",
    "clip_seed",
    "decode_video",
    "encode_classes",
    "encode_texts",
    "fit_calibration",
    "get_prompt_set",
    "get_protocol",
    "half_classes",
    "merge_windows",
    "parse_labels",
    "plot_timeline",
    "probe_video",
    "sample_indices",
    "score_views",
    "smooth_windows",
    "to_words",
    "train_transform",
]


def __dir__() -> list[str]:
    """The lazy names too, for whoever presses Tab."""
    return sorted({*globals(), *__all__})
