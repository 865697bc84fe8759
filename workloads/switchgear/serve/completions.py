"""The part of OpenAI's completions API that is served: whole answers to one prompt (https://platform.openai.com/docs/api-reference/completions)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from switchgear.core.errors import Invalid, Reason

PATH = "/v1/completions"
#: A request with more is refused; a prompt of this size is beyond the context of any model served here.
BODY_BYTES_MAX = 1 << 20
#: What OpenAI's API generates when the request does not say.
MAX_TOKENS_DEFAULT = 16
TEMPERATURE_MAX = 2.0
#: Bytes of text that make a token, roughly, in the tokenizers of language models; the router has none of its own.
BYTES_PER_TOKEN = 4
_UNDERSTOOD = frozenset({"model", "prompt", "max_tokens", "temperature", "seed", "stream", "n", "user"})
_SEED_MAX = 2**63


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """temperature: 0 takes the most likely token each time. seed: None leaves the choice to the replica."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float
    seed: int | None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a router must know of a request. input_tokens: an estimate of the prompt's; tokens: of them and the most that may be generated."""

    model: str
    input_tokens: int
    tokens: int


def parse(body: bytes, *, max_tokens_max: int) -> CompletionRequest:
    """The request in `body`. Raises Invalid when it is none, asks for more than `max_tokens_max`, or for what is not served.

    A parameter that would change the answer and is not understood is refused, not ignored.
    """
    fields = _fields(body)
    if unknown := sorted(fields.keys() - _UNDERSTOOD):
        raise _invalid(unknown[0], f"parameter {unknown[0][:50]!r} is not supported here; leave it out")
    if fields.get("n", 1) != 1:
        raise _invalid("n", "n must be 1: one answer a request")
    seed = fields.get("seed")
    if seed is not None and (type(seed) is not int or not -_SEED_MAX <= seed < _SEED_MAX):
        raise _invalid("seed", "seed must be an integer of at most 64 bits")
    temperature = fields.get("temperature", 1.0)
    if type(temperature) not in (int, float) or not math.isfinite(temperature):
        raise _invalid("temperature", "temperature must be a number")
    if not 0 <= temperature <= TEMPERATURE_MAX:
        raise _invalid("temperature", f"temperature must be between 0 and {TEMPERATURE_MAX:g}")
    max_tokens = _max_tokens(fields)
    if max_tokens > max_tokens_max:
        raise _invalid("max_tokens", f"max_tokens must be at most {max_tokens_max} here")
    return CompletionRequest(_text(fields, "model"), _text(fields, "prompt"), max_tokens, float(temperature), seed)


def read_envelope(body: bytes) -> Envelope:
    """What a router must know of the request in `body`; the rest is the replica's to judge, whichever engine it runs.

    Raises Invalid when the body is no such request.
    """
    fields = _fields(body)
    prompt = fields.get("prompt", "")
    # Ready token ids are counted, a text is estimated.
    prompt_tokens = len(prompt) if isinstance(prompt, list) else math.ceil(len(str(prompt)) / BYTES_PER_TOKEN)
    return Envelope(_text(fields, "model"), prompt_tokens, prompt_tokens + _max_tokens(fields))


def answer(
    *, identity: str, model: str, created_unix_s: int, text: str, finish_reason: str, prompt_tokens: int, tokens: int
) -> dict[str, object]:
    """The answer as OpenAI's API has it."""
    return {
        "id": f"cmpl-{identity}",
        "object": "text_completion",
        "created": created_unix_s,
        "model": model,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens},
    }


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is no JSON ({error})", Reason.BODY_INVALID) from error
    if not isinstance(fields, dict):
        raise Invalid("the body must be a JSON object with model and prompt", Reason.BODY_INVALID)
    fields = {
        name: value for name, value in fields.items() if value is not None
    }  # null is what clients write for "left out"
    if fields.get("stream", False) is not False:
        raise _invalid(
            "stream", "streaming is not served: answers are sent whole, so that none is cut; leave stream out"
        )
    return fields


def _max_tokens(fields: dict[str, Any]) -> int:
    value = fields.get("max_tokens", MAX_TOKENS_DEFAULT)
    if type(value) is not int or value < 1:
        raise _invalid("max_tokens", "max_tokens must be an integer of at least 1")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid(name, f"{name} must be a text that is not empty")
    return value


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(message, Reason.BAD_FIELD, field=field[:50])
