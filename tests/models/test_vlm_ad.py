"""VLM-AD with a tiny chat model: against the transformers library called by hand, and taught to see a defect."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chat_folder import WORDS, write_chat_folder
from fake_datasets import draw, write_mvtec
from PIL import Image
from safetensors.torch import load_file, save_file

from adray.cli.predict import main as predict
from adray.config import SweepConfig, TrainConfig, build
from adray.errors import InputError
from adray.files import file_sha256
from adray.methods.vlm_ad import QUESTION
from adray.models.vlm_ad import (
    ChatNetwork,
    VlmAdConfig,
    VlmAdModel,
    VlmAdTrainer,
    answer_tokens,
    build_messages,
    check_folder,
    read_network,
    to_bytes,
    to_pictures,
    yes_probability,
)
from adray.scores import Scores
from adray.settings import absolute_settings, get_globals, set_globals
from adray.sweep.plan import make_plan
from adray.train import train
from adray.types import Batch

SIZE = 64


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A chat model as it comes from its publisher, but tiny and random."""
    folder = tmp_path_factory.mktemp("published") / "vlm"
    torch.manual_seed(0)
    write_chat_folder(folder)
    return folder


@pytest.fixture
def folder(published):
    """A copy of one's own in `backbone_dir`."""
    return Path(shutil.copytree(published, Path(get_globals().backbone_dir) / "vlm"))


def new_model(max_new_tokens=6):
    return VlmAdModel(VlmAdConfig(max_new_tokens=max_new_tokens)).eval()


def new_trainer(**values):
    return VlmAdTrainer(VlmAdConfig(**values), TrainConfig(img_size=SIZE, normalize="none"))


def photos(count, seed=0):
    """Images as loaders give them: bytes divided by 255."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8) / 255
    )


# The answer


def test_the_score_is_the_softmax_of_the_models_own_logits_at_the_answers_first_token(folder):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    theirs = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    model, image, reference = new_model(), photos(1)[0], photos(1, 1)[0]
    model.learn("bottle", reference[None])
    pictures = [
        Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy()) for x in (reference, image)
    ]
    text = processor.apply_chat_template(
        build_messages("bottle", pictures[:1], pictures[1], QUESTION), add_generation_prompt=True
    )
    inputs = processor(text=text, images=pictures, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        logits = theirs(**inputs).logits[0, -1].double().numpy()
        tokens = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
    probability = np.exp(logits) / np.exp(logits).sum()
    yes = sum(probability[WORDS.index(word)] for word in ("yes", "Yes", "YES"))
    no = sum(probability[WORDS.index(word)] for word in ("no", "No", "NO"))
    prediction = model(image[None])
    assert float(prediction.pred_score[0]) == pytest.approx(yes / (yes + no), rel=1e-5)
    assert prediction.anomaly_map is None
    assert prediction.explanation == (processor.decode(tokens, skip_special_tokens=True).strip(),)


def test_certain_answers_give_zero_and_one_rather_than_nan():
    logits = torch.tensor([1e4, -1e4, 0.0])
    first, second = torch.tensor([0]), torch.tensor([1])
    assert float(yes_probability(logits, first, second)) == 1
    assert float(yes_probability(logits, second, first)) == 0


def test_a_word_is_found_in_every_case_and_behind_the_spaces_of_all_kinds_of_vocabulary():
    vocabulary = ["yes", "\u2581Yes", "\u0120YES", "yesterday", "no", "\u0120No", "\u0120eyes", "n"]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    assert answer_tokens(numbered, "yes") == [0, 1, 2]
    assert answer_tokens(numbered, "no") == [4, 5]


def test_the_pixels_that_a_model_sees_are_the_very_bytes_of_the_image():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(to_bytes(pixels / 255), pixels)
    assert np.array_equal(np.asarray(to_pictures(pixels)[0]), pixels[0].permute(1, 2, 0).numpy())


def test_settings_of_sampling_in_the_folder_have_no_say(folder):
    expected = new_model()(photos(2))
    own = {
        "do_sample": True,
        "temperature": 9.0,
        "repetition_penalty": 5.0,
        "num_return_sequences": 3,
        "num_beams": 3,
    }
    (folder / "generation_config.json").write_text(json.dumps({**own, "eos_token_id": 3}))
    found = new_model()(photos(2))
    assert torch.equal(found.pred_score, expected.pred_score)
    assert found.explanation == expected.explanation


def test_no_text_is_written_where_none_is_wanted_and_the_score_is_the_same(folder):
    silent, talking = new_model(0)(photos(2)), new_model(6)(photos(2))
    assert silent.explanation is None
    assert all(len(text.split()) == 6 for text in talking.explanation)
    torch.testing.assert_close(silent.pred_score, talking.pred_score, rtol=0, atol=0)


# References and words


def fit(trainer, images, labels):
    trainer.on_train_start()
    for image, label in zip(images.split(2), labels.split(2), strict=True):
        trainer.train_step(Batch(image, label, None, torch.arange(len(label))))
    trainer.on_train_end()


class Loaders:
    """Only the categories of training images."""

    def __init__(self, *categories):
        sample = type("Sample", (), {})
        self.train = type("Train", (), {"samples": []})
        for category in categories:
            one = sample()
            one.category = category
            self.train.samples.append(one)


def test_the_first_normal_images_are_the_references_and_change_the_score(folder):
    trainer, images = new_trainer(k_shot=2), photos(5)
    trainer.loaders = Loaders("bottle")
    before = trainer.model(photos(1, 7)).pred_score
    fit(trainer, images, torch.tensor([0, 1, 1, 0, 0]))
    assert torch.equal(trainer.model.references, to_bytes(images[[0, 3]]))
    assert not torch.equal(trainer.model(photos(1, 7)).pred_score, before)


def test_too_few_normal_images_are_refused(folder):
    trainer = new_trainer(k_shot=3)
    trainer.loaders = Loaders("bottle")
    with pytest.raises(
        InputError, match="k_shot is 3, but there are only 2 normal training images; lower k_shot"
    ):
        fit(trainer, photos(3), torch.tensor([0, 1, 0]))


@pytest.mark.parametrize(
    ("categories", "given", "expected"),
    [
        (["metal_nut", "metal_nut"], {}, "metal nut"),
        (["p1"], {"p1": "brake pad"}, "brake pad"),
        (["bottle", "wood"], {}, "manufactured object"),
    ],
)
def test_the_product_is_called_by_its_categorys_words(folder, categories, given, expected):
    trainer = new_trainer(class_names=given)
    trainer.loaders = Loaders(*categories)
    fit(trainer, photos(2), torch.tensor([0, 0]))
    assert bytes(trainer.model.product.tolist()).decode() == expected


# The folder


def test_the_hash_of_a_folder_follows_each_byte_and_name_but_not_hidden_files(folder):
    first = file_sha256(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.lock").write_text("x")
    assert file_sha256(folder) == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    second = file_sha256(folder)
    (folder / "chat_template.jinja").rename(folder / "template.jinja")
    assert len({first, second, file_sha256(folder)}) == 3


@pytest.fixture
def plan():
    """The only trial of a sweep over one category, and the plan's problems."""
    settings = get_globals()
    root = Path(settings.dataset_dir)
    write_mvtec(root / "mvtec", categories=("bottle",), train=4, good=2, defects=2, size=32)

    def plan_it(**model):
        values = {
            "name": "s",
            "settings": {
                n: getattr(settings, n)
                for n in ("dataset_dir", "backbone_dir", "output_dir", "cache_dir")
            },
            "grid": {"models": ["vlm-ad"], "datasets": {"mvtec": "each"}},
            "overrides": {"vlm-ad": {"model": model}},
        }
        config = build(SweepConfig, values, "")
        made = make_plan(config, absolute_settings(config.settings))
        return made.trials[0], "; ".join(made.problems)

    return plan_it


