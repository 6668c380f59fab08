"""The command that says what a run will take, before anything starts: `finemem plan`.

Parameters are resolved as `finemem run` resolves them; the sizes are `planner`'s.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from finemem_lib.cli.profiles import (
    add_arguments,
    check_reads,
    model_settings,
    requested,
    resolve_parameters,
)
from finemem_lib.data.memalpha import held_out_split, load_instances
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.managers import loading, tiny
from finemem_lib.managers.loading import (
    BATCH_SIZE,
    MAX_NEW_TOKENS,
    MAX_PROMPT_TOKENS,
    first_line,
    split_revision,
)
from finemem_lib.managers.prompts import (
    INSTRUCTION,
    CompactPromptBuilder,
    PromptBuilder,
    prompt_builder,
)
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.readers.roles import load_roles
from finemem_lib.readers.settings import ChatSettings
from finemem_lib.runs import run as run_module
from finemem_lib.text import count_tokens
from finemem_lib.training import estimates
from finemem_lib.trajectory import Instance
from finemem_lib.util.console import EXIT_CODES, UsageError, plain, print_table

QUESTIONS, WALK, TRAINING, BENCHMARK = (
    "01_question_generation",
    "02_memory_and_retrieval",
    "04_grpo_training",
    "06_benchmark_evaluation",
)


def add_command(commands: Any) -> None:
    """Add `finemem plan` to the command line."""
    plan = commands.add_parser("plan", help="say what a run will take, before anything starts")
    plan.set_defaults(command=plan_command)
    add_arguments(plan)
    plan.add_argument(
        "--card",
        choices=[*estimates.CARDS],
        metavar="CARD",
        help=f"one of {', '.join(estimates.CARDS)} (default: the profile's)",
    )
    names = ", ".join(field.name for field in dataclasses.fields(estimates.Assumptions))
    plan.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"another value of an assumption: {names}",
    )


def plan_command(options: argparse.Namespace) -> int:
    """Print what a run will take; return the exit code, "failed" for a plan that cannot fit."""
    profile, notebooks, given = requested(options)
    resolved = resolve_parameters(notebooks, profile, given, "plan", to_run=False)
    check_reads(notebooks, resolved, None)
    assumed = _assumptions(options.assume)
    card = estimates.CARDS.get(options.card or profile.card)
    if profile.card and card is None:
        raise UsageError(
            f"profile {profile.name}: card is {profile.card!r}, expected one of "
            f"{', '.join(estimates.CARDS)}; correct it, or give --card"
        )
    instances = _instances(resolved)
    values = resolved.get(TRAINING)
    sizes = values and _shape(values["checkpoint"])
    count, counted_by, prompts = _tokens(values)

    def as_streams(instances: Sequence[Instance]) -> list[estimates.Stream]:
        return [
            estimates.Stream(tuple(count(chunk.text) for chunk in one.chunks), len(one.questions))
            for one in instances
        ]

    streams = as_streams(instances)
    trained_on = streams if values is None else as_streams(_training_instances(values, instances))
    print(f"profile {profile.name}: {' '.join(profile.description.split())}\n")
    print_table(
        [
            ("notebook", "parameters"),
            *(
                (
                    stem,
                    plain(
                        ", ".join(
                            f"{name} {value!r}"
                            for name, value in values.items()
                            if name != "run_id"
                        )
                    ),
                )
                for stem, values in resolved.items()
            ),
        ]
    )
    chunks = [tokens for one in streams for tokens in one.chunks]
    print(
        f"\n{len(streams)} instances, {len(chunks)} chunks, {sum(chunks):,} tokens (longest "
        f"chunk {max(chunks):,}), {sum(one.questions for one in streams)} global questions; "
        f"tokens are {counted_by}\n"
    )
    calls = _print_calls(resolved, instances, streams, trained_on, assumed)
    code = EXIT_CODES["ok"]
    if values is not None:
        played = len(streams) if resolved.get(BENCHMARK, {}).get("trained") else 0
        code = _print_training(values, sizes, trained_on, prompts, card, assumed, calls, played)
    print(
        "\nassumptions (--assume NAME=VALUE): "
        + ", ".join(f"{name}={value:g}" for name, value in dataclasses.asdict(assumed).items())
    )
    return code


def _assumptions(given: Sequence[str]) -> estimates.Assumptions:
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
            estimates.Assumptions(**{name: found[name]})
        except (TypeError, ValueError) as error:
            names = ", ".join(field.name for field in dataclasses.fields(estimates.Assumptions))
            raise UsageError(
                f"--assume {one!r}: expected NAME=NUMBER with one of {names} ({error})"
            ) from error
    return estimates.Assumptions(**found)


def _instances(resolved: Mapping[str, Mapping[str, Any]]) -> list[Instance]:
    """Return what notebook 01 would load, or planted streams like those it would make."""
    first = resolved.get(QUESTIONS) or next(iter(resolved.values()))
    found: list[Instance] = []
    for source in first.get("data", ()):
        try:
            found += load_instances(
                run_module.locate(source) or source,
                split=first["split"],
                limit=first["max_instances"],
                on_error=first["on_error"],
                max_chunk_tokens=first["max_chunk_tokens"],
            ).instances
        except (ValueError, ImportError, OSError) as error:
            raise UsageError(plain(str(error))) from error
    stream = StreamSettings(num_chunks=first.get("num_chunks", StreamSettings().num_chunks))
    return found or planted_instances("held-out", first.get("max_instances", 8), 0, stream)


def _training_instances(
    values: Mapping[str, Any], instances: Sequence[Instance]
) -> Sequence[Instance]:
    """Return the instances that notebook 04 trains on, or planted ones like them."""
    if values["train_on"] == "planted":
        stream = StreamSettings(num_chunks=values["num_chunks"])
        return planted_instances("train", values["instances_per_update"], 0, stream)
    try:
        return held_out_split(instances, values["held_out"], values["instances_per_update"])[0]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _tokens(values: Mapping[str, Any] | None) -> tuple[Any, str, PromptBuilder | None]:
    """Return how tokens are counted, in words too, and the builder of prompts where the tokenizer
    can be loaded without a network."""
    if values is not None:
        from transformers import AutoTokenizer

        source, revision = _source(values["checkpoint"])
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, revision=revision, local_files_only=True
            )
        except (OSError, ValueError, KeyError):
            tokenizer = None
        if tokenizer is not None:
            try:
                builder = prompt_builder(tokenizer, model_settings(values))
            except ValueError as error:
                raise UsageError(str(error)) from error
            return (
                lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
                f"those of {values['checkpoint']}",
                builder,
            )
    return count_tokens, "words and marks; the model's own are usually more", None


def _print_calls(
    resolved: Mapping[str, Mapping[str, Any]],
    instances: Sequence[Instance],
    streams: Sequence[estimates.Stream],
    trained_on: Sequence[estimates.Stream],
    assumed: estimates.Assumptions,
) -> dict[str, float]:
    """Print what language models are asked, as a mean and at most: a question whose items are the
    same as before is not asked again. Return the calls by what they are for."""
    roles, asked_for = {}, {}
    total: list[tuple[estimates.Calls, float]] = []
    rows = [
        ("calls of language models, at most", "role", "calls", "tokens in", "tokens out", "cost")
    ]
    for stem, values in resolved.items():
        if path := run_module.locate_models(values.get("models", "")):
            roles[stem] = {role: one.chat for role, one in load_roles(path).items()}
    k = resolved.get(QUESTIONS, {}).get("questions_per_chunk", 0)
    asked = [count_tokens(question.text) for one in instances for question in one.questions]
    question = sum(asked) / max(len(asked), 1)
    reads = _template("read") + question

    def on_memory(top_k: int) -> estimates.Calls:
        return estimates.Calls(1, reads + top_k * assumed.item_tokens, assumed.answer_tokens)

    def shown(calls: estimates.Calls, cost: float) -> tuple[str, ...]:
        figures = [f"{value:,.0f}" for value in dataclasses.astuple(calls)]
        return (*figures, f"{cost:,.2f}" if cost else "no price")

    def say(stem: str, what: str, role: str, calls: estimates.Calls, counts: bool = True) -> None:
        chat: ChatSettings | None = roles.get(stem, {}).get(role)
        if chat and calls.calls:
            cost = calls.cost(chat.price_in, chat.price_out)
            rows.append((what, f"{role} {plain(chat.model)}", *shown(calls, cost)))
            asked_for[what] = calls.calls
            if counts:
                total.append((calls, cost))

    chunks = sum(len(one.chunks) for one in streams)
    total_chunk = sum(sum(one.chunks) for one in streams)
    globals_ = sum(one.questions for one in streams)
    if (values := resolved.get(QUESTIONS)) and not values.get("questions"):
        teach = chunks * _template("teach") + total_chunk
        say(
            QUESTIONS,
            "01 chunk questions",
            "teacher",
            estimates.Calls(chunks, teach, chunks * k * assumed.item_tokens),
        )
        verify = k * (chunks * reads + total_chunk)
        say(
            QUESTIONS,
            "01 verified on the chunk alone",
            "verifier",
            estimates.Calls(chunks * k, verify, chunks * k * assumed.answer_tokens),
        )
    if values := resolved.get(WALK):
        number = len(values["managers"]) * (chunks * k + globals_)
        say(WALK, "02 scripted managers", "reader", on_memory(values["top_k"]).times(number))
    if values := resolved.get(TRAINING):
        per_chunk = 0 if values["train_on"] == "planted" else k  # planted streams have none
        of_chunks = per_chunk * sum(len(one.chunks) for one in trained_on)
        sampled, of_all = (
            of_chunks + sum(estimates.asked_globally(one.questions, share) for one in trained_on)
            for share in (values["question_fraction"], 1.0)
        )
        rollouts = values["instances_per_update"] * values["num_generations"]
        one = on_memory(values["top_k"]).times(rollouts * sampled / len(trained_on))
        say(TRAINING, "04 per update", "reader", one, counts=False)
        say(TRAINING, f"04 {values['updates']} updates", "reader", one.times(values["updates"]))
        # The manager before and after, on one of them three times more, and two scripted ones.
        played = 2 * values["held_out"] + 6 + 2 * values["held_out"]
        tests = on_memory(values["top_k"]).times(played * of_all / len(trained_on))
        say(TRAINING, "04 tests before and after", "reader", tests)
    if values := resolved.get(BENCHMARK):
        number = (len(values["managers"]) + values["trained"]) * globals_
        say(BENCHMARK, "06 benchmark", "reader", on_memory(values["top_k"]).times(number))
    if total:
        calls, costs = zip(*total, strict=True)
        columns = zip(*map(dataclasses.astuple, calls), strict=True)
        rows.append(("in all", "", *shown(estimates.Calls(*map(sum, columns)), sum(costs))))
    print_table(rows)
    if len(rows) == 1:
        print("no language model is asked: questions are made by rule, the reader is extractive")
    return asked_for


def _template(name: str) -> int:
    prompt = load_prompt(name)
    return count_tokens(prompt.system) + count_tokens(prompt.user)


def _print_training(
    values: Mapping[str, Any],
    sizes: tuple[estimates.ModelShape, str],
    streams: Sequence[estimates.Stream],
    prompts: PromptBuilder | None,
    card: estimates.Card | None,
    assumed: estimates.Assumptions,
    calls: Mapping[str, float],
    played: int,
) -> int:
    """Print the model, an update, the card's memory by part and the hours; return the exit code.

    `played` are the instances that notebook 06 plays the trained manager on.
    """
    shape, found = sizes
    model = model_settings(values)
    compact = isinstance(prompts, CompactPromptBuilder)
    training = estimates.Training(
        model=model,
        updates=values["updates"],
        instances_per_update=values["instances_per_update"],
        num_generations=values["num_generations"],
        question_fraction=values["question_fraction"],
        top_k=values["top_k"],
        instruction_tokens=prompts.instruction_tokens if prompts else count_tokens(INSTRUCTION),
        max_prompt_tokens=model.max_prompt_tokens
        or (tiny.MAX_PROMPT_TOKENS if compact else MAX_PROMPT_TOKENS),
        max_new_tokens=model.max_new_tokens or (tiny.MAX_NEW_TOKENS if compact else MAX_NEW_TOKENS),
        batch_size=model.batch_size or (tiny.BATCH_SIZE if compact else BATCH_SIZE),
        tested=max(values["held_out"], played),
    )
    mean = estimates.average_work(streams, training, assumed)
    adapter = shape.lora_parameters(model.lora_rank) if model.lora_rank else shape.parameters
    print(
        f"\nmodel {plain(values['checkpoint'])}: {shape.parameters:,} parameters ({found}), "
        f"{adapter:,} trained"
    )
    print(
        f"an update: {training.instances_per_update} instances x {training.num_generations} "
        f"rollouts, {mean.rows:,.0f} prompts of {mean.prompt_tokens / mean.rows:,.0f} tokens "
        f"(longest {mean.longest_prompt:,}), completions of "
        f"{mean.completion_tokens / mean.rows:,.0f} (at most {training.max_new_tokens:,}); "
        f"micro-batches of up to {mean.longest_rows} rows"
    )
    print(
        f"tests{' and 06' if played else ''}: {training.batch_size} prompts at a time"
        + (", sampled without vLLM, in memory beside its share" if model.fast_inference else "")
    )
    if card is None:
        print("no card is named, so neither its memory nor hours are estimated: give --card")
        return EXIT_CODES["ok"]
    memory = estimates.gpu_memory(shape, training, mean, card, assumed)
    fits = estimates.fits(memory, shape, mean, card)
    parts = {
        name.removesuffix("_"): value
        for name, value in dataclasses.asdict(memory).items()
        if name != "cache_stays"
    }
    print()
    print_table(
        [
            ("memory of the card, estimated", "GB"),
            *(
                (name, f"{value / 1e9:.1f}")
                for name, value in [*parts.items(), ("peak", memory.peak)]
            ),
            (f"{card.name} has", f"{card.gb:.1f}"),
        ]
    )
    seconds = estimates.update_seconds(
        shape, training, mean, card, assumed, calls.get("04 per update", 0)
    )
    # Beside the updates: the manager's own seconds, and the calls of language models.
    others = {what: 0.0 for what in calls if what[:2] in ("01", "02")}
    for what, times, number in (
        ("04 tests before and after", 2, values["held_out"]),
        ("06 benchmark", 1, played),
    ):
        if number:
            others[what] = times * estimates.playing_seconds(
                shape, streams, training, card, assumed, number
            )
    others |= {
        what: others.get(what, 0) + number * assumed.reader_seconds / assumed.reader_concurrency
        for what, number in calls.items()
        if not what.startswith("04") or what in others
    }
    total = training.updates * seconds.total + sum(others.values())
    print()
    print_table(
        [
            ("time, estimated", "seconds per update", "hours in all"),
            *(
                (name, f"{value:.1f}", f"{value * training.updates / 3600:.1f}")
                for name, value in [
                    *dataclasses.asdict(seconds).items(),
                    (f"04 {training.updates} updates", seconds.total),
                ]
            ),
            *((what, "", f"{value / 3600:.1f}") for what, value in others.items()),
            ("in all", "", f"{total / 3600:.1f}"),
        ]
    )
    print("not in these hours: loading and saving, retrieval, and answers by rule")
    if fits:
        print(f"\nfits: {memory.peak / 1e9:.1f} of {card.gb:g} GB")
        return EXIT_CODES["ok"]
    help_ = estimates.what_would_fit(shape, streams, training, card, assumed)
    print(
        f"\ndoes not fit: {memory.peak / 1e9:.1f} of {card.gb:g} GB. "
        + (
            f"What would, each by itself: {', '.join(help_)}"
            if help_
            else "No change of the parameters makes it fit; take a larger card"
        )
    )
    return EXIT_CODES["failed"]


def _shape(checkpoint: str) -> tuple[estimates.ModelShape, str]:
    from transformers import AutoConfig

    source, revision = _source(checkpoint)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, local_files_only=True)
        return estimates.ModelShape.of(config), "its config.json"
    except (OSError, ValueError, KeyError) as error:
        last = source.rpartition("/")[2]  # copies by other owners have the same sizes
        known = next(
            (its for name, its in estimates.SHAPES.items() if name.endswith(f"/{last}")), None
        )
        if known is None or loading.checkpoint_folder(checkpoint):
            raise UsageError(
                f"checkpoint {checkpoint!r}: its sizes are not known here "
                f"({first_line(error)}); give a folder, download it, or take one of "
                f"{', '.join(estimates.SHAPES)}"
            ) from error
        return known, "the sizes noted here"


def _source(checkpoint: str) -> tuple[str, str | None]:
    """Return what is loaded of a checkpoint: a folder, or a name on the hub and its revision."""
    folder = loading.checkpoint_folder(checkpoint)
    return (str(folder), None) if folder else split_revision(checkpoint)
