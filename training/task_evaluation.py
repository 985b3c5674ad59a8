"""The tasks in eval.tasks: some items of each at the interim evaluations, all of them, or as many as fit, at the end.

tasks.json in the run's folder keeps how many items each evaluation has. The points of a curve then stay comparable when a run is
resumed, and a repeated final evaluation has the same items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.checksum import verify_checksum
from common.errors import UserError
from common.json_io import mapping, write_json
from common.safe_read import is_count, load_json
from config import METRICS
from training.context import Session, Trainer, expected_s
from training.divergence import Diverged
from training.micro_batching import attempts

if TYPE_CHECKING:
    from evals.bookkeeping.answers import AnswerFile
    from evals.scoring import Scorer
    from evals.tasks.task import Item, Task

INTERIM, FINAL = "interim", "final"
MEASURED_S = 0.3  # the time of one item is that of a sample which takes at least this long
CHECKED = 256  # items of each task that are checked first, so that one message names several that do not fit
# The final evaluation goes over the items in this many evenly spaced parts. A prime number, so that each part has items of all
# kinds also where they take turns, e.g. the labels of a classification.
PARTS = 7


class TimeIsUp(Exception):
    """The time that an evaluation of tasks may take is over."""


@dataclass
class RunTask:
    """A task that a run evaluates.

    Attributes:
        task: The task with all of its items.
        fingerprint: Of its items.
        counts: The number of items by kind of evaluation, INTERIM or FINAL.
        kept: The kinds whose number of items was decided by an earlier process of the run.
        item_s: Seconds per item; an upper estimate.
        figures_s: Seconds that the figures of the final evaluation take without the answers.
        pause_s: The longest time between two looks at the clock: the seconds of a batch, or of a generated token.
    """

    task: Task
    fingerprint: str
    counts: dict[str, int]
    kept: frozenset[str] = frozenset()
    item_s: float = 0.0
    figures_s: float = 0.0
    pause_s: float = 0.0
    _thinned: dict[tuple[int, int], list[Item]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the results."""
        return self.task.name

    def answers_s(self, kind: str) -> float:
        """The expected seconds of the answers of an evaluation."""
        return self.counts[kind] * self.item_s

    def seconds(self, kind: str) -> float:
        """The expected seconds of an evaluation."""
        return self.answers_s(kind) + (self.figures_s if kind == FINAL else 0.0)

    def chosen(self, kind: str) -> list[Item]:
        """The items of an evaluation. Those of an interim evaluation are some of those of the final one."""
        from evals.tasks.task import thin

        final, interim = self.counts[FINAL], self.counts[INTERIM]
        key = (final, interim if kind == INTERIM else final)
        if key not in self._thinned:
            self._thinned[key] = thin(thin(self.task.items, final), key[1])
        return self._thinned[key]


def open_run_tasks(session: Session) -> list[Task]:
    """Load the tasks of a run, before anything is computed.

    Raises UserError for invalid items, and if sweep.metric is neither a metric of all runs nor a task.
    """
    config = session.config
    if not config.eval.tasks:
        return []
    from evals.evaluation import load_tasks

    tasks = load_tasks(config.eval.tasks)
    names = [task.name for task in tasks]
    if (metric := config.sweep.metric) not in (*METRICS, *names):
        raise UserError(f"sweep.metric={metric} is not known; allowed: {', '.join((*METRICS, *names))}")
    return tasks


def run_tasks(session: Session) -> list[RunTask]:
    """The tasks of a run with the number of items of each evaluation, before they are cut to fit into the hours."""
    from evals.run_task import items_fingerprint

    evals, tasks = session.config.eval, []
    for task in session.tasks:
        final = len(task.items)
        interim = min(evals.interim_items, final) if evals.every else 0
        tasks.append(RunTask(task, items_fingerprint(task), {INTERIM: interim, FINAL: final}))
    return tasks


# -- before training -------------------------------------------------------------------------------------------------------


def restore_counts(session: Session, trainer: Trainer) -> None:
    """Take the numbers of items from tasks.json, where an earlier process of the run decided them.

    They are decided again on another device, which may be slower, and those of the final evaluation under another limit of
    hours. If the items were changed, a warning says so.
    """
    decided = read_decided(session)
    for each in trainer.tasks:
        before = mapping(mapping(decided.get("tasks")).get(each.name))
        if before and before.get("fingerprint") != each.fingerprint:
            text = f"the items of {each.name} were changed since the run began; its scores so far are of other items"
            session.console.warn(text)
            trainer.metrics.write({"event": "note", "step": trainer.state.step, "text": text})
        elif before and decided.get("device") == trainer.device.title:
            same_limit = decided.get("limit_s") == session.clock.limits.seconds
            kinds = [kind for kind in ((INTERIM, FINAL) if same_limit else (INTERIM,)) if is_count(before.get(kind))]
            each.counts |= {kind: min(before[kind], len(each.task.items)) for kind in kinds}
            each.kept = frozenset(kinds)


