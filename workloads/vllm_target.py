"""`vllm.AsyncLLMEngine` in this process as a target of the closed loop: token ids, text or images in, token counts out.

Only engine processes import this module. Greedy sampling, no stop, no log probabilities. Token ids are not detokenised:
what is measured is the engine's scheduling and the model. Text is tokenised and detokenised, as a server does it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any

from PIL import Image
from vllm import SamplingParams
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from workloads.prompts import ImagePrompt, Prompt


class VllmTarget:
    """One engine. prompt_tokens: what a text, or a prompt with an image, has to be worth."""

    def __init__(self, engine: AsyncLLM, prompt_tokens: int) -> None:
        self.engine = engine
        self.prompt_tokens = prompt_tokens

    def generate(self, prompt: Prompt, output_tokens: int, request_id: str) -> AsyncIterator[Any]:
        """Yields a RequestOutput for each arrival of new tokens.

        Raises ValueError where the engine made another number of tokens of a text, or of an image.
        """
        if isinstance(prompt, str):
            return self._checked(TextPrompt(prompt=prompt), _sampling(output_tokens, text=True), request_id)
        if isinstance(prompt, ImagePrompt):
            image = {"image": Image.fromarray(prompt.pixels)}
            whole = TokensPrompt(prompt_token_ids=prompt.ids, multi_modal_data=image)
            return self._checked(whole, _sampling(output_tokens), request_id)
        stream: AsyncIterator[Any] = self.engine.generate(
            TokensPrompt(prompt_token_ids=prompt), _sampling(output_tokens), request_id
        )
        return stream

    async def _checked(self, prompt: Any, sampling: SamplingParams, request_id: str) -> AsyncIterator[Any]:
        async for arrival in self.engine.generate(prompt, sampling, request_id):
            if (got := len(arrival.prompt_token_ids or ())) != self.prompt_tokens:
                raise ValueError(f"the engine made {got} tokens of a prompt worth {self.prompt_tokens}")
            yield arrival

    def tokens(self, arrival: Any) -> int:
        """How many tokens came with this arrival."""
        return len(arrival.outputs[0].token_ids)


@lru_cache(maxsize=4096)
def _sampling(output_tokens: int, text: bool = False) -> SamplingParams:
    return SamplingParams(
        temperature=0.0,
        max_tokens=output_tokens,
        ignore_eos=True,
        detokenize=text,
        output_kind=RequestOutputKind.DELTA,
    )


class SchedulerLog(StatLoggerBase):
    """Sums over engine steps of what the scheduler reports, to be read at the edges of a window."""

    latest: SchedulerLog | None = None

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.reports = 0
        self.running = 0
        self.waiting = 0
        self.preemptions = 0
        self.prefix_cache_hits = 0
        self.kv_usage_max = 0.0
        SchedulerLog.latest = self

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self.reports += 1
            self.running += scheduler_stats.num_running_reqs
            self.waiting += scheduler_stats.num_waiting_reqs
            self.prefix_cache_hits += scheduler_stats.prefix_cache_stats.hits
            self.kv_usage_max = max(self.kv_usage_max, scheduler_stats.kv_cache_usage)
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def mark(self) -> dict[str, float]:
        """The sums so far; starts a new maximum of the KV usage."""
        seen = {
            "reports": self.reports,
            "running": self.running,
            "waiting": self.waiting,
            "preemptions": self.preemptions,
            "prefix_cache_hits": self.prefix_cache_hits,
            "kv_usage_max": self.kv_usage_max,
        }
        self.kv_usage_max = 0.0
        return seen
