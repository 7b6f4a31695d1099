#!/usr/bin/env bash
# The commands of README's animation. To record it again, in an empty folder with kosbert-ray installed:
#   asciinema rec -i 1 --cols 118 --rows 26 -c "bash …/docs/assets/demo.sh" demo.cast
#   npx svg-term-cli --in demo.cast --out …/docs/assets/demo.svg --window --width 118 --height 26
set -euo pipefail
python3 - << 'PYTHON'
import json
from importlib.resources import files
from pathlib import Path

everyday = files("kosbert_ray.bundled") / "everyday"
rows = [json.loads(line) for name in range(4) for line in (everyday / f"everyday-{name}.jsonl").read_text("utf-8").splitlines()]
Path("corpus").mkdir(exist_ok=True)
for part in range(8):  # each sentence forty times, with numbers that make them differ
    number = [part * 5 + repeat for repeat in range(5)]
    lines = [{"id": f"{row['id']}-{n}", "text": f"{row['text']} {n}" if n else row["text"]} for n in number for row in rows]
    Path(f"corpus/part-{part}.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
PYTHON

show() {
    printf '\033[1m$ '
    for ((place = 0; place < ${#1}; place++)); do
        printf '%s' "${1:place:1}"
        sleep 0.02
    done
    printf '\033[0m\n'
    eval "$1"
    echo
    sleep 1
}

show 'kosbert-ray plan corpus/ --model bundled:kosbert-mini'
show 'kosbert-ray embed corpus/ vectors/ --model bundled:kosbert-mini --keep id --set slice.max_rows=1000'
show 'kosbert-ray search vectors/ "비가 오는 날에는 무엇을 먹을까?" -k 3'
show 'kosbert-ray verify vectors/ --input corpus/'
sleep 3