def test_a_trials_id_follows_the_folders_name_and_content(folder, plan):
    trial, problems = plan()
    assert (trial.state, problems) == ("new", "")
    assert trial.identity["weights"] == {"vlm/": file_sha256(folder)}
    shutil.copytree(folder, folder.with_name("other"))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    assert len({trial.id8, plan()[0].id8, plan(folder="other")[0].id8}) == 3


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def promise_shard(folder, name="model-00001-of-00002.safetensors"):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


def forget_words(folder):
    path = folder / "tokenizer.json"
    path.write_text(
        path.read_text()
        .replace('"no"', '"nein"')
        .replace('"No"', '"Nein"')
        .replace('"NO"', '"NEIN"')
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"missing weights of 'vlm/': copy https://.* to .*vlm$"),
        (
            lambda f: (f / "config.json").unlink(),
            "has no config.json; copy all files of a chat model that sees images",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON; copy it again"),
        (
            lambda f: rewrite(f / "config.json", model_type="llama"),
            "holds a model of type 'llama', which .* does not know",
        ),
        (
            pickle_weights,
            "has no model.safetensors; pytorch_model.bin are pickles, which could run code",
        ),
        (truncate, "model.safetensors is truncated or damaged; copy it again"),
        (promise_shard, "has no model-00001-of-00002.safetensors; copy all files"),
        (
            lambda f: promise_shard(f, "../a.safetensors"),
            "does not list safetensors files of this folder",
        ),
        (
            lambda f: promise_shard(f, "pytorch_model.bin"),
            "does not list safetensors files of this folder",
        ),
        (
            lambda f: (f / "tokenizer.json").unlink(),
            "tokenizer and processor in .* cannot be loaded",
        ),
        (
            lambda f: (f / "chat_template.jinja").unlink(),
            "holds no chat model: it has no chat template",
        ),
        (forget_words, "has no token for the word 'no'; take another model"),
    ],
)
def test_the_plan_refuses_a_folder_that_is_no_chat_model_with_one_sentence(
    folder, plan, damage, message
):
    damage(folder)
    trial, problems = plan()
    assert trial.state == "impossible"
    assert re.search(message, problems)
    assert "\n" not in problems


