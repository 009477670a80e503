"""Where pretrained weights lie, what they are and where they are published. Nothing here downloads; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from adray.errors import InputError, nearest
from adray.files import file_sha256
from adray.settings import get_globals, set_globals

_TORCHVISION = "https://download.pytorch.org/models/"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"
_DEIT = "https://dl.fbaipublicfiles.com/deit/"
_OPEN_CLIP = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/"
_ANOMALIB = "https://github.com/open-edge-platform/anomalib/releases/download/"


@dataclass(frozen=True)
class WeightFile:
    """A published weight file, or a folder of them where its name ends in a slash.

    Attributes:
        paths: accepted places under `backbone_dir`, the first one is named in messages.
        megabytes: approximate size.
        source: where it is published.
        sha256: the published hash or its published beginning; empty where none is known.
    """

    paths: tuple[str, ...]
    megabytes: int
    source: str
    sha256: str = ""


def _dinov2(size: str, megabytes: int) -> WeightFile:
    """The row of a DINOv2 transformer: with registers, which the papers use, before without, in whichever layout."""
    folder, short = f"dinov2_vit_{size}_14", f"dinov2_vit{size[0]}14"
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
    return WeightFile(places, megabytes, f"{_DINOV2}{short}/{short}_reg4_pretrain.pth")


BACKBONE_WEIGHT_FILES: dict[str, WeightFile] = {
    "resnet18": WeightFile(
        ("resnet18.pth", "resnet18-f37072fd.pth"),
        45,
        _TORCHVISION + "resnet18-f37072fd.pth",
        "f37072fd",
    ),
    "resnet50": WeightFile(
        ("resnet50.pth", "resnet50-0676ba61.pth"),
        98,
        _TORCHVISION + "resnet50-0676ba61.pth",
        "0676ba61",
    ),
    "wide_resnet50_2": WeightFile(
        (
            "wide_resnet50_2.pth",
            "wide_resnet50_2-95faca4d.pth",
            "wide_resnet50_2.tv_in1k/model.safetensors",
        ),
        132,
        _TORCHVISION + "wide_resnet50_2-95faca4d.pth",
        "95faca4d",
    ),
    "efficientnet_b5": WeightFile(
        ("efficientnet_b5.pth",),
        117,
        _TORCHVISION + "efficientnet_b5_lukemelas-1a07897c.pth",
        "1a07897c",
    ),
    "cait_m48_448": WeightFile(
        ("cait_m48_448.pth", "M48_448.pth", "cait_m48_448.fb_dist_in1k/model.safetensors"),
        1430,
        _DEIT + "M48_448.pth",
    ),
    "cait_s24_224": WeightFile(
        ("cait_s24_224.pth", "S24_224.pth", "cait_s24_224.fb_dist_in1k/model.safetensors"),
        188,
        _DEIT + "S24_224.pth",
    ),
    "cait_xxs24_224": WeightFile(
        ("cait_xxs24_224.pth", "XXS24_224.pth", "cait_xxs24_224.fb_dist_in1k/model.safetensors"),
        48,
        _DEIT + "XXS24_224.pth",
    ),
    "deit_base_distilled_patch16_384": WeightFile(
        (
            "deit_base_distilled_patch16_384.pth",
            "deit_base_distilled_patch16_384-d0272ac0.pth",
            "deit_base_distilled_patch16_384.fb_in1k/model.safetensors",
        ),
        351,
        _DEIT + "deit_base_distilled_patch16_384-d0272ac0.pth",
        "d0272ac0",
    ),
    "deit_tiny_distilled_patch16_224": WeightFile(
        (
            "deit_tiny_distilled_patch16_224.pth",
            "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
            "deit_tiny_distilled_patch16_224.fb_in1k/model.safetensors",
        ),
        24,
        _DEIT + "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        "b40b3cf7",
    ),
    "dinov2_vit_small_14": _dinov2("small", 88),
    "dinov2_vit_base_14": _dinov2("base", 346),
    "dinov2_vit_large_14": _dinov2("large", 1217),
    "efficientad_teacher_small": WeightFile(
        ("efficientad/pretrained_teacher_small.pth", "efficientad/teacher_small.pth"),
        11,
        _ANOMALIB + "efficientad_pretrained_weights/efficientad_pretrained_weights.zip",
    ),
    "efficientad_teacher_medium": WeightFile(
        ("efficientad/pretrained_teacher_medium.pth", "efficientad/teacher_medium.pth"),
        32,
        _ANOMALIB + "efficientad_pretrained_weights/efficientad_pretrained_weights.zip",
    ),
    "dsr_vq_model": WeightFile(
        ("dsr/vq_model_pretrained_128_4096.pckl",),
        16,
        _ANOMALIB + "dsr_pretrained_weights/dsr_vq_model_pretrained.zip",
    ),
    "clip_vit_b_16_plus_240": WeightFile(
        (
            "winclip/vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
            "winclip/open_clip_pytorch_model.bin",
            "winclip/open_clip_model.safetensors",
        ),
        833,
        _OPEN_CLIP + "vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
        "8fb26589",
    ),
    "lpips_alexnet": WeightFile(
        ("lpips/alexnet-owt-7be5be79.pth",),
        233,
        _TORCHVISION + "alexnet-owt-7be5be79.pth",
        "7be5be79",
    ),
    "lpips_alex": WeightFile(
        ("lpips/alex.pth",),
        1,
        "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/alex.pth)",
    ),
    "vlm/": WeightFile(
        ("vlm",),
        4000,
        "https://huggingface.co (all files of any chat model that sees images, weights in safetensors)",
    ),
}
"""Every weight file the program knows, by the name that model configurations use. A name that ends in a slash is that
of a model's folder, for which any other folder may be named: ``"qwen/"`` is the folder ``qwen`` in `backbone_dir`."""


