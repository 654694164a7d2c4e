"""What a Hugging Face Inference Endpoint runs of this repository: `endpoint_mote.py`, beside it, answers.

    {"inputs": "https://…/clip.mp4", "parameters": {"candidate_labels": ["archery", "yoga"]}}
    {"inputs": "AAAAIGZ0eXBpc29t…"}

`inputs` is the URL of a video, or the file as base64. Without labels, the checkpoint's own classes are scored.
"""

from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_class_from_dynamic_module


class EndpointHandler:
    """Scores a video against labels, by the code of the repository that it lies in.

    Args:
        path: The repository's folder.
    """

    def __init__(self, path: str = "") -> None:
        folder = path or str(Path(__file__).resolve().parent)
        self.endpoint = get_class_from_dynamic_module("endpoint_mote.Endpoint", folder)(folder)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Answer one request; see `Endpoint`."""
        return self.endpoint(data)
