"""Makes a tiny BERT with random weights from a fixed seed, in sentence-transformers' format.

Its vectors know which word pieces two sentences share, and nothing of what they mean.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizer

EVERYDAY = Path(__file__).parents[2] / "kosbert_ray" / "bundled" / "everyday"
VOCABULARY = 3000
WIDTH = 128
LAYERS = 2
MAX_SEQ_LENGTH = 128
SPECIAL_TOKENS = 5  # [PAD] [UNK] [CLS] [SEP] [MASK] come first in the vocabulary


def make(folder: Path) -> None:
    """Writes the model into ``folder``, replacing what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = [line for path in sorted(EVERYDAY.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    trainer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    trainer.train_from_iterator([json.loads(line)["text"] for line in lines], vocab_size=VOCABULARY, show_progress=False)
    trainer.save_model(str(folder))
    vocabulary = str(folder / "vocab.txt")
    BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=MAX_SEQ_LENGTH).save_pretrained(folder)
    (folder / "vocab.txt").unlink()

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=trainer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=MAX_SEQ_LENGTH,
    )
    model = BertModel(config, add_pooling_layer=False)
    # Wide word vectors outweigh what random layers add to them, and special tokens say nothing: so sentences that share
    # word pieces come out near, which is all that random weights can do.
    with torch.no_grad():
        words = model.embeddings.word_embeddings.weight
        words.normal_()
        words[:SPECIAL_TOKENS] = 0
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)

    package = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"},
    ]
    (folder / "1_Pooling").mkdir()
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
