"""PSNR and the error map against numpy, and the probe that measures once per epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adray.components.input_checks import check_reconstruction_inputs
from adray.components.lpips import Lpips
from adray.components.reconstruction import (
    QualityProbe,
    peak_signal_to_noise,
    squared_error_map,
)
from adray.components.ssim import ssim_map
from adray.config import TrainConfig
from adray.errors import InputError
from adray.types import Batch


@pytest.fixture
def loader():
    torch.manual_seed(0)
    label = torch.zeros(12, dtype=torch.int64)
    return [Batch(torch.rand(12, 3, 32, 32), label, None, label) for _ in range(2)]


def test_the_map_is_numpys_mean_of_squares_over_channels():
    image, rebuilt = torch.rand(2, 3, 8, 9), torch.rand(2, 3, 8, 9)
    expected = ((image.numpy() - rebuilt.numpy()) ** 2).mean(1, keepdims=True)
    np.testing.assert_allclose(squared_error_map(image, rebuilt).numpy(), expected, rtol=1e-6)


def test_psnr_is_numpys():
    image, rebuilt = np.random.default_rng(0).random((2, 4, 3, 8, 8))
    expected = 20 * np.log10(1.0 / np.sqrt(np.mean((image - rebuilt) ** 2)))
    error = squared_error_map(torch.from_numpy(image), torch.from_numpy(rebuilt)).mean()
    assert float(peak_signal_to_noise(error)) == pytest.approx(expected, rel=1e-5)


def test_psnr_of_a_tenth_of_the_range_is_twenty_decibels():
    assert float(peak_signal_to_noise(torch.tensor(0.1**2))) == pytest.approx(20.0)


def test_the_probe_measures_the_first_eight_images_without_lpips_where_its_files_are_missing(
    loader, own_settings
):
    quality = QualityProbe(loader, lambda image: 1 - image).measure()
    image = loader[0].image[:8]
    assert quality == {"ssim": pytest.approx(float(ssim_map(image, 1 - image).mean()))}


def test_the_probe_adds_lpips_where_its_files_are_there(loader, own_settings, tmp_path):
    from adray.settings import set_globals

    net = Lpips().eval().requires_grad_(False)
    state = net.state_dict()
    (tmp_path / "lpips").mkdir()
    torch.save(
        {k: v for k, v in state.items() if "features" in k},
        tmp_path / "lpips" / "alexnet-owt-7be5be79.pth",
    )
    heads = {f"lin{i}.model.1.weight": state[f"heads.{i}.weight"] for i in range(5)}
    torch.save(heads, tmp_path / "lpips" / "alex.pth")
    set_globals(backbone_dir=tmp_path)
    image = loader[0].image[:8]
    quality = QualityProbe(loader, lambda image: 1 - image).measure()
    assert quality["lpips"] == pytest.approx(float(net(image, 1 - image).mean()), rel=1e-5)


@pytest.mark.parametrize(("size", "allowed"), [(100, "use 96 or 128"), (20, "use 32")])
def test_a_size_that_does_not_divide_names_those_that_do(size, allowed):
    with pytest.raises(
        InputError, match=f"input size {size} does not suit the net: .* multiple of 32; {allowed}"
    ):
        check_reconstruction_inputs("net", 32, TrainConfig(img_size=size, normalize="none"))


def test_images_that_are_not_in_the_unit_range_are_refused():
    with pytest.raises(InputError, match="normalize 'imagenet' does not suit the net"):
        check_reconstruction_inputs("net", 32, TrainConfig(img_size=64))
