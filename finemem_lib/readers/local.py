"""A chat client of a language model that transformers runs in this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from finemem_lib.readers.chat import Call, Chat, Messages
from finemem_lib.readers.constrained import JsonDecoder
from finemem_lib.readers.memo import Reply
from finemem_lib.readers.settings import ChatSettings, check_usable
from finemem_lib.seeds import stable_seed
from finemem_lib.text import clean_text


class LocalChat(Chat):
    """A causal language model that transformers loads into this process, on a GPU if available.

    Prompts of similar length form a batch, padded on the left. With a temperature above 0 sampling
    is seeded per batch and so depends on the prompts in it; the memo keeps the replies.

    Args:
        settings: The model and its sampling settings.

    Raises:
        ValueError: the model was not fetched or has no chat template, or the memo cannot be used.
        OSError: transformers cannot load the model.
    """

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__(settings)
        check_usable(settings)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(settings.source, padding_side="left")
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"local model {settings.model!r} has no chat template, expected one that was "
                "trained for conversations; choose an instruction-tuned model"
            )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.source, dtype="auto", use_safetensors=True
        )
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @property
    def _ends(self) -> list[int]:
        """Token ids that end a reply."""
        ends = self._model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    @functools.cached_property
    def _json(self) -> JsonDecoder:
        return JsonDecoder(self._tokenizer, self._ends)

    def _complete(self, calls: Sequence[Call], arrived: Callable[[Call, Reply], None]) -> None:
        shortest_first = sorted(
            calls, key=lambda call: sum(len(one["content"]) for one in call.messages)
        )
        for start in range(0, len(calls), self.settings.batch_size):
            batch = shortest_first[start : start + self.settings.batch_size]
            for call, reply in zip(batch, self._generate(batch), strict=True):
                arrived(call, reply)

    def log_probabilities(
        self, conversations: Sequence[Messages], replies: Sequence[str]
    ) -> list[float]:
        """Return, per conversation, the mean log-probability per token of a given reply.

        The end-of-sequence token is not counted; the temperature has no effect.

        Args:
            conversations: The conversations before the reply.
            replies: One non-empty reply per conversation.
        """
        import torch

        rows = []
        for messages, reply in zip(conversations, replies, strict=True):
            prompt = self._tokenizer.apply_chat_template(
                [dict(one) for one in messages],
                add_generation_prompt=True,
                return_dict=True,
                **(self.settings.chat_template_kwargs or {}),
            )["input_ids"]
            rows.append((prompt, self._tokenizer.encode(reply, add_special_tokens=False)))
        order = sorted(range(len(rows)), key=lambda number: sum(map(len, rows[number])))
        found = [0.0] * len(rows)
        for start in range(0, len(rows), self.settings.batch_size):
            batch = order[start : start + self.settings.batch_size]
            inputs = self._tokenizer.pad(
                {
                    "input_ids": [
                        [*prompt, *reply] for prompt, reply in map(rows.__getitem__, batch)
                    ]
                },
                return_tensors="pt",
            ).to(self._model.device)
            mask, tokens = inputs["attention_mask"], inputs["input_ids"]
            kept = max(len(rows[number][1]) for number in batch) + 1
            with torch.inference_mode():
                logits = self._model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                    logits_to_keep=kept,
                ).logits[:, -kept:-1]
                known = logits.float().log_softmax(-1).gather(2, tokens[:, 1 - kept :, None])
            for row, number in zip(known[..., 0], batch, strict=True):
                found[number] = row[-len(rows[number][1]) :].mean().item()
        return found

    def _generate(self, batch: Sequence[Call]) -> list[Reply]:
        import torch

        prompts = self._tokenizer.apply_chat_template(
            [[dict(one) for one in call.messages] for call in batch],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
            **(self.settings.chat_template_kwargs or {}),
        ).to(self._model.device)
        sampling = {"do_sample": True, "temperature": self.settings.temperature}
        seed = self._seed(batch[0])
        # transformers takes no generator: seed torch's global one and restore it afterwards.
        with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(stable_seed(seed, *(call.key for call in batch)))
            tokens = self._model.generate(
                **prompts,
                max_new_tokens=self.settings.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                prefix_allowed_tokens_fn=self._allowed_tokens(batch),
                **(sampling if self.settings.temperature else {"do_sample": False}),
            )
        ends = set(self._ends)
        replies = []
        for mask, row in zip(prompts["attention_mask"], tokens.tolist(), strict=True):
            written = row[len(mask) :]
            end = next((n for n, token in enumerate(written, 1) if token in ends), None)
            text = self._tokenizer.decode(written[:end], skip_special_tokens=True)
            used = end or len(written)
            replies.append(Reply(clean_text(text), False, int(mask.sum()), used, end is None))
        return replies

    def _allowed_tokens(self, batch: Sequence[Call]) -> Callable[[int, Any], list[int]] | None:
        """Return what constrains the decoding of a batch; `None` if nothing does."""
        structure, limits = batch[0].structure, self.settings.json_limits  # one for the whole batch
        if structure is None or limits is None:
            return None
        return self._json.allowed(structure, limits, len(batch))
