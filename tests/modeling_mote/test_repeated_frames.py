"""Frames that are equal go through the image tower once, where nobody can tell."""

import pytest
import torch

from modeling_mote.modeling_mote import distinct_frames


@pytest.fixture
def encoded(classifier):
    """Frames that the image tower got, one number per forward."""
    counts: list[int] = []

    def note(module, args, kwargs):
        counts.append(len(kwargs["pixel_values"]))

    handle = classifier.vision_model.register_forward_pre_hook(note, with_kwargs=True)
    yield counts
    handle.remove()


def test_equal_frames_are_found(videos):
    frames = videos.flatten(0, 1)[[0, 1, 0, 2, 2, 0]].clone()
    assert distinct_frames(frames) == ([0, 1, 3], [0, 1, 0, 2, 2, 0])
    frames[5, 1, 2, 3] += 1e-6  # one pixel, of those that are not looked at first
    assert distinct_frames(frames) == ([0, 1, 3, 5], [0, 1, 0, 2, 2, 3])
    assert distinct_frames(frames.bfloat16())[0] == [0, 1, 3]  # in which it is lost
    assert distinct_frames(torch.full((2, 3, 4, 4), torch.nan))[0] == [0, 1]


@torch.no_grad()
def test_features_are_those_of_encoding_each(classifier, videos, encoded):
    still = videos.clone()
    still[0] = videos[0, 3]  # a still clip
    still[1, 4:] = videos[1, :4]
    views = torch.stack([still, videos], dim=1)  # [b, v, t, 3, h, w]
    found = classifier.get_frame_features(views)
    assert encoded == [16] and found.pooler_output.shape == (2, 2, 8, 64)
    assert found.last_hidden_state.shape[0] == 32
    right = torch.cat(
        [classifier.get_frame_features(frame[None, None]).pooler_output for frame in views.flatten(0, 2)]
    )
    torch.testing.assert_close(found.pooler_output.flatten(0, 2), right.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert torch.equal(found.pooler_output[0, 0], found.pooler_output[0, 0, :1].expand(8, -1))


def test_states_and_gradients_have_every_frame(classifier, videos, encoded):
    still = videos[:, :1].expand_as(videos)
    classifier.get_frame_features(still)  # with gradients
    with torch.no_grad():
        states = classifier.get_frame_features(still, output_hidden_states=True).hidden_states
        assert encoded == [16, 16] and states[0].shape[0] == 16
        classifier.get_frame_features(still)
        assert encoded[2:] == [2]


class FrameFeatures(torch.nn.Module):
    """What is exported of a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model.get_frame_features(pixels).pooler_output


@torch.no_grad()
def test_a_graph_has_every_frame(classifier, videos):
    """Exported of frames that are equal, it is right for others, and more of them."""
    still = videos[:, :1].expand_as(videos)
    batch = ({0: torch.export.Dim("batch")},)
    graph = torch.export.export(FrameFeatures(classifier), (still,), dynamic_shapes=batch).module()
    for pixels in (videos, torch.cat([videos, videos.flip(-1)])[:3], still):
        right = classifier.get_frame_features(pixels).pooler_output
        torch.testing.assert_close(graph(pixels), right, atol=1e-5, rtol=1e-5)
