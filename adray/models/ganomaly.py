"""GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training (S. Akcay et al., ACCV 2018).

Paper: https://arxiv.org/abs/1805.06725
Reference: https://github.com/samet-akcay/ganomaly (MIT, facts only).

A generator encodes an image to a latent vector z, decodes it, and encodes the drawing again to z'. Trained on normal
images, with a discriminator whose features the drawing shall share with the image, it learns to draw normal ones only:
what it cannot draw moves z' away from z, and the score of an image is their mean squared difference. There is no map.

Differs from the paper: the score is the mean squared difference, as in the reference, not the absolute one of equation
(5), and stays raw: scaled to [0, 1] over a test set (equation 6) it would depend on the other images, as it does on the
batch in the reference, which tests in training mode. The size must be a power of two. The reference looks after each
step whether the discriminator has collapsed (loss below 1e-5) and then draws its weights anew; here after each epoch,
by its last step.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.encoder_decoder import down_block
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

logger = logging.getLogger(__name__)

_COLLAPSED = 1e-5


@dataclass(frozen=True)
class GanomalyConfig:
    """Hyperparameters of GANomaly; defaults are the paper's."""

    latent_channels: int = 100
    """Values of the latent vector z (section 4)."""
    base_channels: int = 64
    """Channels after the first convolution; each further one doubles them."""
    adversarial_weight: float = 1.0
    """Weight of the distance between the discriminator's features (equation 4)."""
    contextual_weight: float = 50.0
    """Weight of the absolute error of the drawing (equation 4)."""
    encoder_weight: float = 1.0
    """Weight of the distance between z and z' (equation 4)."""
    lr: float = 2e-4
    """Learning rate of Adam, constant (section 4)."""
    beta1: float = 0.5
    """Decay of Adam's first moment (section 4)."""
    beta2: float = 0.999
    """Decay of Adam's second moment (section 4)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("latent_channels", self.latent_channels, 1, 4096)
        check_range("base_channels", self.base_channels, 1, 512)
        for name in ("adversarial_weight", "contextual_weight", "encoder_weight"):
            check_range(name, getattr(self, name), 0, 1e4)
        check_range("lr", self.lr, 0, 1)
        for name in ("beta1", "beta2"):
            check_range(name, getattr(self, name), 0, 0.99999)


def widths(img_size: int, base_channels: int) -> list[int]:
    """Channels after each convolution that halves the side, down to 4 pixels."""
    return [base_channels * 2**i for i in range((img_size // 4).bit_length() - 1)]


def up_block(channels_in: int, channels_out: int, stride: int = 2) -> nn.Module:
    """Double the side, or from stride 1 make 4 pixels of one: 4x4 transposed convolution, batch norm, ReLU."""
    conv = nn.ConvTranspose2d(
        channels_in, channels_out, 4, stride=stride, padding=stride - 1, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def build_pyramid(sizes: list[int]) -> nn.Sequential:
    """From (B, 3, H, W) to (B, `sizes[-1]`, 4, 4)."""
    first = nn.Conv2d(3, sizes[0], 4, stride=2, padding=1, bias=False)
    rest = (down_block(i, o) for i, o in itertools.pairwise(sizes))
    return nn.Sequential(first, nn.LeakyReLU(0.2, inplace=True), *rest)


def build_encoder(sizes: list[int], latent_channels: int) -> nn.Sequential:
    """From (B, 3, H, W) to a latent vector (B, `latent_channels`, 1, 1)."""
    return nn.Sequential(build_pyramid(sizes), nn.Conv2d(sizes[-1], latent_channels, 4, bias=False))


def build_decoder(sizes: list[int], latent_channels: int) -> nn.Sequential:
    """From (B, `latent_channels`, 1, 1) to a drawing (B, 3, H, W) in [-1, 1]."""
    return nn.Sequential(
        up_block(latent_channels, sizes[-1], stride=1),
        *(up_block(i, o) for i, o in zip(sizes[:0:-1], sizes[-2::-1], strict=True)),
        nn.ConvTranspose2d(sizes[0], 3, 4, stride=2, padding=1, bias=False),
        nn.Tanh(),
    )


def init_weights(module: nn.Module) -> None:
    """Draw the weights of a layer as DCGAN does, normal with deviation 0.02; for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Encoder, decoder and second encoder.

    Args:
        sizes: channels of the convolutions, see `widths`.
        latent_channels: values of the latent vectors.
    """

    def __init__(self, sizes: list[int], latent_channels: int) -> None:
        super().__init__()
        self.encoder = build_encoder(sizes, latent_channels)
        self.decoder = build_decoder(sizes, latent_channels)
        self.second_encoder = build_encoder(sizes, latent_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The drawing (B, 3, H, W) of an image in [-1, 1], its z and the drawing's z', both (B, D, 1, 1)."""
        latent = self.encoder(image)
        drawing = self.decoder(latent)
        return drawing, latent, self.second_encoder(drawing)


