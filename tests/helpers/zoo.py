"""The zoo: a tiny model with random weights for each kind of embedding model that people use.

Sources: the configs on the Hugging Face hub of the models in ``hub``; transformers 5 for the classes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import BIDIRECTIONAL, SLIDING, WIDE
from conftest import everyday
from models import HEADS, INNER, ROBERTA_TOKENS, WIDTH, _roberta, _wordpiece
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LENGTH = 100  # tokens; longer than two windows of 16
DEPTH = 2
# Encoders that normalize after each layer give nearly the same vector for every token if their weights are smaller.
SPREAD = {"initializer_range": 0.5}


def _byte_level(template: str, **names: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a template such as ``$A <|endoftext|>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(names.values()))
    tokenizer.train_from_iterator(everyday(), trainers.BpeTrainer(vocab_size=1500, special_tokens=special))
    if template:
        used = [(name, tokenizer.token_to_id(name)) for name in special if name in template]
        tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


TOKENIZERS = {
    "wordpiece": lambda: _wordpiece(everyday()),
    "byte level": lambda: _roberta(everyday(), byte_level=True),
    "unigram": lambda: _roberta(everyday(), byte_level=False),
    # Qwen's: an end token and padding on the left.
    "qwen": lambda: _byte_level("$A <|endoftext|>", pad_token="<|endoftext|>", eos_token="<|im_end|>"),
    "gemma": lambda: _byte_level("<bos> $A <eos>", pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"),
    "llama": lambda: _byte_level("<s> $A", pad_token="</s>", eos_token="</s>", bos_token="<s>"),
    "no special tokens": lambda: _byte_level("", pad_token="<|endoftext|>", eos_token="<|endoftext|>"),
}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One of ``TOKENIZERS``, trained once."""
    return TOKENIZERS[name]()


@dataclass(frozen=True)
class Row:
    """A kind of model.

    Attributes:
        kind: what the names of its classes in transformers begin with.
        hub: models of this kind on the hub.
        config: of the tiny model.
        pooling: modes.
        tokenizer: a key of ``TOKENIZERS``.
        head: modules behind pooling: "normalize", "layer norm", or the width of a Dense layer without activation.
        attention: how batches are computed on a CPU.
        model: the class that is saved, if not ``<kind>Model``.
        max_shard_size: of the weights.
        openvino: whether OpenVINO takes it.
        include_prompt: whether the prompt's tokens are pooled.
    """

    kind: str
    hub: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    pooling: tuple[str, ...] = ("mean",)
    tokenizer: str = "wordpiece"
    head: tuple[str | int, ...] = ()
    attention: str = "packed"
    model: str = ""
    max_shard_size: str = "1GB"
    openvino: bool = True
    include_prompt: bool = True


