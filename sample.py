"""Generate text with a trained model: `python sample.py checkpoint=outputs/NAME prompts='["def ","The "]'`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.launch import launch
from common.errors import UserError
from common.paths import user_path
from common.safe_read import parse_json, read_bytes
from common.typed import FROM_FILE, unescaped
from config import SampleConfig
from run.report.console import Console

LARGEST_FILE = 64 << 20  # bytes of a file of prompts


def main(config: SampleConfig) -> None:
    """Continue each prompt `samples` times, with a seed each, and print the texts; with output=json, as JSON."""
    from device.device import open_device
    from model.generate import generate
    from run.load_model import load_model

    prompts = prompts_of(config)
    wanted = config.device
    device = open_device(wanted.name, wanted.threads, wanted.precision, 1.0)  # no MFU is shown, so no peak is measured
    assert config.checkpoint is not None
    loaded = load_model(config.checkpoint, device.torch_device)
    if loaded.note:
        print(loaded.note, file=sys.stderr)
    tokenizer, written = loaded.tokenizer, []
    for prompt in prompts:
        ids = [tokenizer.eot, *(int(token) for token in tokenizer.encode(prompt))]
        for number in range(config.samples):
            with device.autocast():
                continuation = generate(
                    loaded.model,
                    ids,
                    config.tokens,
                    temperature=config.temperature,
                    top_k=config.top_k,
                    top_p=config.top_p,
                    repetition_penalty=config.repetition_penalty,
                    seed=config.seed + number,
                    eot=tokenizer.eot,
                    n_vocab=tokenizer.n_vocab,
                )
            text, seed = tokenizer.decode(continuation, after=ids[1:]), config.seed + number
            written.append({"prompt": prompt, "text": text, "tokens": len(continuation), "seed": seed})
    if config.output == "json":
        print(json.dumps(written, indent=1))
        return
    console = Console(required=True)
    for number, entry in enumerate(written):
        console.say(f"{'' if number == 0 else chr(10)}--- {entry['prompt']!r}, {entry['tokens']} tokens")
        console.say(f"{entry['prompt']}{entry['text']}")


def prompts_of(config: SampleConfig) -> list[str]:
    """The prompts, with those of files in place of FILE:PATH. Raises UserError for a file without prompts."""
    prompts: list[str] = []
    for entry in config.prompts:
        if entry.startswith(FROM_FILE):
            prompts += prompts_in(user_path(entry.removeprefix(FROM_FILE)))
        else:
            prompts.append(unescaped(entry))
    return prompts


def prompts_in(path: Path) -> list[str]:
    """The prompts of a file, as they are: a JSON list, a JSON value per line (.jsonl), or one prompt per line (any other).

    Empty lines are left out. A JSON value is a string or an object with "prompt". Raises UserError for a file that cannot be
    read, has another content, or no prompt.
    """
    try:
        text = read_bytes(path, LARGEST_FILE).decode("utf-8-sig")
        prompts = READERS.get(path.suffix.lower(), _lines)(text)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"prompts=FILE:{path} cannot be read: {reason}") from None
    if not prompts:
        raise UserError(f"prompts=FILE:{path} has no prompt; write one per line, or a .json or .jsonl file")
    return prompts


def _lines(text: str) -> list[str]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line]


def _from_json(text: str) -> list[str]:
    values = parse_json(text)
    if not isinstance(values, list):
        raise ValueError(f'it holds a JSON {_kind(values)}; write a list of strings or of objects with "prompt"')
    return [_prompt(value) for value in values]


def _from_jsonl(text: str) -> list[str]:
    return [_prompt(parse_json(line)) for line in _lines(text)]


def _prompt(value: Any) -> str:
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise ValueError(f'a JSON {_kind(value)} without a text; write a string or an object with "prompt"')
    return prompt


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


READERS: dict[str, Callable[[str], list[str]]] = {".json": _from_json, ".jsonl": _from_jsonl, ".ndjson": _from_jsonl}


# Hydra's completion for fish works for scripts that contain "@hydra.main".
if __name__ == "__main__":
    launch(main, "sample")
