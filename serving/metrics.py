"""Counters and durations under vLLM's names, so that dashboards for vLLM show them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.models import ServedModel

TO_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
LABEL = "model_name"


class Metrics:
    """The metrics of a server. A request with several answers counts once, its tokens and ends for each answer."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._running = self._gauge("vllm:num_requests_running", "Answers in the model's steps.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Answers in the queue.")
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens of answers.")
        self.success = self._counter("vllm:request_success", "Completed answers.", "finished_reason")
        self.first_token = self._histogram("vllm:time_to_first_token_seconds", "Until the first token.", TO_FIRST)
        self.per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean per token after the first.", PER_TOKEN
        )
        self.whole = self._histogram("vllm:e2e_request_latency_seconds", "Whole requests.", WHOLE)

    def add(self, model: ServedModel) -> None:
        """Count a model's requests."""
        self._running.labels(model.name).set_function(Count(model, "running"))
        self._waiting.labels(model.name).set_function(Count(model, "waiting"))
        for labelled in (self.prompt_tokens, self.generation_tokens, self.first_token, self.whole):
            labelled.labels(model.name)  # a series that starts at zero

    def remove(self, name: str) -> None:
        """Forget a model; what was counted stays."""
        self._running.remove(name)
        self._waiting.remove(name)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, [LABEL], registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, [LABEL, *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, [LABEL], buckets=buckets, registry=self._registry)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class Count:
    """The number of an engine's requests in one state."""

    def __init__(self, model: ServedModel, state: str):
        self._model, self._state = model, state

    def __call__(self) -> float:
        engine = self._model.engine
        return engine.running if self._state == "running" else engine.waiting
