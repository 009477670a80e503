"""Methods on transformers and patch banks beside anomalib's ports, with the same weights on the same images."""

from __future__ import annotations

from unittest import mock

import pytest
import timm
import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.dinov2_extractor import Dinov2Extractor
from adray.components.moments import Moments
from adray.components.streamed_coreset import StreamedCoreset
from adray.config import TrainConfig
from adray.methods.anomalydino import AnomalydinoConfig
from adray.methods.generalad import GeneraladConfig
from adray.methods.glass import GlassConfig
from adray.methods.inpformer import InpformerConfig
from adray.methods.l2bt import L2btConfig
from adray.methods.mhpatchcore import MhpatchcoreConfig
from adray.methods.rad import RadConfig
from adray.models.anomalydino import AnomalydinoModel, foreground
from adray.models.generalad import GeneraladModel, two_sided_loss
from adray.models.glass import GlassTrainer
from adray.models.inpformer import InpformerModel, coherence_loss, soft_mining_loss
from adray.models.l2bt import L2btModel, l2bt_loss
from adray.models.mhpatchcore import MhpatchcoreModel
from adray.models.rad import RadModel

pytestmark = pytest.mark.slow

SIZE = 112
INSIDE = slice(16, -16)
"""Pixels that the smoothing reaches from inside only; at the border it is another one."""
EIGHT = tuple(f"blocks.{number}" for number in range(2, 10))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Their networks are random, and what their import changes of timm is put back."""
    build = timm.create_model

    def untrained(*arguments, **options):
        return build(*arguments, **{**options, "pretrained": False})

    monkeypatch.setattr(timm, "create_model", untrained)
    resample = vision_transformer.resample_abs_pos_embed
    monkeypatch.setattr(vision_transformer, "resample_abs_pos_embed", resample)


def port(name: str):
    """Give the module of anomalib's model, where it is installed."""
    return pytest.importorskip(f"anomalib.models.image.{name}.torch_model")


@torch.no_grad()
def shaken(net: nn.Module, spread: float = 0.05) -> None:
    """Bring a network away from its initial values, of which some are the same for all inputs."""
    for parameter in net.parameters():
        parameter.add_(spread * torch.randn_like(parameter))
    # Both programs resample positions otherwise, which shows nowhere where all are the same.
    if hasattr(net, "pos_embed"):
        net.pos_embed.copy_(net.pos_embed[:, -1:].expand_as(net.pos_embed))


@torch.no_grad()
def same_transformer(theirs: nn.Module, ours: Dinov2Extractor, norm: nn.Module | None) -> None:
    """Copy their whole transformer into our blocks and last norm, whose tokens stay unrounded."""
    state = theirs.state_dict()
    ours.net.load_state_dict({name: state[name] for name in ours.net.state_dict()})
    ours.dtype = torch.float32
    if norm is not None:
        norm.load_state_dict(theirs.norm.state_dict())


def copied(pairs: list[tuple[nn.Module, nn.Module]]) -> list[tuple[Tensor, Tensor]]:
    """Copy their layers into ours, and pair the parameters of both."""
    parameters = []
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict())
        parameters += list(zip(theirs.parameters(), ours.parameters(), strict=True))
    return parameters


def assert_same_gradients(pairs: list[tuple[Tensor, Tensor]]) -> None:
    assert any(float(theirs.grad.abs().max()) > 0 for theirs, _ in pairs)
    for theirs, ours in pairs:
        largest = float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-4 * largest + 1e-9)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Give the largest difference as a part of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def both_anomalydinos():
    """The port and ours, which remember the same three images."""
    theirs = port("anomaly_dino").AnomalyDINOModel(encoder_name="vit_small_patch14_dinov2")
    net = theirs.feature_encoder.feature_extractor
    shaken(net)
    config = AnomalydinoConfig("dinov2_vits14", "blocks.11", "random")
    ours = AnomalydinoModel(config).eval()
    same_transformer(net, ours.extractor, ours.norm)

    train = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        theirs.train()(train)
        theirs.fit()
        (patches,) = ours.features(train)
        ours.remember(F.normalize(patches.flatten(0, 1), dim=1))
    return theirs.eval(), ours


