"""The `zero-shot-video-classification` pipeline: videos and labels in, labels with scores out."""

import gc
import multiprocessing
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from types import GeneratorType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers.pipelines.base import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .answers import ANSWER_OPTIONS, AnswerOptions, answer
from .calibration import Calibration, calibration_of
from .class_names import parse_candidates, unlike_words
from .example_set import ExampleSet
from .module_state import module_state
from .prompts import encode_classes, get_prompt_set
from .video_inputs import is_one_video
from .video_options import READING_OPTIONS
from .video_processing_mote import MoTEVideoProcessor

logger = logging.get_logger(__name__)

CACHED_LABEL_LISTS = 8  # [c, d] float32 each: at 700 classes and 768 dims, 2 MB


class ZeroShotVideoClassificationPipeline(Pipeline):
    """Score videos against labels that are given as words.

    >>> import modeling_mote
    >>> classify = transformers.pipeline("zero-shot-video-classification", model="org/mote-vitb16")
    >>> classify("clip.mp4", candidate_labels=["archery", "yoga", "flipping a pancake"])

    The class features of a label list are computed once and kept for the next calls. MoTE's feature modulation makes
    a video's features depend on all the labels it is scored against, not only on its own.
    """

    _load_processor: Any = True
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    model: Any
    processor: Any
    tokenizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if getattr(self.processor, "video_processor", None) is None or self.tokenizer is None:
            raise ValueError(
                "the zero-shot-video-classification pipeline needs processor=, with a video processor and a tokenizer"
            )
        if not getattr(self.model, "temporal_layers_trained", True):
            raise ValueError(
                "the temporal layers of this model were never trained, so its scores would mean nothing: train it "
                "first (mote train), or convert the authors' checkpoint (mote convert)"
            )
        self.model.eval()  # a model in training mode would draw experts at random
        self._class_features: dict[tuple, torch.Tensor] = {}  # the most recently used last

    def __call__(self, video: Any = None, candidate_labels: Any = None, **kwargs: Any) -> Any:
        """Assign labels to one or several videos.

        Args:
            video: One video: a path, a URL, bytes, a `{"path", "bytes"}` dict, an array [t, h, w, c], a tensor
                [t, c, h, w], a list of frames, or a video as `datasets` decodes it. Or several: a list, a column of
                a `datasets.Dataset`, a torch dataset, or a generator of these. `videos=` and `inputs=` are accepted
                too.
            candidate_labels: Names of the classes, a list or a comma-separated string, one or more. Or
                {name: description}: a text or several that say what the class looks like, read as they are, without
                a prompt, and averaged; None for a name that speaks for itself. Answers keep the names.
            **kwargs: What the answer holds, see `AnswerOptions`: `top_k`, the number of rows, all by default;
                `function_to_apply`, "softmax", "sigmoid" or "none"; `unknown=True` for a row "none of these";
                `threshold`, the least score; `coverage`, for the smallest set of labels that holds the true one with
                this probability, on classes that the calibration was fitted on; `multi_label=True`, each label by
                itself. `examples`, a few videos of labels that correct what their texts say: {label: its videos}, an
                `ExampleSet`, which is read once for many calls, or the file of one; `prompts`, a prompt set's name
                ("mote_28") or templates with `{}`; `READING_OPTIONS` (`num_frames`, `num_clips`, …), see
                `MoTEVideoProcessorKwargs`, by default as saved with the processor; `batch_size` and `num_workers`,
                as in every pipeline. All of these, and the labels, can be given when the pipeline is made.

        Returns:
            A list of `{"score", "label", "similarity"}`, best first, the scores over all rows summing to 1 unless the
            options say otherwise, the similarity a cosine; for several videos a list of such lists, in order; for
            torch datasets and generators, an iterator over them. A checkpoint with a calibration gives scores that
            are probabilities, see `calibration`.

        Raises:
            ValueError: for missing, empty or repeated labels, bad options, and what needs a calibration without one.
            VideoDecodeError: for a video that cannot be decoded, naming it.
        """
        for name in ("videos", "inputs"):
            video = kwargs.pop(name) if video is None and name in kwargs else video
        if video is None:
            raise ValueError(
                "no video was given: pass a path, a URL, bytes, an array, a list of frames, or a list of videos"
            )
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "candidate_labels" not in self._forward_params:
            raise ValueError("candidate_labels is missing: pass a list of names or a comma-separated string")

        if is_one_video(video):
            # transformers takes every list for a list of inputs
            return (
                super().__call__([video], **kwargs)[0]
                if isinstance(video, list)
                else super().__call__(video, **kwargs)
            )
        if isinstance(video, (Dataset, GeneratorType)):
            return super().__call__(video, **kwargs)
        if isinstance(video, (list, tuple, torch.Tensor)) or hasattr(video, "__array__"):
            return super().__call__(list(video), **kwargs) if len(video) else []
        if isinstance(video, Iterable):  # a column of a datasets.Dataset, read row by row, or an iterator
            results = super().__call__((item for item in video), **kwargs)
            return list(results) if isinstance(video, Sized) else results
        return super().__call__(video, **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Any:
        """As transformers', with workers that get the video processor alone, whichever way they are started."""
        if num_workers:
            gc.collect()  # a forked worker that collects a PyAV object waits for its lost threads for ever
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a fork is warned of; workers read no text
            if not isinstance(inputs, Sized) and multiprocessing.get_start_method() != "fork":
                logger.warning("a generator cannot be passed to another process: its videos are read in this one")
                num_workers = 0
        process = partial(_read_or_say_why, self.processor.video_processor, dtype=self.dtype, **self._own_frames())
        if isinstance(inputs, Sized):
            dataset: Any = PipelineDataset(inputs, process, preprocess_params)
        else:
            dataset, num_workers = PipelineIterator(inputs, process, preprocess_params), min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=_collate)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def _sanitize_parameters(
        self,
        candidate_labels: Any = None,
        prompts: str | Sequence[str] | None = None,
        examples: Any = None,
        **options: Any,
    ) -> tuple[dict, dict, dict]:
        forward: dict[str, Any] = {}
        postprocess: dict[str, Any] = {}
        if candidate_labels is not None:
            forward["candidate_labels"] = parse_candidates(candidate_labels)
            postprocess["candidate_labels"] = tuple(forward["candidate_labels"])
        if prompts is not None:
            forward["prompts"] = get_prompt_set(prompts)
        answering = {name: options.pop(name) for name in ANSWER_OPTIONS if name in options}
        if answering:
            given = getattr(self, "_postprocess_params", {}).get("options", AnswerOptions())
            postprocess["options"] = replace(given, **answering)
            postprocess["options"].check(postprocess.get("candidate_labels", ()), self.calibration)
        unknown = [name for name in options if name not in READING_OPTIONS]
        if unknown:
            own = ("candidate_labels", "prompts", *ANSWER_OPTIONS, "examples")
            names = ", ".join((*own, *READING_OPTIONS, "batch_size", "num_workers"))
            raise ValueError(f"unknown argument {unknown[0]!r} of the pipeline: it takes {names}")
        processing = {name: value for name, value in options.items() if value is not None}
        if examples is not None:
            forward["examples"] = self._prepare_examples(examples, processing)
        return processing, forward, postprocess

    def _prepare_examples(self, examples: Any, processing: dict[str, Any]) -> ExampleSet:
        """The examples as features: read now, unless they were before."""
        if isinstance(examples, ExampleSet):
            return examples
        if isinstance(examples, (str, os.PathLike)):
            return ExampleSet.load(examples, self.model)
        return ExampleSet.from_videos(self, examples, **processing)

    def _own_frames(self) -> dict[str, int | None]:
        return {"own_frames": self.processor.video_processor.frames_per_clip(self.model.config)}

    def preprocess(self, input_: Any, **options: Any) -> dict[str, torch.Tensor]:
        """Turn one video into `pixel_values_videos` [1, t, c, h, w] or [1, v, t, c, h, w], in the model's dtype."""
        return _read(self.processor.video_processor, input_, dtype=self.dtype, **self._own_frames(), **options)

    def _forward(
        self,
        input_tensors: dict,
        candidate_labels: Any,
        prompts: str | tuple[str, ...] = "mote_28",
        examples: ExampleSet | None = None,
    ) -> dict[str, torch.Tensor]:
        if "error" in input_tensors:  # of a worker, where it would become the text of another one
            raise input_tensors["error"]
        class_embeds = self.class_features(candidate_labels, prompts)
        if examples is not None:
            return self._score_with_examples(input_tensors, class_embeds, list(candidate_labels), examples)
        outputs = self.model(**input_tensors, class_embeds=class_embeds)
        logits = outputs.logits if "logits" in outputs else outputs.logits_per_video
        return {"logits": logits.float()}  # [b, c]

    def _score_with_examples(
        self, input_tensors: dict, class_embeds: torch.Tensor, labels: list[str], examples: ExampleSet
    ) -> dict[str, torch.Tensor]:
        """Logits of the similarities to texts and examples, and to the texts alone, [b, c] each."""
        frames = input_tensors.get("frame_embeds")
        if frames is None:
            frames = self.model.get_frame_features(input_tensors["pixel_values_videos"]).pooler_output
        temporal = self.model.get_temporal_features(frames).last_hidden_state
        text_logits, *_ = self.model.score_modulated(frames, temporal, class_embeds)
        scale, cosines = self.logit_scale, text_logits.float() / self.logit_scale
        similarities = examples.adapt(self.model, class_embeds, labels, cosines, frames, temporal)
        return {"logits": scale * similarities, "text_logits": text_logits.float()}

    def rank(
        self, inputs: dict[str, torch.Tensor], options: AnswerOptions | None = None, **forward: Any
    ) -> list[list[dict[str, Any]]]:
        """Answers for videos that are read, as calls give them.

        Args:
            inputs: `pixel_values_videos`, or `frame_embeds` of frames that are encoded, of b videos.
            options: What the answers hold.
            **forward: `candidate_labels`, and maybe `prompts` and `examples`, as calls take them.

        Returns:
            b lists of rows.
        """
        outputs = self.forward(inputs, **forward)
        return [
            self.postprocess(
                {name: values[index : index + 1] for name, values in outputs.items()},
                forward["candidate_labels"],
                options,
            )
            for index in range(len(outputs["logits"]))
        ]

    @property
    def calibration(self) -> Calibration | None:
        """What the checkpoint knows of its scores, `config.calibration`; None if it was never fitted."""
        return calibration_of(self.model.config)

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by, exp(`model.logit_scale`)."""
        return float(self.model.logit_scale.detach().float().exp())

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        candidate_labels: Iterable[str],
        options: AnswerOptions | None = None,
    ) -> list[dict[str, Any]]:
        """Turn the logits [1, c] of one video into its answer, see `answers.answer`."""
        scale, texts = self.logit_scale, model_outputs.get("text_logits")
        return answer(
            model_outputs["logits"][0].float() / scale,
            list(candidate_labels),
            scale,
            self.calibration,
            options,
            None if texts is None else texts[0].float() / scale,
        )

    def class_features(self, candidate_labels: Any, prompts: str | Sequence[str] = "mote_28") -> torch.Tensor:
        """Give the features of a label list, computed at its first use and whenever the text tower has changed.

        Changes of any kind count: weights edited or swapped, also through `.data`, adapters switched on, off or over,
        another dtype or device, another tokenizer.

        Args:
            candidate_labels: Names of the classes, or {name: description}, see `parse_candidates`.
            prompts: Name of a prompt set or templates.

        Returns:
            Unit vectors, float32 [c, d], on the model's device; c classes, d = `config.projection_dim`.

        Raises:
            ValueError: for bad labels, descriptions or templates.
        """
        candidates, templates = parse_candidates(candidate_labels), get_prompt_set(prompts)
        # The weights are read at every call, 2 % of a video's time: nothing less sees an edit through `.data`.
        state = module_state(self.model.text_model, self.model.text_projection)
        if state is None:
            self._point_out_names(candidates)
            return encode_classes(self.model, self.tokenizer, candidates, templates)
        key = (
            tuple(candidates.items()),
            templates,
            state,
            self.tokenizer,
            len(self.tokenizer),
            self.tokenizer.model_max_length,
        )
        features = self._class_features.get(key)
        if features is None:
            self._point_out_names(candidates)
            features = encode_classes(self.model, self.tokenizer, candidates, templates)
        kept = [item for item in self._class_features.items() if item[0] != key]
        # Replaced, never edited: threads that share the pipeline read whole dicts.
        self._class_features = dict([*kept, (key, features)][-CACHED_LABEL_LISTS:])
        return features

    def _point_out_names(self, candidates: Mapping[str, Sequence[str]]) -> None:
        """Labels are texts, and taken as they are: say which look like names of folders, but for trained classes."""
        trained = self.model.config.id2label.values() if self.model.config.training_classes_set else ()
        names = unlike_words(label for label, texts in candidates.items() if not texts and label not in trained)
        if names:
            shown = ", ".join(f"{words!r} rather than {name!r}" for name, words in list(names.items())[:5])
            warnings.warn(f"Labels are read as they are written: did you mean {shown}?", stacklevel=3)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model and the processor, as one folder that `pipeline` loads.

        transformers' own would leave the processor out and write `custom_pipelines` into the config, with which it
        then refuses the registered pipeline.

        Args:
            save_directory: Folder to write, made where absent.
            **kwargs: Passed to both `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _read(
    video_processor: MoTEVideoProcessor,
    video: Any,
    *,
    dtype: torch.dtype | None,
    own_frames: int | None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """The model's input of one video; `own_frames` a clip unless the options say otherwise."""
    if options.get("num_frames") is None and options.get("fps") is None:
        options["num_frames"] = own_frames
    inputs = video_processor(video, do_sample_frames=True, return_tensors="pt", **options)
    return {"pixel_values_videos": inputs["pixel_values_videos"].to(dtype)}


def _read_or_say_why(*args: Any, **options: Any) -> dict[str, Any]:
    """As `_read`; an error travels as it is, not as the traceback that PyTorch makes of a worker's."""
    try:
        return _read(*args, **options)
    except (ValueError, OSError) as error:
        return {"error": error}


def _collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The inputs of several videos as one, or the first of their errors."""
    errors = [item for item in items if "error" in item]
    return dict(errors[0]) if errors else {name: torch.cat([item[name] for item in items]) for name in items[0]}
