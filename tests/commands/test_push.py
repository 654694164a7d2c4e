"""Publishing: against a real HTTP Hub on this machine, loaded again by interpreters that know nothing else."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from modeling_mote import MoTEConfig
from modeling_mote.cards import HERE, authors_section, published_card, training_card
from modeling_mote.evaluation import load_to_score
from modeling_mote.loading import load_model, load_pipeline
from modeling_mote.processing.protocols import PROTOCOLS
from modeling_mote.publish import PublishError, prepare_repository, publish_checkpoint, weights_sha256

from .mini_hub import TOKEN, MiniHub
from .tiny import save_mote, save_trained

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DOCS = (EXAMPLES.parent / "docs" / "hub.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", DOCS, flags=re.M | re.S)
COMMANDS = [line for language, text in BLOCKS if language == "" for line in text.splitlines()]
SNIPPETS = [text for language, text in BLOCKS if language == "python"]  # with the package, and without
CODE = {
    *("configuration_mote.py", "modeling_mote.py", "processing_mote.py", "video_processing_mote.py"),
    *("pipeline_mote.py", "prompts.py", "video_decoding.py", "frame_sampling.py"),
}
AUTO_MAP = {
    "AutoConfig": "configuration_mote.MoTEConfig",
    "AutoModel": "modeling_mote.MoTEModel",
    "AutoModelForVideoClassification": "modeling_mote.MoTEForVideoClassification",
}

# Imports the library once, then runs the command in a forked process for each case: a fresh interpreter, but for the
# seconds of imports. Waits between retries are left out.
WORKER = """
import json, os, sys, time, traceback
import modeling_mote.publish
from modeling_mote.commands import main
time.sleep = lambda seconds: None
for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(case["folder"])
        os.environ.update(case["environment"])
        try:
            code = main(["push", *case["arguments"]])
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def hub():
    with MiniHub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def push(hub, home, tmp_path_factory):
    """`push("--option", ..., folder=, **environment)`: exit code, stdout and stderr; neither ever holds the token."""
    scratch = tmp_path_factory.mktemp("push")
    environment = os.environ | hub.environment | {"HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )

    def run(*arguments: object, folder: Path = scratch, **environment: str) -> tuple[int, str, str]:
        case = {"arguments": [str(each) for each in arguments], "folder": str(folder), "environment": environment}
        case |= {"out": str(scratch / "out"), "err": str(scratch / "err")}
        worker.stdin.write(json.dumps(case) + "\n")
        worker.stdin.flush()
        code = int(worker.stdout.readline())
        out, err = ((scratch / name).read_text() for name in ("out", "err"))
        for said in (out, err):
            assert (environment.get("HF_TOKEN") or TOKEN) not in said
            assert "Traceback" not in said, said
        return code, out, err

    yield run
    worker.stdin.close()
    worker.wait(timeout=60)


@pytest.fixture(scope="module")
def refused(push):
    """`refused("--option", ...)`: the sentence with which the script stops, its exit code being 1."""

    def refuse(*arguments: object, **environment: str) -> str:
        code, _, err = push(*arguments, **environment)
        last = err.splitlines()[-1]
        assert code == 1 and last.startswith("error: "), err
        return last.removeprefix("error: ")

    return refuse


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, clip_folder) -> Path:
    """A MoTE as `mote train` leaves it, with its curves beside it."""
    return save_trained(tmp_path_factory.mktemp("run") / "model", clip_folder)


