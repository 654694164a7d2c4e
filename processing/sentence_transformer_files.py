"""The files by which sentence-transformers, and so MTEB, loads a saved folder as it is.

A text becomes `get_text_features`, a video `get_video_features`, both not normalised: their cosine is MoTE's
similarity without modulation.
"""

import json
import os
from pathlib import Path
from typing import Any

FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "video": {"method": "get_video_features", "method_output_name": "pooler_output"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "requirements": {"sentence-transformers": ">=6", "transformers": ">=5.23"},
        "similarity_fn_name": "cosine",
    },
}


def write_sentence_transformer_files(folder: str | os.PathLike) -> None:
    """Write those files that the folder does not hold; sentence-transformers may have saved others, with prompts.

    Args:
        folder: Of a model and a processor.
    """
    for name, content in FILES.items():
        path = Path(folder) / name
        if not path.exists():
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = ["write_sentence_transformer_files"]
