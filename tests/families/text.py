"""x-transformers and Hugging Face."""

import torch

from families.registry import family, images, needed

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
