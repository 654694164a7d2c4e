"""Scoring a checkpoint under a protocol, on one process or many; an interrupted run goes on where it stopped.

A run that is started again, with everything that its scores depend on unchanged, reads the scores that there are and
adds what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import CLIPModel
from transformers.utils import cached_file

from . import __version__, token_merging
from .blending import blend_with_clip
from .feature_cache import class_features, fingerprint, reading_version
from .loading import load_checkpoint, load_clip, read_record
from .measuring import measure_variant, spread, summarise
from .modeling_mote import MoTEModel
from .processing import MoTEProcessor
from .processing.builders import list_sha256
from .processing.calibration import Calibration, calibration_of
from .processing.clips import VideoClips
from .processing.files import only_run
from .processing.label_sets import LabelSet, read_label_file
from .processing.protocols import Protocol, get_protocol
from .protocol_data import ClipList, load_lists, reword
from .results import RESULT_FILE, read_result, result_folder, write_result
from .scoring import ClipScorer, Scored, ScoreLog, Variant, gather_scores, score_clips

OWN = "protocol"  # the variant whose score is the result
# What a result is beside: the temporal layers left out, and taken in full.
UNMODULATED = {"rho_0": 0.0, "rho_1": 1.0}


@dataclass
class Scoring:
    """Everything that the scores of a run depend on, loaded.

    Attributes:
        rules: the protocol.
        lists: what is scored.
        model: the checkpoint as the protocol scores it.
        processor: its processor.
        modulate: whether temporal feature modulation is on.
        wordings: {file: the texts that it gives for the classes of each list}, under which the same frames are scored.
        clip: the CLIP that is scored beside the checkpoint; None without baselines.
        clip_sha256: of its weights.
        own_frames: whether the CLIP's frame features are the checkpoint's, whose image tower was not trained.
    """

    rules: Protocol
    lists: list[ClipList]
    model: MoTEModel
    processor: MoTEProcessor
    modulate: bool
    wordings: Mapping[str, list[LabelSet]]
    clip: CLIPModel | None = None
    clip_sha256: str = ""
    own_frames: bool = False

    def add_clip(self, model: str, clip: str | None) -> dict[str, Any]:
        """Load the CLIP to score beside the checkpoint, and say what the result says about it.

        Args:
            model: folder or Hub id of the checkpoint, which names the CLIP that it was trained from.
            clip: another one.

        Raises:
            ValueError: if it names none, or it can't be loaded or compared.
        """
        name = clip or named_clip(model)
        if name is None:
            raise ValueError(
                f"A baseline is the CLIP that {model} was trained from, which it does not name: name it as `clip`."
            )
        loaded: Any = load_clip(name)
        self.clip, self.clip_sha256 = loaded.to(self.model.device).eval(), fingerprint(loaded)
        own, theirs = self.model.state_dict(), loaded.state_dict()
        tower = [key for key in theirs if key.startswith(("vision_model.", "visual_projection."))]
        if any(key not in own or own[key].shape != theirs[key].shape for key in tower):
            raise ValueError(f"{name} has another image tower than {model}: name the CLIP that it was trained from.")
        # A blend of equal weights is equal but for its last digit.
        self.own_frames = all(torch.allclose(own[key], theirs[key], rtol=1e-6, atol=1e-8) for key in tower)
        return {"name": name, "image_tower_trained": not self.own_frames}

    @property
    def calibration(self) -> Calibration | None:
        """The checkpoint's, if it has one: the scores whose error is measured are then its probabilities."""
        return calibration_of(self.model.config)

    def beside(self) -> dict[str, str]:
        """What is measured beside the protocol's own number, as the name of a folder tells it."""
        found = {} if self.calibration is None else {"calibration": fingerprint(self.calibration.to_dict())[:8]}
        found |= {"baseline": self.clip_sha256[:8]} if self.clip_sha256 else {}
        return found | ({"wordings": fingerprint(self._texts())[:8]} if self.wordings else {})

    def key(self, changed: Mapping[str, Any], mixed_precision: str) -> str:
        """What changes with anything that a score depends on."""
        settings = [asdict(self.rules), changed, mixed_precision, reading_version(), self.processor.to_dict()]
        return fingerprint(
            self.model, settings, [each.identity() for each in self.lists], self._texts(), self.beside()
        )

    def _texts(self) -> list[Any]:
        return [[file, [list(each.candidates.items()) for each in found]] for file, found in self.wordings.items()]

    def variants(self, part: int, cache_dir: str | None) -> dict[str, Variant]:
        """The ways in which the clips of one list are scored, the protocol's own first."""

        def encode(wording: LabelSet, model: CLIPModel = self.model) -> torch.Tensor:
            return class_features(model, self.processor, wording.candidates, self.rules.prompts, cache_dir)

        wording, rho = self.lists[part].wording, None if self.modulate else 1.0
        found = {OWN: Variant(encode(wording), rho)}
        found |= {f"wording {file}": Variant(encode(texts[part]), rho) for file, texts in self.wordings.items()}
        if self.clip is not None:
            sees = None if self.own_frames else self.clip
            found["clip"] = Variant(encode(wording, self.clip), 0.0, sees)
            found |= {name: Variant(found[OWN].class_embeds, value) for name, value in UNMODULATED.items()}
        return found

    def score(
        self, log: ScoreLog, accelerator: Accelerator, batch_size: int, num_workers: int, cache_dir: str | None
    ) -> list[Scored]:
        """Score every list by all processes: the same scores on each of them."""
        scored = []
        for part, each in enumerate(self.lists):
            with accelerator.main_process_first():
                variants = self.variants(part, cache_dir)
            clips = VideoClips(
                each.rows,
                self.processor.video_processor,
                num_frames=self.model.config.num_frames,
                sampling=self.rules.sampling,
                num_clips=self.rules.num_clips,
                num_crops=self.rules.num_crops,
                square_pixels=self.rules.square_pixels,
            )
            score = ClipScorer(self.model, variants, self.rules.score_rule, accelerator)
            title = " ".join([self.rules.name, *([each.config] if each.config else [])])
            score_clips(clips, score, log, part, batch_size, num_workers, accelerator, title)
            scored.append(gather_scores(log, part, clips, len(each.wording), list(variants), accelerator))
        return scored

    def summarise(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """What was measured, as a result holds it, and what is beside it."""
        scale = self.model.logit_scale.detach().exp().item()
        summary = summarise(self.rules, self.lists, scored, scale, self.calibration)
        if self.clip is not None:
            summary["baselines"] = {name: measure_variant(self.rules, scored, name) for name in ("clip", *UNMODULATED)}
        if self.wordings:
            files = [
                {"file": file, "names_sha256": [each.sha256 for each in texts]}
                | measure_variant(self.rules, scored, f"wording {file}")
                for file, texts in self.wordings.items()
            ]
            summary["wordings"] = {"files": files, "spread": spread(self.rules, files)}
        return summary | {"num_frames": self.model.config.num_frames, "modulation": self.modulate}


def evaluate(
    protocol: str,
    model: str,
    *,
    accelerator: Accelerator,
    data: str | None = None,
    data_dir: str | None = None,
    list_dir: str | None = None,
    split: str = "test",
    labels: str | None = None,
    wordings: Sequence[str] = (),
    allow_empty_classes: bool = False,
    alpha: float | None = None,
    clip: str | None = None,
    baseline: bool = False,
    modulate: bool = True,
    merge_temperature: str | None = None,
    merge_tokens: int = 0,
    output: str | None = None,
    batch_size: int = 8,
    num_workers: int = 2,
    cache_dir: str | None = None,
    command: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[dict[str, Any], Path]:
    """Score a checkpoint under a protocol and write the result; the same on every process, written by the main one.

    Args:
        protocol: name of the protocol, see `modeling_mote.processing.protocols`.
        model: folder or Hub id of the checkpoint.
        accelerator: device, precision and processes.
        data: CSV list or folder, for a protocol on data of the user's choice.
        data_dir: folder of a benchmark's videos and official lists.
        list_dir: folder of the official lists, if they are not below `data_dir`.
        split: split of `data`.
        labels: file of other names for the classes or of their descriptions, see `protocol_data.reword`.
        wordings: more files of this kind, under each of which the same frames are scored; what the number is under
            them, and its spread, is put beside it.
        allow_empty_classes: accept a part of a benchmark, with classes that have no clip.
        alpha: weight of the fine-tuned image tower against CLIP's, in place of the protocol's.
        clip: the CLIP to blend with, and for `baseline`; the one that the checkpoint names by default.
        baseline: put beside the number what CLIP gives by the mean over frames, and the same weights with rho = 0 and
            rho = 1.
        modulate: False scores with rho = 1.
        merge_temperature: temperature at which the experts are merged; uniformly by default.
        merge_tokens: pairs of tokens that each layer of the image tower merges, and of the baseline's.
        output: folder of the result; see `results.result_folder` for the default.
        batch_size: videos per process and forward.
        num_workers: reading processes of each process.
        cache_dir: folder of cached class features.
        command: what was typed, for the record.
        say: is told what goes on, on the main process.

    Returns:
        the result, as `result.json` holds it, and its folder.

    Raises:
        ValueError, OSError: in one sentence: what was asked makes no sense, the checkpoint or the data is not what it
            should be, the output can't be written, or holds another result.
    """
    rules, main = get_protocol(protocol), accelerator.is_main_process
    _check_request(rules, data, wordings)
    modulate = rules.modulate and modulate
    with ExitStack() as stack:
        if main:  # whatever keeps the output from being written shows before the work
            (Path("results") / protocol if output is None else Path(output)).mkdir(parents=True, exist_ok=True)
        if main and output is not None:
            stack.enter_context(only_run(output))
        changed = _deviations(rules, model, alpha, modulate, merge_temperature, labels, allow_empty_classes)
        if merge_tokens:
            changed["merge_tokens"] = merge_tokens
        with accelerator.main_process_first():
            lists = load_lists(rules, data, data_dir, list_dir, split, labels, allow_empty_classes)
        texts = {file: reword([each.label_set for each in lists], file) for file in wordings}
        scored_model, processor, facts = load_to_score(rules, model, alpha, clip, merge_temperature)
        scoring = Scoring(rules, lists, scored_model.to(accelerator.device), processor, modulate, texts)
        if baseline:
            facts["baseline_clip"] = scoring.add_clip(model, clip)
        for each in (scoring.model, *filter(None, [scoring.clip])):
            token_merging.merge_tokens(each, merge_tokens)
        _note_model(changed, scoring)
        folder = Path(output or "")
        if output is None:
            own_list = "" if data is None else list_sha256(lists[0].rows)
            folder = result_folder(protocol, changed, model, facts["checkpoint_sha256"], own_list, scoring.beside())
            if main:
                stack.enter_context(only_run(folder))
        (key,) = broadcast_object_list([scoring.key(changed, str(accelerator.mixed_precision))])
        (finished,) = broadcast_object_list([_finished(folder, key) if main else None])
        if finished is not None:
            say(f"{folder} holds this result already.")
            return finished, folder

        log = ScoreLog(folder, key, accelerator.process_index)
        accelerator.wait_for_everyone()  # everyone has read what was scored before
        total = sum(len(each.rows) for each in lists)
        kept = f", {len(log.rows)} of them scored before" if log.rows else ""
        say(f"{total} clips{kept}; scores are kept in {folder}: an interrupted run goes on with the same command.")
        scored = scoring.score(log, accelerator, batch_size, num_workers, cache_dir)
        result = {"protocol": protocol, "deviations": changed, **scoring.summarise(scored), **facts}
        result |= _run_facts(accelerator, command, key)
        if main:
            _write(folder, result, lists, scored)
        accelerator.wait_for_everyone()
        log.remove()
        return result, folder


def _run_facts(accelerator: Accelerator, command: str | None, key: str) -> dict[str, Any]:
    """How a result came about."""
    return {
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision if accelerator.native_amp else "no",
        "versions": {"mote": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "command": command,
        "run_sha256": key,
    }


def _write(folder: Path, result: dict[str, Any], lists: Sequence[ClipList], scored: Sequence[Scored]) -> None:
    pairs = list(zip(lists, scored, strict=True))
    tables = [(each.label_set, found.scores[OWN], found.labels) for each, found in pairs]
    write_result(
        folder, result, tables, [(each.config or "", *video) for each, found in pairs for video in found.unread]
    )


# ------------------------------------------------------------------------------------------------------- what is asked


def _check_request(protocol: Protocol, data: str | None, wordings: Sequence[str]) -> None:
    """Refuse what the protocol has no room for."""
    if (protocol.builder is None) != (data is not None):
        raise ValueError(
            f"{protocol.name} scores data of your choice: name it as `data`."
            if protocol.builder is None
            else f"{protocol.name} scores {protocol.builder}: give its folder as `data_dir`, not as `data`."
        )
    if len(set(wordings)) < len(wordings):
        raise ValueError(f"The wordings {', '.join(wordings)} hold a file twice: name each once.")


def _deviations(
    protocol: Protocol,
    model: str,
    alpha: float | None,
    modulate: bool,
    merge_temperature: str | None,
    labels: str | None,
    allow_empty_classes: bool,
) -> dict[str, Any]:
    """What differs from the protocol; recorded with the result, and part of its name."""
    changed: dict[str, Any] = {}
    if alpha is not None and alpha != protocol.alpha:
        changed["alpha"] = alpha
    if modulate != protocol.modulate:
        changed["modulation"] = modulate
    if merge_temperature is not None:
        changed["merge_temperature"] = merge_temperature
    if labels is not None:
        changed["labels"] = f"{Path(labels).name} {read_label_file(labels).sha256[:8]}"
    if allow_empty_classes:
        changed["allow_empty_classes"] = True
    if protocol.shots:
        training = read_record(model, "training.json").get("arguments", {})
        changed["shots"] = training.get("shots") if training else "not recorded"
        if training and training.get("shots") not in protocol.shots:
            raise ValueError(
                f"{protocol.name} scores a model trained on {' or '.join(map(str, protocol.shots))} clips per class; "
                f"{model} was trained with shots {training.get('shots')}."
            )
    return changed


def _note_model(changed: dict[str, Any], scoring: Scoring) -> None:
    """Add to the deviations what the checkpoint itself makes differ from the protocol."""
    rules, config = scoring.rules, scoring.model.config
    if rules.num_frames not in (None, config.num_frames):
        changed["num_frames"] = config.num_frames
    trained, fixed = set(config.id2label.values()), rules.task in ("close-set", "few-shot")
    if fixed and any(set(each.label_set.classes) != trained for each in scoring.lists):
        changed["training_classes"] = "others"


def load_to_score(
    protocol: Protocol, model: str, alpha: float | None, clip: str | None, merge_temperature: str | None
) -> tuple[MoTEModel, MoTEProcessor, dict[str, Any]]:
    """The checkpoint as the protocol scores it: blended with CLIP, and with its experts folded.

    Args:
        protocol: the protocol, whose `alpha` counts by default.
        model: folder or Hub id of the checkpoint.
        alpha: see `evaluate`, as for the next two.
        clip: the CLIP to blend with.
        merge_temperature: of the experts.

    Returns:
        model in float32, processor, and what the result says about the weights.

    Raises:
        ValueError: if it can't be loaded, or not be blended so.
    """
    loaded, processor = load_checkpoint(model, dtype="auto")
    loaded.float()
    facts: dict[str, Any] = {"checkpoint": model, "revision": None, "checkpoint_sha256": fingerprint(loaded)}
    if not Path(model).is_dir():  # the Hub's cache keeps one folder per commit
        facts["revision"] = Path(str(cached_file(model, "config.json"))).parent.name
    blended, blended_with = read_record(model, "conversion.json").get("alpha", 1.0), None
    alpha = protocol.alpha if alpha is None else alpha
    alpha = blended if alpha is None else alpha
    if blended == 1.0 and alpha != 1.0:
        blended_with = clip or named_clip(model)
        if blended_with is None:
            raise ValueError(
                f"{protocol.name} blends with CLIP at alpha {alpha}: name the CLIP that {model} was trained from as "
                "`clip`, or score the fine-tuned weights alone with alpha 1."
            )
        blend_with_clip(loaded, load_clip(blended_with), alpha)
    elif blended != alpha:
        raise ValueError(
            f"{model} was converted with alpha {blended}, not {alpha}: convert it again with alpha {alpha} or 1."
        )
    if merge_temperature is not None or not loaded.config.temporal_config.experts_merged:
        loaded.merge_experts(temperature=merge_temperature)
    facts |= {"alpha": alpha, "clip": blended_with, "merge_temperature": merge_temperature or "inf (uniform)"}
    return loaded.eval(), processor, facts


def named_clip(model: str) -> str | None:
    """The CLIP that a checkpoint names as the one it was trained from, if it names any.

    Args:
        model: folder or Hub id.
    """
    trained_from = read_record(model, "training.json").get("arguments", {}).get("model")
    return read_record(model, "conversion.json").get("clip") or trained_from


def _finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The result in a folder if it is that of this run and all its files are there.

    Raises:
        ValueError: if it is another one.
    """
    if not (folder / RESULT_FILE).is_file():
        return None
    result = read_result(folder)
    if result.get("run_sha256") != key:
        raise ValueError(
            f"{folder} holds another result, of {result['checkpoint']} under {result['protocol']}: choose another "
            "output, or remove it."
        )
    return None if list(folder.glob(f"scores-{key[:16]}.*.jsonl")) else result


__all__ = ["Scoring", "evaluate", "load_to_score", "named_clip"]
