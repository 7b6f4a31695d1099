"""Base models: loads one from the hub or a folder, or creates a BERT with random weights and its own vocabulary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from kosbert_ray.errors import ModelError, first_line
from kosbert_ray.model.locate import locate_folder
from kosbert_ray.model.modules import POOLING_FLAGS
from kosbert_ray.model.source import ModelSource
from kosbert_ray.training.config import BaseConfig, NewModelConfig

MIN_FREQUENCY = 2
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def open_model(path: str | Path, device: str | None = None) -> SentenceTransformer:
    """Loads a saved sentence-transformers folder without using the network."""
    return SentenceTransformer(str(path), device=device, local_files_only=True)


def load_base(config: BaseConfig, device: str | None = None) -> SentenceTransformer:
    """Loads the base model. Adds pooling to a plain transformer.

    Raises:
        ModelError: the model does not exist or cannot be loaded.
    """
    folder = locate_folder(ModelSource(config.base))
    try:
        if (folder / "modules.json").exists():
            model = open_model(folder, device)
            model.max_seq_length = min(config.max_seq_length, model.max_seq_length or config.max_seq_length)
            return model
        transformer = Transformer(str(folder), max_seq_length=config.max_seq_length)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=config.pooling)
        return SentenceTransformer(modules=[transformer, pooling], device=device)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{config.base}: cannot be loaded for training ({first_line(error)})") from error


def vocabulary(texts: list[str], size: int) -> list[str]:
    """Trains a WordPiece vocabulary on ``texts``. Deterministic; special tokens come first.

    The trainer numbers initial pieces in hash-table order and breaks ties by number, so its result varies. To prevent
    that, the single-character pieces are passed in a fixed order: the most frequent ones, at most an eighth of ``size``.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.trainers import WordPieceTrainer

    counts = Counter(chain.from_iterable(texts))
    frequent = sorted((letter for letter in counts if not letter.isspace()), key=lambda letter: (-counts[letter], letter))
    letters = sorted(letter for letter in frequent[: size // 8] if counts[letter] >= MIN_FREQUENCY)
    tokenizer: Any = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in letters)],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def make_base(config: BaseConfig, new: NewModelConfig, texts: Iterable[str], folder: Path, seed: int) -> None:
    """Writes a BERT with random weights to ``folder``, with a WordPiece vocabulary trained on ``texts``."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary(list(texts), new.vocabulary)
    vocab_file = folder / "vocab.txt"
    vocab_file.write_text("\n".join(words) + "\n", "utf-8")
    tokenizer: Any = BertTokenizer(
        vocab=str(vocab_file), do_lower_case=False, strip_accents=False, model_max_length=config.max_seq_length
    )
    tokenizer.save_pretrained(folder)
    vocab_file.unlink()
    torch.manual_seed(seed)
    architecture = BertConfig(
        vocab_size=len(words),
        hidden_size=new.width,
        num_hidden_layers=new.layers,
        num_attention_heads=new.width // 64,
        intermediate_size=4 * new.width,
        max_position_embeddings=config.max_seq_length,
    )
    BertModel(architecture, add_pooling_layer=False).save_pretrained(folder)


def write_compatible_configs(folder: Path, max_seq_length: int) -> None:
    """Rewrites a saved folder's configs in the format used before sentence-transformers 5.5, which all versions read."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        part = folder / module["path"]
        if kind == "Pooling":
            saved = json.loads((part / "config.json").read_text("utf-8"))
            if "pooling_mode" in saved:
                modes = saved["pooling_mode"]
                modes = {modes} if isinstance(modes, str) else set(modes)
                compatible = {"word_embedding_dimension": saved["embedding_dimension"]}
                compatible |= {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
                _write(part / "config.json", compatible | {"include_prompt": saved.get("include_prompt", True)})
        if kind == "Transformer":
            saved = json.loads((part / "sentence_bert_config.json").read_text("utf-8"))
            lower = bool(saved.get("do_lower_case"))
            _write(part / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": lower})
    _write(folder / "modules.json", modules)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
