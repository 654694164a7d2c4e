"""MoTEProcessor: texts and videos together, its limits, saving and loading."""

import pytest
import torch
from transformers import CLIPTokenizer

from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor, ZeroShotVideoClassificationPipeline


def test_text_and_videos(processor, tmp_path, write_video):
    clip = write_video(tmp_path / "clip.mp4")
    inputs = processor(text=["archery", "flipping the pancake"], videos=[clip, clip], return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values_videos"} == set(processor.model_input_names)
    assert inputs["input_ids"].shape == (2, 24)  # the tiny tokenizer's limit
    assert inputs["attention_mask"].sum(-1).tolist() == [3, 5]
    assert inputs["pixel_values_videos"].shape == (2, 4, 3, 32, 32)
    assert set(processor(text="yoga")) == {"input_ids", "attention_mask"}
    views = processor(videos=clip, num_crops=3, return_tensors="pt")
    assert set(views) == {"pixel_values_videos"} and views["pixel_values_videos"].shape == (1, 3, 4, 3, 32, 32)


def test_long_texts_are_cut_and_still_end(processor):
    ids = processor(text="yoga " * 50, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 24) and ids[0, -1] == processor.tokenizer.eos_token_id
    assert processor(text="yoga", padding=True, return_tensors="pt")["input_ids"].shape == (1, 3)


def test_clip_tokenizer_gives_77(shared):
    processor = MoTEProcessor(MoTEVideoProcessor(), CLIPTokenizer.from_pretrained(shared / "clip_tokenizer"))
    assert processor(text=["archery"], return_tensors="pt")["input_ids"].shape == (1, 77)
    processor.tokenizer.model_max_length = int(1e30)  # as a tokenizer that names no limit
    assert processor(text=["archery"], return_tensors="pt")["input_ids"].shape == (1, 77)


def test_num_frames_is_the_video_processors(processor, tmp_path, write_video):
    assert processor.num_frames == 4
    processor.num_frames = 6
    assert processor.video_processor.num_frames == 6
    clip = write_video(tmp_path / "clip.mp4")
    assert processor(videos=clip, return_tensors="pt")["pixel_values_videos"].shape[1] == 6
    processor.save_pretrained(tmp_path / "saved")
    assert MoTEProcessor.from_pretrained(tmp_path / "saved").num_frames == 6


def test_saved_and_loaded(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = MoTEProcessor.from_pretrained(tmp_path)
    ours = loaded.video_processor.to_dict()
    assert ours == {name: processor.video_processor.to_dict()[name] for name in ours}  # saving adds an auto_map
    assert loaded.video_processor.short_video == "loop"
    assert torch.equal(
        loaded(text="yoga", return_tensors="pt")["input_ids"], processor(text="yoga", return_tensors="pt")["input_ids"]
    )


def test_wrong_modalities_are_refused(processor):
    with pytest.raises(ValueError, match="takes text= and videos=, not images="):
        processor(images=["a.png"], text="yoga")
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(TypeError, match="image_processor"):
        MoTEProcessor(processor.video_processor, processor.tokenizer, image_processor=1)


def test_pipeline_class(processor):
    assert processor.pipeline_class is ZeroShotVideoClassificationPipeline