@pytest.fixture(scope="module")
def other(checkpoint, tmp_path_factory) -> Path:
    """A checkpoint of other weights, without train.py's records."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("training.json", "README.md"))
    tensors = load_file(folder / "model.safetensors")
    tensors["temporal_model.position_embedding.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def result(checkpoint, run_here, validation_list, tmp_path_factory) -> Path:
    """What `mote evaluate` writes about the checkpoint, run with the options of docs/hub.md."""
    folder = tmp_path_factory.mktemp("result")
    command = shlex.split(next(line for line in COMMANDS if "evaluate" in line))
    places = {"my_test.csv": str(validation_list), "runs/mine/model": str(checkpoint), "results/mine": str(folder)}
    given = [places.get(word, word) for word in command[command.index("--protocol") :]]
    names = [word.removeprefix("--") for word in given[::2]]
    options = dict(zip(names, given[1::2], strict=True))
    assert run_here("evaluate", options | {"cache_dir": str(folder / "cache"), "num_workers": "0"}) == 0
    return folder / "result.json"


def commit_of(out: str) -> str:
    return re.search(r'to pin it: revision="(\w{40})"', out)[1]


@pytest.fixture(scope="module")
def pushes(push, hub, checkpoint, other, result) -> dict[str, str]:
    """What was said to the three pushes to org/mote-tiny: a first revision, a branch, other weights in shards."""
    options = ("--repo", "org/mote-tiny", "--model")
    runs = {
        "first": push(*options, checkpoint, "--results", result),
        "merged": push(*options, checkpoint, "--merged", "--revision", "merged", "--results", result),
        "second": push(*options, other, "--max_shard_size", "40KB", "--commit_message", "Other weights"),
    }
    assert [code for code, _, _ in runs.values()] == [0] * 3, runs
    assert len(hub.repositories["org/mote-tiny"].commits) == 1 + 3  # one made the repository
    return {name: out for name, (_, out, _) in runs.items()}


@pytest.fixture(scope="module")
def published(pushes) -> dict[str, str]:
    """The commits of org/mote-tiny."""
    return {name: commit_of(out) for name, out in pushes.items()}


# ---------------------------------------------------------------------------------------------------------- the upload


def test_one_commit_holds_everything_that_was_announced(pushes, published, hub, checkpoint, result):
    files = hub.repositories["org/mote-tiny"].commits[published["first"]]
    lines = re.findall(r"^ *([\d,]+)  (\S+)$", pushes["first"], flags=re.M)
    announced = {name: int(size.replace(",", "")) for size, name in lines}
    assert announced == {name: len(content) for name, content in files.items()}
    assert {name for name in files if name.endswith(".py")} >= CODE
    assert {"README.md", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"} <= set(files)
    assert {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"} <= set(files)
    config, processor = (json.loads(files[name]) for name in ("config.json", "processor_config.json"))
    assert config["auto_map"] == AUTO_MAP and "custom_pipelines" not in config
    assert processor["auto_map"]["AutoProcessor"] == "processing_mote.MoTEProcessor"
    assert files["labels.txt"] == b"left\nright\nstill\n"
    assert files["curves.png"] == (checkpoint.parent / "curves.png").read_bytes()
    assert json.loads(files["results/half-classes_alpha_1.0.json"]) == json.loads(result.read_text())
    assert files["training.json"] == (checkpoint / "training.json").read_bytes()


def test_shards_replace_the_file_that_transformers_would_prefer(published, hub):
    second = hub.repositories["org/mote-tiny"].commits[published["second"]]
    assert len([name for name in second if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]) > 2
    assert "model.safetensors.index.json" in second
    assert not {"model.safetensors", "training.json", "curves.png"} & second.keys()  # of the first upload's weights
    assert not [name for name in second if name.startswith("results/")]


def test_the_same_upload_again_changes_nothing(published, push, hub, checkpoint, result):
    options = ("--repo", "org/mote-tiny", "--model", checkpoint, "--merged", "--revision", "merged")
    code, out, _ = push(*options, "--results", result)
    assert code == 0 and "holds these files already" in out and commit_of(out) == published["merged"]


def test_a_dry_run_needs_no_token_and_sends_nothing(push, hub, checkpoint):
    requests = len(hub.log)
    code, out, _ = push("--repo", "org/dry", "--model", checkpoint, "--dry_run", HF_TOKEN="")
    assert code == 0 and "model.safetensors" in out and "nothing was uploaded" in out
    assert "\n# MoTE trained on my videos\n" in out and 'candidate_labels=["left", "right", "still"]' in out
    assert "/home/somebody" not in out and "Top-1 75.0 % on 8 validation clips" in out
    assert len(hub.log) == requests


def test_private(push, refused, hub, checkpoint, published):
    code, out, _ = push("--repo", "org/secret", "--model", checkpoint, "--private")
    assert code == 0 and "to org/secret, private" in out and hub.repositories["org/secret"].private
    assert push("--repo", "org/secret", "--model", checkpoint)[1].splitlines()[-3].startswith("to org/secret, priv")
    sentence = refused("--repo", "org/mote-tiny", "--model", checkpoint, "--private")
    assert "org/mote-tiny exists and is public" in sentence


@pytest.mark.slow
def test_the_command_by_itself(hub, checkpoint, tmp_path):
    """As users run it, with the waits between retries; then with no Hub to talk to."""
    command = [sys.executable, "-m", "modeling_mote", "push", f"--model={checkpoint}", "--repo=lab/alone"]
    environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert hub.url + "/lab/alone/commit/" in done.stdout and TOKEN not in done.stdout + done.stderr
    environment["HF_ENDPOINT"] = "http://user:secret@127.0.0.1:9"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said and TOKEN not in said and "secret" not in said
    assert done.stderr.splitlines()[-1].startswith("error: the connection to the Hub failed, ConnectError"), said


# -------------------------------------------------------------------------------------------------------- what fails

FAULTS = {
    "cut in the middle of the weights": ("PUT /lfs/", "drop", 3),
    "no room for the weights": ("PUT /lfs/", 500, 3),
    "weights refused": ("PUT /lfs/", 403, 0),
    "cut at the list of files": ("/preupload/", "drop", 0),
    "cut at the commit": ("/commit/", "drop", 0),
    "commit refused": ("/commit/", 500, 0),
    "repository vanished": ("/commit/", 404, 0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_an_upload_that_fails_leaves_the_old_revision_whole(fault, push, refused, hub, checkpoint, other):
    options = ("--repo", "lab/cut", "--max_shard_size", "40KB", "--model")
    if "lab/cut" not in hub.repositories:
        assert push(*options, checkpoint)[0] == 0
    before = dict(hub.repositories["lab/cut"].branches)
    files, hub.large = hub.files["lab/cut"], {}  # nothing is on the server already
    hub.fault = fault
    try:
        sentence = refused(*options, other)
    finally:
        hub.fault = None
    assert "lab/cut" in sentence and sentence.endswith(".")
    assert hub.repositories["lab/cut"].branches == before and hub.files["lab/cut"] == files
    assert hub.log[-1].startswith(("PUT", "POST"))


def test_an_upload_goes_through_after_a_cut(push, refused, hub, checkpoint, other):
    options = ("--repo", "lab/again", "--model")
    assert push(*options, checkpoint)[0] == 0
    hub.fault, hub.large = ("PUT /lfs/", "drop", 0), {}
    assert "the connection to the Hub failed" in refused(*options, other)
    hub.fault = None
    assert push(*options, other)[0] == 0
    assert hub.files["lab/again"]["model.safetensors"] == (other / "model.safetensors").read_bytes()


REFUSALS = {
    "a wrong token": ({"HF_TOKEN": "hf_abcdefghijklmn"}, (), "the Hub refused the token"),
    "no token": ({"HF_TOKEN": ""}, (), "there is no token"),
    "a token of strange characters": (
        {"HF_TOKEN": "hf_schlüssel"},
        (),
        "the token holds characters that no token has",
    ),
    "a namespace of others": ({}, ("--repo", "others/mote"), "the token may not write to others/mote"),
    "a token for a repository": ({}, ("--repo", "hf_abcdefghijklmn"), "repo *** is no repository"),
    "a token in an address": ({}, ("--repo", "https://me:abcdef@hub/x"), "repo https://***@hub/x is no repository"),
    "a token for a checkpoint": ({}, ("--model", "hf_abcdefghijklmn"), "***: there is no such folder"),
    "a bad card": ({}, ("--card", "BAD LICENSE"), 'the Hub refuses the card: "license" must be a str'),
}


@pytest.mark.parametrize("environment, options, sentence", REFUSALS.values(), ids=REFUSALS.keys())
def test_the_hub_refuses_in_a_sentence(environment, options, sentence, refused, hub, checkpoint, tmp_path):
    if options and options[-1] == "BAD LICENSE":
        (tmp_path / "card.md").write_text("---\nlicense: [mine]\n---\n# Mine\n")
        options = ("--card", tmp_path / "card.md")
    repositories = set(hub.repositories)
    said = refused("--model", checkpoint, "--repo", "lab/refused", *options, **environment)
    assert sentence in said and "abcdef" not in said
    assert set(hub.repositories) == repositories


@pytest.fixture(scope="module")
def damaged(checkpoint, clip_folder, tmp_path_factory):
    """`damaged(how)`: a folder that is no whole MoTE checkpoint."""

    def copy(*leave_out: str) -> Path:
        folder = tmp_path_factory.mktemp("damaged") / "model"
        shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*leave_out))
        return folder

    def weights(change) -> Path:
        folder = copy()
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    def config(text: str) -> Path:
        folder = copy()
        (folder / "config.json").write_text(text)
        return folder

    def pickled() -> Path:
        folder = copy("model.safetensors")
        torch.save(load_file(checkpoint / "model.safetensors"), folder / "pytorch_model.bin")
        return folder

    def cut() -> Path:
        folder = copy()
        content = (checkpoint / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        return folder

    def damaged_record() -> Path:
        folder = copy("README.md")
        (folder / "training.json").write_text("{")
        return folder

    def with_card(text: str) -> Path:
        folder = copy()
        (folder / "README.md").write_bytes(text.encode("latin-1"))
        return folder

    return {
        "no folder": lambda: Path("nowhere"),
        "the folder of the run": lambda: checkpoint.parent,
        "a CLIP": lambda: clip_folder,
        "no JSON": lambda: config("{"),
        "no dictionary": lambda: config("[1]"),
        "another config": lambda: config(CLIPConfig().to_json_string().replace('"clip"', '"mote"')),
        "an untrained model": lambda: save_mote(
            tmp_path_factory.mktemp("untrained") / "model", clip_folder, trained=False
        ),
        "a damaged record": damaged_record,
        "no weights": lambda: copy("model.safetensors"),
        "pickled weights": pickled,
        "half the weights": cut,
        "a weight less": lambda: weights(lambda tensors: tensors.pop("visual_projection.weight")),
        "a weight more": lambda: weights(lambda tensors: tensors.update(surplus=torch.ones(1))),
        "no number": lambda: weights(lambda tensors: tensors["visual_projection.weight"].fill_(torch.nan)),
        "no processor": lambda: copy("processor_config.json"),
        "no tokenizer": lambda: copy("tokenizer*"),
        "a card that is none": lambda: with_card("---\n: [\n---\n# Mine\n"),
        "a card of bytes": lambda: with_card("\xff\xfe"),
    }


NO_CHECKPOINT = {
    "no folder": "nowhere: there is no such folder",
    "the folder of the run": "is no checkpoint: ",
    "a CLIP": "is a bare CLIP",
    "an untrained model": "were never trained",
    "no JSON": "config.json",
    "no dictionary": "config.json",
    "another config": "its weights do not fit its config.json",
    "no weights": "does not load: ",
    "pickled weights": "does not load: ",
    "half the weights": "does not load: ",
    "a weight less": "lacks 1 of MoTE's weights, visual_projection.weight",
    "a weight more": "holds 1 other weights, surplus",
    "no number": "visual_projection.weight holds values that are no finite numbers",
    "no processor": "rocessor",
    "no tokenizer": "does not load: ",
    "a damaged record": "training.json is damaged",
    "a card that is none": "README.md is no model card",
    "a card of bytes": "README.md is no model card",
}


@pytest.mark.parametrize("how", NO_CHECKPOINT)
def test_what_is_no_checkpoint_is_refused_before_anything_is_sent(how, damaged, refused, hub):
    requests = len(hub.log)
    said = refused("--repo", "org/none", "--model", damaged[how]())
    assert NO_CHECKPOINT[how] in said
    assert len(hub.log) == requests


def test_results_and_options_that_do_not_fit(refused, hub, checkpoint, other, result, tmp_path):
    requests = len(hub.log)
    (tmp_path / "none.json").write_text('{"protocol": "half-classes"}')
    unknown = json.loads(result.read_text()) | {"protocol": "mine"}
    (tmp_path / "unknown.json").write_text(json.dumps(unknown))
    repo = ("--repo", "org/none", "--model")
    for options, sentence in (
        ((*repo, other, "--results", result), "was measured on other weights"),
        ((*repo, checkpoint, "--results", result, result), "The results hold half-classes, alpha=1.0, list"),
        ((*repo, checkpoint, "--results", "nowhere.json"), "nowhere.json: there is no such result"),
        ((*repo, checkpoint, "--results", tmp_path / "none.json"), "is no result of `mote evaluate`"),
        ((*repo, checkpoint, "--results", tmp_path / "unknown.json"), "is no result of `mote evaluate`"),
        ((*repo, checkpoint, "--card", "nowhere.md"), "nowhere.md: there is no such card"),
        ((*repo, checkpoint, "--max_shard_size", "large"), "max_shard_size large is no size"),
        ((*repo, checkpoint, "--commit_message", " "), "commit_message must not be empty"),
        (("--repo", "mote", "--model", checkpoint), "repo mote is no repository: write org/name"),
    ):
        assert sentence in refused(*options)
    assert len(hub.log) == requests


# ------------------------------------------------------------------------------------------------------------- loading

# `answers(checkpoint)`: all that a checkpoint says about one video, through every class that loads it.
ANSWERS = """
import json, os
import torch
torch.set_num_threads(1)
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, AutoProcessor
from transformers import AutoTokenizer, AutoVideoProcessor, pipeline
video = os.environ["CLIP"]

