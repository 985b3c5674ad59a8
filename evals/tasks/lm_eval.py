"""Tasks of lm-evaluation-harness (EleutherAI), if its package lm_eval is installed: tasks=[lm_eval:hellaswag].

The harness makes the requests, marks the answers and aggregates its metrics; the requests are answered like those of any other
task. `StintLM` in evals/tasks/lm_eval_model.py is for programs that call the harness themselves.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import numpy as np

from common.errors import UserError
from evals.scoring import Request
from evals.tasks.task import MEAN, Answer, Generated, Item, TaskOptions

MAIN_METRICS = ("acc_norm", "acc")  # in order of preference
MAX_GENERATED = 256  # tokens of a free answer, unless the task says otherwise; the harness's default
FEWSHOT_SEED = 1234  # the harness's default: the same examples are drawn


@dataclass(frozen=True)
class LmEvalTask:
    """See `Task`.

    Attributes:
        harness: The harness's task.
        instances: The harness's requests of each item.
        main: The metric that is the score, as (metric, filter); None if the task has none that is a mean over its items.
    """

    name: str
    options: TaskOptions
    items: Sequence[Item]
    harness: Any
    instances: Mapping[str, Sequence[Any]]
    main: tuple[str, str] | None
    kind: str = "lm_eval"
    statistic: str = MEAN
    chance: None = None

    def mark(self, item: Item, answer: Answer) -> dict[str, Any]:
        """The harness's metrics of the item, by name; `score` is that of the main metric."""
        instances = self.instances[item.id]
        for instance, response in zip(instances, responses(instances, answer), strict=True):
            instance.resps = [response]
        doc = instances[0].doc
        metrics: dict[str, Any] = {}
        with _quiet():
            for chosen in self.harness._filters:
                chosen.apply(instances)
                filtered = [instance.filtered_resps[chosen.name] for instance in instances]
                found = self.harness.process_results(doc, filtered)
                metrics |= {_metric_name(name, chosen.name): _plain(value) for name, value in found.items()}
            gold = _plain(self.harness.doc_to_target(doc))
        return {
            "id": item.id,
            "score": None if self.main is None else float(metrics[_metric_name(*self.main)]),
            "gold": gold,
            "answer": answer.text if isinstance(answer, Generated) else [score.logprob for score in answer],
            "metrics": metrics,
        }

    def figures(self, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The harness's `metrics`; `main_metric`: the name of the one that is the score; `version`: of the harness's task."""
        aggregation, metrics = self.harness.aggregation(), {}
        with _quiet():
            for name in dict.fromkeys(name for mark in marks for name in mark["metrics"]):
                values = [mark["metrics"][name] for mark in marks if name in mark["metrics"]]
                metrics[name] = _plain(aggregation[name.split(",")[0]](values))
        return {
            "metrics": metrics,
            "main_metric": None if self.main is None else _metric_name(*self.main),
            "version": _plain(self.harness.VERSION),
        }


def load_lm_eval(name: str, options: TaskOptions) -> list[Any]:
    """Load the task "lm_eval:NAME", or all tasks of a group or tag NAME.

    task.path is a folder with further tasks, YAML files as the harness documents them; their `data_files` are relative to the
    current folder. Raises UserError if the package is not installed, and for a task that cannot be loaded.
    """
    if find_spec("lm_eval") is None:
        raise UserError(f"tasks={name} needs the package lm_eval; install it with: pip install lm_eval")
    if options.bad_items == "skip":
        raise UserError(f"task.bad_items=skip has no effect on {name}, whose items the harness reads; leave it out")
    wanted = name.partition(":")[2]
    with _quiet():
        manager = _manager_with(wanted, options.path)
        if wanted not in manager.all_tasks:
            close = get_close_matches(wanted, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(f'lm_eval:{each}' for each in close)}? " if close else ""
            raise UserError(
                f"tasks={name}: lm-evaluation-harness has no task {wanted!r}; {hint}`lm_eval ls tasks` lists them, and"
                " task.path=FOLDER adds those of a folder with YAML files"
            )
        try:
            found = manager.load(wanted)["tasks"]
            return [_open(f"lm_eval:{each}", harness, options) for each, harness in found.items()]
        except UserError:
            raise
        except Exception as error:  # tasks are programs of many authors
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"tasks={name}: lm-evaluation-harness cannot load it ({type(error).__name__}: {reason}); its data may need"
                " the network: a YAML file with dataset_path: json, in task.path=FOLDER, needs none"
            ) from error


def _manager_with(wanted: str, path: str | None) -> Any:
    """Return the harness's index of the tasks in the folder `path` if `wanted` is one of them, else that of all tasks.

    Reading the harness's own 14,000 tasks takes ten seconds.
    """
    from lm_eval.tasks import TaskManager

    if path is not None:
        manager = TaskManager(include_path=path, include_defaults=False)
        if wanted in manager.all_tasks:
            return manager
    return TaskManager(include_path=path)


def _open(name: str, harness: Any, options: TaskOptions) -> LmEvalTask:
    if getattr(harness, "UNSAFE_CODE", False):
        raise UserError(f"tasks={name} runs code that the model writes, which stint does not do; leave it out")
    if getattr(harness, "MULTIMODAL", False):
        raise UserError(f"tasks={name} shows images or sounds, and the model reads text only; leave it out")
    harness.set_fewshot_seed(seed=FEWSHOT_SEED)
    harness.build_all_requests()
    instances = {
        str(number): sorted(group, key=lambda instance: instance.idx)
        for number, group in itertools.groupby(harness.instances, key=lambda instance: instance.doc_id)
    }
    kinds = {instance.request_type for instance in harness.instances}
    if len(kinds) > 1 or (kinds == {"generate_until"} and _several_answers(instances)):
        raise UserError(
            f"tasks={name} needs several kinds of answers to an item, or several free ones ({', '.join(sorted(kinds))}), which"
            " evaluate.py does not support; use evals.tasks.lm_eval_model.StintLM with lm_eval.simple_evaluate"
        )
    items = [as_item(number, group) for number, group in instances.items()]
    return LmEvalTask(
        name, _options(harness.instances[0], options), items, harness, instances, _main_metric(harness, instances)
    )


def as_item(number: str, instances: Sequence[Any]) -> Item:
    """Return the item of a document of the harness."""
    if instances[0].request_type == "generate_until":
        return Item(number, prompt=instances[0].args[0])
    return Item(number, tuple(as_request(instance) for instance in instances))


def as_request(instance: Any) -> Request:
    """Return a request of the harness: (context, continuation), or the text whose perplexity is asked (text,)."""
    return Request(*instance.args) if instance.request_type == "loglikelihood" else Request("", instance.args[0])


def generation_options(arguments: Mapping[str, Any], options: TaskOptions) -> TaskOptions:
    """Return `options` with the harness's arguments of generation."""
    until = arguments.get("until") or ()
    sampled = bool(arguments.get("do_sample", arguments.get("temperature", 0.0) > 0))
    return replace(
        options,
        stop=(until,) if isinstance(until, str) else tuple(until),
        max_new_tokens=int(arguments.get("max_gen_toks", arguments.get("max_new_tokens", MAX_GENERATED))),
        temperature=float(arguments.get("temperature", 1.0)) if sampled else 0.0,
        top_k=arguments.get("top_k") or None,
        top_p=arguments.get("top_p"),
    )


def responses(instances: Sequence[Any], answer: Answer) -> list[Any]:
    """Return the answer to an item in the harness's form, one value per instance."""
    if isinstance(answer, Generated):
        return [answer.text]
    if instances[0].request_type == "loglikelihood":
        return [(score.logprob, score.greedy) for score in answer]
    return [score.logprob for score in answer]


def _options(instance: Any, options: TaskOptions) -> TaskOptions:
    """Return the options of the task with what the harness's requests need."""
    if instance.request_type == "generate_until":
        return generation_options(instance.args[1], options)
    return replace(options, too_long="roll") if instance.request_type == "loglikelihood_rolling" else options


def _several_answers(instances: Mapping[str, Sequence[Any]]) -> bool:
    return any(len(group) > 1 or (group[0].repeats or 1) > 1 for group in instances.values())


def _main_metric(harness: Any, instances: Mapping[str, Sequence[Any]]) -> tuple[str, str] | None:
    """Return the metric and the filter that are the task's score: of MAIN_METRICS, else the first of which higher is better.

    Only means over items can be resampled and compared item by item.
    """
    aggregation, better = harness.aggregation(), harness.higher_is_better()
    means = [name for name in aggregation if getattr(aggregation[name], "__name__", "") == "mean" and better.get(name)]
    chosen = next((name for name in (*MAIN_METRICS, *means) if name in means), None)
    return None if chosen is None else (chosen, harness._filters[0].name)


def _metric_name(metric: str, chosen: str) -> str:
    """Return the name of a metric after a filter, in the harness's form; it is shorter without a filter ("none")."""
    return metric if chosen == "none" else f"{metric},{chosen}"


def _plain(value: Any) -> Any:
    """Return `value` as JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the harness and its tasks print, log and show as progress: standard output is for the figures."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
