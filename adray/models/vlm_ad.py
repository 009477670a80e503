"""VLM-AD: asking a vision-language chat model whether an image shows a defect (there is no paper).

Reference: https://github.com/open-edge-platform/anomalib (Apache-2.0, facts only).

Any chat model that sees images, from a local folder in the layout of the transformers library, is
shown the image, after some normal ones where asked, and is to answer yes or no and then name the
defect. The score is the probability of yes against no at the first word of the answer; the answer's
text is kept as explanation. Nothing is trained and there is no map. The text is a language model's:
it may name a defect that is not there.

Differs from the reference: it reads the label off the text, which gives two values and no ranking;
here the score is continuous. No hosted service and no local server is asked. Images go through the
model one at a time, since padding would let a score depend on the other images of its batch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adray.components.backbone import get_backbone_path
from adray.components.class_names import class_name
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import FrozenNetwork
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.vlm_ad import METHODS, VlmAdConfig, check_transformers
from adray.trainer import BaseTrainer
from adray.types import Batch, Json, Prediction

logger = logging.getLogger(__name__)

_SPACES = " \u2581\u0120"
"""How vocabularies write the space before a word: as itself, as SentencePiece does, and as
byte-level ones do."""
_WANTED = Sentence.of("vlm wanted")


# The folder of a chat model


def import_transformers() -> Any:
    """Import the transformers library, kept off the network and without progress bars."""
    check_transformers()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def check_folder(folder: Path) -> Any:
    """Look into a chat model's folder without reading more of its weights than their contents.

    Returns:
        The processor that turns messages with images into tensors.

    Raises:
        InputError: for another kind of model, for pickled, missing or truncated weights, and for a
            processor that cannot be loaded, has no chat template, or has no token for yes or no.
    """
    _check_kind(folder)
    for name in _weight_names(folder):
        _check_safetensors(folder, name)
    return read_processor(folder)


def _check_kind(folder: Path) -> None:
    """Refuse a model that transformers does not know as one that sees images and answers."""
    import_transformers()
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KINDS,
    )

    kind = _read_json(folder / "config.json").get("model_type")
    if kind not in KINDS:
        raise InputError(
            Sentence.of("vlm kind", folder=str(folder), kind=repr(kind), wanted=_WANTED)
        )


def _weight_names(folder: Path) -> list[str]:
    """List the files that hold the weights, one or as many as the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]

    weight_map = _read_json(index).get("weight_map")
    names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    # A file elsewhere would not be part of the folder's hash, and one of another ending might be a
    # pickle.
    if not names or any("/" in name or not name.endswith(".safetensors") for name in names):
        raise InputError(Sentence.of("vlm index", index=str(index), wanted=_WANTED))
    return sorted(names)


def _check_safetensors(folder: Path, name: str) -> None:
    """Refuse a weight file that is missing or truncated."""
    path = folder / name
    if not path.is_file():
        pickled = sorted(found.name for found in folder.glob("*.bin"))
        instead: Sentence | str = ""
        if pickled:
            instead = Sentence.of("vlm pickles", names=", ".join(pickled[:3]))
        raise InputError(
            Sentence.of(
                "vlm missing", folder=str(folder), name=name, instead=instead, wanted=_WANTED
            )
        )

    try:
        # To open it compares its table of contents with its size.
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(Sentence.of("vlm damaged", path=str(path))) from error


