"""Training with frozen lower layers: the same loss and gradient as without the shortcut."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.prompts import QuotingPromptBuilder
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.training.config import grpo_config
from finemem_lib.training.trl_adapter import load_trainer_class
from finemem_lib.trajectory import Chunk, Instance, Operation, Question
from tests.helpers.small_models import save_model

G = 4
TEXTS = [
    ("Mia lives in Rome. Leo owns a cat.", "Ana sails in Oslo. Zoe paints."),
    ("Max works in Kiev. Lea has a dog.", "Tom swims in Bern. Eve sings."),
]


class AnyQuote(QuotingPromptBuilder):
    """Reads a completion of any text as the INSERT of one of the sentences."""

    def parse(self, completion, prompt):
        return (Operation("INSERT", prompt.quotable[len(completion) % len(prompt.quotable)]),)


def instances():
    asked = [("Where does Mia live?", "Rome"), ("Where does Max work?", "Kiev")]
    return [
        Instance(
            f"text-{number}",
            "squad",
            "AR",
            tuple(Chunk(text, 9) for text in texts),
            (Question("q-1", asked[number][0], (asked[number][1],), "squad"),),
        )
        for number, texts in enumerate(TEXTS)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=4)


def trained(folder, tmp_path, *, frozen, beta, operations_as):
    settings = ModelSettings(lora_rank=2, lora_layers=2, operations_as=operations_as)
    manager = load_manager(folder, model=settings, seed=3)
    gradient = {}
    free = operations_as == "quotes"
    builder = AnyQuote(manager.tokenizer, 400) if free else manager.builder

    class Capture(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **others):
            gradient.update(
                (name, value.grad.clone())
                for name, value in model.named_parameters()
                if value.grad is not None
            )

    trainer = load_trainer_class()(
        manager.model,
        grpo_config(
            tmp_path,
            updates=2,
            instances_per_update=2,
            num_generations=G,
            max_completion_length=6 if free else 120,
            learning_rate=1e-2,
            seed=3,
            max_grad_norm=0.0,
            beta=beta,
        ),
        instances=instances(),
        builder=builder,
        agent=ExtractiveReader(),
        rollout=RolloutSettings(num_generations=G, token_budget=12),
        scheme="outcome-only",
        callbacks=[Capture()],
    )
    assert trainer.frozen is not None
    if not frozen:
        trainer.frozen = None
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses, gradient


@pytest.mark.parametrize("operations_as", ["quotes", "constrained-quotes"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_the_plain_path(folder, tmp_path, beta, operations_as):
    how = {"beta": beta, "operations_as": operations_as}
    trainer, losses, gradient = trained(folder, tmp_path / "a", frozen=True, **how)
    _, plain_losses, expected = trained(folder, tmp_path / "b", frozen=False, **how)
    assert losses == pytest.approx(plain_losses, abs=1e-5)
    assert any(value.abs().max() > 1e-4 for value in expected.values()), "something was learned"
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-3, atol=1e-6)
    rows = {(*step.prompt_ids, *step.completion_ids) for step in trainer.replayed}
    assert trainer.frozen.states.kept.keys() == rows, "states of the last update only"
