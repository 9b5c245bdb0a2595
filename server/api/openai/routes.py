"""`/v1/…`: the endpoints that OpenAI's clients call. The bundle is a model, and so is each profile."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core.errors import InvalidRequest
from emorl_core.frontend import Frontend
from emorl_core.text.chat import Message, statement
from emorl_core.types import Completion
from emorl_core.types import Request as EngineRequest
from server.api.answers import json_response, service_of
from server.api.documented import errors, streamed
from server.api.fields import check_limit
from server.api.openai.answers import (
    ChatDialect,
    CompletionDialect,
    Head,
    chat_completion,
    text_completion,
    with_scores,
)
from server.api.openai.messages import chat_of, single_statement
from server.api.openai.objects import ChatCompletion, Model, ModelList, TextCompletion
from server.api.openai.requests import ChatRequest, CompletionRequest, OpenAIRequest
from server.api.scores import check_scored, scores_of
from server.door.bodies import StrictBody
from server.door.errors import UnknownModel
from server.policy.door import Conversation
from server.serving import sse
from server.serving.deployment import Deployment
from server.serving.generation import Generation
from server.serving.receipt import Receipt, Sent, make_receipt

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictBody)

_ERRORS = errors(400, 401, 404, 408, 413, 415, 421, 429, 431, 500, 503)
_DEFAULT_MAX_TOKENS = 16
Builder = Callable[[Frontend, str], list[EngineRequest]]


def _stream(chunk: str) -> dict[str, Any]:
    return streamed(f"data: {chunk}\n\ndata: [DONE]\n\n")


_TEXT_STREAM = _stream(
    '{"id":"cmpl-0f3a","object":"text_completion","created":1764000000,"model":"counselor-demo",'
    '"choices":[{"index":0,"text":"You","logprobs":null,"finish_reason":null}]}'
)
_CHAT_STREAM = _stream(
    '{"id":"chatcmpl-0f3a","object":"chat.completion.chunk","created":1764000000,"model":"counselor-demo",'
    '"choices":[{"index":0,"delta":{"content":"You"},"logprobs":null,"finish_reason":null}]}'
)


@router.get("/models", response_model=ModelList, responses=errors(401, 421, 503))
async def models(request: Request) -> Response:
    """The bundle, and the bundle with each of its profiles."""
    deployment = service_of(request).deployment()
    return json_response(
        {"object": "list", "data": [_model(deployment, name) for name in model_names(deployment.ensemble)]}
    )


@router.get("/models/{model}", response_model=Model, responses=errors(401, 404, 421, 503))
async def model(model: str, request: Request) -> Response:
    """One of them."""
    deployment = service_of(request).deployment()
    profile_of(deployment.ensemble, model)
    return json_response(_model(deployment, model))


@router.post("/completions", response_model=TextCompletion, responses={200: _TEXT_STREAM, **_ERRORS})
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Complete one or several prompts; for a bundle with chat they are raw texts without a template."""
    prompts, n = body.prompts, body.choices
    _check_rows(request, len(prompts) * n)
    limit = _limit(request, "max_tokens", body.max_tokens or _DEFAULT_MAX_TOKENS)

    def build(ensemble: Frontend, request_id: str) -> list[EngineRequest]:
        return [
            _engine_request(ensemble, body, prompt, f"{request_id}-{p * n + i}", limit, i, body.logprobs or 0)
            for p, prompt in enumerate(prompts)
            for i in range(n)
        ]

    sent = [prompt for _, prompt in prompts for _ in range(n)]
    generation, head = await _accept(
        request, body, build, "cmpl", len(sent), lambda _: sent, lambda e: _conversations(e, prompts)
    )
    echoes = [_echo(head.ensemble, prompt) if body.echo else "" for prompt in sent]
    with_logprobs = body.logprobs is not None
    if body.stream:
        dialect = CompletionDialect(head, n, body.include_usage, with_logprobs, echoes=echoes)
        return await sse.stream(generation, dialect, service_of(request).settings)
    done = await generation.finish()
    return json_response(await with_scores(head, text_completion(head, done, n, echoes, with_logprobs), done))


@router.post("/chat/completions", response_model=ChatCompletion, responses={200: _CHAT_STREAM, **_ERRORS})
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a chat; for a bundle without chat, one user message, in the bundle's prompt template."""
    _check_rows(request, body.choices)
    name, asked = body.limit
    limit = _limit(request, name, asked or service_of(request).settings.max_new_tokens)

    def build(ensemble: Frontend, request_id: str) -> list[EngineRequest]:
        tops, said = body.top_logprobs or 0, _said(ensemble, body)
        return [
            _engine_request(ensemble, body, said, f"{request_id}-{i}", limit, i, tops, fit_context=asked is None)
            for i in range(body.choices)
        ]

    def sent(ensemble: Frontend) -> list[Sent]:
        return [_said(ensemble, body)[1]] * body.choices

    generation, head = await _accept(
        request, body, build, "chatcmpl", body.choices, sent, lambda _: [tuple(chat_of(body.messages))]
    )
    if body.stream:
        dialect = ChatDialect(head, body.choices, body.include_usage, bool(body.logprobs))
        return await sse.stream(generation, dialect, service_of(request).settings)
    done = await generation.finish()
    return json_response(await with_scores(head, chat_completion(head, done, bool(body.logprobs)), done))


