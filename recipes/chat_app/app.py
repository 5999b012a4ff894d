"""A chat in the terminal whose thumbs train the policy.

    rlhf-loop serve runs/chat_thumbs
    python recipes/chat_app/app.py

After an answer: + or - is a thumb, `+ because ...` one with a comment, `= TEXT` the answer as it should have been,
`r` writes another one. Anything else is the next message; an empty line ends the chat. CHAT_TOKEN holds a token where
any was made, CHAT_URL the address of the service (http://localhost:8000/v1).
"""

import os
import sys
import uuid

try:
    import httpx
    import openai
except ImportError as error:
    sys.exit(f"{error.name} is not installed: pip install openai")

URL = os.environ.get("CHAT_URL") or "http://localhost:8000/v1"
TOKEN = os.environ.get("CHAT_TOKEN") or "none"  # where no token was made, any will do
USER = os.environ.get("USER", "me")

chat = openai.OpenAI(base_url=URL, api_key=TOKEN)
feedback = httpx.Client(base_url=URL, headers={"Authorization": f"Bearer {TOKEN}"})

FINAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError, openai.NotFoundError)
"""What no other message would change."""


def answer(messages: list, conversation: str) -> tuple[str, str]:
    """The response's id and text, shown while it is written."""
    stream = chat.chat.completions.create(
        model="promoted", messages=messages, stream=True, user=USER, metadata={"conversation_id": conversation}
    )
    id, text = "", ""
    for chunk in stream:
        id = chunk.id
        for choice in chunk.choices:
            text += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
    print()
    return id, text


def say(id: str, **what: object) -> None:
    """Feedback on an answer; sent twice under one key, it is stored once."""
    try:
        sent = feedback.post(
            "/feedback", json={"response_id": id, "user": USER, **what}, headers={"Idempotency-Key": uuid.uuid4().hex}
        )
        print("thank you" if sent.is_success else sent.json()["error"]["message"])
    except (httpx.HTTPError, ValueError, LookupError):
        print(f"the feedback was not taken: {URL} does not answer as it should")


def why(error: Exception) -> str:
    """What is wrong when there is no answer, and what to do."""
    if isinstance(error, openai.AuthenticationError):
        return (
            "the service wants a token: make one with `rlhf-loop token create my-app --role app --store RUN` and set "
            "CHAT_TOKEN to it"
        )
    if isinstance(error, openai.APIConnectionError):
        return f"nothing answers at {URL}: start `rlhf-loop serve RUN`, or set CHAT_URL"
    if isinstance(error, openai.NotFoundError) and not URL.rstrip("/").endswith("/v1"):
        return f"there is no chat at {URL}: set CHAT_URL to {URL.rstrip('/')}/v1"
    return f"no answer: {getattr(error, 'message', error)}"


def main() -> None:
    """Talks until the input ends."""
    conversation, messages, id = uuid.uuid4().hex, [], ""
    while line := input("> ").strip():
        if messages and line[0] in "+-":
            say(id, thumb="up" if line[0] == "+" else "down", comment=line[1:].strip() or None)
        elif messages and line[0] == "=":
            say(id, edit=line[1:].strip())
        else:
            if messages and line == "r":
                say(id, event="regenerate")
                messages.pop()
            else:
                messages.append({"role": "user", "content": line})
            try:
                id, text = answer(messages, conversation)
            except FINAL as error:
                sys.exit(why(error))
            except (openai.OpenAIError, httpx.HTTPError) as error:  # another message may be answered
                print(why(error))
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": text})


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    if not TOKEN.isascii() or any(letter.isspace() for letter in TOKEN):
        sys.exit("CHAT_TOKEN is no token: copy what `rlhf-loop token create` printed")
    try:
        main()
    except (EOFError, KeyboardInterrupt):
        print()
