"""Frame features on disk: those of the frames, encoded once, tried again if a file could not be read."""

from itertools import islice

import datasets
import pytest
import torch
from accelerate import Accelerator

from modeling_mote import frame_features
from modeling_mote.frame_features import encode_frames
from modeling_mote.processing import MoTEVideoProcessor
from modeling_mote.processing.clips import VideoClips

from ..conftest import distinct_frames


@pytest.fixture
def clips(tmp_path, write_video):
    """`clips()`: five clips, the first of which is there twice; otherwise no two frames are alike, of none of them."""
    frames = iter(distinct_frames(40, 48, 64))
    files = [write_video(tmp_path / f"{n}.mp4", frames=list(islice(frames, 6 + n))) for n in range(5)]
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = MoTEVideoProcessor(num_frames=4, short_video="loop", **sizes)

    def make():
        features = datasets.Features(
            {"video": datasets.Video(decode=False), "label": datasets.ClassLabel(names=["a"])}
        )
        videos = [{"path": str(file), "bytes": None} for file in [*files, files[0]]]
        rows = datasets.Dataset.from_dict({"video": videos, "label": [0] * 6}, features)
        return VideoClips(rows, processor, 4, "val")

    return make


@pytest.fixture
def encoded():
    """Frames that the image tower encoded so far."""
    frames = [0]

    def note(module, inputs):
        if type(module).__name__ == "CLIPVisionEmbeddings":
            frames[0] += len(inputs[0])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield frames
    handle.remove()


def encode(model, clips, tmp_path):
    return encode_frames(model, clips, tmp_path / "cache", Accelerator(cpu=True), batch_size=2)


def test_they_are_those_of_the_frames_and_encoded_once(clips, make_model, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(frame_features, "SHARD", 3)
    model, pixels = make_model(), clips()
    features = encode(model, pixels, tmp_path)
    assert len(features) == 6 and encoded[0] == 5 * 4
    for index in range(6):
        inputs = pixels.inputs({"pixel_values_videos": pixels[index]["pixel_values_videos"][None]})
        expected = model.get_frame_features(**inputs).pooler_output[0]
        torch.testing.assert_close(features[(7, index)]["frame_embeds"], expected, rtol=1e-4, atol=1e-5)
    before = encoded[0]
    again = encode(make_model(), clips(), tmp_path)
    assert encoded[0] == before
    assert all(torch.equal(again[n]["frame_embeds"], features[n]["frame_embeds"]) for n in range(6))


def test_a_momentary_error_is_not_the_clips_nature(clips, make_model, tmp_path, encoded, monkeypatch):
    pixels = clips()
    read = VideoClips.read

    def fail(self, row, *args, **kwargs):
        if row["video"]["path"].endswith("2.mp4"):
            raise OSError("Input/output error")
        return read(self, row, *args, **kwargs)

    monkeypatch.setattr(VideoClips, "read", fail)
    model = make_model()
    broken = encode(model, pixels, tmp_path)
    assert "Input/output error" in broken[2]["error"] and "error" not in broken[1]
    monkeypatch.undo()
    before = encoded[0]
    whole = encode(model, clips(), tmp_path)
    assert encoded[0] == before + 4  # that clip alone
    assert "error" not in whole[2] and whole[2]["frame_embeds"].abs().sum() > 0
    assert torch.equal(whole[1]["frame_embeds"], broken[1]["frame_embeds"])


def test_a_flipped_bit_is_noticed_and_encoded_anew(clips, make_model, tmp_path):
    features = [encode(make_model(), clips(), tmp_path)[n]["frame_embeds"].clone() for n in range(6)]
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged .* made anew"):
        again = encode(make_model(), clips(), tmp_path)
    assert all(torch.equal(again[n]["frame_embeds"], features[n]) for n in range(6))


def test_a_file_that_was_replaced_is_encoded_anew(clips, make_model, tmp_path, write_video):
    first = encode(make_model(), clips(), tmp_path)
    write_video(tmp_path / "0.mp4", 12, size=(64, 64))
    second = encode(make_model(), clips(), tmp_path)
    assert not torch.equal(first[0]["frame_embeds"], second[0]["frame_embeds"])
    assert torch.equal(first[1]["frame_embeds"], second[1]["frame_embeds"])
