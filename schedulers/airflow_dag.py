"""Airflow: each notebook a task of its own, in the order of what they read and write.

Copy or link this file into the folder of your DAGs. Airflow's workers need this library and
`apache-airflow-providers-papermill`; the notebooks share the run `airflow-<time>`, and their
executed copies lie beside the runs. There is no manifest and no report: for these, let Airflow's
BashOperator call `schedulers/nightly.sh` instead.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.papermill.operators.papermill import PapermillOperator

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

from finemem_lib.runs.notebooks import numbered
from finemem_lib.runs.run import runs_folder
from finemem_lib.util.provenance import workbench_root

RUN = "airflow-{{ ts_nodash }}"
EXECUTED = runs_folder().parent / "airflow"
PARAMETERS: dict[str, object] = {"seed": 0}
"""Of all notebooks, in addition to the run's name; each must have them."""

EXECUTED.mkdir(parents=True, exist_ok=True)

with DAG(
    "finemem_nightly",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "execution_timeout": timedelta(hours=2)},
) as dag:
    tasks: dict[str, PapermillOperator] = {}
    writers: dict[str, str] = {}
    for notebook in numbered(workbench_root() / "notebooks"):
        values = notebook.model().read(PARAMETERS).model_dump()
        task = PapermillOperator(
            task_id=notebook.stem,
            input_nb=str(notebook.path),
            output_nb=f"{EXECUTED}/{RUN}-{notebook.path.name}",
            parameters={"run_id": RUN, **PARAMETERS},
            kernel_name="python3",
        )
        for artefact in notebook.reads_under(values):
            tasks[writers[artefact]] >> task
        writers |= dict.fromkeys(notebook.writes, notebook.stem)
        tasks[notebook.stem] = task
