"""Write text with a finished model: `python sample.py checkpoint=outputs/NAME prompts='["def ","The "]'`."""

from __future__ import annotations

import json

from cli.launch import launch
from config import SampleConfig
from run.report.console import Console


def main(config: SampleConfig) -> None:
    from device.device import open_device
    from model.generate import generate
    from run.load_model import load_model

    wanted = config.device
    device = open_device(wanted.name, wanted.threads, wanted.precision, 1.0)
    assert config.checkpoint is not None
    finished = load_model(config.checkpoint, device.torch_device)
    tokenizer, written = finished.tokenizer, []
    for prompt in config.prompts:
        ids = [tokenizer.eot, *(int(token) for token in tokenizer.encode(prompt))]
        for number in range(config.samples):
            with device.autocast():
                continuation = generate(
                    finished.model,
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
