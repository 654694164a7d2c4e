"""What MTEB asks for before it lists a model: the file to send, once the authors' checkpoints are on the Hub.

Put your organisation in place of `org`, and the commits that `mote push` prints as `revision`; then it is a file of
MTEB's `mteb/models/model_implementations`. Tried as it is:

    python -c "import mteb_model_meta as m; print(m.mote_vitb16.to_dict())"   # in examples/
"""

from typing import Any

from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

CITATION = """
@inproceedings{zhu2024mote,
  title={MoTE: Reconciling Generalization with Specialization for Visual-Language to Video Knowledge Transfer},
  author={Zhu, Minghao and Wang, Zhengpu and Hu, Mengxian and Dang, Ronghao and Lin, Xiao and Zhou, Xun and
          Liu, Chengju and Chen, Qijun},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}"""

_COMMON: dict[str, Any] = {
    "loader": SentenceTransformerEncoderWrapper,
    "loader_kwargs": {"trust_remote_code": True},  # frames are chosen by the repository's own processor
    "revision": None,
    "release_date": None,
    "languages": ["eng-Latn"],
    "modalities": ["video", "text"],
    "model_type": ["dense"],
    "max_tokens": 77,
    "license": "apache-2.0",
    "open_weights": True,
    "public_training_code": "https://github.com/ZMHH-H/MoTE",
    "public_training_data": None,
    "framework": ["Sentence Transformers", "Transformers", "PyTorch", "safetensors"],
    "similarity_fn_name": ScoringFunction.COSINE,
    "use_instructions": False,
    "training_datasets": {"Kinetics400V", "Kinetics400VA", "Kinetics400ZeroShot", "Kinetics400VAZeroShot"},
    "citation": CITATION,
}

mote_vitb16 = ModelMeta(
    name="org/mote-vitb16",
    reference="https://huggingface.co/org/mote-vitb16",
    adapted_from="openai/clip-vit-base-patch16",
    n_parameters=187_466_241,
    n_embedding_parameters=25_296_896,
    n_active_parameters_override=136_972_801,  # one feed-forward of four per temporal layer, their mean
    memory_usage_mb=715,
    embed_dim=512,
    **_COMMON,
)

mote_vitl14 = ModelMeta(
    name="org/mote-vitl14",
    reference="https://huggingface.co/org/mote-vitl14",
    adapted_from="openai/clip-vit-large-patch14",
    n_parameters=555_206_657,
    n_embedding_parameters=37_945_344,
    n_active_parameters_override=432_257_537,
    memory_usage_mb=2118,
    embed_dim=768,
    **_COMMON,
)
