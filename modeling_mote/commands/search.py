"""Searches a folder of videos by text: index it once, then ask.

    python examples/search.py index my_videos --checkpoint mote-vitb16 --index my_videos.safetensors
    python examples/search.py query "flipping a pancake" --index my_videos.safetensors --top_k 5
    python examples/search.py recall --index my_videos.safetensors --captions captions.csv

`index` reads every video of the folder and writes its feature; run again, it reads what is new or changed, drops what
is gone, and goes on after an interruption. `query` prints the best videos with their cosines and reads no video;
without a text, it answers one a line from standard input. `recall` prints recall at 1, 5 and 10 and the median rank
for a CSV of `path,caption`, a path as `query` prints it or relative to the folder, several captions a video and
several videos a caption allowed.

Modulation is off: it makes a video's feature depend on the candidate labels, and a feature in an index has to be the
same whatever is asked. `get_video_features` without classes leaves it out.

Exit code: 0; 1 if a file could not be read (it is named, and the index made of the others; it is read again when it
changes) or an argument makes no sense; 2 if the command line cannot be parsed.
"""

import argparse
import csv
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoProcessor

from modeling_mote import MoTEModel
from modeling_mote.feature_cache import fingerprint, load_with_metadata, write_whole
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders.clip_list import read_lines
from modeling_mote.processing.clips import VideoClips, collate_clips
from modeling_mote.processing.prompts import get_prompt_set
from modeling_mote.processing.sources import VIDEO_SUFFIXES, walk

State = tuple[int, int]  # size in bytes and time of change in nanoseconds: a file whose state is known is not read


@dataclass
class Index:
    """Features of a folder's videos, and what they were computed from.

    Args:
        folder: the folder, absolute.
        checkpoint: the model's folder, absolute, or Hub id.
        model: fingerprint of the model and its preprocessing.
        features: {path relative to the folder: (state, L2-normalised feature [d])}.
        errors: {path: (state, why it could not be read)}.
    """

    folder: str
    checkpoint: str
    model: str
    features: dict[str, tuple[State, torch.Tensor]] = field(default_factory=dict)
    errors: dict[str, tuple[State, str]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        states = torch.tensor([state for state, _ in self.features.values()], dtype=torch.int64).reshape(-1, 2)
        rows = [feature for _, feature in self.features.values()]
        tensors = {"states": states, "video_embeds": torch.stack(rows) if rows else torch.empty(0, 0)}
        metadata = {"folder": self.folder, "checkpoint": self.checkpoint, "model": self.model}
        lists = {"paths": list(self.features), "errors": self.errors}
        write_whole(tensors, path, metadata | {name: json.dumps(value) for name, value in lists.items()})

    @classmethod
    def read(cls, path: Path) -> "Index":
        """Reads an index.

        Raises:
            FileNotFoundError, ValueError: if there is none, or the file is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"--index {path} does not exist: make it with `search.py index`.")
        try:
            tensors, metadata = load_with_metadata(path)
            rows = zip(tensors["states"].tolist(), tensors["video_embeds"], strict=True)
            features = {
                name: ((size, changed), row)
                for name, ((size, changed), row) in zip(json.loads(metadata["paths"]), rows, strict=True)
            }
            errors = {name: (tuple(state), why) for name, (state, why) in json.loads(metadata["errors"]).items()}
            return cls(metadata["folder"], metadata["checkpoint"], metadata["model"], features, errors)
        except (KeyError, ValueError) as error:
            raise ValueError(f"--index {path} is no index, or a damaged one: name another file.") from error

    def video_embeds(self) -> torch.Tensor:
        """The features, [n, d]."""
        return torch.stack([feature for _, feature in self.features.values()])


def load(checkpoint: str) -> tuple[MoTEModel, Any, str]:
    """The model, its processor, and the fingerprint of what a feature depends on."""
    try:
        loaded: Any = MoTEModel.from_pretrained(checkpoint, output_loading_info=True)
        model, info = loaded
        if any(key.startswith("temporal_model.") for key in info["missing_keys"]):
            raise ValueError("it has no temporal layers; train a MoTE from this CLIP first.")
        processor = AutoProcessor.from_pretrained(checkpoint)
        if getattr(processor, "video_processor", None) is None:
            raise ValueError("it has no video processor; save a MoTEProcessor with it.")
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: its weights do not fit its config.json.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint} can't be loaded, name a MoTE checkpoint as --checkpoint: {error}") from error
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    towers = [getattr(model.config, f"{name}_config").to_dict() for name in ("vision", "text", "temporal")]
    frames = [processor.video_processor.to_dict(), processor.num_frames or model.config.num_frames]
    return model.eval(), processor, fingerprint(model, towers, frames)


def state_of(file: Path) -> State:
    """Size and time of change; those of a link that leads nowhere are 0."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@torch.no_grad()
def read_videos(
    index: Index, names: Sequence[str], model: MoTEModel, processor: Any, arguments: argparse.Namespace
) -> None:
    """Adds files to an index; processes read the next videos while the model encodes these."""
    states = [state_of(Path(index.folder, name)) for name in names]  # before reading: a change meanwhile is found
    rows = [{"video": {"path": str(Path(index.folder, name))}, "label": 0} for name in names]
    clips = VideoClips(rows, processor.video_processor, processor.num_frames or model.config.num_frames)
    workers = min(arguments.num_workers, len(names) - 1)  # none for a single file
    loader = DataLoader(clips, arguments.batch_size, num_workers=workers, collate_fn=collate_clips)
    saved = time.monotonic()
    try:
        with tqdm(total=len(names), unit="video") as bar:
            for batch in loader:
                for number, _, why in batch["errors"]:
                    index.errors[names[number]] = states[number], why
                if batch["pixel_values_videos"] is not None:
                    pixels = clips.inputs(batch, model.device)["pixel_values_videos"].to(model.dtype)
                    embeds = F.normalize(model.get_video_features(pixels).pooler_output.float(), dim=-1).cpu()
                    if not embeds.isfinite().all():
                        raise ValueError(f"{arguments.checkpoint} gives no numbers: its weights are damaged.")
                    for number, row in zip(batch["indices"].tolist(), embeds, strict=True):
                        index.features[names[number]] = states[number], row
                bar.update(len(batch["errors"]) + len(batch["indices"]))
                if time.monotonic() - saved >= arguments.save_every:
                    index.write(Path(arguments.index))
                    saved = time.monotonic()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "A process that reads videos died, of a crash or for want of memory. What was read is kept: run again, "
            "with fewer --num_workers."
        ) from error
    finally:  # what was read stays read, also after Ctrl-C
        index.write(Path(arguments.index))


