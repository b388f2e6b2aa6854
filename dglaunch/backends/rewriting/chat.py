"""Prompts are rewritten by a server with OpenAI's chat route: OpenAI's own, or a vLLM, SGLang or llama.cpp of one's own."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from dglaunch.backends.api.answers import redact
from dglaunch.backends.rewriting.base import Failed, answer
from dglaunch.data.rewriting import Ask, Rewriting
from dglaunch.environment import environment
from dglaunch.errors import MissingPackage, UserError

KEY = "OPENAI_API_KEY"
AT_A_TIME = 8
TRIES = 5
"""How often the SDK asks again after 429, 5xx and dropped connections, with pauses that grow."""
OF_ONE_PROMPT = (400, 422)
"""Statuses that concern the prompt that was sent."""
SHOWN_MODELS = 20
LOOK_EVERY_S = 0.05
NEW_LIMIT = "api.openai.com"
"""Where the longest answer is `max_completion_tokens`; other servers know the older name."""


class ChatRewriter:
    """See the module's docstring."""

    at_a_time = AT_A_TIME

    def __init__(self, wanted: Rewriting, _device: str, _dtype: str, should_stop: Callable[[], bool]) -> None:
        try:
            import openai
        except ImportError:
            raise MissingPackage("openai", "--rewrite_api_base", "pip install 'dglaunch[api]'") from None
        self._sdk, self._wanted, self._should_stop = openai, wanted, should_stop
        self._key = environment().get(KEY, "").strip()
        self._client = openai.OpenAI(api_key=self._key or "none", base_url=wanted.api_base, max_retries=TRIES)

    def rewrite(self, asks: Sequence[Ask]) -> Sequence[str | Failed | None]:
        """Ask for all of them at once, each in a thread of its own, which is left behind where the run is stopped."""
        found: list[str | Failed | None] = [None] * len(asks)
        ended: queue.SimpleQueue[tuple[int, str | Failed | Exception]] = queue.SimpleQueue()

        def work(number: int) -> None:
            try:
                ended.put((number, self._one(asks[number])))
            except Exception as error:  # handed on to the thread that waits
                ended.put((number, error))

        for number in range(len(asks)):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        missing = len(asks)
        while missing and not self._should_stop():
            try:
                number, result = ended.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                continue
            if isinstance(result, Exception):
                raise result
            found[number], missing = result, missing - 1
        return found

    def close(self) -> None:
        self._client.close()

    def _one(self, ask: Ask) -> str | Failed:
        wanted = self._wanted
        limit = "max_completion_tokens" if NEW_LIMIT in (wanted.api_base or "") else "max_tokens"
        arguments: dict[str, Any] = {limit: wanted.max_tokens, "temperature": wanted.temperature}
        if ask.seed is not None:
            arguments["seed"] = ask.seed
        messages: Any = [
            {"role": "system", "content": wanted.instruction},
            {"role": "user", "content": ask.prompt},
        ]
        try:
            came = self._client.chat.completions.create(model=wanted.model or "", messages=messages, **arguments)
        except self._sdk.APIStatusError as error:
            if error.status_code in OF_ONE_PROMPT:
                return Failed(f"the server refuses it: {self._said(error)}")
            raise self._ended(error) from None
        except self._sdk.OpenAIError as error:
            raise UserError(
                f"--rewrite_api_base {wanted.api_base} cannot be asked: {self._said(error)}. Check the address and start the "
                "same command again; what was rewritten is kept."
            ) from None
        choices = getattr(came, "choices", None)  # the SDK hands out any JSON as it came
        if not choices or getattr(choices[0], "message", None) is None:
            return Failed("the server's answer has no choice")
        text = choices[0].message.content
        return answer(text if isinstance(text, str) else "", choices[0].finish_reason == "length", wanted.max_tokens)

    def _ended(self, error: Any) -> UserError:
        """What no further prompt would get past."""
        wanted = self._wanted
        what = {
            401: f"does not accept the key in {KEY}" if self._key else f"wants a key: set {KEY} in the environment",
            403: f"does not let this key use {wanted.model}",
            404: f"has no model {wanted.model}, or no chat route there",
        }.get(error.status_code, f"answers HTTP {error.status_code}, after {TRIES + 1} tries")
        said = "" if error.status_code == 401 else f" It says: {self._said(error)}"
        return UserError(
            f"--rewrite_api_base {wanted.api_base} {what}.{said}{self._listed(error.status_code)} What was rewritten is kept; the "
            "same command goes on."
        )

    def _listed(self, status: int) -> str:
        if status != 404:
            return ""
        try:
            names = [redact(model.id, self._key) for model in self._client.models.list().data[:SHOWN_MODELS]]
        except Exception:  # whatever an SDK raises: this only adds to an error that is told anyway
            return ""
        return f" It has {', '.join(names)}." if names else ""

    def _said(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        told = body.get("message") or body.get("detail") if isinstance(body, dict) else None
        text = str(told or getattr(error, "message", None) or error)
        return redact(" ".join(text.split()), self._key).rstrip(".")