def answers(checkpoint, **options):
    processor = AutoProcessor.from_pretrained(checkpoint, **options)
    inputs = processor(text=["a photo of left.", "right"], videos=[video], return_tensors="pt")
    pixels = AutoVideoProcessor.from_pretrained(checkpoint, **options)(video, return_tensors="pt")
    assert torch.equal(pixels["pixel_values_videos"], inputs["pixel_values_videos"])
    model = AutoModel.from_pretrained(checkpoint, **options).eval()
    classifier = AutoModelForVideoClassification.from_pretrained(checkpoint, **options).eval()
    with torch.no_grad():
        scores = model(**inputs).logits_per_video
        closed = classifier(pixel_values_videos=inputs["pixel_values_videos"]).logits
    if "trust_remote_code" in options:
        zero_shot = processor.pipeline_class(model=model, processor=processor, tokenizer=processor.tokenizer)
    else:
        zero_shot = pipeline("zero-shot-video-classification", model=checkpoint, **options)
    return {
        "classes": [type(each).__name__ for each in (model, classifier, processor)],
        "tokens": AutoTokenizer.from_pretrained(checkpoint, **options)("a photo of left.")["input_ids"],
        "labels": AutoConfig.from_pretrained(checkpoint, **options).id2label,
        "scores": scores.tolist(),
        "closed": closed.tolist(),
        "zero-shot": zero_shot(video, candidate_labels=["left", "still"]),
        "video-classification": pipeline("video-classification", model=checkpoint, **options)(video),
    }