def make_index(arguments: argparse.Namespace) -> int:
    folder, path = Path(arguments.folder).absolute(), Path(arguments.index)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder.")
    files = walk(folder)
    names = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    if not names:
        raise FileNotFoundError(f"{folder} holds no file with the suffix of a video ({' '.join(VIDEO_SUFFIXES)}).")
    model, processor, key = load(arguments.checkpoint)
    checkpoint = str(Path(arguments.checkpoint).absolute()) if Path(arguments.checkpoint).is_dir() else None
    index = Index.read(path) if path.exists() else Index(str(folder), "", key)
    if index.model != key:
        raise ValueError(f"--index {path} was made with another model, {index.checkpoint}: name another file.")
    states = {name: state_of(folder / name) for name in names}
    known = {name: state for name, (state, _) in [*index.features.items(), *index.errors.items()]}
    if index.folder != str(folder) and not known.items() & states.items():  # neither this folder nor it, moved
        raise ValueError(f"--index {path} is of {index.folder}, not of {folder}: name another file.")
    index.folder, index.checkpoint = str(folder), checkpoint or arguments.checkpoint

    new = [name for name in names if known.get(name) != states[name]]
    gone = sorted(known.keys() - set(names))
    for name in (*new, *gone):
        index.features.pop(name, None)
        index.errors.pop(name, None)
    index.write(path)  # what can't be written is known before the work
    if new:
        read_videos(index, new, model, processor, arguments)
    if gone:
        print(f"no longer there, dropped: {', '.join(gone[:10])}{', ...' if len(gone) > 10 else ''}", file=sys.stderr)
    for _, why in index.errors.values():
        print(f"not read: {why}", file=sys.stderr)
    if len(files) > len(names):
        print(f"{len(files) - len(names)} files without a video's suffix left out", file=sys.stderr)
    print(
        f"{path}: {len(index.features)} of {len(names)} videos; {len(new)} new or changed, {len(gone)} dropped, "
        f"{len(index.errors)} not read"
    )
    return 1 if index.errors else 0


def open_index(arguments: argparse.Namespace) -> tuple[Index, MoTEModel, Any]:
    """The index, and the model that made it."""
    index = Index.read(Path(arguments.index))
    if not index.features:
        raise ValueError(f"--index {arguments.index} holds no video: none of {index.folder} could be read.")
    checkpoint = arguments.checkpoint or index.checkpoint
    model, processor, key = load(checkpoint)
    if key != index.model:
        raise ValueError(
            f"--index {arguments.index} was made with another model than {checkpoint} is now: index {index.folder} "
            "again, or name its model with --checkpoint."
        )
    return index, model, processor


def query(arguments: argparse.Namespace) -> int:
    index, model, processor = open_index(arguments)
    video_embeds, paths = index.video_embeds(), [str(Path(index.folder, name)) for name in index.features]
    for text in arguments.text or filter(str.strip, sys.stdin):
        text_embeds = encode_classes(model, processor, [text], arguments.prompts).cpu()  # [1, d]
        cosines, order = (video_embeds @ text_embeds[0]).sort(descending=True, stable=True)
        best = list(zip(cosines.tolist(), order.tolist(), strict=True))[: arguments.top_k]
        if arguments.json:
            videos = [{"path": paths[number], "cosine": cosine} for cosine, number in best]
            print(json.dumps({"text": text.strip(), "videos": videos}), flush=True)
        else:
            print(text.strip(), *(f"  {cosine:.4f}  {paths[number]}" for cosine, number in best), sep="\n", flush=True)
    return 0


