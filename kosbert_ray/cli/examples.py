"""What ``--help`` ends with: commands by what one wants to do."""

from __future__ import annotations

import argparse

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (
            "try it, with what is bundled",
            "kosbert-ray embed bundled:everyday demo --model bundled:kosbert-mini --keep id,text",
        ),
        ("see what it will take", "kosbert-ray plan s3://bucket/corpus/"),
        ("embed it; after a crash, the same again", "kosbert-ray embed s3://bucket/corpus/ s3://bucket/vectors/ --keep id"),
        ("look for something in it", "kosbert-ray search s3://bucket/vectors/ '비 오는 날'"),
        ("write a job file to start from", "kosbert-ray init job.yaml"),
    ),
    "embed": (
        ("a folder", "kosbert-ray embed corpus/ vectors/ --keep id"),
        ("a dataset of the hub", "kosbert-ray embed hub://klue/ynat@main vectors/ --text title --keep guid"),
        ("two columns as one text", "kosbert-ray embed corpus/ vectors/ --text '{title}\\n{body}' --keep id"),
        ("long texts as chunks", "kosbert-ray embed corpus/ vectors/ --set long_text=chunk --set chunk.text=true"),
        ("bits beside floats", "kosbert-ray embed corpus/ vectors/ --set output.dtype=float32,ubinary"),
        ("by a job file", "kosbert-ray embed --config job.yaml --set encoder.precision=bf16"),
        (
            "another model, beside the current output",
            "kosbert-ray embed --into versions/v2 --model intfloat/multilingual-e5-base",
        ),
    ),
    "plan": (
        ("tokens, bytes and time", "kosbert-ray plan corpus/ vectors/ --keep id"),
        (
            "what it costs",
            "kosbert-ray plan corpus/ --set 'plan.profiles={a10g: {tokens_per_second: 400000, price_per_hour: 1.0}}'",
        ),
    ),
    "calibrate": (("measure this machine", "kosbert-ray calibrate corpus/ --model jhgan/ko-sbert-sts"),),
    "submit": (("on a cluster", "kosbert-ray submit s3://bucket/in/ s3://bucket/out/ --address http://head:8265"),),
    "status": (("from any machine", "kosbert-ray status s3://bucket/vectors/"),),
    "report": (
        ("one HTML file", "kosbert-ray report vectors/ --to report.html"),
        ("the map by a column", "kosbert-ray report vectors/ --color category --sample 5000"),
    ),
    "ls": (("what came since a run", "kosbert-ray ls vectors/ --since 20261125T120000-0a1b2c3d"),),
    "search": (
        ("one query", "kosbert-ray search vectors/ '환불은 어떻게 하나요?' -k 5"),
        ("many, for a program", "kosbert-ray search vectors/ --queries questions.txt --format jsonl"),
    ),
    "cluster": (
        ("a hundred topics", "kosbert-ray cluster vectors/ -n 100"),
        ("near-duplicates", "kosbert-ray cluster vectors/ --threshold 0.95"),
    ),
    "verify": (("against the input, and 100 rows anew", "kosbert-ray verify vectors/ --input corpus/ --sample 100"),),
    "diff": (("two models on one corpus", "kosbert-ray diff versions/v1 versions/v2"),),
    "promote": (("what readers find from now on", "kosbert-ray promote versions/v2"),),
    "export": (
        ("for clip-retrieval, autofaiss and FAISS", "kosbert-ray export vectors/ npy/"),
        ("a Lance dataset", "kosbert-ray export vectors/ vectors.lance --format lance"),
    ),
    "evaluate": (("on KorSTS", "kosbert-ray evaluate jhgan/ko-sbert-sts sts-test.tsv --dimension 256"),),
    "train": (("by a recipe", "kosbert-ray train my-model --config configs/train_ko_sbert_sts.yaml --data-root data/"),),
    "doctor": (("before a job", "kosbert-ray doctor s3://bucket/corpus/ s3://bucket/vectors/"),),
    "init": (
        ("by questions", "kosbert-ray init job.yaml"),
        ("without", "kosbert-ray init job.yaml --input corpus/ --output vectors/ --keep id"),
    ),
    "completion": (("of bash, in this session", 'eval "$(kosbert-ray completion bash)"'),),
}


class Formatter(argparse.HelpFormatter):
    """Wraps what is prose and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def add_examples(parser: argparse.ArgumentParser, command: str) -> None:
    """Ends a command's help with its examples."""
    parser.formatter_class = Formatter
    lines = [f"  {what}:\n    {line}" for what, line in EXAMPLES[command]]
    parser.epilog = "\n".join(["examples:", *lines]).replace("%", "%%")
