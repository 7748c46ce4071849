"""Small models of 35 families, with random weights: FAMILIES maps a name to how one is built.

A builder returns (model, args, kwargs). pairs: layers that one activation follows, of those that
there is a formula for. Nothing is downloaded.
"""

import functools
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

FAMILIES = {}


def family(name, pairs):
    def add(build):
        FAMILIES[name] = (build, pairs)
        return build

    return add


@functools.cache
def needed(name):
    """The package, or a skip. Importing them warns of what they use of torch; that is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in ("timm", "torchvision"):
            define_operators_of_torchvision()
        return pytest.importorskip(name)


def define_operators_of_torchvision():
    """torchvision's wheel for CUDA imports beside torch for the CPU once these names exist."""
    if not hasattr(torch.ops.torchvision, "nms"):
        needed.library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            needed.library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")


def images(side=32, many=2):
    return torch.randn(many, 3, side, side)


# torch


def encoder(activation):
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation=activation, batch_first=True)
    return nn.TransformerEncoder(layer, 2), (torch.randn(2, 5, 16),), {}


@family("torch encoder, a function", 2)
def _():
    return encoder("relu")


@family("torch encoder, a module", 2)
def _():
    return encoder(nn.GELU())


@family("torch transformer", 4)
def _():
    net = nn.Transformer(16, 2, 2, 2, 32, activation=F.gelu, batch_first=True)
    return net, (torch.randn(2, 5, 16), torch.randn(2, 4, 16)), {}


@family("torch mlp", 2)
def _():
    layers = OrderedDict(
        a=nn.Linear(8, 16), b=nn.ReLU(inplace=True), c=nn.Linear(16, 16), d=nn.Tanh()
    )
    return nn.Sequential(layers), (torch.randn(4, 8),), {}


# torchvision


def vision(name):
    return getattr(needed("torchvision").models, name)(num_classes=5)


def old_classifier(name):
    """The classifier of a network of 2012 to 2014, a hundredth of its size, on small features."""
    with torch.device("meta"):  # 100 million parameters that are not made
        net = vision(name)
    net.features = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    net.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for i, module in enumerate(net.classifier):
        if isinstance(module, nn.Linear):
            net.classifier[i] = nn.Linear(64, min(module.out_features, 64))
    return net, (images(),), {}


@family("torchvision alexnet", 2)
def _():
    return old_classifier("alexnet")


@family("torchvision vgg11", 2)
def _():
    return old_classifier("vgg11")


@family("torchvision mlp", 2)
def _():
    mlp = needed("torchvision").ops.MLP(8, [16, 16, 4], dropout=0.1)
    return mlp, (torch.randn(4, 8),), {}


@family("torchvision vit", 2)
def _():
    vit = needed("torchvision").models.VisionTransformer
    net = vit(32, 8, 2, 2, 32, 64, dropout=0.1, num_classes=5)
    nn.init.normal_(net.heads.head.weight)  # zero at first: no gradient would come through
    return net, (images(),), {}


@family("torchvision convnext", 18)
def _():
    convnext = needed("torchvision").models.convnext
    setting = convnext.CNBlockConfig
    blocks = [setting(8, 16, 3), setting(16, 16, 3), setting(16, 16, 9), setting(16, None, 3)]
    return convnext.ConvNeXt(blocks, num_classes=5), (images(),), {}


@family("torchvision swin", 12)
def _():
    swin = needed("torchvision").models.SwinTransformer
    depths = [2, 2, 6, 2]
    return swin([4, 4], 16, depths, [1, 2, 4, 8], [2, 2], num_classes=5), (images(),), {}


@family("torchvision mobilenet v3", 1)
def _():
    return vision("mobilenet_v3_small"), (images(),), {}


# timm


def timm(name, side=32, **kwargs):
    net = needed("timm").create_model(name, pretrained=False, num_classes=5, **kwargs)
    return net, (images(side),), {}


def mixer(depth, mlp="Mlp", **options):
    parts = needed("timm").models.mlp_mixer
    options = {k: getattr(parts, v) if isinstance(v, str) else v for k, v in options.items()}
    options["mlp_layer"] = getattr(parts, mlp)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "num_classes": 5}
    return parts.MlpMixer(**sizes, num_blocks=depth, **options), (images(),), {}


@family("timm mixer", 16)
def _():
    return mixer(8)


@family("timm resmlp", 12)
def _():
    return mixer(12, mlp_ratio=4, block_layer="ResBlock", norm_layer="Affine")


