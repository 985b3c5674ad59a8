"""Generate text with a trained model: `python sample.py checkpoint=outputs/NAME prompts='["def ","The "]'`."""

from __future__ import annotations

import json
import sys

from cli.launch import launch
from config import SampleConfig
from run.report.console import Console


def main(config: SampleConfig) -> None:
    """Continue each prompt `samples` times, with a seed each, and print the texts; with output=json, as JSON."""
    from device.device import open_device
    from model.generate import generate
    from run.load_model import load_model

    wanted = config.device
    device = open_device(wanted.name, wanted.threads, wanted.precision, 1.0)  # no MFU is shown, so no peak is measured
    assert config.checkpoint is not None
    loaded = load_model(config.checkpoint, device.torch_device)
    if loaded.note:
        print(loaded.note, file=sys.stderr)
    tokenizer, written = loaded.tokenizer, []
    for prompt in config.prompts:
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
            written.append({"prompt": prompt, "text": tokenizer.decode(continuation), "tokens": len(continuation)})
    if config.output == "json":
        print(json.dumps(written, indent=1))
        return
    console = Console()
    for number, entry in enumerate(written):
        console.say(f"{'' if number == 0 else chr(10)}--- {entry['prompt']!r}, {entry['tokens']} tokens")
        console.say(f"{entry['prompt']}{entry['text']}")


if __name__ == "__main__":
    launch(main, "sample")
