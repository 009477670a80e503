"""GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training.

Paper: S. Akcay et al., ACCV 2018, https://arxiv.org/abs/1805.06725
Reference: https://github.com/samet-akcay/ganomaly (MIT, facts only).

A generator encodes an image to a latent vector z, decodes it, and encodes the drawing again to z'.
Trained on normal images, with a discriminator whose features the drawing shall share with the
image, it learns to draw normal ones only: what it cannot draw moves z' away from z, and the score
of an image is their mean squared difference. There is no map.

Differs from the paper: the score is the mean squared difference, as in the reference, not the
absolute one of equation (5), and stays raw: scaled to [0, 1] over a test set (equation 6) it would
depend on the other images, as it does on the batch in the reference, which tests in training mode.
The size must be a power of two. The reference looks after each step whether the discriminator has
collapsed (loss below 1e-5) and then draws its weights anew; here after each epoch, by its last
step.

Budget `paper` is not the authors', who have no settings for images of products: 15 epochs of CIFAR-10
or MNIST at 32 px in batches of 64, of which one that is not full is dropped, and of which the epoch
is kept that is best on the test set. Here it is 100 epochs at 256 px in batches of 32, those of
anomalib, without its stop by the test set.
"""

from __future__ import annotations

import itertools
import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.encoder_decoder import down_block
from adray.methods.ganomaly import METHODS, GanomalyConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

logger = logging.getLogger(__name__)

_COLLAPSED = 1e-5
"""Loss of the discriminator below which it teaches the generator nothing."""
_SMALLEST_SIDE = 4
"""Pixels of the last maps, in each direction."""


