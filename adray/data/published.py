"""The published data sets that the layouts read: where each is, whose rules it has, how it looks.

Nothing here downloads. What is not known here for sure is said to be so.
"""

from __future__ import annotations

from dataclasses import dataclass

from adray.errors import InputError
from adray.language.catalogue import Catalogue
from adray.language.columns import display_width, pad
from adray.language.sentence import Sentence, nearest_of

UNKNOWN = "not known here"
"""Stands for a fact that nobody has checked."""

_NON_COMMERCIAL = "CC BY-NC-SA 4.0 (no commercial use)"
_AUROCS = "image AUROC, pixel AUROC"
_AUPRO = f"{_AUROCS}, AUPRO up to a false positive rate of 0.3"

_TRAIN_TEST = """\
<category>/train/good/000.png
<category>/test/good/000.png
<category>/test/<defect>/000.png
<category>/ground_truth/<defect>/{mask}"""


@dataclass(frozen=True)
class PublishedSet:
    """A published data set."""

    name: str
    """As the commands take it."""
    title: str
    """As its authors call it."""
    source: str
    """Where it is published."""
    licence: str
    """What may be done with it."""
    size: str
    """Number of images, or of what else is counted."""
    categories: str
    """Number of its categories, with their names where these are few."""
    reader: str
    """Row of `adray.data.readers.DATASETS` that reads it."""
    tree: str
    """The files that are expected, a line each."""
    metrics: str
    """Figures that it is judged by."""
    note: str = ""
    """What else a user must know."""


