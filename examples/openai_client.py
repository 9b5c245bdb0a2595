"""Steering with the unchanged `openai` client (pip install openai), against a server that runs.

python examples/openai_client.py [URL]
"""

import sys

from openai import BadRequestError, OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
MESSAGES = [{"role": "user", "content": "I cannot keep up at work."}]

# The key is asked for by the client; a server without keys does not look at it.
with OpenAI(base_url=f"{URL}/v1", api_key="unused") as client:
    # The bundle is a model, and each of its profiles another: a program that knows only model names can steer.
    models = [model.id for model in client.models.list()]
    print("models:", ", ".join(models))
    bundle, profile = models[0], models[-1]
    answer = client.chat.completions.create(model=profile, messages=MESSAGES, temperature=0, max_tokens=32)
    print(f"{profile}: {answer.choices[0].message.content}")

    # Weights of this one request.
    steered = {"objective_weights": {"reflection": 0.2, "empathy": 0.8}}
    answer = client.chat.completions.create(
        model=bundle, messages=MESSAGES, temperature=0, max_tokens=32, extra_body=steered
    )
    print(f"{steered}: {answer.choices[0].message.content}")

    # Streaming.
    for chunk in client.chat.completions.create(
        model=bundle, messages=MESSAGES, temperature=0, max_tokens=32, stream=True, extra_body=steered
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    # A misspelt objective is an error that names it, not a text that ignores it.
    try:
        client.completions.create(model=bundle, prompt="Hello", extra_body={"objective_weights": {"empaty": 1}})
    except BadRequestError as error:
        print("refused:", error.body["message"])
