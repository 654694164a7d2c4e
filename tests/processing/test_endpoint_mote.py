"""What an Inference Endpoint answers; tests/commands/test_push.py loads it from a repository, as Endpoints do."""

import base64

import pytest
from transformers import pipeline

import modeling_mote  # noqa: F401
from modeling_mote.processing.endpoint_mote import Endpoint
from modeling_mote.processing.limits import Limits, candidates_of

LABELS = ["red bar growing", "cyan moon"]


@pytest.fixture(scope="module")
def endpoint(shapes_model) -> Endpoint:
    return Endpoint(str(shapes_model), Limits(max_seconds=5, max_labels=3, max_letters=20, max_megabytes=0.1))


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_video) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=16).read_bytes()


def test_it_answers_as_the_pipeline(endpoint, shapes_model, clip):
    classify = pipeline("zero-shot-video-classification", model=str(shapes_model), device="cpu")
    encoded = base64.b64encode(clip).decode()
    expected = classify(clip, candidate_labels=LABELS)
    for video in (encoded, f"data:video/mp4;base64,{encoded}", clip):
        for labels in (LABELS, ", ".join(LABELS), dict.fromkeys(LABELS)):
            assert endpoint({"inputs": video, "parameters": {"candidate_labels": labels}}) == expected
    parameters = {"candidate_labels": {"grows": "a bar that grows", "moon": None}, "top_k": 1}
    assert endpoint({"inputs": clip, "parameters": parameters}) == classify(clip, **parameters)
    own = classify(clip, candidate_labels=["red bar growing", "blue star spinning"])
    assert (
        endpoint({"inputs": clip}) == endpoint({"inputs": clip, "parameters": None}) == own
    )  # what it was trained on


def test_blanks_around_a_name_lose_no_description():
    told = {"yoga": ("a person stretching", "on a mat"), "archery": ()}
    assert candidates_of({" yoga ": ["a person stretching", "on a mat"], "archery": None}, Limits()) == told
    assert candidates_of("yoga : a person stretching\n yoga: on a mat\narchery", Limits()) == told


BAD = [
    ([], "The request holds no inputs"),
    ({"parameters": {}}, "The request holds no inputs"),
    ({"inputs": "AAAA", "parameters": []}, "parameters must be an object"),
    ({"inputs": "AAAA", "parameters": {"examples": {"a": ["/etc/passwd"]}}}, "There is no parameter 'examples'"),
    ({"inputs": "AAAA", "parameters": {"num_clips": 10**9}}, "There is no parameter 'num_clips'"),
    ({"inputs": "AAAA", "parameters": {"candidate_labels": 7}}, "labels must be a list of names"),
    ({"inputs": "AAAA", "parameters": {"candidate_labels": []}}, "no label was given"),
    ({"inputs": "AAAA", "parameters": {"candidate_labels": " , "}}, "No label was given"),
    ({"inputs": "AAAA", "parameters": {"candidate_labels": ["a", "a"]}}, "label 'a' was given twice"),
    ({"inputs": "AAAA", "parameters": {"candidate_labels": list("abcd")}}, "4 labels were given"),
    ({"inputs": "AAAA", "parameters": {"candidate_labels": ["a" * 21]}}, "label 1 of 1, 'aaaa"),
    ({"inputs": None}, "inputs is a NoneType"),
    ({"inputs": ["AAAA"]}, "inputs is a list"),
    ({"inputs": "/etc/passwd"}, "base64 can't be read"),
    ({"inputs": "file:///etc/passwd"}, "base64 can't be read"),
    ({"inputs": ""}, "video of 0 bytes is empty"),
    ({"inputs": base64.b64encode(b"junk" * 100).decode()}, "video of 400 bytes cannot be opened as a video"),
    ({"inputs": b"x" * 200_000}, "The file has 0 MB: this app takes up to 0.1 MB"),
]


@pytest.mark.parametrize(("data", "sentence"), BAD)
def test_bad_input_is_one_sentence(endpoint, data, sentence):
    with pytest.raises(ValueError) as error:
        endpoint(data)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_bad_options_are_one_sentence(endpoint, clip):
    for options, sentence in (({"top_k": 0}, "top_k is 0"), ({"unknown": True}, "unknown needs a calibration")):
        with pytest.raises(ValueError, match=sentence):
            endpoint({"inputs": clip, "parameters": {"candidate_labels": LABELS, **options}})


def test_a_long_video_is_refused(endpoint, tmp_path, write_video):
    video = write_video(tmp_path / "long.mp4", num_frames=48).read_bytes()
    with pytest.raises(ValueError, match=r"The video is 6.0 s long: this app takes up to 5 s, so cut it first."):
        endpoint({"inputs": video})
