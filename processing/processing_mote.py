"""Videos and texts to the inputs of MoTE."""

import os
from pathlib import Path
from typing import Any

from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import LARGE_INTEGER

from .sentence_transformer_files import write_sentence_transformer_files
from .video_processing_mote import MoTEVideoProcessor  # noqa: F401  its file travels to the Hub with this one

CLIP_MAX_LENGTH = 77  # positions of CLIP's text tower, for a tokenizer that names no limit of its own


class MoTEProcessor(ProcessorMixin):
    """A `MoTEVideoProcessor` and a CLIP tokenizer as one.

    Texts are padded and cut to the tokenizer's `model_max_length`, 77 for CLIP.

    Args:
        video_processor: Turns videos into pixels.
        tokenizer: Turns texts into token ids.
        **kwargs: Passed to transformers' `ProcessorMixin`.
    """

    def __init__(self, video_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(video_processor, tokenizer, **kwargs)

    def __call__(self, text: str | list[str] | None = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare texts, videos or both.

        Args:
            text: One text or a list of texts.
            videos: One video or a batch of them, in any form that `MoTEVideoProcessor` takes.
            **kwargs: Arguments of the tokenizer and of the video processor, flat or as `text_kwargs`,
                `videos_kwargs`.

        Returns:
            `input_ids` and `attention_mask` [n, l] where texts are given, `pixel_values_videos` [b, t, c, h, w] or
            [b, v, t, c, h, w] where videos are.

            Shapes: n texts, l tokens, b videos, v views, t frames, c = 3 channels, h and w pixels.

        Raises:
            ValueError: if neither is given, for images or audio, and where the video processor raises it.
        """
        for other in ("images", "audio"):
            if kwargs.get(other) is not None:
                raise ValueError(f"MoTEProcessor takes text= and videos=, not {other}=")
        return super().__call__(text=text, videos=videos, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the settings, and beside them what makes the folder one of sentence-transformers too.

        `save_pretrained` passes here before it uploads anything.

        Args:
            json_file_path: The file of the settings.
        """
        super().to_json_file(json_file_path)
        write_sentence_transformer_files(Path(json_file_path).parent)

    @property
    def text_kwargs(self) -> dict[str, Any]:
        """Defaults of the tokenizer's arguments; transformers reads them by this name."""
        limit = self.tokenizer.model_max_length
        return {
            "padding": "max_length",
            "truncation": True,
            "max_length": limit if limit < LARGE_INTEGER else CLIP_MAX_LENGTH,
        }

    @property
    def num_frames(self) -> int | None:
        """Frames sampled from each video, the video processor's."""
        return self.video_processor.num_frames

    @num_frames.setter
    def num_frames(self, value: int | None) -> None:
        self.video_processor.num_frames = value

    @property
    def pipeline_class(self) -> type:
        """The zero-shot pipeline, for a processor loaded with `trust_remote_code=True` and no package installed."""
        from .pipeline_mote import ZeroShotVideoClassificationPipeline

        return ZeroShotVideoClassificationPipeline
