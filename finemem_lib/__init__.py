"""Fine-Mem workbench: which memory operation deserves the credit, and how to train with it.

The package is layered and imports run only downwards:

    0  trajectory, text, repro,       records, text helpers, seeds and versions,
       files                          files written whole or not at all
    1  operations, memory,            the world the memory manager lives in
       retrieval, reasoning, scoring,
       planted, datasets, questions
    2  rewards, advantages            per-step rewards and group-relative advantages
    3  policy, tiny, warm_start,      memory managers, lockstep rollouts, GRPO, tables
       rollout, training, evaluation,
       sampling
    4  plots, report                  figures and the offline page
    5  runs, pipeline                 artefacts, manifests, the command line

Importing the package itself loads none of the heavy libraries.
"""

__version__ = "0.1.0"
