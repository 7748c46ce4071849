"""torch, torchvision and timm."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from families.registry import family, images, needed

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
