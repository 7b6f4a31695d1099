"""A daily DAG for Airflow 3: embed the day's folder, prove that the output is whole, hold the model against its measure.

Put it into Airflow's DAGs folder, where kosbert-ray[airflow] is installed. The variables below are Airflow's (Admin,
Variables; or AIRFLOW_VAR_KOSBERT_ADDRESS and so on). Folders lie at addresses that the cluster and Airflow both reach.

    kosbert_address   the cluster's job API: http://HEAD:8265
    kosbert_input     the corpus, with a folder for each day: s3://bucket/corpus
    kosbert_output    the vectors, with a folder for each day: s3://bucket/vectors
    kosbert_model     hub name, folder, s3:// URL or bundled:NAME; jhgan/ko-sbert-sts if there is no such variable
    kosbert_sts       sentence pairs with people's scores, to hold the model against: s3://bucket/sts-test.tsv
    kosbert_least     the cosine's Spearman x 100 that it must reach on them; 75 if there is no such variable
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
        outlets=[Asset("kosbert_vectors")],  # for DAGs that are to run when there are new vectors
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