@family("timm gmlp", 30)
def _():
    return mixer(30, "GatedMlp", mlp_ratio=6, block_layer="SpatialGatingBlock")


@family("timm gmixer", 0)
def _():
    return mixer(12, "GluMlp", mlp_ratio=(1.0, 4.0), act_layer=nn.SiLU)


@family("timm vit", 2)
def _():
    return timm("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2)


@family("timm eva02", 0)
def _():
    return timm("eva02_tiny_patch14_224", side=28, img_size=28, embed_dim=32, depth=2, num_heads=2)


@family("timm convnext", 4)
def _():
    return timm("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))


# x-transformers


def x_transformer(**kwargs):
    xt = needed("x_transformers")
    layers = xt.Decoder(dim=16, depth=2, heads=2, **kwargs)
    net = xt.TransformerWrapper(num_tokens=50, max_seq_len=16, attn_layers=layers)
    return net, (torch.randint(0, 50, (2, 8)),), {}


@family("x-transformers", 2)
def _():
    return x_transformer()


@family("x-transformers, relu squared", 2)
def _():
    return x_transformer(ff_relu_squared=True)


# Hugging Face


SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def hugging_face(model, config, **sizes):
    library = needed("transformers")
    return getattr(library, model)(getattr(library, config)(**sizes))


def on_tokens(model, config, many=2, **sizes):
    net = hugging_face(model, config, **sizes)
    return net, (), {"input_ids": torch.randint(3, 50, (many, 8))}


def on_images(model, config, **sizes):
    return hugging_face(model, config, **sizes), (), {"pixel_values": images()}


@family("bert", 3)
def _():
    return on_tokens("BertForMaskedLM", "BertConfig", **SIZES)


@family("distilbert", 3)
def _():
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    return on_tokens("DistilBertForMaskedLM", "DistilBertConfig", **sizes)


@family("gpt-2", 2)
def _():
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return on_tokens("GPT2LMHeadModel", "GPT2Config", **sizes, **TOKENS)


@family("gpt-neox", 2)
def _():
    return on_tokens("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZES, **TOKENS)


@family("opt", 2)
def _():
    sizes = {"ffn_dim": 32, "word_embed_proj_dim": 16, "layerdrop": 0.0}
    without = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return on_tokens("OPTForCausalLM", "OPTConfig", **without, **sizes, **TOKENS)


@family("t5", 4)
def _():
    sizes = {"vocab_size": 50, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2}
    more = {"num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0}
    net, _, kwargs = on_tokens("T5ForConditionalGeneration", "T5Config", **sizes, **more)
    return net, (), {**kwargs, "labels": torch.randint(3, 50, (2, 6))}


@family("phi", 2)
def _():
    return on_tokens("PhiForCausalLM", "PhiConfig", **SIZES, **TOKENS)


@family("llama", 2)
def _():
    return on_tokens("LlamaForCausalLM", "LlamaConfig", **SIZES, **TOKENS)


@family("qwen3", 2)
def _():
    sizes = {"num_key_value_heads": 2, "head_dim": 8}
    return on_tokens("Qwen3ForCausalLM", "Qwen3Config", **SIZES, **sizes, **TOKENS)


@family("nemotron", 2)
def _():
    return on_tokens(
        "NemotronForCausalLM", "NemotronConfig", **SIZES, **TOKENS, num_key_value_heads=2
    )


IMAGE_SIZES = {
    key: SIZES[key] for key in SIZES if key not in ("vocab_size", "max_position_embeddings")
}


@family("hugging face vit", 2)
def _():
    return on_images(
        "ViTForImageClassification", "ViTConfig", image_size=32, patch_size=16, **IMAGE_SIZES
    )


@family("hugging face dinov2", 2)
def _():
    return on_images(
        "Dinov2ForImageClassification", "Dinov2Config", image_size=32, patch_size=16, **IMAGE_SIZES
    )


@family("hugging face convnext", 4)
def _():
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16]}
    return on_images("ConvNextModel", "ConvNextConfig", **sizes)


@family("clip", 2)
def _():
    return on_tokens("CLIPTextModel", "CLIPTextConfig", **SIZES, **TOKENS)


@family("wav2vec2", 2)
def _():
    sizes = {
        "conv_dim": (8, 8),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        **IMAGE_SIZES,
    }
    net = hugging_face("Wav2Vec2Model", "Wav2Vec2Config", **sizes)
    return net, (torch.randn(2, 400),), {}