class Discriminator(nn.Module):
    """Tells images from drawings.

    Args:
        sizes: channels of the convolutions, see `widths`.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.pyramid = build_pyramid(sizes)
        self.classifier = nn.Conv2d(sizes[-1], 1, 4, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (B,), positive for an image, and the last features, (B, C, 4, 4), of (B, 3, H, W)."""
        features = self.pyramid(image)
        return self.classifier(features).flatten(), features


class GanomalyModel(nn.Module):
    """The generator, which scores, and the discriminator, which only trains it.

    Args:
        input_size: side of the images in pixels, a power of two from 16.
        latent_channels: values of the latent vectors.
        base_channels: channels after the first convolution.
    """

    def __init__(
        self, input_size: int, latent_channels: int = 100, base_channels: int = 64
    ) -> None:
        super().__init__()
        sizes = widths(input_size, base_channels)
        self.generator = Generator(sizes, latent_channels)
        self.discriminator = Discriminator(sizes)
        self.apply(init_weights)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """How far the drawing is from the image for the encoders (equation 5, squared).

        Args:
            image: (B, 3, H, W) in [-1, 1].
            features: None, since there is no frozen stage.

        Returns:
            The mean squared difference of the latent vectors, (B,), at least 0, and no map.
        """
        _, latent, again = self.generator(image)
        return Prediction((latent.float() - again.float()).square().mean(dim=(1, 2, 3)), None)


def generator_losses(
    image: Tensor, generated: tuple[Tensor, Tensor, Tensor], features: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """What the generator shall lower (equations 1 to 3).

    Args:
        image: (B, 3, H, W) in [-1, 1].
        generated: what the generator gives for `image`: drawing, z and z'.
        features: the discriminator's last features of image and drawing, each (B, C, 4, 4).

    Returns:
        ``adversarial``, ``contextual`` and ``encoder``, scalars of at least 0, means over batch and values.
    """
    drawing, latent, again = generated
    real, fake = features
    return {
        "adversarial": F.mse_loss(fake.float(), real.float()),
        "contextual": F.l1_loss(drawing.float(), image),
        "encoder": F.mse_loss(again.float(), latent.float()),
    }


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean cross entropy of the (B,) logits of images, which are real, and of drawings, which are not; scalar."""
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return 0.5 * (real + fake)


class GanomalyTrainer(BaseTrainer):
    """Trains generator and discriminator at once, each on its own loss, from the weights before the step."""

    config: GanomalyConfig
    model: GanomalyModel
    config_class = GanomalyConfig
    _discriminator_loss: Tensor

    @classmethod
    def check_inputs(cls, config: GanomalyConfig, train_config: TrainConfig) -> list[str]:
        size, normalize = train_config.input_size, train_config.normalize
        if size & (size - 1):
            below = 1 << (size.bit_length() - 1)
            raise InputError(
                f"input size {size} does not suit GANomaly: img_size (or crop_size) must be a power of two; "
                f"use {below} or {2 * below}"
            )
        if normalize != "minus1_1":
            raise InputError(
                f"normalize {normalize!r} does not suit GANomaly, which draws in [-1, 1]; use minus1_1"
            )
        return []

    def build_model(self) -> GanomalyModel:
        config = self.config
        return GanomalyModel(
            self.train_config.input_size, config.latent_channels, config.base_channels
        )

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        groups = [
            {"params": part.parameters()}
            for part in (self.model.generator, self.model.discriminator)
        ]
        # Fused: on a CPU a step of Adam takes a sixth of the time, and was a seventh of a training step.
        return torch.optim.Adam(
            groups, self.config.lr, betas=(self.config.beta1, self.config.beta2), fused=True
        ), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        generator, discriminator = self.losses(batch.image)
        config = self.config
        loss = (
            config.adversarial_weight * generator["adversarial"]
            + config.contextual_weight * generator["contextual"]
            + config.encoder_weight * generator["encoder"]
        )  # equation 4
        # Neither loss reaches the other network's weights, so the sum's gradient is that of each on its own.
        self.optimize(loss + discriminator)
        self._discriminator_loss = discriminator.detach()
        parts = {"loss": loss, "discriminator": discriminator, **generator}
        return {name: value.detach() for name, value in parts.items()}

    def losses(self, image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The generator's losses, which do not reach the discriminator's weights, and the discriminator's, vice versa.

        Args:
            image: (B, 3, H, W) in [-1, 1].

        Returns:
            What `generator_losses` gives, and `discriminator_loss`.
        """
        discriminator = self.model.discriminator
        drawing, latent, again = self.model.generator(image)
        real_logits, real_features = discriminator(image)
        fake_logits, _ = discriminator(drawing.detach())
        discriminator.requires_grad_(False)
        _, fake_features = discriminator(drawing)
        discriminator.requires_grad_(True)
        generator = generator_losses(
            image, (drawing, latent, again), (real_features.detach(), fake_features)
        )
        return generator, discriminator_loss(real_logits, fake_logits)

    def on_train_end(self) -> None:
        if self._discriminator_loss < _COLLAPSED:
            logger.info(
                "the discriminator's loss fell below %g; its weights are drawn anew", _COLLAPSED
            )
            self.model.discriminator.apply(init_weights)
