"""Hyperparameters of VLM-AD, and what is known before its network is loaded.

The method itself: `adray.models.vlm_ad`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adray.config import TrainConfig, check_file_name
from adray.errors import InputError
from adray.fields import check_fields, choice, option
from adray.language.sentence import Sentence
from adray.method import Method

QUESTION = (
    "Does it have a defect, such as damage, contamination, or a wrong or missing part? "
    "Answer with yes or no first, then name the defect and its place in a few words."
)


@dataclass(frozen=True)
class VlmAdConfig:
    """Hyperparameters of VLM-AD: the question, and the model that is asked."""

    folder: str = "vlm"
    """Folder of the model inside `backbone_dir`: config.json, tokenizer, processor and safetensors
    files."""
    k_shot: int = option(0, low=0, high=16, search=choice(0, 1, 2, 4))
    """Normal training images shown before the one in question; each makes an answer about as much
    slower again."""
    max_new_tokens: int = option(24, low=0, high=512)
    """Longest explanation in tokens, about 3/4 of a word each; 0 writes none, which is the
    fastest."""
    question: str = option(
        QUESTION,
        search=choice(
            "Does the product in this image have any defect? Answer yes or no first, then say why.",
            "You inspect products. Is anything broken, missing, dirty, scratched or bent here? "
            "Answer yes or no first.",
            "Compared with a flawless product of its kind, is this one defective? "
            "Answer yes or no first.",
            note="short, plain and detailed; yes must mean a defect",
        ),
    )
    """What is asked of the image; it must ask for yes or no first, yes meaning a defect."""
    class_names: Mapping[str, str] = field(default_factory=dict)
    """Category folder to the words for its product, where `CLASS_NAMES` has none or others."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model's numbers; the halves take half the memory, and many images then share the very
    same score."""

    def __post_init__(self) -> None:
        """Check ranges, the folder's name, and that something is asked."""
        check_fields(self)
        check_file_name("folder", self.folder)
        if not self.question.strip():
            raise InputError(Sentence.of("method question"))

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there: the model's folder."""
        return (f"{self.folder}/",)


def check_transformers() -> None:
    """Refuse to start without the transformers library.

    Raises:
        InputError: where it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError(Sentence.of("method vlm packages"))


def check_inputs(config: VlmAdConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    check_transformers()
    if train_config.normalize != "none":
        raise InputError(
            Sentence.of("method vlm normalize", normalize=repr(train_config.normalize))
        )
    return []


METHODS = {
    "VlmAdTrainer": Method(VlmAdConfig, single_pass=True, check_inputs=check_inputs),
}
