# ruff: noqa: E501 (Korean letters count as two)
"""The words of the report. English texts are the keys of the translations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kosbert_ray.shards.totals import CHUNK, CHUNK_OR_MEAN, SPLIT, TRUNCATED, TRUNCATION
from kosbert_ray.units import data_size, duration, plural

Language = Literal["en", "ko"]

NO_TEXTS = "The output has no texts (--no-text), so the map shows none and there are no lengths."
MANY_VALUES = "--color {column}: {values:,} values; the {colored} most frequent have a color."
NO_MODEL = "Lengths are not shown: the model cannot be loaded here ({error})."
MISSING = "The report leaves files out: {error}"
MIDDLE = "Median {median:{form}}, 95th percentile {high:{form}}."
COMPARED = (
    "Median {median:{form}}, 95th percentile {high:{form}} ({reference}: {usual_median:{form}} and {usual_high:{form}})."
)

KOREAN: Mapping[str, str] = {
    # Page
    "kosbert-ray {version}; begun {created} by version {began}.": "kosbert-ray {version}. 시작: {created}, 버전 {began}.",
    "Complete.": "완료되었습니다.",
    "Not complete: run the same command again.": "완료되지 않았습니다. 같은 명령을 다시 실행하세요.",
    "Summary": "요약",
    "Clusters": "군집",
    "Groups": "그룹",
    "Of the sampled rows, with examples.": "표본 행의 분류와 예시입니다.",
    "cluster": "군집",
    "others": "그 외",
    "rows": "행",
    "for example": "예시",
    "text": "텍스트",
    "its nearest": "가장 가까운 텍스트",
    "cosine": "코사인",
    "Nodes": "노드",
    "node": "노드",
    "not known": "알 수 없음",
    "slices": "슬라이스",
    "tokens encoded": "인코딩한 토큰",
    "encoding, s": "인코딩, 초",
    "waiting, s": "대기, 초",
    "Rejected rows": "거부된 행",
    "{seen:,} of {all:,} read.": "{all:,}개 중 {seen:,}개를 읽었습니다.",
    "reason": "이유",
    "Cost": "비용",
    "Evaluation": "평가",
    "Correlation x 100 with people's judgement, Pearson / Spearman (kosbert-ray evaluate).": (
        "사람의 판단과의 상관계수 x 100, Pearson / Spearman (kosbert-ray evaluate)."
    ),
    "data": "데이터",
    "type": "자료형",
    "dimension": "차원",
    "dot": "내적",
    "euclidean": "유클리드 거리",
    "manhattan": "맨해튼 거리",
    # Warnings
    TRUNCATION: (
        "행의 {rows:.1%}가 모델의 최대 길이보다 길어 전체 토큰의 {tokens:.1%}가 잘렸습니다. 텍스트 전체를 임베딩하려면 "
        "{remedy} 설정하세요"
    ),
    CHUNK_OR_MEAN: "long_text=chunk나 long_text=mean을",
    CHUNK: "long_text=chunk를",
    NO_TEXTS: ("출력에 텍스트가 없어(--no-text) 지도에 텍스트를 표시할 수 없고 길이도 알 수 없습니다."),
    MANY_VALUES: ("--color {column}: 값이 {values:,}개이며, 가장 많은 {colored}개에만 색을 입혔습니다."),
    MISSING: "일부 파일이 빠진 보고서입니다: {error}",
    NO_MODEL: ("이 머신에서 모델을 불러올 수 없어 길이를 표시하지 않습니다({error})."),
    # Pairs
    "Nearest pairs": "가장 가까운 쌍",
    "Of the sampled rows, without equal texts: are they duplicates?": (
        "표본 행 가운데 가장 비슷한 쌍입니다(같은 텍스트 제외). 중복인지 확인해 보세요."
    ),
    "Most isolated rows": "가장 동떨어진 행",
    "The nearest sampled row is far: are they of this corpus?": (
        "다른 표본 행과 멀리 떨어진 행입니다. 이 말뭉치에 속하는 텍스트인지 확인해 보세요."
    ),
    # Summary
    "Model": "모델",
    "Input": "입력",
    "Rows": "행",
    "{rows:,} in {shards}, {size}": "{rows:,}개, {shards}, {size}",
    "Rejected": "거부",
    "Tokens": "토큰",
    "{all:,}; {encoded:,} through the model": "{all:,}개, 그중 {encoded:,}개를 모델로 계산",
    "Duplicates": "중복",
    "{share:.1%} of the rows share another row's vector": "행의 {share:.1%}가 다른 행의 벡터를 함께 씁니다",
    "Reused": "재사용",
    "{texts} took their vectors from an older output": "이전 출력에서 벡터를 가져온 텍스트 {texts}",
    "Long texts": "긴 텍스트",
    "none": "없음",
    SPLIT: "긴 텍스트 {texts:,}개를 청크로 나눔",
    TRUNCATED: "행 {rows}에서 토큰 {tokens}가 잘림(행의 {share:.1%})",
    "Computed in": "계산 방식",
    "{precision}, {attention} attention, on {device}": "{precision}, {attention}, {device}",
    "Fill": "채움률",
    "{fill:.1%} of the computed tokens were not padding": "패딩을 뺀 토큰의 비율 {fill:.1%}",
    "Commits": "커밋",
    "{time} from the first to the last": "처음부터 마지막까지 {time}",
    "Encoding": "인코딩",
    "{rate:,.0f} tokens/s for each encoder": "인코더당 초당 {rate:,.0f}토큰",
    "Anisotropy": "비등방성",
    "{found:.3f}, the mean cosine of two rows picked at random ({reference}: {usual:.3f})": (
        "{found:.3f}. 무작위로 고른 두 행의 평균 코사인입니다({reference}: {usual:.3f})"
    ),
    "Dimensions": "차원",
    "{found:.1f} effective of {all}; {constant} constant ({reference}: {usual:.1f} of {usual_all})": (
        "{all}개 중 유효 차원 {found:.1f}개, 값이 변하지 않는 차원 {constant}개({reference}: {usual_all}개 중 {usual:.1f}개)"
    ),
    "Fingerprint": "지문",
    "everyday sentences by kosbert-mini": "kosbert-mini로 임베딩한 일상 문장",
    # Costs
    "storage": "저장",
    "{cost:,.4g} {currency}: {hours:,.3f} encoder hours at {price:g} {currency}": (
        "{cost:,.4g} {currency}: 인코더 {hours:,.3f}시간, 시간당 {price:g} {currency}"
    ),
    "{cost:,.4g} {currency} a month": "한 달에 {cost:,.4g} {currency}",
    # Figures
    "Throughput": "처리량",
    "Tokens per second of the rows committed, by node.": "커밋한 행의 초당 토큰 수를 노드별로 나타냅니다.",
    "Stages": "단계",
    "Seconds of work in each stage, summed over all workers; waiting is that of the encoders.": (
        "단계마다 일한 시간을 모든 워커에 대해 더한 값(초)입니다. 대기는 인코더가 기다린 시간입니다."
    ),
    "Share of the computed tokens that were not padding, by slice.": "계산한 토큰 가운데 패딩이 아닌 비율을 슬라이스별로 나타냅니다.",
    "Lengths": "길이",
    "Tokens of the sampled rows, uncut.": "표본 행의 토큰 수입니다(자르기 전).",
    "Map": "지도",
    "{rows}, neighbours near each other (t-SNE), by {color}.": "행 {rows}를 비슷한 것끼리 가까이 놓았습니다(t-SNE). 색 구분: {color}.",
    "Norms": "벡터 길이(노름)",
    "Lengths of the sampled vectors.": "표본 벡터의 길이입니다.",
    "Spread": "퍼짐",
    "Standard deviation of each dimension, largest first.": "차원별 표준편차를 큰 순서로 나타냅니다.",
    "Similarity": "유사도",
    "Cosines of pairs picked at random.": "무작위로 고른 쌍의 코사인입니다.",
    MIDDLE: "중앙값 {median:{form}}, 95번째 백분위수 {high:{form}}.",
    COMPARED: (
        "중앙값 {median:{form}}, 95번째 백분위수 {high:{form}}({reference}: {usual_median:{form}}, {usual_high:{form}})."
    ),
    "The largest is {ratio:.2f} times the median ({reference}: {usual:.2f}).": (
        "가장 큰 값은 중앙값의 {ratio:.2f}배입니다({reference}: {usual:.2f}배)."
    ),
    # Kinds of vectors
    "{name} ({kind})": "{name}({kind})",
    "dense vectors": "밀집 벡터",
    "sparse vectors": "희소 벡터",
    "token vectors": "토큰 벡터",
    "Size on disk": "저장 크기",
    "{size} a row": "행마다 {size}",
    "Values per row": "행별 값 개수",
    "median {median:,.0f}, 95th percentile {high:,.0f}; {empty:,} of {rows:,} sampled vectors empty": (
        "중앙값 {median:,.0f}개, 95번째 백분위수 {high:,.0f}개. 표본 벡터 {rows:,}개 중 빈 벡터 {empty:,}개"
    ),
    "{used:,} of {all:,} used in the sampled rows": "{all:,}개 중 {used:,}개가 표본 행에서 쓰였습니다",
    "{found:.3f}, the mean cosine of two rows picked at random": "{found:.3f}. 무작위로 고른 두 행의 평균 코사인입니다",
    "Empty sparse vectors: {empty:,} of {rows:,} sampled rows. A search by sparse vectors cannot find them; check output.sparse_threshold and the model.": (
        "표본 행 {rows:,}개 중 {empty:,}개의 희소 벡터가 비어 있습니다. 희소 벡터로 검색하면 찾을 수 없는 행이니 output.sparse_threshold와 "
        "모델을 확인하세요."
    ),
    "Values above 0 in the vectors of the sampled rows.": "표본 행의 벡터마다 0보다 큰 값이 몇 개인지 나타냅니다.",
    "values above 0": "0보다 큰 값의 개수",
    "Heaviest dimensions": "비중이 큰 차원",
    "Those with the largest sums of values in the sampled rows.": "표본 행에서 값의 합이 가장 큰 차원입니다.",
    "token": "토큰",
    "share of the rows": "행의 비율",
    "mean value above 0": "0보다 큰 값의 평균",
    "Rows are placed by the main directions of their sparse vectors (truncated SVD).": (
        "희소 벡터를 특잇값 분해(truncated SVD)로 줄여 행의 위치를 정했습니다."
    ),
    "Cosines are those of the sparse vectors.": "희소 벡터의 코사인입니다.",
    "Vectors per row": "행별 벡터 개수",
    "median {median:,.0f}, 95th percentile {high:,.0f}; each of {dimension:,} numbers": (
        "중앙값 {median:,.0f}개, 95번째 백분위수 {high:,.0f}개, 벡터마다 {dimension:,}차원"
    ),
    "{found:.3f}, the mean cosine of two rows' mean vectors": "{found:.3f}. 무작위로 고른 두 행의 평균 벡터 사이 코사인의 평균입니다",
    "Rows without token vectors: {empty:,} of {rows:,} sampled. A search by token vectors cannot find them; check the model's skiplist.": (
        "표본 행 {rows:,}개 중 {empty:,}개에 토큰 벡터가 없습니다. 토큰 벡터로 검색하면 찾을 수 없는 행이니 모델의 skiplist를 확인하세요."
    ),
    "Token vectors of the sampled rows.": "표본 행마다 토큰 벡터가 몇 개인지 나타냅니다.",
    "Cosines of the mean token vectors of pairs picked at random.": "무작위로 고른 두 행의 평균 토큰 벡터 사이 코사인입니다.",
    "Each row is placed by the mean of its token vectors.": "토큰 벡터의 평균으로 행의 위치를 정했습니다.",
    "Cosines are those of the rows' mean token vectors, not MaxSim.": "MaxSim이 아니라 평균 토큰 벡터의 코사인입니다.",
    "time (UTC)": "시각(UTC)",
    "tokens/s": "토큰/초",
    "seconds": "초",
    "share": "비율",
    "tokens": "토큰",
    "length": "길이",
    "vectors": "벡터",
    "pairs": "쌍",
    "standard deviation": "표준편차",
    "row {row}": "행 {row}",
    "read": "읽기",
    "tokenize": "토큰화",
    "encode": "인코딩",
    "write": "쓰기",
    "encoder waiting": "인코더 대기",
}
COUNTED = {"row": "{n:,}개", "token": "{n:,}개", "shard": "샤드 {n:,}개", "text": "{n:,}개"}


@dataclass(frozen=True)
class Words:
    """Says texts in a language.

    Attributes:
        language: "en" or "ko".
    """

    language: Language = "en"

    def __call__(self, text: str, **values: Any) -> str:
        """Translates a text and fills in its values.

        Args:
            text: the English text, with format fields.
            values: the values of its fields.
        """
        said = text if self.language == "en" else KOREAN[text]
        return said.format(**values) if values else said

    def heading(self, name: str, kind: str | None) -> str:
        """Translates a heading, and names the kind of vectors that it is about if there is one to name."""
        return self(name) if kind is None else self("{name} ({kind})", name=self(name), kind=self(kind))

    def name(self, name: str) -> str:
        """Translates a name if it is known."""
        return name if self.language == "en" else KOREAN.get(name, name)

    def time(self, seconds: float) -> str:
        """A duration."""
        said = duration(seconds)
        for english, korean in () if self.language == "en" else ((" min", "분"), (" h", "시간"), (" s", "초")):
            said = said.replace(english, korean)
        return said

    def size(self, count: float) -> str:
        """A number of bytes."""
        said = data_size(count)
        return said if self.language == "en" else said.replace(" bytes", "바이트").replace(" byte", "바이트")

    def counted(self, n: int, noun: str) -> str:
        """A number of things: ``3 rows``."""
        return plural(n, noun) if self.language == "en" else COUNTED[noun].format(n=n)