def set_backbone_dir(path: str | Path) -> None:
    """Change the folder of pretrained weights, as `set_globals(backbone_dir=...)` does."""
    set_globals(backbone_dir=path)


def get_backbone_dir() -> str:
    """The folder of pretrained weights."""
    return get_globals().backbone_dir


def find_weights(backbone: str, backbone_dir: str | Path) -> Path | None:
    """The weight file or folder of `backbone` under `backbone_dir`, or None where it is missing."""
    places = (Path(backbone_dir) / place for place in _row(backbone).paths)
    is_there = Path.is_dir if backbone.endswith("/") else Path.is_file
    return next((place for place in places if is_there(place)), None)


def missing_weights(backbone: str, backbone_dir: str | Path) -> str:
    """The sentence that says which file is missing, how large it is and where it is published."""
    row = _row(backbone)
    known = f", sha256 {row.sha256}..." if row.sha256 else ""
    return (
        f"missing weights of {backbone!r}: copy {row.source} ({row.megabytes} MB{known}) "
        f"to {Path(backbone_dir) / row.paths[0]}"
    )


def foreign_weights(backbone: str, path: Path) -> str:
    """A note where a weight file is not the published one, which is allowed: people have weights of their own."""
    row, found = _row(backbone), file_sha256(path)
    published = row.sha256
    same_kind = (
        path.suffix == Path(row.source).suffix
    )  # the same weights in another format have another hash
    if not published or not same_kind or found.startswith(published):
        return ""
    return f"weights of {backbone!r} are not the published ones: sha256 {found[:8]}..., published {published[:8]}..."


def get_backbone_path(backbone: str) -> Path:
    """The weight file of `backbone` in the folder of `get_backbone_dir()`.

    Raises:
        InputError: for an unknown name, and for a missing file with its expected path, size and source.
    """
    path = find_weights(backbone, get_backbone_dir())
    if path is None:
        raise InputError(missing_weights(backbone, get_backbone_dir()))
    return path


def _row(backbone: str) -> WeightFile:
    if backbone.endswith("/"):
        return replace(BACKBONE_WEIGHT_FILES["vlm/"], paths=(backbone.rstrip("/"),))
    if backbone not in BACKBONE_WEIGHT_FILES:
        raise InputError(
            f"unknown backbone {backbone!r}; {nearest(backbone, BACKBONE_WEIGHT_FILES)}"
        )
    return BACKBONE_WEIGHT_FILES[backbone]