def read_decided(session: Session) -> dict[str, Any]:
    """The content of tasks.json; empty if it is missing or damaged."""
    try:
        return mapping(verify_checksum(load_json(session.run.tasks)))
    except (OSError, ValueError):
        return {}


def record_counts(session: Session, trainer: Trainer) -> None:
    """Write the numbers of items to tasks.json, with the score of guessing for the report, and print them."""
    for each in trainer.tasks:
        if each.counts[INTERIM] > each.counts[FINAL]:
            each.counts[INTERIM] = each.counts[FINAL]
    content = {
        "format": 1,
        "device": trainer.device.title,
        "limit_s": session.clock.limits.seconds,
        "tasks": {
            each.name: {"fingerprint": each.fingerprint, "chance": each.task.chance, **each.counts}
            for each in trainer.tasks
        },
    }
    if trainer.tasks:
        write_json(session.run.tasks, content, checksummed=True)
    evals, wanted = session.config.eval, session.config.eval.interim_items
    for each in trainer.tasks:
        interim, final, total = each.counts[INTERIM], each.counts[FINAL], len(each.task.items)
        session.console.say(
            f"tasks   {each.name}: {final:,} of {total:,} items at the end, {interim:,} at interim evaluations"
            if final < total or interim
            else f"tasks   {each.name}: {total:,} items at the end"
        )
        if final < total or (evals.every and interim < min(wanted, total)):
            session.console.say(
                f"tasks   {each.name} is cut to stay within {evals.max_fraction:.0%} of the hours (eval.max_fraction)"
            )


def measure_tasks(session: Session, trainer: Trainer) -> None:
    """Measure the seconds per item and the seconds of the figures of each task, on samples of its items."""
    from evals.bookkeeping.answers import AnswerFile
    from evals.run_task import figures_of
    from evals.tasks.task import thin, with_items

    clock = session.clock

    def measured(each: RunTask, count: int) -> tuple[float, float]:
        """The seconds of the answers to `count` items, and of their figures."""
        sample = thin(each.task.items, count)
        began_s = clock.awake_s()
        marks = answer(session, trainer, each, sample, AnswerFile(None), "measured")
        answered_s = clock.awake_s()
        figures_of(with_items(each.task, sample), marks)
        return answered_s - began_s, clock.awake_s() - answered_s

    for each in trainer.tasks:
        count, items = 1, len(each.task.items)
        check_items(trainer, each.task, thin(each.task.items, CHECKED))
        measured(each, count)  # the first time, libraries are loaded
        each.pause_s = 0.0
        while True:
            answers_s, figures_s = measured(each, count)
            if answers_s >= MEASURED_S or count >= items:
                break
            count *= 2
        # The numbers of items follow from them.
        each.item_s, each.figures_s = session.world.broadcast((answers_s / min(count, items), figures_s))


def check_items(trainer: Trainer, task: Task, items: Sequence[Item]) -> None:
    """Raise UserError if the model cannot answer items, e.g. because they are too long."""
    from evals.bookkeeping.answers import AnswerFile
    from evals.run_task import Respondent, prepare
    from evals.tasks.task import with_items

    prepare(with_items(task, items), Respondent(scorer_of(trainer), "checked"), AnswerFile(None))


# -- evaluation ------------------------------------------------------------------------------------------------------------


def interim_scores(session: Session, trainer: Trainer) -> dict[str, float]:
    """Evaluate some items of each task. Returns the score of each as `task_NAME` and, of a mean, its standard error.

    A task that would take the time that is reserved for the end has no score. Raises Interrupted between two batches after a
    stopping signal, and Diverged.
    """
    from evals.bookkeeping.answers import AnswerFile
    from evals.statistics import score_of, standard_error

    point: dict[str, float] = {}
    for each in trainer.tasks:
        items, began = each.chosen(INTERIM), session.clock.awake_s()
        if not items:
            continue
        try:
            marks = answer(session, trainer, each, items, AnswerFile(None), "interim", session.clock.reserve_s)
        except TimeIsUp:
            session.console.detail(
                f"step {trainer.state.step}: no score of {each.name}: its time is needed for the end"
            )
            continue
        each.item_s = expected_s(each.item_s, (session.clock.awake_s() - began) / len(marks))
        score = score_of(marks, each.task.statistic)
        if score is None:
            continue
        point[f"task_{each.name}"] = score
        if (error := standard_error(marks, each.task.statistic)) is not None:
            point[f"task_{each.name}_se"] = error
        session.console.detail(f"step {trainer.state.step}: {each.name} {score:.2%} on {len(marks):,} items")
    return point


