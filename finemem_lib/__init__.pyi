"""The public API, in the form that type checkers and `finemem_lib.__init__` read."""

from .advantages import dead_groups as dead_groups, group_relative as group_relative
from .credit.rules import RULES as RULES, Assigned as Assigned, Rule as Rule, assign as assign
from .data.memalpha import load_instances as load_instances
from .data.own_texts import make_instance as make_instance
from .data.planted import planted_instances as planted_instances
from .data.worked_example import worked_example as worked_example
from .evaluation.evaluate import evaluate as evaluate
from .layers.memory import LayeredMemory as LayeredMemory, LayerRules as LayerRules
from .managers.model import load_manager as load_manager, make_manager as make_manager
from .managers.rollout import RolloutSettings as RolloutSettings, play as play
from .memory import FlatMemory as FlatMemory
from .operations import format_operations as format_operations, parse_operations as parse_operations
from .readers.extractive import ExtractiveReader as ExtractiveReader, reader_for as reader_for
from .reading import MemoisedAgent as MemoisedAgent, ReasoningAgent as ReasoningAgent
from .retrieval import BM25Retriever as BM25Retriever, Retriever as Retriever
from .retrievers.dense import DenseRetriever as DenseRetriever
from .retrievers.graph import GraphRetriever as GraphRetriever
from .retrievers.hybrid import HybridRetriever as HybridRetriever
from .retrievers.layered import LayeredRetriever as LayeredRetriever
from .retrievers.named import make_retriever as make_retriever
from .rewards import (
    RewardSettings as RewardSettings,
    StepReward as StepReward,
    chunk_rewards as chunk_rewards,
    compression_reward as compression_reward,
    eara_rewards as eara_rewards,
    evidence_contribution as evidence_contribution,
    format_rewards as format_rewards,
    hybrid_reward as hybrid_reward,
    outcome_reward as outcome_reward,
    weighted_sum as weighted_sum,
)
from .scoring import score as score
from .training.run import TrainingResult as TrainingResult, train_manager as train_manager
from .trajectory import (
    AnsweredQuestion as AnsweredQuestion,
    Chunk as Chunk,
    Instance as Instance,
    InvalidOperation as InvalidOperation,
    MemoryItem as MemoryItem,
    Operation as Operation,
    Question as Question,
    Step as Step,
    Trajectory as Trajectory,
    read_jsonl as read_jsonl,
    write_jsonl as write_jsonl,
)

__version__: str
__all__: list[str]