_SETS = (
    PublishedSet(
        "mvtec",
        "MVTec AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        _NON_COMMERCIAL,
        "5354 images",
        "15",
        "mvtec",
        _TRAIN_TEST.format(mask="000_mask.png"),
        _AUPRO,
    ),
    PublishedSet(
        "visa",
        "VisA",
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0",
        "10821 images, of which 1200 are anomalous",
        "12",
        "visa",
        """\
<category>/Data/Images/Normal/0000.JPG
<category>/Data/Images/Anomaly/000.JPG
<category>/Data/Masks/Anomaly/000.png
<category>/image_anno.csv
split_csv/1cls.csv""",
        _AUPRO,
    ),
    PublishedSet(
        "btad",
        "BTAD",
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        UNKNOWN,
        "2540 images",
        "3 (01, 02, 03)",
        "btad",
        """\
01/train/ok/0000.bmp
01/test/ok/0000.bmp
01/test/ko/0000.bmp
01/ground_truth/ko/0000.png""",
        _AUPRO,
        'In YAML write a category in quotes: "01".',
    ),
    PublishedSet(
        "mvtec_ad_2",
        "MVTec AD 2",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        _NON_COMMERCIAL,
        "8004 images: 2528 train, 302 validation, 1084 public test, 4090 private test",
        "8 (can, fabric, fruit_jelly, rice, sheet_metal, vial, wallplugs, walnuts)",
        "mvtec",
        """\
<category>/train/good/000_regular.png
<category>/validation/good/000_regular.png
<category>/test_public/good/000_regular.png
<category>/test_public/bad/000_regular.png
<category>/test_public/ground_truth/bad/000_regular_mask.png
<category>/test_private/000_regular.png
<category>/test_private_mixed/000_mixed.png""",
        "AUPRO up to a false positive rate of 0.05, SegF1, ClassF1",
        "The images in validation are held out. The private ones have no published labels.",
    ),
    PublishedSet(
        "mvtec_loco",
        "MVTec LOCO AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        _NON_COMMERCIAL,
        "3651 images: 1778 train, 305 validation, 1568 test",
        "5 (breakfast_box, juice_bottle, pushpins, screw_bag, splicing_connectors)",
        "mvtec",
        """\
<category>/train/good/000.png
<category>/validation/good/000.png
<category>/test/good/000.png
<category>/test/logical_anomalies/000.png
<category>/test/structural_anomalies/000.png
<category>/ground_truth/logical_anomalies/000/000.png
<category>/ground_truth/structural_anomalies/000/000.png
<category>/defects_config.json""",
        "sPRO up to a false positive rate of 0.05, mean of logical and structural image AUROC",
        "The images in validation are held out.",
    ),
    PublishedSet(
        "real_iad",
        "Real-IAD",
        "https://realiad4ad.github.io/Real-IAD/",
        _NON_COMMERCIAL,
        "151050 images, of which 51329 are anomalous",
        "30",
        "json",
        """\
realiad_1024/<category>/OK/S0001/<category>_0001_OK_C1_<time>.jpg
realiad_1024/<category>/NG/<defect>/S0002/<category>_0002_NG_C1_<time>.jpg
realiad_1024/<category>/NG/<defect>/S0002/<category>_0002_NG_C1_<time>.png
realiad_jsons/realiad_jsons/<category>.json
realiad_jsons/realiad_jsons_sv/<category>.json
realiad_jsons/realiad_jsons_fuiad_0.1/<category>.json""",
        f"{_AUPRO}, image AUROC per object (maximum of its five views)",
        "variant: sv takes one view, variant: fuiad_0.1 a training set with defects in it.",
    ),
    PublishedSet(
        "real_iad_d3",
        "Real-IAD D3",
        "https://realiad4ad.github.io/",
        UNKNOWN,
        UNKNOWN,
        "20",
        "json",
        """\
realiad_d3_jsons/<category>.json
realiad_d3_raw/<category>/<image_path of the list>""",
        _AUPRO,
        "The colour images are read, not the depth.",
    ),
    PublishedSet(
        "real_iad_variety",
        "Real-IAD Variety",
        "https://realiad4ad.github.io/",
        UNKNOWN,
        UNKNOWN,
        "160",
        "json",
        """\
splits/<category>.json
<category>/<image_path of the list>""",
        _AUPRO,
    ),
    PublishedSet(
        "mpdd",
        "MPDD",
        "https://github.com/stepanje/MPDD",
        _NON_COMMERCIAL,
        "1346 images",
        "6 (bracket_black, bracket_brown, bracket_white, connector, metal_plate, tubes)",
        "mvtec",
        _TRAIN_TEST.format(mask="000_mask.png"),
        _AUPRO,
    ),
    PublishedSet(
        "dtd_synthetic",
        "DTD-Synthetic",
        "with Aota et al., Zero-shot versus many-shot, WACV 2023",
        UNKNOWN,
        UNKNOWN,
        "12 (Woven_001 and others)",
        "mvtec",
        _TRAIN_TEST.format(mask="000_mask.png"),
        _AUPRO,
    ),
    PublishedSet(
        "goodsad",
        "GoodsAD",
        "https://github.com/jianzhang96/GoodsAD",
        UNKNOWN,
        "6124 images, of which 1660 are anomalous",
        "6",
        "mvtec",
        _TRAIN_TEST.format(mask="000.png").replace("/000.png\n", "/000.jpg\n"),
        _AUPRO,
    ),
    PublishedSet(
        "vad",
        "VAD (Valeo)",
        "https://github.com/abc-125/vad",
        _NON_COMMERCIAL,
        "5000 images: 2000 good and 1000 bad train, 1000 good and 1000 bad test",
        "1",
        "mvtec",
        """\
vad/train/good/0000.png
vad/train/bad/0000.png
vad/test/good/0000.png
vad/test/bad/0000.png
vad/test/bad_unseen_defects/0000.png""",
        "image AUROC",
        "There are no masks. The bad training images are for supervised models alone.",
    ),
    PublishedSet(
        "aebad_s",
        "AeBAD-S",
        "https://github.com/zhangzilongc/MMR",
        "CC BY 4.0",
        UNKNOWN,
        "1 (AeBAD_S)",
        "mvtec",
        """\
AeBAD_S/train/good/<background, illumination or view>/000.png
AeBAD_S/test/good/<same, background, illumination or view>/000.png
AeBAD_S/test/<defect>/<same, background, illumination or view>/000.png
AeBAD_S/ground_truth/<defect>/<same, background, illumination or view>/000.png""",
        "image AUROC and AUPRO per shift of the scene, which is the group",
    ),
    PublishedSet(
        "kolektorsdd",
        "KolektorSDD",
        "https://www.vicos.si/resources/kolektorsdd/",
        _NON_COMMERCIAL,
        "399 images, of which 52 are defective",
        "1",
        "pairs",
        """\
kos01/Part0.jpg
kos01/Part0_label.bmp""",
        "average precision of images",
        "It has no split: the normal images are split 80/20 by seed.",
    ),
    PublishedSet(
        "kolektorsdd2",
        "KolektorSDD2",
        "https://www.vicos.si/resources/kolektorsdd2/",
        _NON_COMMERCIAL,
        "3335 images, of which 356 are defective",
        "1",
        "pairs",
        """\
train/10000.png
train/10000_GT.png
test/20000.png
test/20000_GT.png""",
        "average precision of images",
        "The defective training images are for supervised models alone.",
    ),
    PublishedSet(
        "dagm",
        "DAGM 2007",
        "https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection",
        UNKNOWN,
        "16100 images",
        "10 (Class1 to Class10)",
        "classes",
        """\
Class1/Train/0576.PNG
Class1/Train/Label/0576_label.PNG
Class1/Test/0001.PNG
Class1/Test/Label/0001_label.PNG""",
        _AUROCS,
        "The masks are rough ellipses. Defective training images are for supervised models alone.",
    ),
    PublishedSet(
        "rsdd",
        "RSDD (rail surfaces)",
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        "mvtec",
        _TRAIN_TEST.format(mask="000.png").replace("/000.png\n", "/000.bmp\n"),
        _AUROCS,
    ),
    PublishedSet(
        "autovi",
        "AutoVI",
        "https://doi.org/10.5281/zenodo.10459003",
        _NON_COMMERCIAL,
        f"about 4 GB, number of images {UNKNOWN}",
        "6 (engine_wiring, pipe_clip, pipe_staple, tank_screw, underbody_pipes, underbody_screw)",
        "mvtec",
        _TRAIN_TEST.format(mask="000/0000.png") + "\n<category>/defects_config.json",
        "sPRO of all defects of a category together, up to false positive rates of 0.01 to 1",
        "Its own evaluation takes maps as PNG of 400x400 (engine_wiring, pipe_clip, pipe_staple) "
        "or 1000x750.",
    ),
    PublishedSet(
        "manta",
        "MANTA",
        "https://grainnet.github.io/MANTA",
        UNKNOWN,
        UNKNOWN,
        "38 in folders such as agriculture and mechanics",
        "nested",
        """\
<domain>/<category>/train/good/000.png
<domain>/<category>/test/good/000.png
<domain>/<category>/test/<defect>/000.png
<domain>/<category>/ground_truth/<defect>/000.png""",
        _AUROCS,
        "The five views of an object lie side by side in one image. Its lists for supervised "
        "training (sup_cropped/<category>.json) are not read.",
    ),
    PublishedSet(
        "bmad",
        "BMAD",
        "https://github.com/DorisBao/BMAD",
        "that of each of its sources",
        UNKNOWN,
        "6 medical sets, of which 3 have masks",
        "mvtec",
        """\
<category>/train/good/img/00003_60.png
<category>/valid/good/img/00025_99.png
<category>/valid/Ungood/img/00124_60.png
<category>/valid/Ungood/label/00124_60.png
<category>/test/good/img/00000_96.png
<category>/test/Ungood/img/00002_60.png
<category>/test/Ungood/label/00002_60.png""",
        _AUPRO,
        "The good images in valid are held out, the others there are not used.",
    ),
    PublishedSet(
        "m2ad",
        "M2AD",
        "with Cao et al., Visual anomaly detection under complex view-illumination interplay, 2025",
        UNKNOWN,
        "119880 images: 999 objects, 12 views, 10 lights",
        "10",
        "m2ad",
        """\
<category>/Good/<object>/V000_L00.png
<category>/NG/<object>/V000_L00.png
<category>/GT/<object>/V000_mask.png""",
        "image AUROC per object and per image",
        "60 % of the good objects train, chosen by seed: not those of the authors' own list.",
    ),
    PublishedSet(
        "robustad",
        "RobustAD",
        "https://huggingface.co/datasets/AmazonScience/RobustAD",
        "CC BY 4.0",
        UNKNOWN,
        "3 (MetalParts, PCB, PiledBags)",
        "robustad",
        """\
PCB/pcb_data_dir_train/metadata.jsonl
PCB/pcb_data_dir_test0/metadata.jsonl
PCB/pcb_data_dir_test5/metadata.jsonl""",
        "image AUROC per test, which is the group",
        "test0 is as the training, each of the others changes one thing.",
    ),
    PublishedSet(
        "kaputt",
        "Kaputt",
        "https://www.kaputt-dataset.com",
        "CC BY-NC-ND 4.0 (no commercial use, no changed copies)",
        "more than 230000 images of 48000 objects, of which 29000 are defective",
        "1",
        "kaputt",
        """\
datasets/query-train.parquet
datasets/query-validation.parquet
datasets/query-test.parquet
query-crop/data/train/query-data/crop/<capture_id>.jpg""",
        "average precision and AUROC of images",
        "Its masks show the parcel and not the damage, so none is read; references are not read.",
    ),
    PublishedSet(
        "eyecandies",
        "Eyecandies",
        "https://eyecan-ai.github.io/eyecandies/",
        UNKNOWN,
        "15500 scenes: 10000 train, 1000 validation, 500 public test, 4000 private test",
        "10",
        "eyecandies",
        """\
<category>/train/data/000_image_0.png
<category>/val/data/000_image_0.png
<category>/test_public/data/00_image_0.png
<category>/test_public/data/00_mask.png""",
        _AUROCS,
        "One of the six lights is read, chosen by variant: 0 to 5; depth is not.",
    ),
)

PUBLISHED = {published.name: published for published in _SETS}
"""The published sets by their names."""


def describe_published(name: str, say: Catalogue) -> str:
    """Write what there is to know of a published set, several lines.

    Raises:
        InputError: for a name that is not in `PUBLISHED`, with the nearest.
    """
    if name not in PUBLISHED:
        said = Sentence.of(
            "published unknown", name=repr(name), nearest=nearest_of(name, PUBLISHED)
        )
        raise InputError(said)

    about = PUBLISHED[name]
    rows = [
        ("at", about.source),
        ("licence", about.licence),
        ("size", about.size),
        ("categories", about.categories),
        ("metrics", about.metrics),
    ]
    if about.note:
        rows.append(("note", about.note))

    heads = [say(f"published {key}") for key, _ in rows]
    width = max(map(display_width, heads))
    lines = [about.title]
    for head, (_, text) in zip(heads, rows, strict=True):
        lines.append(f"  {pad(head, width)}  {say.word(text)}")
    lines.append(f"  {say('published tree', name=about.name, layout=about.reader)}")
    lines += [f"    {line}" for line in about.tree.splitlines()]
    return "\n".join(lines)
