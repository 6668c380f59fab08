"""Ship the adapter that a cell of an experiment trained, with its card.

    finemem sweep notebooks/designs/real_text.yaml --output SWEEP --managers SWEEP/managers
    python -m finemem_lib.build.trained_adapter --rows SWEEP/real_text.jsonl \\
        --managers SWEEP/managers --variant "operation slot price" --seed 60 \\
        --output data/smollm2_trained

The adapter is rounded to bf16, which halves its size. The tokenizer, which is that of the base
model, is left out.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from finemem_lib.experiments.cells import CellResult
from finemem_lib.experiments.rows import read_card, read_rows
from finemem_lib.util.files import write_json, written_beside

ADAPTER = "adapter_model.safetensors"

SETTINGS = ("adapter_config.json", "manager_settings.json")

CARD = """---
license: apache-2.0
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M as memory manager: trained on real text by per-step GRPO

The adapter ({megabytes:.1f} MB, bf16) that the cell "{variant}" of
`notebooks/designs/{design}.yaml` trained with seed {seed}, from the warm start `{start}`
(made from demonstrations): {updates} updates of {instances} x {rollouts} rollouts, {chunks} chunks
each, in {minutes:.0f} minutes on {hardware},
at commit {commit:.7}. Load it as `load_manager("smollm2-trained")`; its base model comes from
`finemem fetch smollm2`.

Made by `python -m finemem_lib.build.trained_adapter --rows {design}.jsonl --managers MANAGERS
--variant "{variant}" --seed {seed} --output data/smollm2_trained`, after
`finemem sweep notebooks/designs/{design}.yaml --output SWEEP --managers MANAGERS`.

**Data.** The training excerpts of `{data}`, under a memory of {budget} tokens. Nothing is known
of other texts.

## Measured

Its tests before rounding stand in `data/experiments/{design}.jsonl`, key `{key}`. What
training changed and what it did not is in docs/findings.md.
"""


def ship(row: CellResult, design: str, hardware: str, trained: Path, output: Path) -> None:
    """Write a trained adapter, its settings and its card into a new folder.

    Args:
        row: Result of the cell that trained it.
        design: Name of the design.
        hardware: Hardware of the training, in words.
        trained: Folder that the cell's manager was saved into.
        output: The new folder.
    """
    from safetensors.torch import load_file, save_file

    cell = row.cell
    with written_beside(output) as beside:
        beside.mkdir()
        weights = load_file(trained / ADAPTER)
        save_file({name: value.bfloat16() for name, value in weights.items()}, beside / ADAPTER)
        for name in SETTINGS:
            shutil.copyfile(trained / name, beside / name)
        write_json(
            beside / "training.json",
            {"key": row.key, "cell": cell.model_dump(mode="json"), "commit": row.commit},
        )
        card = CARD.format(
            megabytes=(beside / ADAPTER).stat().st_size / 1e6,
            variant=cell.variant,
            design=design,
            seed=cell.seed,
            start=cell.checkpoint,
            updates=cell.updates,
            instances=cell.instances_per_update,
            rollouts=cell.num_generations,
            chunks=cell.num_chunks,
            data=cell.data,
            minutes=row.seconds["training"] / 60,
            hardware=hardware,
            commit=row.commit,
            key=row.key,
            budget=cell.token_budget,
        )
        (beside / "README.md").write_text(card, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ship an adapter; see the module.

    Args:
        arguments: Command-line arguments; `None` for those of the process.
    """
    parser = argparse.ArgumentParser(description="Ship the adapter that a cell trained.")
    parser.add_argument(
        "--rows",
        type=Path,
        required=True,
        help="rows of the sweep; their card must lie beside them",
    )
    parser.add_argument("--managers", type=Path, required=True, help="folder of saved managers")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="new folder to write into")
    asked = parser.parse_args(arguments)
    if asked.output.exists():
        parser.error(f"{asked.output} exists and is kept; name another folder, or remove it")
    found = [
        row
        for row in read_rows(asked.rows)
        if (row.cell.variant, row.cell.seed) == (asked.variant, asked.seed) and row.cell.updates
    ]
    if len(found) != 1:
        parser.error(
            f"{asked.rows} holds {len(found)} trainings of {asked.variant!r} with seed "
            f"{asked.seed}, expected 1; see its columns variant and seed"
        )
    (row,) = found
    hardware = str(read_card(asked.rows)["hardware"])
    ship(row, asked.rows.stem, hardware, asked.managers / row.key, asked.output)
    print(f"{asked.output}: {(asked.output / ADAPTER).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