SIZE = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": INNER} | SPREAD
POSITIONS = {"max_position_embeddings": LENGTH + 20}
ENCODER = SIZE | POSITIONS
OFFSET = ENCODER | {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1, "type_vocab_size": 1}
OFFSET |= {"bos_token_id": 0, "eos_token_id": 2}
DECODER = (
    SIZE
    | WIDE
    | {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
    }
)
T5 = {"d_model": WIDTH, "d_kv": 32, "d_ff": INNER, "num_layers": 2, "num_heads": HEADS, "decoder_start_token_id": 0}
GPT2 = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 256} | WIDE
BART = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "max_position_embeddings": 256,
    "init_std": 0.2,
}
DEBERTA = ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
OPT = {"hidden_size": WIDTH, "ffn_dim": INNER, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "init_std": 0.2}
MODERN = ENCODER | {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
LAYER_TYPES = {"layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}
GEMMA3 = DECODER | {"num_key_value_heads": 1, "query_pre_attn_scalar": 32} | SLIDING | LAYER_TYPES
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BIDI = {"is_causal": False}
LAST = ("lasttoken",)

ZOO: dict[str, Row] = {
    "bert": Row("Bert", ("jhgan/ko-sbert-sts", "snunlp/KR-SBERT-V40K-klueNLI-augSTS", "intfloat/e5-base-v2"), ENCODER),
    "bert, cls": Row("Bert", ("BAAI/bge-small-en-v1.5", "thenlper/gte-base"), ENCODER, ("cls",), head=("normalize",)),
    "bert, max and mean": Row("Bert", (), ENCODER, ("max", "mean")),
    "bert, sum over root": Row("Bert", (), ENCODER, ("mean_sqrt_len_tokens",)),
    "bert, dense": Row("Bert", ("sentence-transformers/distiluse-base-multilingual-cased-v2",), ENCODER, head=(48,)),
    "bert, layer norm": Row("Bert", (), ENCODER, head=("layer norm", "normalize")),
    "bert, unigram": Row("Bert", ("intfloat/multilingual-e5-small",), ENCODER, tokenizer="unigram", head=("normalize",)),
    "roberta": Row("Roberta", ("sentence-transformers/all-distilroberta-v1",), OFFSET, tokenizer="byte level"),
    "roberta, wordpiece": Row(
        "Roberta", ("jhgan/ko-sroberta-multitask",), OFFSET | {"pad_token_id": 0, "max_position_embeddings": LENGTH + 1}
    ),
    "xlm-roberta": Row("XLMRoberta", ("intfloat/multilingual-e5-base",), OFFSET, tokenizer="unigram"),
    "xlm-roberta, cls": Row(
        "XLMRoberta",
        ("BAAI/bge-m3", "Snowflake/snowflake-arctic-embed-l-v2.0"),
        OFFSET,
        ("cls",),
        "unigram",
        ("normalize",),
    ),
    "xlm-roberta-xl": Row("XLMRobertaXL", (), OFFSET, tokenizer="unigram"),
    "camembert": Row("Camembert", ("dangvantuan/sentence-camembert-base",), OFFSET, tokenizer="unigram"),
    "data2vec-text": Row("Data2VecText", (), OFFSET, tokenizer="byte level"),
    "xmod": Row("Xmod", (), OFFSET | {"languages": ("ko",), "default_language": "ko"}, tokenizer="unigram"),
    "distilbert": Row(
        "DistilBert",
        ("sentence-transformers/msmarco-distilbert-base-v4",),
        {"dim": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "hidden_dim": INNER} | SPREAD | POSITIONS,
    ),
    "electra": Row("Electra", ("snunlp/KR-ELECTRA-discriminator",), ENCODER | {"embedding_size": 32}),
    "albert": Row("Albert", ("sentence-transformers/paraphrase-albert-small-v2",), ENCODER | {"embedding_size": 32}),
    "modernbert": Row(
        "ModernBert", ("Alibaba-NLP/gte-modernbert-base",), MODERN | {"local_attention": 32}, ("cls",), head=("normalize",)
    ),
    "nomic_bert": Row(
        "NomicBert",
        ("nomic-ai/nomic-embed-text-v1.5", "Snowflake/snowflake-arctic-embed-m-long"),
        SIZE | {"head_dim": 32, "max_position_embeddings": 512},
    ),
    "gte": Row(
        "Gte", ("Snowflake/snowflake-arctic-embed-m-v2.0",), ENCODER | {"type_vocab_size": 1}, ("cls",), head=("normalize",)
    ),
    "jina_embeddings_v3": Row("JinaEmbeddingsV3", (), ENCODER, tokenizer="unigram"),
    "eurobert": Row(
        "EuroBert", ("EuroBERT/EuroBERT-210m",), DECODER | {"pad_token_id": 0}, tokenizer="gemma", head=("normalize",)
    ),
    "mpnet": Row(
        "MPNet",
        ("sentence-transformers/all-mpnet-base-v2",),
        OFFSET,
        tokenizer="byte level",
        head=("normalize",),
        attention="one_length",
        openvino=False,
    ),
    "deberta-v2": Row("DebertaV2", ("team-lucid/deberta-v3-base-korean",), DEBERTA, attention="one_length", openvino=False),
    "t5": Row(
        "T5",
        ("sentence-transformers/sentence-t5-base", "sentence-transformers/gtr-t5-base"),
        T5,
        tokenizer="unigram",
        head=(48, "normalize"),
        attention="one_length",
        model="T5EncoderModel",
        openvino=False,
    ),
    "t5, with its decoder": Row("T5", (), T5, tokenizer="unigram", attention="one_length", openvino=False),
    "t5, prompt left out": Row(
        "T5",
        ("hkunlp/instructor-large",),
        T5,
        tokenizer="unigram",
        attention="one_length",
        model="T5EncoderModel",
        openvino=False,
        include_prompt=False,
    ),
    "umt5": Row("UMT5", (), T5, tokenizer="unigram", attention="one_length", model="UMT5EncoderModel", openvino=False),
    "bart": Row("Bart", (), BART, attention="one_length", openvino=False),
    "fnet": Row("FNet", (), ENCODER, attention="one_length", openvino=False),
    "gpt2": Row("GPT2", (), GPT2, tokenizer="no special tokens"),
    "gpt_neox, weighted": Row(
        "GPTNeoX", ("Muennighoff/SGPT-125M-weightedmean-nli-bitfit",), ENCODER, ("weightedmean",), "no special tokens"
    ),
    "gpt_neox, weighted, prompt left out": Row(
        "GPTNeoX", (), ENCODER, ("weightedmean",), "no special tokens", openvino=False, include_prompt=False
    ),
    "opt": Row(
        "OPT", (), OPT | {"word_embed_proj_dim": WIDTH, "max_position_embeddings": 256}, LAST, "gemma", openvino=False
    ),
    "qwen3": Row(
        "Qwen3",
        ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-8B", "codefuse-ai/F2LLM-4B"),
        DECODER,
        LAST,
        "qwen",
        ("normalize",),
    ),
    "qwen3, sharded with a language model's head": Row(
        "Qwen3", (), DECODER, LAST, "qwen", ("normalize",), model="Qwen3ForCausalLM", max_shard_size="100KB"
    ),
    "qwen2": Row("Qwen2", (), DECODER, LAST, "qwen", ("normalize",)),
    "qwen2, causal mean": Row(
        "Qwen2", ("HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1",), DECODER, tokenizer="qwen"
    ),
    "qwen2, bidirectional": Row("Qwen2", (), DECODER | BIDI, tokenizer="qwen", head=("normalize",)),
    "llama": Row("Llama", (), DECODER | {"rope_parameters": LLAMA3}, LAST, "gemma"),
    "mistral": Row(
        "Mistral", ("intfloat/e5-mistral-7b-instruct",), DECODER | {"sliding_window": 16}, LAST, "gemma", ("normalize",)
    ),
    "ministral3, bidirectional": Row(
        "Ministral3", ("nvidia/Nemotron-3-Embed-1B-BF16",), DECODER | BIDI, tokenizer="gemma", head=("normalize",)
    ),
    "gemma": Row("Gemma", (), DECODER, LAST, "gemma"),
    "gemma2, soft cap": Row(
        "Gemma2",
        ("BAAI/bge-multilingual-gemma2",),
        DECODER | {"attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 32, "sliding_window": 16},
        LAST,
        "gemma",
        attention="one_length",
        openvino=False,
    ),
    "gemma3, bidirectional": Row(
        "Gemma3Text",
        ("google/embeddinggemma-300m",),
        GEMMA3 | BIDIRECTIONAL,
        tokenizer="gemma",
        head=(128, WIDTH, "normalize"),
    ),
    "gemma3, causal": Row(
        "Gemma3Text", ("microsoft/harrier-oss-v1-270m", "tencent/KaLM-Embedding-Gemma3-12B-2511"), GEMMA3, LAST, "gemma"
    ),
}


def save(row: Row, folder: Path, prompts: dict[str, str] | None = None) -> Path:
    """Saves the tiny model of a row with sentence-transformers; returns its folder."""
    plain = folder / "plain"
    words = tokenizer(row.tokenizer)
    words.model_max_length = LENGTH
    words.padding_side = "left" if row.tokenizer == "qwen" else "right"
    words.save_pretrained(plain)
    torch.manual_seed(5)
    config = getattr(transformers, f"{row.kind}Config")(
        **{"vocab_size": len(words), "pad_token_id": words.pad_token_id} | row.config
    )
    network = getattr(transformers, row.model or f"{row.kind}Model")(config)
    with torch.no_grad():  # transformers zeroes the padding token, which ends Qwen's texts
        network.get_input_embeddings().weight[words.pad_token_id].normal_()
    network.save_pretrained(plain, max_shard_size=row.max_shard_size)
    pool = Pooling(WIDTH, row.pooling if len(row.pooling) > 1 else row.pooling[0], include_prompt=row.include_prompt)
    modules: list[torch.nn.Module] = [Transformer(str(plain), max_seq_length=LENGTH), pool]
    width = pool.pooling_output_dimension
    for part in row.head:
        torch.manual_seed(11)
        if part == "normalize":
            modules.append(Normalize())
        elif part == "layer norm":
            norm = LayerNorm(width)
            torch.nn.init.normal_(norm.norm.weight)
            modules.append(norm)
        else:
            modules.append(Dense(width, int(part), bias=False, activation_function=torch.nn.Identity()))
            width = int(part)
    model = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    model.save_pretrained(str(folder / "model"))
    if row.model.endswith("ForCausalLM"):  # as such repositories are: the weights of the language model, in shards
        (folder / "model" / "model.safetensors").unlink()
        for path in plain.glob("model*.safetensors*"):
            shutil.copy(path, folder / "model")
    return folder / "model"


def save_plain(row: Row, folder: Path, task: str, spread: float) -> Path:
    """Saves a tiny transformer and its tokenizer, as transformers does, without sentence-transformers' files.

    Args:
        row: the row of the zoo that gives the architecture and the tokenizer.
        folder: where to write it.
        task: the end of the name of the class, such as ``ForMaskedLM``.
        spread: standard deviation of its random weights.
    """
    words = tokenizer(row.tokenizer)
    torch.manual_seed(0)
    settings = row.config | {"vocab_size": len(words), "initializer_range": spread}
    config = getattr(transformers, f"{row.kind}Config")(**settings)
    getattr(transformers, f"{row.kind}{task}")(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


assert ROBERTA_TOKENS[1] == "<pad>"  # whose id is the pad_token_id of OFFSET
