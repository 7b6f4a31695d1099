"""Daily DAG for Airflow 3: embeds the day's folder, verifies the output, and checks the model's quality.

Copy this file into Airflow's DAGs folder and install kosbert-ray[airflow] there. Set these Airflow variables (Admin,
Variables; or the environment variables AIRFLOW_VAR_KOSBERT_ADDRESS and so on). Both the cluster and Airflow must be
able to reach the paths.

    kosbert_address   job API of the cluster: http://HEAD:8265
    kosbert_input     corpus, with one folder per day: s3://bucket/corpus
    kosbert_output    vectors, with one folder per day: s3://bucket/vectors
    kosbert_model     hub name, folder, s3:// URL or bundled:NAME (default: jhgan/ko-sbert-sts)
    kosbert_sts       sentence pairs with human scores, for the quality check: s3://bucket/sts-test.tsv
    kosbert_least     lowest acceptable cosine Spearman x 100 on these pairs (default: 75)
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, Asset

from kosbert_ray.integrations.airflow import KosbertEmbedOperator, KosbertOperator

ADDRESS = "{{ var.value.kosbert_address }}"
INPUT = "{{ var.value.kosbert_input }}/{{ ds }}/"
OUTPUT = "{{ var.value.kosbert_output }}/{{ ds }}/"
MODEL = "{{ var.value.get('kosbert_model', 'jhgan/ko-sbert-sts') }}"

with DAG(
    dag_id="kosbert_embed_daily",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={
        "deferrable": True,
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "execution_timeout": timedelta(hours=12),
    },
) as dag:
    embed = KosbertEmbedOperator(
        task_id="embed",
        address=ADDRESS,
        input_path=INPUT,
        output_path=OUTPUT,
        model=MODEL,
        outlets=[Asset("kosbert_vectors")],  # schedule other DAGs on this asset to run after each update
    )
    verify = KosbertOperator(
        task_id="verify", address=ADDRESS, command=["verify", OUTPUT, "--input", INPUT, "--sample", "20"]
    )
    evaluate = KosbertOperator(
        task_id="evaluate",
        address=ADDRESS,
        command=[
            "evaluate",
            MODEL,
            "{{ var.value.kosbert_sts }}",
            "--types",
            "float32",
            "--least",
            "{{ var.value.get('kosbert_least', '75') }}",
        ],
    )
    embed >> verify >> evaluate