"""
WITH_PACKAGE = """
import modeling_mote
given = json.loads(os.environ["GIVEN"])
said = {name: answers(folder) for name, folder in given["folders"].items()}
said |= {revision: answers("org/mote-tiny", revision=revision) for revision in given["revisions"]}
said["secret"] = answers("org/secret")
said["errors"] = []
for repo, options in (("org/secret", {"token": False}), ("org/missing", {}), ("org/mote-tiny", {"revision": "no"})):
    try:
        AutoModel.from_pretrained(repo, **options)
    except OSError as error:
        said["errors"].append(str(error))
folder = given["folders"]["first"]
AutoModelForVideoClassification.from_pretrained(folder).push_to_hub("lab/parts", max_shard_size="40KB")
AutoProcessor.from_pretrained(folder).push_to_hub("lab/parts")
pipeline("zero-shot-video-classification", model=folder).push_to_hub("lab/pipeline")
said |= {repo: answers(repo) for repo in ("lab/parts", "lab/pipeline")}
exec(given["snippet"])
print(json.dumps(said))
"""
# `-I` hides this repository, not what is installed: so the packages are hidden as well.
WITHOUT_PACKAGE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_mote", "processing"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
given, said = json.loads(os.environ["GIVEN"]), {"refused": []}
for auto in (AutoModel, AutoModelForVideoClassification, AutoProcessor):
    try:
        auto.from_pretrained("org/mote-tiny", trust_remote_code=False)
    except ValueError as error:
        said["refused"].append("trust_remote_code=True" in str(error))
for revision in given["revisions"]:
    said[revision] = answers("org/mote-tiny", trust_remote_code=True, revision=revision)
if os.environ["HF_HUB_OFFLINE"] == "0":
    for auto in (AutoModelForVideoClassification, AutoProcessor):
        auto.from_pretrained("org/mote-tiny", trust_remote_code=True).push_to_hub("lab/copy")
    said["copy"] = answers("lab/copy", trust_remote_code=True)
exec(given["snippet"])
said["snippet"] = classify(video, candidate_labels="left, right")
print(json.dumps(said))
"""


