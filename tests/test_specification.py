"""The names of the specification exist, as the thing itself or a thin alias."""

from __future__ import annotations

import importlib
import inspect

import pytest

from adray.trainer import BaseTrainer

NAMES = {
    "adray.train": "train train_models set_globals get_globals print_globals set_seed count_parameters "
    "clear_dataloader clear_memory print_memory run_experiment",
    "adray.registry": "ModelRegistry",
    "adray.trainer": "BaseTrainer EarlyStopper",
    "adray.data.readers": "set_dataset_dir",
    "adray.data.custom": "get_data_info create_csv",
    "adray.data.loaders": "get_dataloaders",
    "adray.data.datasets": "BaseDataset MVTecDataset VisADataset BTADDataset CustomDataset",
    "adray.components.backbone": "BACKBONE_WEIGHT_FILES set_backbone_dir get_backbone_dir get_backbone_path",
    "adray.components.feature_extractor": "TimmFeatureExtractor dryrun_find_featuremap_dims",
    "adray.components.blur": "GaussianBlur2d",
    "adray.components.k_center_greedy": "k_center_greedy",
    "adray.components.multi_variate_gaussian": "MultiVariateGaussian",
    "adray.components.dynamic_buffer": "DynamicBufferMixin",
    "adray.components.all_in_one_block": "AllInOneBlock",
    "adray.components.pca": "PCA",
    "adray.components.perlin": "perlin_noise perlin_mask",
    "adray.components.sspcab": "SSPCAB",
    "adray.components.resnet_decoder": "ResNetDecoder",
    "adray.metrics": "separation",
    "adray.models.padim": "PadimConfig PadimModel PadimTrainer",
    "adray.models.patchcore": "PatchcoreConfig PatchcoreModel PatchcoreTrainer",
    "adray.models.stfpm": "StfpmConfig StfpmModel StfpmTrainer",
    "adray.models.fastflow": "FastflowConfig FastflowModel FastflowTrainer",
    "adray.models.autoencoder": "AutoencoderConfig AutoencoderModel AutoencoderTrainer",
    "adray.models.dfkde": "DfkdeConfig DfkdeModel DfkdeTrainer",
    "adray.models.dfm": "DfmConfig DfmModel DfmTrainer",
    "adray.models.fre": "FreConfig FreModel FreTrainer",
    "adray.models.cfa": "CfaConfig CfaModel CfaTrainer",
    "adray.models.cflow": "CflowConfig CflowModel CflowTrainer",
    "adray.models.csflow": "CsflowConfig CsflowModel CsflowTrainer",
    "adray.models.uflow": "UflowConfig UflowModel UflowTrainer",
    "adray.models.reverse_distillation": "ReverseDistillationConfig ReverseDistillationTrainer",
    "adray.models.efficientad": "EfficientadConfig EfficientadModel EfficientadTrainer",
    "adray.models.ganomaly": "GanomalyConfig GanomalyModel GanomalyTrainer",
    "adray.models.draem": "DraemConfig DraemModel DraemTrainer",
    "adray.models.dsr": "DsrConfig DsrModel DsrTrainer",
    "adray.models.unet_autoencoder": "UnetAutoencoderConfig UnetAutoencoderModel UnetAutoencoderTrainer",
    "adray.models.vae": "VaeConfig VaeModel VaeTrainer",
    "adray.models.dinomaly": "DinomalyConfig DinomalyModel DinomalyTrainer",
    "adray.models.supersimplenet": "SupersimplenetConfig SupersimplenetModel SupersimplenetTrainer",
    "adray.models.uninet": "UninetConfig UninetModel UninetTrainer",
    "adray.models.winclip": "WinclipConfig WinclipModel WinclipTrainer",
    "adray.models.vlm_ad": "VlmAdConfig VlmAdModel VlmAdTrainer",
    "adray.components.tiler": "tile untile",
    "adray.components.dinov2_extractor": "Dinov2Extractor",
}
METHODS = (
    "fit train_epoch validation_epoch save_model load_model save_results save_histogram save_maps evaluate predict "
    "on_fit_start on_fit_end on_epoch_start on_epoch_end on_train_start on_train_end on_validation_start "
    "on_validation_end train_step validation_step"
)


@pytest.mark.parametrize(
    ("module", "name"), [(m, n) for m, names in NAMES.items() for n in names.split()]
)
def test_the_name_exists(module, name):
    assert getattr(importlib.import_module(module), name).__doc__ or name == "BACKBONE_WEIGHT_FILES"


@pytest.mark.parametrize("method", METHODS.split())
def test_the_trainer_has_the_method(method):
    assert callable(getattr(BaseTrainer, method))


def test_on_fit_end_takes_the_weight_path():
    assert list(inspect.signature(BaseTrainer.on_fit_end).parameters) == ["self", "weight_path"]


def test_train_takes_the_specifications_parameters_in_their_order():
    from adray.train import train

    wanted = [
        "dataset_type",
        "category",
        "model_type",
        "num_epochs",
        "batch_size",
        "img_size",
        "normalize",
    ]
    assert list(inspect.signature(train).parameters)[:7] == wanted