def read_captions(path: Path, index: Index) -> dict[str, list[str]]:
    """{caption: the videos it describes, as the index names them}, from a CSV of path,caption."""
    known = index.features.keys() | index.errors.keys()
    captions: dict[str, list[str]] = {}
    rows = csv.DictReader(read_lines(path))
    if not {"path", "caption"} <= set(rows.fieldnames or ()):
        raise ValueError(f"--captions {path} must begin with the line path,caption.")
    for row in rows:
        where = f"--captions {path}, line {rows.line_num}"
        name, caption = row["path"] or "", (row["caption"] or "").strip()
        if None in row:
            raise ValueError(f"{where} has more values than columns; put a caption with a comma in double quotes.")
        if not caption:
            raise ValueError(f"{where}: the caption is empty.")
        if Path(name).is_relative_to(index.folder):
            name = Path(name).relative_to(index.folder).as_posix()
        if name not in known:
            raise ValueError(f"{where}: {name or 'an empty path'} is not in the index of {index.folder}.")
        captions.setdefault(caption, []).append(name)
    if not captions:
        raise ValueError(f"--captions {path} has no caption.")
    return captions


def recall(arguments: argparse.Namespace) -> int:
    # This folder comes first on a script's path, and its evaluate.py would hide the library.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    from modeling_mote.processing.metrics import load_metric

    index, model, processor = open_index(arguments)
    captions = read_captions(Path(arguments.captions), index)
    columns = {name: number for number, name in enumerate([*index.features, *index.errors])}
    text_embeds = encode_classes(model, processor, list(captions), arguments.prompts).cpu()
    cosines = np.full((len(captions), len(columns)), np.nan)  # a video that could not be read is never found
    cosines[:, : len(index.features)] = text_embeds @ index.video_embeds().T
    references = [[columns[name] for name in names] for names in captions.values()]
    result = load_metric("retrieval_recall").compute(predictions=cosines, references=references)
    result |= {"num_videos_unread": len(index.errors), "prompts": arguments.prompts}
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(
        f"{result['num_texts']} texts, {result['num_videos']} videos, {result['num_videos_described']} with a "
        f"text and {len(index.errors)} could not be read; prompts {arguments.prompts}\n"
        "| | R@1 % | R@5 % | R@10 % | median rank |\n|---|---|---|---|---|"
    )
    for name in ("text_to_video", "video_to_text"):
        shares = " | ".join(f"{100 * result[f'{name}_r{k}']:.1f}" for k in (1, 5, 10))
        print(f"| {name.replace('_', ' ')} | {shares} | {result[f'{name}_median_rank']:g} |")
    return 0


def parse_arguments() -> argparse.Namespace:
    description, _, epilog = __doc__.partition("\n\n")
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=description, epilog=epilog, **options)
    commands = parser.add_subparsers(dest="command", required=True)
    for run, name, text in (
        (make_index, "index", "read a folder's videos and write their features"),
        (query, "query", "print the best videos for a text"),
        (recall, "recall", "print recall and median rank over captions"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--index", required=True, help="the index, a safetensors file")
        command.add_argument(
            "--checkpoint",
            required=name == "index",
            help="MoTE checkpoint: folder or Hub id" + ("" if name == "index" else "; the index's where not given"),
        )
        if name == "index":
            command.add_argument("folder", help="folder of videos, read with the folders in it")
            command.add_argument("--batch_size", type=int, default=8, help="videos a forward (default 8)")
            command.add_argument("--num_workers", type=int, default=2, help="processes that read (default 2)")
            command.add_argument("--save_every", type=float, default=60, help="seconds between savings (default 60)")
            continue
        default = "mote_28" if name == "query" else "plain"
        command.add_argument(
            "--prompts", nargs="+", default=[default], help=f"prompt set, or templates with {{}} (default {default})"
        )
        command.add_argument("--json", action="store_true", help="print JSON: a line a text")
        if name == "query":
            command.add_argument("text", nargs="*", help="what to look for; from standard input where not given")
            command.add_argument("--top_k", type=int, default=10, help="videos to print (default 10)")
        else:
            command.add_argument("--captions", required=True, help="CSV file of path,caption")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    if Path(arguments.index).is_dir():
        raise ValueError(f"--index {arguments.index} is a folder: name a file.")
    for name, least in (("batch_size", 1), ("num_workers", 0), ("save_every", 0), ("top_k", 1)):
        if not getattr(arguments, name, least) >= least:
            raise ValueError(f"--{name} must be at least {least}.")
    if hasattr(arguments, "prompts"):
        arguments.prompts = arguments.prompts[0] if len(arguments.prompts) == 1 else arguments.prompts
        get_prompt_set(arguments.prompts)


def main() -> None:
    transformers.logging.disable_progress_bar()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)  # without the code line
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a name's characters
    try:
        arguments = parse_arguments()
        check_arguments(arguments)
        sys.exit(arguments.run(arguments))
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
