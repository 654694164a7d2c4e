"""What a Hugging Face Inference Endpoint answers: a video and labels in, rows of scores out, within limits.

It reads the video in its own process: a file takes as long as `Limits.max_gigapixels` of it do, and the time of a
request is bounded by the Endpoint itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

from .answers import ANSWER_OPTIONS
from .limits import Limits, RefusedError, candidates_of, check_megabytes, check_size, decode_base64
from .public_fetch import fetch_public
from .video_size import measure_video
from .video_source import HTTP

PARAMETERS = ("candidate_labels", *ANSWER_OPTIONS)


class Endpoint:
    """A checkpoint that answers requests, with the code of its own folder.

    Args:
        path: Folder of the checkpoint.
        limits: What is refused: size, length and pixels of a video, number and length of labels, and addresses that
            are not public.
    """

    def __init__(self, path: str, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        # Whoever runs this file runs the folder's code already.
        processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        model: Any = AutoModel.from_pretrained(path, trust_remote_code=True)
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.classify = processor.pipeline_class(
            model=model.to(device), processor=processor, tokenizer=processor.tokenizer, device=device
        )

    def __call__(self, data: Any) -> list[dict[str, Any]]:
        """Answer one request.

        Args:
            data: `{"inputs": video, "parameters": {…}}`. The video is an http(s) URL, base64, a `data:` URL, or bytes.
                Parameters are `candidate_labels`, a list, a text or {name: description}, by default the classes that
                the checkpoint was trained on; and what an answer holds, `top_k`, `unknown`, …, see `AnswerOptions`.

        Returns:
            `{"score", "label", "similarity"}`, best first, as the pipeline gives them.

        Raises:
            ValueError: In one sentence, for what makes no sense, can't be read, or is more than the limits allow.
        """
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise RefusedError('The request holds no inputs: send {"inputs": URL or base64 of a video}.')
        parameters = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(parameters, Mapping):
            raise RefusedError('parameters must be an object, such as {"candidate_labels": ["archery", "yoga"]}.')
        if unknown := [name for name in parameters if name not in PARAMETERS]:
            raise RefusedError(
                f"There is no parameter {str(unknown[0])[:80]!r}: pass some of {', '.join(PARAMETERS)}."
            )
        options = {name: value for name, value in parameters.items() if name != "candidate_labels"}
        candidates = self._candidates(parameters.get("candidate_labels"))
        return self.classify(self._video(data["inputs"]), candidate_labels=candidates, **options)

    def _candidates(self, labels: Any) -> dict[str, tuple[str, ...]]:
        """Labels as they are given, else the training classes."""
        config = self.classify.model.config
        if labels is None and config.training_classes_set:
            return {name: () for _, name in sorted(config.id2label.items())}
        return candidates_of(labels, self.limits)

    def _video(self, video: Any) -> bytes:
        """The bytes of a video that is small enough."""
        if isinstance(video, str):
            video = fetch_public(video, self.limits) if video.startswith(HTTP) else decode_base64(video)
        if not isinstance(video, bytes):
            raise RefusedError(f"inputs is a {type(video).__name__}: send the URL of a video, or the file as base64.")
        check_megabytes(len(video), self.limits)
        check_size(measure_video(video), self.limits)
        return video


__all__ = ["Endpoint"]