@pytest.mark.parametrize("change", [lambda tensor: None, lambda tensor: tensor[:-1].contiguous()])
def test_weights_that_lack_a_tensor_or_have_another_shape_are_refused_rather_than_drawn_at_random(
    folder, change
):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = change(weights[name])
    kept = {key: tensor for key, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError,
        match=r"are not those of its config.json: .* and 0 more are missing or of another",
    ):
        read_network(folder, torch.float32)


def test_code_in_the_folder_never_runs(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    mapped = {
        "AutoConfig": "evil.Evil",
        "AutoModelForImageTextToText": "evil.Evil",
        "AutoProcessor": "evil.Evil",
    }
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        rewrite(folder / name, auto_map=mapped)
    new_model()(photos(1))
    assert not (tmp_path / "ran").exists()


def test_nothing_is_asked_of_the_network(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda _self, address: asked.append(address))
    check_folder(folder)
    new_model()(photos(1))
    assert asked == []


def test_without_transformers_the_plan_says_what_to_install(folder, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    trial, problems = plan()
    assert trial.state == "impossible"
    assert "needs transformers, which is not installed; run pip install 'adray[vlm]'" in problems


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folder": "../elsewhere"}, "folder '../elsewhere' cannot be a folder name"),
        ({"k_shot": -1}, "k_shot is -1, but must be between 0"),
        ({"max_new_tokens": 9999}, "max_new_tokens is 9999, but must be between 0"),
        ({"question": " "}, "question is empty; ask whether there is a defect"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        VlmAdConfig(**values)


def test_a_normalisation_is_refused_since_the_models_own_processor_does_it():
    with pytest.raises(
        InputError, match=r"normalize 'imagenet' does not suit VLM-AD, .*; use none"
    ):
        VlmAdTrainer.check_inputs(VlmAdConfig(), TrainConfig())


# A whole trial


def teach(folder, steps=15):
    """Train the chat model of a folder on drawings that no test uses, until it says yes to defects."""
    chat = ChatNetwork(VlmAdConfig(folder=folder.name, max_new_tokens=0))
    network = chat.network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(steps):
        loss = torch.zeros(())
        for number in range(8):
            defective = number % 2 == 1
            picture, _ = draw(10_000 + 8 * step + number, SIZE, defect=defective)
            inputs = chat.processor.apply_chat_template(
                build_messages("bottle", [], picture.convert("RGB"), QUESTION),
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
            yes = yes_probability(network(**inputs).logits[0, -1], chat.yes, chat.no)
            loss = loss - torch.log(yes if defective else 1 - yes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.save_pretrained(folder)


@pytest.fixture
def data():
    write_mvtec(
        Path(get_globals().dataset_dir) / "mvtec",
        categories=("bottle",),
        train=8,
        good=5,
        defects=5,
        size=SIZE,
    )


def test_a_model_that_says_yes_to_defects_ranks_them_above_all_normal_images(
    folder, data, tmp_path
):
    teach(folder)
    result = train(
        "mvtec",
        "bottle",
        "vlm-ad",
        img_size=SIZE,
        train={"holdout": 0.25},
        model={"max_new_tokens": 3},
    )
    assert result["metrics"]["image_auroc"] == 1
    trial = Path(result["folder"])
    scores = pd.read_parquet(trial / "scores.parquet")
    assert scores.explanation.str.len().gt(0).all()
    assert set(scores.split) == {"test", "holdout"}
    expected = scores.query("split == 'test'").set_index("path").explanation.to_dict()

    settings = get_globals()
    options = [
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--backbone-dir",
        settings.backbone_dir,
    ]
    assert predict([str(trial), *expected, *options]) == 0
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8-sig") as file:
        assert {row["image"]: row["explanation"] for row in csv.DictReader(file)} == expected
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["explanation"] for line in lines] == list(expected.values())


def test_there_is_no_column_of_explanations_where_none_are_written(folder, data, tmp_path):
    result = train("mvtec", "bottle", "vlm-ad", img_size=SIZE, model={"max_new_tokens": 0})
    assert "explanation" not in pd.read_parquet(Path(result["folder"]) / "scores.parquet")
    images = str(Path(get_globals().dataset_dir) / "mvtec" / "bottle" / "test" / "good")
    options = [
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--backbone-dir",
        get_globals().backbone_dir,
    ]
    assert predict([result["folder"], images, *options]) == 0
    assert "explanation" not in (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")


def test_a_part_of_the_scores_takes_its_texts_along():
    texts = np.array(["a", "b", "c"], dtype=object)
    scores = Scores(np.arange(3.0), np.zeros(3, int), None, None, np.ones(3, bool), texts)
    assert list(scores.subset(np.array([True, False, True])).explanation) == ["a", "c"]


def test_another_folder_of_backbones_may_be_used(folder):
    set_globals(backbone_dir=folder.parent / "none")
    with pytest.raises(InputError, match="missing weights of 'vlm/'"):
        new_trainer()
