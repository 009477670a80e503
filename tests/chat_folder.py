"""A chat model that sees images, a few thousand random numbers small, in the files of a published one."""

from __future__ import annotations

import json
from pathlib import Path

IMAGE_SIZE = 32
PATCH_SIZE = 8

TEXT = (
    "<pad> <unk> <s> </s> <image> yes no Yes No YES NO is there a defect in the photo , . ? : first last product "
    "bottle carpet answer or then name its place few words Answer The This These USER ASSISTANT good without scratch"
)
WORDS = TEXT.split()
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def write_chat_folder(folder: Path, attention: str = "sdpa") -> None:
    """Write config, tokenizer, processor and random weights of a tiny LLaVA; the caller seeds torch.

    Args:
        folder: takes them.
        attention: what transformers computes it by; "eager" is Python to the last step.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    processor = build_processor()
    vocabulary = len(processor.tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=WORDS.index("<s>"),
        eos_token_id=WORDS.index("</s>"),
        pad_token_id=WORDS.index("<pad>"),
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>")
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "attn_implementation": attention}))
    processor.save_pretrained(folder)


def build_processor():
    """Words as tokens, images of 32 px as 16 of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )
