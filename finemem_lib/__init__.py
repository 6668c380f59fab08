"""Fine-Mem workbench: which memory operation deserves the credit, and how to train with it.

`from finemem_lib import ...` offers the names of `__all__`. Each is imported from its module when
it is first used, so that importing the package loads neither numpy nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finemem_lib.advantages import dead_groups as dead_groups
    from finemem_lib.advantages import group_relative as group_relative
    from finemem_lib.credit.rules import RULES as RULES
    from finemem_lib.credit.rules import Assigned as Assigned
    from finemem_lib.credit.rules import Rule as Rule
    from finemem_lib.credit.rules import assign as assign
    from finemem_lib.data.memalpha import load_instances as load_instances
    from finemem_lib.data.own_texts import make_instance as make_instance
    from finemem_lib.data.planted import planted_instances as planted_instances
    from finemem_lib.evaluation.evaluate import evaluate as evaluate
    from finemem_lib.example import worked_example as worked_example
    from finemem_lib.managers.model import load_manager as load_manager
    from finemem_lib.managers.model import make_manager as make_manager
    from finemem_lib.managers.rollout import RolloutSettings as RolloutSettings
    from finemem_lib.managers.rollout import play as play
    from finemem_lib.memory import FlatMemory as FlatMemory
    from finemem_lib.memory import Memory as Memory
    from finemem_lib.operations import format_operations as format_operations
    from finemem_lib.operations import parse_operations as parse_operations
    from finemem_lib.readers.extractive import ExtractiveReader as ExtractiveReader
    from finemem_lib.readers.extractive import reader_for as reader_for
    from finemem_lib.reading import MemoisedAgent as MemoisedAgent
    from finemem_lib.reading import ReasoningAgent as ReasoningAgent
    from finemem_lib.retrieval import BM25Retriever as BM25Retriever
    from finemem_lib.retrieval import DenseRetriever as DenseRetriever
    from finemem_lib.retrieval import Retriever as Retriever
    from finemem_lib.retrieval import make_retriever as make_retriever
    from finemem_lib.rewards import RewardSettings as RewardSettings
    from finemem_lib.rewards import StepReward as StepReward
    from finemem_lib.rewards import chunk_rewards as chunk_rewards
    from finemem_lib.rewards import compression_reward as compression_reward
    from finemem_lib.rewards import eara_rewards as eara_rewards
    from finemem_lib.rewards import evidence_contribution as evidence_contribution
    from finemem_lib.rewards import format_rewards as format_rewards
    from finemem_lib.rewards import hybrid_reward as hybrid_reward
    from finemem_lib.rewards import outcome_reward as outcome_reward
    from finemem_lib.rewards import weighted_sum as weighted_sum
    from finemem_lib.scoring import score as score
    from finemem_lib.training.run import TrainingResult as TrainingResult
    from finemem_lib.training.run import train_manager as train_manager
    from finemem_lib.trajectory import AnsweredQuestion as AnsweredQuestion
    from finemem_lib.trajectory import Chunk as Chunk
    from finemem_lib.trajectory import Instance as Instance
    from finemem_lib.trajectory import InvalidOperation as InvalidOperation
    from finemem_lib.trajectory import MemoryItem as MemoryItem
    from finemem_lib.trajectory import Operation as Operation
    from finemem_lib.trajectory import Question as Question
    from finemem_lib.trajectory import Step as Step
    from finemem_lib.trajectory import Trajectory as Trajectory
    from finemem_lib.trajectory import read_jsonl as read_jsonl
    from finemem_lib.trajectory import write_jsonl as write_jsonl
else:
    _MODULES = {
        "advantages": "dead_groups group_relative",
        "credit.rules": "RULES Assigned Rule assign",
        "data.memalpha": "load_instances",
        "data.own_texts": "make_instance",
        "data.planted": "planted_instances",
        "evaluation.evaluate": "evaluate",
        "example": "worked_example",
        "managers.model": "load_manager make_manager",
        "managers.rollout": "RolloutSettings play",
        "memory": "FlatMemory Memory",
        "operations": "format_operations parse_operations",
        "readers.extractive": "ExtractiveReader reader_for",
        "reading": "MemoisedAgent ReasoningAgent",
        "retrieval": "BM25Retriever DenseRetriever Retriever make_retriever",
        "rewards": (
            "RewardSettings StepReward chunk_rewards compression_reward eara_rewards "
            "evidence_contribution format_rewards hybrid_reward outcome_reward weighted_sum"
        ),
        "scoring": "score",
        "training.run": "TrainingResult train_manager",
        "trajectory": (
            "AnsweredQuestion Chunk Instance InvalidOperation MemoryItem Operation Question "
            "Step Trajectory read_jsonl write_jsonl"
        ),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
    __all__ = sorted(_MODULE_OF)

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
