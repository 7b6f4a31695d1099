"""Small models of each architecture with random weights, saved by sentence-transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

WIDTH, LAYERS, HEADS, INNER = 64, 2, 2, 128
SIZE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
VOCABULARY = 2000
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "electra")


def _wordpiece(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=BERT_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _roberta(texts: list[str], byte_level: bool) -> PreTrainedTokenizerFast:
    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=ROBERTA_TOKENS)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=ROBERTA_TOKENS, unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), ROBERTA_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)


def _transformer(kind: str, vocabulary: int, length: int) -> PreTrainedModel:
    torch.manual_seed(7)
    positions = {"vocab_size": vocabulary, "max_position_embeddings": length}
    offset = positions | {"max_position_embeddings": length + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "bert":
        return BertModel(BertConfig(**SIZE, **positions))
    if kind == "roberta":
        return RobertaModel(RobertaConfig(**SIZE, **offset, type_vocab_size=1))
    if kind == "xlm-roberta":
        return XLMRobertaModel(XLMRobertaConfig(**SIZE, **offset, type_vocab_size=1))
    if kind == "electra":
        return ElectraModel(ElectraConfig(**SIZE, **positions, embedding_size=32))
    if kind == "modernbert":
        special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        return ModernBertModel(ModernBertConfig(**SIZE, **positions, **special, local_attention=32))
    config = DistilBertConfig(dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=INNER, **positions)
    return DistilBertModel(config)


def save_transformer(kind: str, texts: list[str], folder: Path, length: int = 256) -> Path:
    """A plain transformers folder of one of ``ARCHITECTURES``."""
    tokenizer = _roberta(texts, kind == "roberta") if "roberta" in kind else _wordpiece(texts)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    _transformer(kind, len(tokenizer), length).save_pretrained(folder)
    return folder


def save_model(
    kind: str,
    texts: list[str],
    folder: Path,
    *,
    length: int = 256,
    pooling: object = "mean",
    dense: int = 0,
    normalize: bool = False,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    do_lower_case: bool = False,
    include_prompt: bool = True,
) -> Path:
    """A sentence-transformers folder of one of ``ARCHITECTURES`` with the given head."""
    plain = save_transformer(kind, texts, folder / "plain", length)
    pool = Pooling(WIDTH, pooling, include_prompt=include_prompt)
    modules = [Transformer(str(plain), do_lower_case=do_lower_case), pool]
    if dense:
        torch.manual_seed(11)
        modules.append(Dense(pool.pooling_output_dimension, dense))
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name=default_prompt_name, device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def pickle_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Turns a folder's model.safetensors into pytorch_model.bin."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return state


FRAGILE = '''"""A BERT that breaks on certain tokens: code of the model's own."""
import os

import torch
from transformers import BertModel


class FragileModel(BertModel):
    def forward(self, input_ids=None, **kwargs):
        fragile = self.config.fragile
        if (input_ids == fragile["dies"]).any():
            os._exit(1)
        if (input_ids == fragile["raises"]).any():
            raise ValueError("this one I cannot read")
        if input_ids.numel() > fragile["most_tokens"]:
            raise torch.OutOfMemoryError("simulated")
        return super().forward(input_ids=input_ids, **kwargs)
'''
UNKNOWN = "𓀀"  # makes the fragile model's tokenizer fail
BEYOND = "콩콩"  # a token that its model has no embedding for


def save_fragile(tiny_model: Path, folder: Path, most_tokens: int = 10**9) -> dict[str, str]:
    """A copy of ``tiny_model`` that fails on some texts; gives the words: ``dies``, ``raises``, ``nan``."""
    shutil.copytree(tiny_model, folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    # From the vocabulary's first half: the encoder's self-check tries tokens of the second.
    early = [token for token, number in sorted(vocabulary.items()) if number < len(vocabulary) // 2]
    syllables = [token for token in early if len(token) == 1 and "가" <= token <= "힣"]
    words = dict(zip(("dies", "raises", "nan"), syllables[-3:], strict=True))
    content["model"]["unk_token"] = "[NOT THERE]"
    flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({"id": len(vocabulary) + 1, "content": BEYOND, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None}  # which takes tokenizer.json as it is
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_fragile.FragileModel"}
    config["fragile"] = {name: vocabulary[word] for name, word in words.items()} | {"most_tokens": most_tokens}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_fragile.py").write_text(FRAGILE)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][vocabulary[words["nan"]]] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return words