@torch.no_grad()
def test_anomalydinos_bank_distances_and_scores_are_the_ports(both_anomalydinos):
    theirs, ours = both_anomalydinos
    assert relative_error(ours.memory_bank, theirs.memory_bank) < 1e-4
    image = torch.randn(4, 3, SIZE, SIZE)
    # Their map is enlarged by repetition, so that before it is smoothed it is the grid.
    seen = []
    theirs.anomaly_map_generator.register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0])
    )
    prediction = theirs(image)
    distance = ours.distance(ours.features(image)[0])
    assert float(distance.max()) > 1e-3
    torch.testing.assert_close(distance, seen[0].flatten(1), rtol=0, atol=1e-4)
    found = ours(image).pred_score
    torch.testing.assert_close(found, prediction.pred_score[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_anomalydinos_mask_in_the_plane_is_the_ports(sign):
    model = port("anomaly_dino").AnomalyDINOModel
    patches = torch.randn(3, 120, 16)
    for number, (top, left) in enumerate(((3, 3), (4, 2), (2, 4))):
        plane = patches[number].view(12, 10, 16)
        plane[top : top + 5, left : left + 4, 5] += 60
    patches *= sign
    expected = model.compute_background_masks(patches.numpy(), (12, 10))
    assert 0 < expected.sum() < expected.size
    assert (foreground(patches, (12, 10), 10.0).numpy() == expected).all()


@pytest.fixture
def both_inpformers():
    """The port and ours with the same transformer and the same restoring network."""
    theirs = port("inp_former").InpFormerModel(
        "vit_small_patch14_reg4_dinov2", remove_class_token=True
    )
    shaken(theirs.encoder.feature_extractor)
    ours = InpformerModel(InpformerConfig("dinov2_vits14_reg4", EIGHT, "random"))
    same_transformer(theirs.encoder.feature_extractor, ours.extractor, None)
    parts = (theirs.aggregation, theirs.bottleneck, theirs.decoder)
    given = [*theirs.prototype_token, *(p for part in parts for p in part.parameters())]
    mine = []
    for name, parameter in ours.restorer.named_parameters():
        # The port's blocks have no biases there; the authors' have, and they start at zero.
        if name.endswith("bias") and ".mlp." in name:
            nn.init.zeros_(parameter)
        else:
            mine.append(parameter)

    pairs = list(zip(given, mine, strict=True))
    with torch.no_grad():
        for one, own in pairs:
            one.add_(0.02 * torch.randn_like(one))
            own.copy_(one)
    return theirs, ours, pairs


def test_inpformers_loss_and_gradients_are_the_ports(both_inpformers):
    theirs, ours, pairs = both_inpformers
    image = torch.randn(2, 3, SIZE, SIZE)
    expected = theirs.train()(image)
    features = ours.features(image)
    restored, prototypes, patches = ours.restore(features)
    loss = soft_mining_loss(features, restored, 3.0) + 0.2 * coherence_loss(patches, prototypes)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(pairs)


@torch.no_grad()
def test_inpformers_map_is_the_ports(both_inpformers):
    theirs, ours, _ = both_inpformers
    image = torch.randn(2, 3, SIZE, SIZE)
    theirs.eval().gaussian_blur = nn.Identity()  # the port smooths at the size of the image
    expected = theirs(image).anomaly_map
    assert relative_error(ours.eval()(image).anomaly_map, expected) < 1e-5


@torch.no_grad()
def test_rads_map_and_score_are_the_ports():
    layers = ("blocks.1", "blocks.3")
    theirs = port("rad").RadModel("vit_small_patch14_dinov2", layers=[1, 3], k_image=3)
    net = theirs.feature_extractor.feature_extractor
    shaken(net)
    ours = RadModel(RadConfig("dinov2_vits14", layers, "random", num_images=3)).eval()
    same_transformer(net, ours.extractor, ours.norm)

    train = torch.randn(6, 3, SIZE, SIZE)
    theirs.train()(train)
    theirs.build_memory_bank()
    *patches, class_token = ours.features(train)
    ours.remember(torch.stack(patches), class_token)
    # Ours is kept in half precision, which would be a difference of its own.
    theirs.patch_banks = theirs.patch_banks.half().float()

    image = torch.randn(2, 3, SIZE, SIZE)
    expected = theirs.eval()(image)
    found = ours(image)
    assert float(expected.anomaly_map.max()) > 1e-3
    inside = (..., slice(2, -2), slice(2, -2))
    assert relative_error(found.anomaly_map[inside], expected.anomaly_map[inside]) < 1e-3
    assert relative_error(found.pred_score, expected.pred_score) < 1e-3


@pytest.fixture
def both_generalads():
    """The port and ours with the same transformer and the same discriminator."""
    theirs = port("general_ad").GeneralADModel(
        "vit_small_patch14_dinov2",
        layers=(12,),
        hidden_dim=64,
        dsc_dropout=0.0,
        image_size=(SIZE, SIZE),
        pre_trained=False,
    )
    net = theirs.feature_extractor.pretrained_model
    shaken(net)
    shaken(theirs.discriminator)
    config = GeneraladConfig(
        "dinov2_vits14", "blocks.11", "random", heads=4, hidden=64, dropout=0.0
    )
    ours = GeneraladModel(config, SIZE)
    # Built for this size, it holds fewer positions, all of which are the same.
    with torch.no_grad():
        whole = ours.extractor.net.state_dict()["pos_embed"]
        positions = net.pos_embed[:, -1:].expand_as(whole)
        state = {**net.state_dict(), "pos_embed": positions}
        ours.extractor.net.load_state_dict(
            {name: state[name] for name in ours.extractor.net.state_dict()}
        )
    ours.extractor.dtype = torch.float32
    ours.norm.load_state_dict(net.norm.state_dict())

    block = theirs.discriminator.transformer_encoder[0]
    mine = ours.discriminator
    pairs = [
        (theirs.discriminator.positional_encodings, mine.position),
        (block.attn.in_proj_weight, mine.block.qkv.weight),
        (block.attn.in_proj_bias, mine.block.qkv.bias),
    ]
    for given, own in pairs:
        own.data.copy_(given.data)
    pairs += copied(
        [
            (block.attn.out_proj, mine.block.proj),
            (block.layer_norm, mine.block.norm),
            (block.linear[0], mine.block.mlp[0]),
            (block.linear[3], mine.block.mlp[3]),
            (theirs.discriminator.output_layer, mine.projection),
        ]
    )
    return theirs, ours, pairs


@torch.no_grad()
def test_generalads_features_and_scores_are_the_ports(both_generalads):
    theirs, ours, _ = both_generalads
    image = torch.randn(3, 3, SIZE, SIZE)
    features, _ = theirs.extract_features(image)
    torch.testing.assert_close(ours.features(image)[0], features, rtol=1e-4, atol=1e-4)
    expected, enlarged = theirs.eval().score_features(features)
    found = ours.eval()(image)
    assert relative_error(found.pred_score, expected) < 1e-5
    # The port leaves the smoothing out, which is linear.
    smooth = ours.blur(enlarged)
    assert relative_error(found.anomaly_map, smooth) < 1e-4


def test_generalads_loss_and_gradients_are_the_ports(both_generalads):
    theirs, ours, pairs = both_generalads
    patches = torch.randn(3, 64, 384)
    noise = 0.25 * torch.randn_like(patches)
    part = torch.rand(3, 64) > 0.4
    with mock.patch.multiple(
        theirs,
        extract_features=lambda _images: (patches, None),
        _add_noise_all=lambda found: (found + noise, torch.ones(found.shape[:2])),
        _add_random_noise=lambda found: (found + noise * part.unsqueeze(2), part),
    ):
        expected = theirs.compute_loss(torch.zeros(1))
    judge = ours.discriminator
    everywhere = torch.ones_like(part)
    loss = two_sided_loss(judge(patches), ~everywhere)
    loss = loss + two_sided_loss(judge(patches + noise), everywhere)
    loss = loss + two_sided_loss(judge(patches + noise * part.unsqueeze(2)), part)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(pairs)


@pytest.fixture
def both_l2bts(monkeypatch):
    """The port and ours with the same teacher, a small one, and the same students."""
    module = port("l2bt")
    build = timm.create_model

    def small(name, **options):
        return build(name.replace("base", "small"), **options)

    with monkeypatch.context() as patched:
        patched.setattr(timm, "create_model", small)
        theirs = module.L2BTModel(layers=(2, 4))
    net = theirs.teacher.fe.feature_extractor
    shaken(net)
    shaken(theirs.forward_net)
    shaken(theirs.backward_net)
    config = L2btConfig("dinov2_vits14_reg4", ("blocks.2", "blocks.4"), "random")
    ours = L2btModel(config)
    same_transformer(net, ours.extractor, ours.norm)
    layers = []
    for student, mine in (
        (theirs.forward_net, ours.forward_student),
        (theirs.backward_net, ours.backward_student),
    ):
        layers += [(student.input, mine[0]), (student.projection, mine[2])]
        layers += [(student.output, mine[4])]
    return theirs, ours, copied(layers)


def test_l2bts_loss_and_gradients_are_the_ports(both_l2bts):
    theirs, ours, pairs = both_l2bts
    image = torch.randn(2, 3, SIZE, SIZE)
    expected = theirs.train()(image)["loss"]
    features = ours.features(image)
    loss = l2bt_loss(features, ours.predict(features))
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(pairs)


@torch.no_grad()
def test_l2bts_map_and_score_are_the_ports(both_l2bts):
    theirs, ours, _ = both_l2bts
    image = torch.randn(2, 3, SIZE, SIZE)
    expected = theirs.eval()(image)
    found = ours.eval()(image)
    assert relative_error(found.anomaly_map, expected.anomaly_map) < 1e-4
    assert relative_error(found.pred_score, expected.pred_score.flatten()) < 1e-4


@torch.no_grad()
def test_mhpatchcores_distances_and_scores_are_the_ports():
    """With summaries as large as the bank, and patches described as ours are."""
    theirs = port("mh_patchcore").MHPatchcoreModel(
        "resnet18", memory_bank_size=60, local_coreset_size=60, pre_trained=False
    )
    config = MhpatchcoreConfig("resnet18", weights="random", bank_size=60)
    ours = MhpatchcoreModel(config, SIZE).eval()
    theirs.feature_extractor.eval()
    batches = [torch.randn(4, 3, SIZE, SIZE) for _ in range(5)]
    batches = [ours.embed(ours.features(batch)).flatten(0, 1) for batch in batches]
    test = torch.randn(3, 3, SIZE, SIZE)
    features = ours.features(test)

    for batch in batches:
        theirs.pca.update(batch)
    theirs.pca.finalize()
    for batch in batches:
        theirs.covariance.update(theirs.pca(batch))
    theirs.covariance.finalize()
    for batch in batches:
        theirs.memory_bank.update(theirs.covariance(theirs.pca(batch)).float())
    theirs.memory_bank.finalize()
    theirs.generate_embedding = lambda _features: ours.embed(features).flatten(0, 1)
    expected = theirs.eval()(test)

    moments = Moments.of(batches[0])
    for batch in batches[1:]:
        moments = moments.joined(Moments.of(batch))
    ours.scale_by(moments, config.variance, config.shrinkage)
    coreset = StreamedCoreset(60)
    for batch in batches:
        coreset.add(ours.whiten(batch))
    ours.remember(coreset.coreset())
    found = ours(test, features)

    # The axes of both spaces are turned against each other, and distances are not.
    between = torch.cdist(theirs.memory_bank.bank.double(), theirs.memory_bank.bank.double())
    mine = torch.cdist(ours.memory_bank.double(), ours.memory_bank.double())
    assert relative_error(mine, between) < 1e-3
    assert relative_error(found.pred_score, expected.pred_score) < 1e-3
    inside = (..., INSIDE, INSIDE)
    assert relative_error(found.anomaly_map[inside], expected.anomaly_map[inside]) < 1e-3


class Maps(nn.Module):
    """Gives our backbone's maps by the names that the port asks for."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = [ours]  # in a list, so that its parameters stay its own

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(zip(("layer2", "layer3"), self.ours[0].features(image), strict=True))


@pytest.fixture
def both_glasses():
    """The port and ours with the same backbone, adaptor and discriminator."""
    theirs = port("glass").GlassModel(
        (SIZE, SIZE),
        pretrain_embed_dim=96,
        target_embed_dim=96,
        backbone="resnet18",
        discriminator_hidden=32,
    )
    config = GlassConfig("resnet18", weights="random", width=96, hidden=32)
    trainer = GlassTrainer(config, TrainConfig(img_size=SIZE, batch_size=2))
    ours = trainer.model
    shaken(theirs.projection)
    shaken(theirs.discriminator)
    # Ours has its batch norms folded in, so that the port is given its maps.
    theirs.forward_modules["feature_aggregator"] = Maps(ours)
    block = theirs.discriminator.body.block1
    pairs = copied(
        [
            (theirs.projection.layers[0], ours.adaptor),
            (block[0], ours.discriminator.linear),
            (block[1], ours.discriminator.norm),
            (theirs.discriminator.tail[0], ours.discriminator.projection),
        ]
    )
    return theirs, trainer, pairs


@torch.no_grad()
def test_glasses_patches_maps_and_scores_are_the_ports(both_glasses):
    theirs, trainer, _ = both_glasses
    ours = trainer.model.eval()
    theirs.eval()
    image = torch.randn(3, 3, SIZE, SIZE)
    patches, _ = theirs.generate_embeddings(image, evaluation=True)
    mine = ours.embed(ours.features(image)).flatten(0, 1)
    assert relative_error(mine, patches) < 1e-4
    scores, maps = theirs.calculate_anomaly_scores(image)
    found = ours(image)
    expected = torch.as_tensor(scores).flatten()
    torch.testing.assert_close(found.pred_score.sigmoid(), expected, rtol=1e-4, atol=1e-5)
    maps = torch.stack([torch.as_tensor(one) for one in maps]).view(3, SIZE, SIZE)
    difference = found.anomaly_map[:, 0, INSIDE, INSIDE] - maps[:, INSIDE, INSIDE]
    assert float(difference.abs().max()) < 1e-3


@pytest.mark.parametrize("is_sphere", [False, True])
def test_glasses_loss_is_the_ports_with_the_same_noise_and_so_are_gradients_on_the_manifold(
    both_glasses, is_sphere
):
    theirs, trainer, pairs = both_glasses
    ours = trainer.model
    image = torch.randn(2, 3, SIZE, SIZE)
    painted = image + (torch.rand(2, 1, SIZE, SIZE) > 0.7) * torch.randn_like(image)
    mask = (torch.rand(2, 1, *ours.grid) > 0.6).float()
    center = torch.randn(mask[0].numel(), 96)
    noise = torch.randn(mask.numel(), 96)
    theirs.svd = int(is_sphere)
    theirs.center = center
    trainer.is_sphere = is_sphere
    trainer.center = center

    deviation = theirs._img_std
    raw = painted * deviation + theirs._img_mean
    theirs.augmentor.forward = lambda _image: (raw, mask)
    theirs.train()
    with mock.patch.object(torch, "randn_like", return_value=noise):
        expected = theirs(image)[-1]
    ours.train()
    with torch.no_grad():
        clean, changed = ours.features(image), ours.features(painted)
    normal = ours.adapt(clean).flatten(0, 1)
    local = ours.adapt(changed).flatten(0, 1)
    loss = trainer.losses(normal, local, mask.flatten(), theirs.gaussian_noise_std * noise)["loss"]
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    # The port lets a gradient through the radius of the sphere, which the authors and ours do not.
    if is_sphere:
        return
    largest = max(float(given.grad.abs().max()) for given, _ in pairs)
    for given, mine in pairs:
        torch.testing.assert_close(mine.grad, given.grad, rtol=0, atol=1e-4 * largest)