def final_figures(session: Session, trainer: Trainer, digest: str, kept_s: float) -> dict[str, dict[str, Any]]:
    """Evaluate the tasks with the finished model, whose weights have the sha256 `digest`. Returns the figures by name.

    These are those of `evals.run_task.figures_of`, the number of items of the whole task, and the fingerprint of its items. The
    answers are kept on disk, so that a run that is killed here goes on where it was, and evaluate.py finds them.

    The items of all tasks are answered part by part. When only `kept_s` seconds are left, no further part is answered; the
    first one always is. Raises Interrupted and Diverged as `interim_scores`.
    """
    from evals.bookkeeping.answers import AnswerFile
    from evals.evaluation import answers_name
    from evals.run_task import figures_of, fingerprint_of, marks_of
    from evals.tasks.task import with_items

    fingerprint = fingerprint_of(digest, trainer.corpus.tokenizer, trainer.device.precision)
    files = {each.name: AnswerFile(session.run.evaluations / answers_name(each.name)) for each in trainer.tasks}
    parts = dict.fromkeys(files, 0)
    try:
        for part in range(PARTS):
            for each in trainer.tasks:
                items = each.chosen(FINAL)[part::PARTS]
                answer(session, trainer, each, items, files[each.name], fingerprint, kept_s if part else None)
                parts[each.name] += 1
    except TimeIsUp:
        pass
    figures = {}
    for each in trainer.tasks:
        wanted = each.chosen(FINAL)
        task = with_items(each.task, [item for i, item in enumerate(wanted) if i % PARTS < parts[each.name]])
        if len(task.items) < len(wanted):
            session.console.say(
                f"tasks   {each.name}: time was left for {len(task.items):,} of {len(wanted):,} items; evaluate.py answers more"
            )
        figures[each.name] = {
            **figures_of(task, marks_of(task, files[each.name], fingerprint)),
            "available": len(each.task.items),
            "fingerprint": each.fingerprint,
        }
    return figures


def answer(
    session: Session,
    trainer: Trainer,
    each: RunTask,
    items: Sequence[Item],
    answers: AnswerFile,
    fingerprint: str,
    kept_s: float | None = None,
) -> list[dict[str, Any]]:
    """Let the model answer the items that `answers` lacks. Returns the marks of all items.

    Raises TimeIsUp when only `kept_s` seconds of the budget are left, and Diverged if a log-probability is not finite.
    """
    from evals.run_task import Respondent, answer_items, marks_of
    from evals.scoring import NotFinite
    from evals.tasks.task import with_items

    clock, task = session.clock, with_items(each.task, items)
    looked_s = math.inf

    def look() -> None:
        nonlocal looked_s
        now_s = clock.awake_s()
        each.pause_s, looked_s = max(each.pause_s, now_s - looked_s), now_s

    def stop() -> None:
        look()
        # Several processes may have different numbers of batches, so they cannot agree on a signal between two of them.
        if session.world.size == 1:
            session.signals.check()
        left_s = clock.seconds_left() if clock.limits.counts == "all" else None
        if kept_s is not None and left_s is not None and left_s < kept_s + each.pause_s:
            raise TimeIsUp

    for attempt in attempts(session, trainer):
        with attempt:
            respondent = Respondent(scorer_of(trainer), fingerprint)
            try:
                answer_items(task, respondent, answers, progress=lambda done: look(), stop=stop)
            except NotFinite:
                step = trainer.state.step
                raise Diverged(f"a log-probability of {task.name} after step {step} is not finite", step + 1) from None
    return marks_of(task, answers, fingerprint)


def scorer_of(trainer: Trainer) -> Scorer:
    """The scorer of the model as it is now."""
    from evals.scoring import Scorer

    device = trainer.device
    return Scorer(trainer.model, trainer.corpus.tokenizer, device.torch_device, device.autocast, trainer.micro_batch)