def _read_json(path: Path) -> Json:
    """Read a file of the folder that holds a JSON object."""
    if not path.is_file():
        raise InputError(
            Sentence.of("vlm no file", parent=str(path.parent), name=path.name, wanted=_WANTED)
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(Sentence.of("vlm no json", path=str(path))) from error
    if not isinstance(value, dict):
        raise InputError(Sentence.of("vlm no object", path=str(path)))
    return value


def read_processor(folder: Path) -> Any:
    """Read the tokenizer and the preparation of images of a chat model from its local files.

    Raises:
        InputError: where they cannot be loaded, have no chat template, or no token for yes or no.
    """
    auto = import_transformers().AutoProcessor
    try:
        processor = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each library beneath raises its own kinds
        raise InputError(
            Sentence.of("vlm tokenizer", folder=str(folder), error=_line(error), wanted=_WANTED)
        ) from error

    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InputError(Sentence.of("vlm no processor", folder=str(folder), wanted=_WANTED))
    if not processor.chat_template:
        raise InputError(Sentence.of("vlm no chat", folder=str(folder), wanted=_WANTED))

    vocabulary = processor.tokenizer.get_vocab()
    for word in ("yes", "no"):
        if not answer_tokens(vocabulary, word):
            raise InputError(Sentence.of("vlm no token", folder=str(folder), word=repr(word)))
    return processor


def read_network(folder: Path, dtype: torch.dtype) -> Any:
    """Read a chat model from its local safetensors files, in eval mode.

    No code from the folder runs.

    Raises:
        InputError: for weights that are missing, or of another network.
    """
    auto = import_transformers().AutoModelForImageTextToText
    try:
        network, info = auto.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, with a message of ours
            output_loading_info=True,
        )
    except (ImportError, KeyError, OSError, ValueError, SafetensorError) as error:
        raise InputError(
            Sentence.of("vlm not loaded", folder=str(folder), error=_line(error), wanted=_WANTED)
        ) from error

    wrong = set(info["missing_keys"])
    for name, *_ in info["mismatched_keys"]:
        wrong.add(name)
    if wrong:
        raise InputError(
            Sentence.of(
                "vlm other weights",
                folder=str(folder),
                first=min(wrong),
                number=len(wrong) - 1,
                wanted=_WANTED,
            )
        )
    return network.eval().requires_grad_(False)


def _line(error: Exception) -> str:
    """Put an error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


# The question and the answer


def build_messages(
    name: str, references: Iterable[Image.Image], image: Image.Image, question: str
) -> list[Any]:
    """Make one turn of a user: the normal images, the image in question, and the question.

    Args:
        name: the product in words.
        references: images without a defect, shown first.
        image: the one in question.
        question: asks for yes or no.
    """
    photos = [*references, image]
    shown = f"The photo shows this product: {name}."
    if len(photos) > 1:
        # In words, since some templates move all images before all text.
        shown = (
            f"All photos show this product: {name}. In all but the last photo it is without any "
            "defect. The question is about the last photo."
        )

    content = [{"type": "image", "image": photo} for photo in photos]
    content.append({"type": "text", "text": f"{shown} {question}"})
    return [{"role": "user", "content": content}]


def answer_tokens(vocabulary: Mapping[str, int], word: str) -> list[int]:
    """List the ids of all tokens that are `word` alone, ascending.

    Case does not count, nor does a space before the word.
    """
    ids = []
    for token, number in vocabulary.items():
        if token.lstrip(_SPACES).lower() == word:
            ids.append(number)
    return sorted(ids)


def yes_probability(logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Give P(yes) / (P(yes) + P(no)), each summed over the ways to write the word.

    Args:
        logits: (V,) of the next token.
        yes: ids of the tokens for yes.
        no: ids of the tokens for no.

    Returns:
        Scalar float32 in [0, 1].
    """
    logits = logits.float()
    return torch.sigmoid(logits[yes].logsumexp(0) - logits[no].logsumexp(0))