def run_python(code: str, given: dict[str, object], folder: Path, **environment: str) -> dict[str, object]:
    """What code prints as JSON in an interpreter of its own, on a machine that holds nothing but `folder`."""
    home = {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", ANSWERS + code],
        cwd=folder,
        env=os.environ | home | {"GIVEN": json.dumps(given)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video) -> str:
    return str(write_video(tmp_path_factory.mktemp("video") / "clip.mp4"))


@pytest.fixture(scope="module")
def loaded(published, followed, push, hub, checkpoint, other, video, tmp_path_factory) -> dict[str, dict]:
    """What the published checkpoints answer with the package installed, beside the folders they were made from."""
    assert push("--repo", "org/secret", "--model", checkpoint, "--private")[0] == 0
    given = {
        "folders": {"first": str(checkpoint), "second": str(other)},
        "revisions": ["main", *published.values()],
        "snippet": SNIPPETS[0],
    }
    return run_python(WITH_PACKAGE, given, tmp_path_factory.mktemp("with"), CLIP=video, **hub.environment)


@pytest.mark.slow
def test_every_revision_answers_as_the_folder_it_was_made_from(loaded, published):
    assert loaded["first"]["classes"] == ["MoTEModel", "MoTEForVideoClassification", "MoTEProcessor"]
    assert loaded["first"]["scores"] != loaded["second"]["scores"]
    assert loaded[published["first"]] == loaded["secret"] == loaded["first"]
    assert loaded["main"] == loaded[published["second"]] == loaded["second"]
    merged = loaded[published["merged"]]
    assert merged["tokens"] == loaded["first"]["tokens"] and merged["labels"] == loaded["first"]["labels"]
    for name in ("scores", "closed"):
        torch.testing.assert_close(torch.tensor(merged[name]), torch.tensor(loaded["first"][name]))


@pytest.mark.slow
def test_what_is_not_to_be_seen_is_not_loaded(loaded):
    for said, repository in zip(loaded["errors"], ("org/secret", "org/missing", "org/mote-tiny"), strict=True):
        assert repository in said


@pytest.mark.slow
def test_transformers_own_push_to_hub(loaded, hub):
    for name in ("lab/parts", "lab/pipeline"):
        assert loaded[name] == loaded["first"]
        files = hub.files[name]
        config = json.loads(files["config.json"])
        assert config["auto_map"] == AUTO_MAP and "custom_pipelines" not in config
        assert set(files) >= CODE | {"README.md", "processor_config.json", "tokenizer.json", "modules.json"}
    assert len([name for name in hub.files["lab/parts"] if name.endswith(".safetensors")]) > 2


@pytest.fixture(scope="module")
def elsewhere(published, followed, hub, video, tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """A machine without the package, and what it was answered with the code of the repository."""
    folder = tmp_path_factory.mktemp("without")
    given = {"revisions": ["main", published["first"]], "snippet": SNIPPETS[1]}
    return folder, run_python(WITHOUT_PACKAGE, given, folder, CLIP=video, **hub.environment)


@pytest.mark.slow
def test_it_loads_without_the_package(elsewhere, loaded, published, hub):
    _, said = elsewhere
    assert said["refused"] == [True] * 3
    assert said[published["first"]] == loaded["first"] and said["main"] == said["copy"] == loaded["second"]
    for name in ("config.json", "processor_config.json"):
        assert b"--" not in hub.files["lab/copy"][name]  # or it would go on loading the code of org/mote-tiny
    assert json.loads(hub.files["lab/copy"]["config.json"])["auto_map"] == AUTO_MAP


@pytest.mark.slow
def test_it_loads_without_the_hub(elsewhere, hub, video):
    folder, said = elsewhere
    requests = len(hub.log)
    given = {"revisions": ["main"], "snippet": SNIPPETS[1]}
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = run_python(WITHOUT_PACKAGE, given, folder, CLIP=video, **hub.environment | offline)
    assert again == {name: said[name] for name in ("refused", "main", "snippet")}
    assert len(hub.log) == requests


# --------------------------------------------------------------------------------------- others that load a repository

# As Inference Endpoints load a repository: its folder comes first on the path, and hides an installed package.
OTHERS = """
from importlib.util import module_from_spec, spec_from_file_location
from base64 import b64encode
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

given = json.loads(os.environ["GIVEN"])
folder = snapshot_download("org/mote-tiny", revision=given["revision"])
sys.path.insert(0, folder)
spec = spec_from_file_location("handler", os.path.join(folder, "handler.py"))
handler = module_from_spec(spec)
spec.loader.exec_module(handler)
answer = handler.EndpointHandler(folder)
with open(video, "rb") as file:
    content = b64encode(file.read()).decode()
said = {"zero-shot": [], "errors": []}
for inputs in (content, given["public"]):
    said["zero-shot"].append(answer({"inputs": inputs, "parameters": {"candidate_labels": ["left", "still"]}}))
for inputs in given["inner"]:
    try:
        answer({"inputs": inputs})
    except ValueError as error:
        said["errors"].append(str(error))
encoder = SentenceTransformer("org/mote-tiny", revision=given["revision"], trust_remote_code=True, device="cpu")
said["embedding"] = encoder.encode([video])[0].tolist()
print(json.dumps(said))
"""
NO_PACKAGE = WITHOUT_PACKAGE[: WITHOUT_PACKAGE.index("given, said")]


class Proxy(BaseHTTPRequestHandler):
    """The way out of this machine: whatever is asked for is the clip, but for a host that leads back in."""

    content = b""

    def do_GET(self) -> None:
        leads_in = "leads-in" in self.path
        self.send_response(302 if leads_in else 200)
        self.send_header("Content-Length", "0" if leads_in else str(len(self.content)))
        if leads_in:
            self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
        self.end_headers()
        self.wfile.write(b"" if leads_in else self.content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("package", ["with the package", "without it"])
def test_an_endpoint_and_sentence_transformers_run_what_was_pushed(
    package, published, checkpoint, hub, video, tmp_path
):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is absent")
    inner = [f"{hub.url}/org/mote-tiny", "http://169.254.169.254/clip.mp4", "http://leads-in.example/clip.mp4"]
    given = {"revision": published["first"], "public": "http://public.example/clip.mp4", "inner": inner}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Clip", (Proxy,), {"content": Path(video).read_bytes()})) as out:
        Thread(target=out.serve_forever, daemon=True).start()
        way_out = {"http_proxy": f"http://127.0.0.1:{out.server_address[1]}", "no_proxy": "127.0.0.1,169.254.169.254"}
        code = "import sys\n" + NO_PACKAGE * (package == "without it") + OTHERS
        said = run_python(code, given, tmp_path, CLIP=video, **hub.environment | way_out)
        out.shutdown()
    classify = load_pipeline(str(checkpoint), "cpu", merge=False)
    assert said["zero-shot"] == [classify(video, candidate_labels=["left", "still"])] * 2
    assert [error.count("is no public address") for error in said["errors"]] == [1] * 3, said["errors"]
    inputs = classify.processor(videos=[video], return_tensors="pt")
    with torch.no_grad():
        features = classify.model.get_video_features(**inputs).pooler_output
    torch.testing.assert_close(torch.tensor(said["embedding"]), features[0])


def test_an_endpoint_installs_what_the_code_imports(published, hub):
    files = hub.repositories["org/mote-tiny"].commits[published["first"]]
    names = {line.split(">")[0].split("<")[0] for line in files["requirements.txt"].decode().splitlines()}
    assert {"av", "numpy", "pillow", "torch", "torchvision", "transformers"} <= names
    assert {"handler.py", "endpoint_mote.py", "limits.py", "public_fetch.py", "video_size.py"} <= set(files)


# ---------------------------------------------------------------------------------------------------------------- card


def card_of(hub, repository: str, revision: str = "main") -> ModelCard:
    held = hub.repositories[repository]
    return ModelCard(held.commits[held.resolve(revision)]["README.md"].decode())


def test_the_card_tells_what_was_measured(published, hub, result):
    measured = json.loads(result.read_text())
    card = card_of(hub, "org/mote-tiny", published["first"])
    assert card.data.library_name == "transformers" and "zero-shot-video-classification" in card.data.tags
    assert card.data.license == "other" and "left, right, still." in card.text.split("## Classes")[1]
    top1, top5 = card.data.eval_results
    assert card.data.model_name == "mote-tiny" and top1.dataset_name == "half-classes, alpha=1.0"
    assert top1.metric_value == pytest.approx(100 * measured["top1"]["mean"], abs=0.01)
    assert top1.metric_name == "top1, 3x1 views, 7 of 7 scored" and top5.metric_name.startswith("top5, ")
    mean, std = (f"{100 * measured['top1'][key]:.1f}" for key in ("mean", "std"))
    assert f"| half-classes, alpha=1.0 | 7 of 7 | 3x1 | 8 | 1.0 | on | {mean} ± {std} | " in card.text
    assert "# MoTE trained on" in card.text and 'model="org/mote-tiny"' in card.text
    assert "](curves.png)" in card.text and "2410.10589" in card.text
    assert "folded" not in card.text and "As reported by the authors" not in card.text
    merged = card_of(hub, "org/mote-tiny", "merged")
    assert "are folded into one feed-forward" in merged.text and "Scored before the experts were folded" in merged.text
    second = card_of(hub, "org/mote-tiny")  # of a checkpoint without a card
    assert second.text.lstrip().startswith("# model") and "left, right, still." in second.text
    assert second.data.eval_results is None and "curves.png" not in second.text


def test_a_card_that_was_published_is_published_again_without_growing(published, push, hub, checkpoint, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in hub.repositories["org/mote-tiny"].commits[published["first"]].items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    assert push("--repo", "org/mote-tiny", "--model", folder, "--revision", "again")[0] == 0
    first, again = (card_of(hub, "org/mote-tiny", name) for name in (published["first"], "again"))
    for title in ("## Use", "## Training", "](curves.png)"):
        assert again.text.count(title) == first.text.count(title) == 1
    assert again.data.eval_results == first.data.eval_results and "## Measured" not in again.text


def test_a_card_is_filled_in_and_never_run(push, hub, checkpoint, result, tmp_path):
    fields = "{{ repo }} {{measured}} {{ curves }} {{ experts }} {{ classes }} "
    fields += "{{ cycler.__init__.__globals__ }} {{ other }}"
    (tmp_path / "card.md").write_text(f"---\nlicense: mit\n---\n# Mine\n\n{fields}\n\nMoTE, arXiv 2410.10589\n")
    options = ("--repo", "lab/card", "--model", checkpoint, "--card", tmp_path / "card.md")
    assert push(*options, "--results", result)[0] == 0
    card = card_of(hub, "lab/card")
    assert card.data.license == "mit" and len(card.data.eval_results) == 2
    assert "lab/card | protocol |" in card.text and "](curves.png)" in card.text
    assert "{{ cycler.__init__.__globals__ }} {{ other }}" in card.text
    assert "##" not in card.text.replace("# Mine", "")  # every part had its field


def test_a_card_says_what_the_checkpoint_came_from():
    config = MoTEConfig()
    content = training_card(("left",), data="ucf101", base="openai/clip-vit-base-patch16", num_frames=8)
    card = published_card(content, "org/mine", config, {})
    assert (card.data.license, card.data.base_model) == ("mit", "openai/clip-vit-base-patch16")
    assert "# MoTE trained on ucf101" in card.text and 'model="org/mine"' in card.text and HERE not in card.text
    other = published_card(content, "org/mine", config, {}, license="cc-by-4.0", base="lab/other")
    assert (other.data.license, other.data.base_model) == ("cc-by-4.0", "openai/clip-vit-base-patch16")
    bare = published_card("# Mine\n", "org/mine", config, {}, base="lab/other")
    assert (bare.data.license, bare.data.base_model) == ("other", "lab/other")


@pytest.mark.parametrize("backbone, size", [("ViT-B/16", (768, 12, 16)), ("ViT-L/14", (1024, 24, 14))])
def test_the_authors_numbers_stay_apart(backbone, size):
    """A conversion of theirs quotes all of them for its backbone; another checkpoint those of what was measured."""
    width, layers, patch = size
    tower = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "patch_size": patch,
        "num_attention_heads": width // 64,
    }
    config = MoTEConfig(vision_config=tower)
    card = published_card("# Converted\n", "org/converted", config, {}, converted=True)
    quoted = card.text.split("## As reported by the authors")[1].split("\n## ")[0]
    assert "none was measured here" in quoted and card.data.eval_results is None
    rows = [
        f"| {name} | {protocol.views} | {number.metric} | {number.value} {f'± {number.std} ' if number.std else ''}|"
        for name, protocol in PROTOCOLS.items()
        for number in protocol.published
        if (number.backbone, number.num_frames) == (backbone, 8)
    ]
    assert len(rows) > 4 and quoted.strip().splitlines()[-len(rows) :] == rows
    one = authors_section(config, {"ucf101-zero-shot"}, converted=False)
    assert one.count("| 3x1 |") == 1 and "ucf101-zero-shot" in one
    assert authors_section(config, {"half-classes"}, converted=False) == ""
    config.vision_config.patch_size = 8  # a tower of nobody's
    assert authors_section(config, {"ucf101-few-shot"}, converted=True) == ""


def test_a_result_of_half_precision_weights_is_known_to_be_theirs(checkpoint, tmp_path):
    load_model(str(checkpoint)).to(torch.bfloat16).save_pretrained(tmp_path)
    shutil.copy(checkpoint / "processor_config.json", tmp_path)
    for file in checkpoint.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    *_, facts = load_to_score(PROTOCOLS["half-classes"], str(tmp_path), 1.0, None, None)
    model = load_model(str(tmp_path), classifier=True, dtype="auto")
    assert model.dtype == torch.bfloat16 and weights_sha256(model) == facts["checkpoint_sha256"]


def test_from_python_too(hub, checkpoint, monkeypatch):
    """What training calls: the repository is made ready first, and a failure is a sentence without the token."""
    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    close_session()
    prepare_repository("lab/python", revision="step-9")
    assert set(hub.repositories["lab/python"].branches) == {"main", "step-9"}
    said = []
    done = publish_checkpoint(checkpoint, "lab/python", license="mit", say=said.append)
    held = hub.repositories["lab/python"]
    assert held.branches["main"] == done.commit and set(held.commits[done.commit]) == set(done.files)
    assert "license: mit" in done.card and done.commit in said[-1]
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmn")
    with pytest.raises(PublishError, match="refused the token") as raised:
        prepare_repository("lab/python")
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    close_session()


# ---------------------------------------------------------------------------------------------------------------- docs


@pytest.fixture(scope="module")
def followed(push, checkpoint, result, tmp_path_factory) -> list[str]:
    """The commands of docs/hub.md that are not `mote push`; those were run, in the page's order."""
    folder = tmp_path_factory.mktemp("docs")
    for run in ("moving_shapes", "mine"):
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "model").symlink_to(checkpoint)
    (folder / "model_cards").symlink_to(EXAMPLES.parent / "model_cards")
    (folder / "results" / "mine").mkdir(parents=True)
    shutil.copy(result, folder / "results" / "mine")
    ours = [line for line in COMMANDS if line.startswith("mote push")]
    for line in ours:
        code, _, err = push(*shlex.split(line)[2:], folder=folder)
        assert code == 0, err
    return [line for line in COMMANDS if line not in ours]


def test_the_page_can_be_followed(followed, hub):
    """`result` ran evaluate's command, the loading tests run the snippets; one command needs an account."""
    assert followed[0] == "hf auth login" and len(followed) == 2 and "evaluate" in followed[1]
    mine = hub.repositories["org/mote-mine"]
    assert mine.private and set(mine.branches) == {"main", "merged"}
    assert "results/half-classes_alpha_1.0.json" in hub.files["org/mote-mine"]
    assert card_of(hub, "org/mote-moving-shapes").data.license == "apache-2.0"
    assert len(SNIPPETS) == 2