def widths(img_size: int, base_channels: int) -> list[int]:
    """Count the channels after each convolution that halves the side, down to 4 pixels."""
    halvings = (img_size // _SMALLEST_SIDE).bit_length() - 1  # the logarithm of a power of two
    return [base_channels * 2**level for level in range(halvings)]


def up_block(channels_in: int, channels_out: int, stride: int = 2) -> nn.Module:
    """Double the side, or from stride 1 make 4 pixels of one.

    That is a 4x4 transposed convolution, batch norm and ReLU.
    """
    conv = nn.ConvTranspose2d(
        channels_in, channels_out, 4, stride=stride, padding=stride - 1, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def build_pyramid(sizes: list[int]) -> nn.Sequential:
    """Build the way from (B, 3, H, W) to (B, `sizes[-1]`, 4, 4)."""
    first = nn.Conv2d(3, sizes[0], 4, stride=2, padding=1, bias=False)
    layers = [first, nn.LeakyReLU(0.2, inplace=True)]
    for channels_in, channels_out in itertools.pairwise(sizes):
        layers.append(down_block(channels_in, channels_out))
    return nn.Sequential(*layers)


def build_encoder(sizes: list[int], latent_channels: int) -> nn.Sequential:
    """Build the way from (B, 3, H, W) to a latent vector (B, `latent_channels`, 1, 1)."""
    return nn.Sequential(build_pyramid(sizes), nn.Conv2d(sizes[-1], latent_channels, 4, bias=False))


def build_decoder(sizes: list[int], latent_channels: int) -> nn.Sequential:
    """Build the way from (B, `latent_channels`, 1, 1) to a drawing (B, 3, H, W) in [-1, 1]."""
    layers = [up_block(latent_channels, sizes[-1], stride=1)]
    for channels_in, channels_out in itertools.pairwise(reversed(sizes)):
        layers.append(up_block(channels_in, channels_out))
    last = nn.ConvTranspose2d(sizes[0], 3, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(*layers, last, nn.Tanh())


def init_weights(module: nn.Module) -> None:
    """Draw the weights of a layer as DCGAN does, normal with deviation 0.02.

    It is made for `nn.Module.apply`.
    """
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
        """Draw an image in [-1, 1] again.

        Returns:
            The drawing (B, 3, H, W), its z and the drawing's z', both (B, D, 1, 1).
        """
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
        """Judge (B, 3, H, W).

        Returns:
            Logits, (B,), positive for an image, and the last features, (B, C, 4, 4).
        """
        features = self.pyramid(image)
        return self.classifier(features).flatten(), features


class GanomalyModel(nn.Module):
    """The generator, which scores, and the discriminator, which only trains it.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels, a power of two from 8.
    """

    def __init__(self, config: GanomalyConfig, input_size: int) -> None:
        super().__init__()
        sizes = widths(input_size, config.base_channels)
        self.generator = Generator(sizes, config.latent_channels)
        self.discriminator = Discriminator(sizes)
        self.apply(init_weights)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Measure how far the drawing is from the image for the encoders (equation 5, squared).

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
    """Give the losses that the generator shall lower (equations 1 to 3).

    Args:
        image: (B, 3, H, W) in [-1, 1].
        generated: what the generator gives for `image`: drawing, z and z'.
        features: the discriminator's last features of image and drawing, each (B, C, 4, 4).

    Returns:
        ``adversarial``, ``contextual`` and ``encoder``, scalars of at least 0, means over batch and
        values.
    """
    drawing, latent, again = generated
    real, fake = features
    return {
        "adversarial": F.mse_loss(fake.float(), real.float()),
        "contextual": F.l1_loss(drawing.float(), image),
        "encoder": F.mse_loss(again.float(), latent.float()),
    }


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Average the cross entropy of judgements over images and drawings.

    Args:
        real_logits: of images, (B,).
        fake_logits: of drawings, (B,).

    Returns:
        Scalar of at least 0.
    """
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return 0.5 * (real + fake)


class GanomalyTrainer(BaseTrainer):
    """Trains generator and discriminator at once, each on its own loss.

    Both losses are of the weights before the step.
    """

    config: GanomalyConfig
    model: GanomalyModel
    method = METHODS["GanomalyTrainer"]
    _discriminator_loss: Tensor

    def build_model(self) -> GanomalyModel:
        return GanomalyModel(self.config, self.train_config.input_size)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        groups = [
            {"params": self.model.generator.parameters()},
            {"params": self.model.discriminator.parameters()},
        ]
        betas = (config.beta1, config.beta2)
        # Fused: on a CPU Adam then takes a sixth of its time, which was a seventh of a step's.
        return torch.optim.Adam(groups, config.lr, betas=betas, fused=True), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        generator, discriminator = self.losses(batch.image)
        loss = (  # equation 4
            config.adversarial_weight * generator["adversarial"]
            + config.contextual_weight * generator["contextual"]
            + config.encoder_weight * generator["encoder"]
        )

        # Neither loss reaches the other network's weights: the sum's gradient is that of each.
        self.optimize(loss + discriminator)
        self._discriminator_loss = discriminator.detach()

        parts = {"loss": loss, "discriminator": discriminator, **generator}
        return {name: value.detach() for name, value in parts.items()}

    def losses(self, image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Give the losses of both networks, neither of which reaches the other's weights.

        Args:
            image: (B, 3, H, W) in [-1, 1].

        Returns:
            What `generator_losses` gives, and `discriminator_loss`.
        """
        discriminator = self.model.discriminator
        drawing, latent, again = self.model.generator(image)

        # The discriminator learns from a drawing whose history is cut off.
        real_logits, real_features = discriminator(image)
        fake_logits, _ = discriminator(drawing.detach())

        # The generator learns through the discriminator's weights and does not move them.
        discriminator.requires_grad_(False)
        _, fake_features = discriminator(drawing)
        discriminator.requires_grad_(True)

        features = (real_features.detach(), fake_features)
        generator = generator_losses(image, (drawing, latent, again), features)
        return generator, discriminator_loss(real_logits, fake_logits)

    def on_train_end(self) -> None:
        if self._discriminator_loss < _COLLAPSED:
            logger.info(
                "the discriminator's loss fell below %g; its weights are drawn anew", _COLLAPSED
            )
            self.model.discriminator.apply(init_weights)