def to_bytes(image: Tensor) -> Tensor:
    """Turn pixels in [0, 1] into uint8, the very bytes that they were made of."""
    return (image.float() * 255).round().to(torch.uint8)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Turn (B, 3, H, W) uint8 into what processors take."""
    pictures = rearrange(pixels, "b c h w -> b h w c").cpu().numpy()
    return [Image.fromarray(picture) for picture in pictures]


# The networks


class ChatNetwork(FrozenNetwork):
    """A frozen chat model with its processor; its `weight_file` is the folder.

    Args:
        config: gives the folder, the dtype and the longest answer.

    Raises:
        InputError: see `check_folder` and `read_network`.
    """

    yes: Tensor
    no: Tensor

    def __init__(self, config: VlmAdConfig) -> None:
        super().__init__()
        self.backbone = f"{config.folder}/"
        self.max_new_tokens = config.max_new_tokens
        folder = get_backbone_path(self.backbone)
        self.weight_file = folder
        self.processor = check_folder(folder)
        self.network = read_network(folder, getattr(torch, config.dtype))
        # The folder's own settings of sampling, penalties and so on have no say.
        self.network.generation_config = self._greedy(self.network.generation_config)

        vocabulary = self.processor.tokenizer.get_vocab()
        for word in ("yes", "no"):
            ids = torch.tensor(answer_tokens(vocabulary, word))
            self.register_buffer(word, ids, persistent=False)

    def _greedy(self, own: Any) -> Any:
        """Give settings that always take the likeliest token, and only the folder's end tokens."""
        ends = own.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id

        return import_transformers().GenerationConfig(
            max_new_tokens=max(1, self.max_new_tokens),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=ends,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
        )

    def forward(self, messages: list[Any]) -> tuple[Tensor, str]:
        """Ask once.

        Args:
            messages: what `build_messages` gives.

        Returns:
            The probability of yes, a scalar float32, and the answer in words, empty where none is
            wanted.
        """
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.network.device, self.network.dtype)
        answer = self.network.generate(**inputs)
        score = yes_probability(answer.logits[0][0], self.yes, self.no)
        if not self.max_new_tokens:
            return score, ""

        # What is generated stands behind the messages.
        asked = inputs["input_ids"].shape[1]
        tokens = answer.sequences[0, asked:]
        return score, self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


class VlmAdModel(DynamicBufferMixin):
    """The chat model, the product's name and the normal images that it is shown.

    Args:
        config: hyperparameters.
    """

    references: Tensor
    product: Tensor

    def __init__(self, config: VlmAdConfig) -> None:
        super().__init__()
        self.chat = ChatNetwork(config)
        self.question = config.question
        nothing = torch.empty(0, 3, 1, 1, dtype=torch.uint8)  # (k, 3, H, W)
        self.register_buffer("references", nothing)
        # The name in UTF-8, so that checkpoints hold it.
        self.register_buffer("product", _letters("product"))

    def learn(self, name: str, references: Tensor) -> None:
        """Keep the product's name in words and normal images of it, (k, 3, H, W) in [0, 1]."""
        self.product = _letters(name).to(self.product.device)
        self.references = to_bytes(references)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Ask the chat model about each image.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage apart.

        Returns:
            The probability of a defect, (B,) in [0, 1], no map, and the texts, where any are
            wanted.
        """
        name = bytes(self.product.tolist()).decode()
        references = to_pictures(self.references)
        scores = []
        texts = []
        for picture in to_pictures(to_bytes(image)):
            score, text = self.chat(build_messages(name, references, picture, self.question))
            scores.append(score)
            texts.append(text)

        explanation = tuple(texts) if self.chat.max_new_tokens else None
        return Prediction(torch.stack(scores), None, explanation)


def _letters(text: str) -> Tensor:
    """Give the bytes of a text in UTF-8 as a uint8 tensor."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


class VlmAdTrainer(BaseTrainer):
    """Trains nothing: it picks the normal images that are shown, and the words for the product."""

    config: VlmAdConfig
    model: VlmAdModel
    method = METHODS["VlmAdTrainer"]

    @classmethod
    def check_weight_file(cls, config: VlmAdConfig, name: str, path: Path) -> None:
        check_folder(path)

    def build_model(self) -> VlmAdModel:
        return VlmAdModel(self.config)

    def on_train_start(self) -> None:
        self._normal: list[Tensor] = []
        self._missing = self.config.k_shot

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Keep the first normal images, in the loader's order, which is drawn by the seed."""
        normal = batch.image[batch.label == 0][: self._missing]
        self._normal.append(normal)
        self._missing -= len(normal)
        return {}

    def on_train_end(self) -> None:
        if self._missing:
            wanted = self.config.k_shot
            raise InputError(
                Sentence.of("vlm k_shot", wanted=wanted, present=wanted - self._missing)
            )
        self.model.learn(self.product_name(), torch.cat(self._normal))
        self._normal = []

    def product_name(self) -> str:
        """Give the words for the category, of which several that are merged have none in common."""
        names = set()
        for sample in self.loaders.train.samples:
            names.add(class_name(sample.category, self.config.class_names))

        name = names.pop() if len(names) == 1 else "manufactured object"
        logger.info("VLM-AD calls the product %r; set model.class_names for better words", name)
        return name
