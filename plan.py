"""Plan the best model for a budget, without training it.

`python plan.py budget.hours=3 device=a100` plans for a GPU that this machine need not have,
`budget.hours=0.05 probe=true` measures this device first, and `budget.flops=3.4e18` needs no device.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from budget.clock import Limits
from budget.planner.plan import MAX_EPOCHS, Plan
from budget.planner.planner import overhead_estimate
from cli.launch import launch
from cli.overrides import chooses_corpus, flags_of, names_several
from common.errors import UserError, reported
from common.format import format_count
from common.json_io import significant, write_json
from config import Config, template
from device.specs import BY_NAME
from run.report.console import Console
from run.report.plan_report import TAKEN_AS_NEW, budget_of, explain_plan, show_plan, write_picture
from training.corpus_text import prepared_text, size_notes, vocab_size_for
from training.plan_run import law_of, limits_of, max_epochs_of, plan_here, plan_without_device, wants_trials
from training.trial_client import trial_process

if TYPE_CHECKING:
    from training.corpus_text import Text
    from training.initial_model import InitialModel

ASSUMED_CORPUS = (
    "this plan is for SlimPajama with GPT-2's tokens, because device= names a GPU and no data= is given; data=stdlib plans for"
    " the default corpus of train.py"
)


def adopted(config: Config) -> tuple[Config, InitialModel | None]:
    """The configuration with the architecture and tokenizer of the model that the run starts from, and that model."""
    if config.init.source == "scratch":  # the tokenizers' libraries take half a second
        return config, None
    from training.initial_model import initial_model, with_model

    initial = initial_model(config)
    return with_model(config, initial), initial


def plan_for(config: Config) -> Plan:
    """The plan for a configuration, with notes on the size of its corpus."""
    config, initial = adopted(config)
    text = prepared_text(config, vocab_size_for(config, initial), initial.tokenizer if initial else None)
    plan = planned(config, text)
    return replace(plan, notes=[*size_notes(config, plan), *plan.notes])


def plan_unmeasured(config: Config, text: Text) -> Plan:
    """The plan from the device table, or from FLOPs, tokens or steps alone.

    If the corpus may be repeated without limit (data=stdlib) and the plan repeats it more often than it was ever measured, all
    shapes would be about equal. The text then counts as new.
    """
    plan = plan_without_device(config, text)
    if not plan.epochs or plan.epochs <= MAX_EPOCHS or math.isfinite(max_epochs_of(config)):
        return plan
    plan = plan_without_device(config, replace(text, train_tokens=None))
    epochs, source = plan.tokens / (text.train_tokens or math.inf), plan.source | {"corpus": text.size_source}
    notes = [TAKEN_AS_NEW, *plan.notes]
    return replace(plan, corpus_tokens=text.train_tokens, epochs=epochs, source=source, notes=notes)


def planned(config: Config, text: Text) -> Plan:
    """The plan for a configuration and its text. With probe=true, or a time limit on this device, the device is measured."""
    limits = limits_of(config)
    if not config.probe and (limits.seconds is None or config.device.name in BY_NAME):
        return plan_unmeasured(config, text)

    def say(line: str) -> None:  # standard output holds only the plan
        print(line, file=sys.stderr)

    wanted = config.device
    overhead = overhead_estimate(limits)
    say("measuring this device; to plan for another one, name it, e.g. device=a100")
    with trial_process(wanted.name, wants_trials(config, limits), say) as trials:
        from device.device import open_device

        if trials is not None:
            trials.wait()  # loading libraries in both processes at once would take longer
        device = open_device(wanted.name, wanted.threads, wanted.precision, wanted.peak_flops)
        return plan_here(config, text, device, overhead, trials, say)


def row_of(plan: Plan, limits: Limits) -> tuple[str, ...]:
    """A plan as a row of the table of several plans."""
    return (
        budget_of(limits),
        f"{plan.n_layer} x {plan.n_embd}",
        format_count(plan.parameters),
        " to ".join(format_count(size) for size in plan.flat),
        format_count(plan.tokens),
        f"{plan.epochs:.2f}" if plan.epochs else "-",
        f"{plan.flops:.3g}",
        f"{plan.batch_tokens:,}",
        f"{plan.learning_rate:g}",
        f"{plan.predicted_loss:.4f}" if plan.predicted_loss is not None else "-",
    )


def write_files(plan: Plan, limits: Limits, folder: Path) -> None:
    """Write plan.json and plan.png into `folder`. Raises UserError if it is not writable."""
    title = f"{budget_of(limits)}: {plan.n_layer} x {plan.n_embd}, {format_count(plan.parameters)} parameters"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", significant(plan.to_dict(), 10))
        write_picture(plan, title, folder / "plan.png")
    except OSError as error:
        raise UserError(f"plan.folder={folder} cannot be written ({error.strerror}); choose another folder") from error


def lacks_corpus(overrides: list[str]) -> bool:
    """Whether the overrides name only devices of the table, which are rarely for the default corpus, and no corpus."""
    values_of = {key: value.split(",") for key, _, value in (text.partition("=") for text in overrides)}
    devices = values_of.get("device", values_of.get("device.name", []))
    corpus = [key for key in values_of if key == "data" or key.startswith("data.")]
    return bool(devices) and all(device in BY_NAME for device in devices) and not corpus


def with_note(plan: Plan, note: str) -> Plan:
    """The plan with one more note, the first."""
    return replace(plan, notes=[note, *plan.notes]) if note else plan


def show_one(config: Config, note: str) -> None:
    """Print the plan of one budget in full."""
    plan, limits = with_note(plan_for(config), note), limits_of(config)
    if config.plan.folder:
        write_files(plan, limits, Path(config.plan.folder))
    if config.output == "json":
        print(json.dumps(significant(plan.to_dict()), indent=1))
        return
    show_plan(plan, Console(required=True), limits)
    if config.explain:
        from data.tokenizers.tokenizer import short_name

        config, _ = adopted(config)
        law, shape = law_of(config, short_name(config.data.tokenizer)), plan.sized(template(config))
        print("\n" + "\n".join(explain_plan(plan, shape, law, limits)))
    if config.plan.folder:
        print(f"written: plan.json and plan.png in {config.plan.folder}")


def main() -> None:
    """Print one plan in full, or a table of several: for a list (budget.hours=0.5,1,3), -m, or a sweep's file (-cn)."""
    arguments = sys.argv[1:]
    with reported():
        flags = flags_of(arguments)
        several = names_several(flags)
    note = ""
    if lacks_corpus(flags.overrides) and not chooses_corpus(flags):
        note = ASSUMED_CORPUS
        first = arguments.index(flags.overrides[0])
        arguments.insert(first, "data=slimpajama")  # beside the other overrides
        flags.overrides.insert(0, "data=slimpajama")
    if flags.help or not several:
        sys.argv[1:] = arguments
        launch(partial(show_one, note=note), "config")
        return
    plans: list[tuple[Plan, Limits]] = []
    as_json = "output=json" in arguments

    def one_of_many(config: Config) -> None:
        if config.explain or config.plan.folder:
            raise UserError("explain=true and plan.folder are for one budget; give a single one instead of a list")
        plans.append((with_note(plan_for(config), note), limits_of(config)))

    with tempfile.TemporaryDirectory() as folder:  # Hydra writes a file about every sweep
        first = arguments.index(flags.overrides[0]) if flags.overrides else len(arguments)
        sys.argv[1:] = [
            "-m",
            *arguments[:first],
            f"hydra.sweep.dir={folder}",
            *arguments[first:],
        ]  # overrides stay together
        launch(one_of_many, "config")
    with reported():
        show_several(plans, as_json)


def show_several(plans: list[tuple[Plan, Limits]], as_json: bool) -> None:
    """Print several plans as a table, or as JSON."""
    if as_json:
        print(json.dumps([significant(plan.to_dict()) for plan, _ in plans], indent=1))
        return
    columns = [
        "budget",
        "layers x width",
        "parameters",
        "within 1 %",
        "tokens",
        "epochs",
        "FLOPs",
        "batch",
        "rate",
        "loss",
    ]
    Console(required=True).table("Plans", columns, [row_of(plan, limits) for plan, limits in plans])
    for note in dict.fromkeys(note for plan, _ in plans for note in plan.notes if "FLOPs;" not in note):
        print(f"note: {note}")


# Hydra's completion for fish works for scripts that contain "@hydra.main".
if __name__ == "__main__":
    main()
