"""Fine-Mem workbench: which memory operation deserves the credit, and how to train with it.

The package is layered and imports run only downwards:

    0  trajectory, text, repro,       records, text helpers, seeds and versions,
       files, progress                files written whole or not at all, how long it will take
    1  operations, memory,            the world the memory manager lives in
       retrieval, reasoning, scoring,
       planted, datasets, questions,
       question_store, leaks,         chunk questions made ahead, what must not be known already
       raw_sets, builders,            instances from the public raw sets, beside published sizes
       published_sizes,
       client, language_models,      asking language models, as reader, teacher and judge
       model_roles
    2  rewards, advantages, credit    per-step rewards, group-relative advantages, other rules
    3  policy, tiny, warm_start,      memory managers, lockstep rollouts, GRPO, tables
       rollout, training, evaluation,
       sampling, diagnostics,
       manager_prompts, planner,      what a model is shown, what a run will take,
       model_loading,                 how a model is loaded
       training_record, checkpoints,  what training keeps of every update, how it goes on,
       training_stops,                what stops it
       credit_truth                   the rules against the planted truth
    4  plot_style, plot_frames,       what figures share, their states, the figures,
       plots, report, explore,        the offline page, and controls over them,
       experiment, experiment_table,  grids of training runs
       plots_training,
       plots_experiment, plots_credit,
       explore_training, lesson       what the lessons of notebooks 03 and 08 play and check
    5  runs, console, profiles,       artefacts, what a run runs, manifests, the command line
       prepare, plan, pipeline

Importing the package itself loads none of the heavy libraries.
"""

__version__ = "0.1.0"