# --- models ----------------------------------------------------------------------------------------------------------


def model_names(ensemble: Frontend) -> list[str]:
    return [ensemble.name, *(f"{ensemble.name}:{profile}" for profile in ensemble.profiles)]


def profile_of(ensemble: Frontend, model: str) -> str | None:
    """The profile that a model name stands for. Raises `UnknownModel`, which lists the names."""
    names = model_names(ensemble)
    if model not in names:
        raise UnknownModel(f"model is unknown; models: {', '.join(names)}", param="model")
    return None if model == ensemble.name else model.removeprefix(f"{ensemble.name}:")


def _model(deployment: Deployment, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": deployment.since, "owned_by": "emorl"}


# --- requests --------------------------------------------------------------------------------------------------------


def _check_rows(request: Request, rows: int) -> None:
    """Check the number of completions before any list of that size is made. Raises `InvalidRequest`."""
    most = service_of(request).settings.max_choices
    if rows > most:
        raise InvalidRequest(
            f"n × prompts is {rows}; allowed: up to {most} completions in one request (max_choices)", param="n"
        )


def _limit(request: Request, name: str, asked: int) -> int:
    check_limit(name, asked, service_of(request).settings.max_new_tokens)
    return asked


async def _accept(
    request: Request,
    body: OpenAIRequest,
    build: Builder,
    kind: str,
    rows: int,
    sent: Callable[[Frontend], Sequence[Sent]],
    said: Callable[[Frontend], Sequence[Conversation]],
) -> tuple[Generation, Head]:
    """sent: the prompt of each choice, for receipts and scores; said: the conversations, for the policy."""
    service = service_of(request)
    answer_id = f"{kind}-{secrets.token_hex(12)}"

    def checked(ensemble: Frontend) -> list[EngineRequest]:
        if body.score:
            check_scored(service.deployment())
        return build(ensemble, answer_id)

    generation = await service.accept(request, said, checked, rows)
    ids = {each.request_id: index for index, each in enumerate(generation.requests)}
    ensemble = generation.deployment.ensemble
    identity = generation.deployment.identity if body.receipt else None

    prompts = sent(ensemble)
    raw = kind == "cmpl" and ensemble.spec.chat is not None

    def receipt_of(index: int, completion: Completion) -> Receipt:
        assert identity is not None
        prompt, engine_request = prompts[index], generation.requests[index]
        return make_receipt(ensemble, identity, prompt, engine_request, completion, raw=raw and isinstance(prompt, str))

    async def judged(completions: Sequence[Completion]) -> list[dict[str, Any]]:
        return await scores_of(generation.deployment, prompts, [each.text for each in completions])

    makes_receipts = None if identity is None else receipt_of
    asks = judged if body.score else None
    return generation, Head(answer_id, body.model, generation.accepted, ids, ensemble, makes_receipts, asks)


Located = tuple[str, str | list[int] | list[Message]]  # a prompt with its field's name


def _said(ensemble: Frontend, body: ChatRequest) -> Located:
    """The whole chat for a bundle with chat, or one user message. Raises `InvalidRequest`."""
    return single_statement(body.messages) if ensemble.spec.chat is None else ("messages", chat_of(body.messages))


def _engine_request(
    ensemble: Frontend,
    body: OpenAIRequest,
    located: Located,
    request_id: str,
    max_new_tokens: int,
    choice: int,
    top_logprobs: int,
    *,
    fit_context: bool = False,
) -> EngineRequest:
    """Raises `InvalidRequest` and its kinds, with the field names of this API."""
    profile = profile_of(ensemble, body.model)
    if profile is not None and (body.profile is not None or body.objective_weights is not None):
        field = "profile" if body.profile is not None else "objective_weights"
        raise InvalidRequest(
            f"{field} and a model that names a profile exclude each other; use the model {ensemble.name}", param=field
        )
    try:
        return ensemble.request(
            **_keywords(ensemble, body, located),
            weights=body.objective_weights,
            profile=body.profile if profile is None else profile,
            normalize=body.normalize,
            top_logprobs=top_logprobs,
            stream=bool(body.stream),
            request_id=request_id,
            field=located[0],
            fit_context=fit_context,
            **body.sampling(max_new_tokens, choice),
        )
    except InvalidRequest as error:
        for here, there in body.names.items():
            error = error.renamed(here, there)
        raise error from None


def _keywords(ensemble: Frontend, body: OpenAIRequest, located: Located) -> dict[str, Any]:
    """A prompt as `Frontend.request` takes it."""
    place, prompt = located
    if isinstance(body, ChatRequest):
        return {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    if isinstance(prompt, str) and ensemble.spec.chat is not None:
        return {"prompt": ensemble.encode_raw(prompt, field=place)}
    return {"prompt": prompt}


def _conversations(ensemble: Frontend, prompts: Sequence[tuple[str, str | list[int]]]) -> list[Conversation]:
    """Token ids decoded to text; invalid ids are skipped here and refused later."""

    def known(ids: list[int]) -> list[int]:
        return [token for token in ids if token < ensemble.held.vocab_size]

    texts = [each if isinstance(each, str) else ensemble.tokenizer.decode(known(each)) for _, each in prompts]
    return [statement(text) for text in texts]


def _echo(ensemble: Frontend, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else ensemble.tokenizer.decode(list(prompt))
