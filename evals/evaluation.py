"""An evaluation: tasks are loaded, answered by their models, and marked; the figures are compared and written.

An evaluation is a dict of JSON values, as in evaluation.json:

- checkpoint: checkpoint= as typed, None without it; answers: answers= as typed, or None
- note: how far the run of the checkpoint was, empty for a finished one
- models: by checkpoint as typed: sha256 of the weights, fingerprint of the tokenizer, steps, parameters, prefix_token (the id of
  end-of-text)
- options: limit, fraction, skip, reference_parameters
- tasks: by name:
    - those of `run_task.figures_of`: kind, items, score, interval, chance, statistic, and the figures of the kind
    - available: items in the files, before limit= and fraction=
    - options: the options of the task that were given, by name
    - checkpoint: the model that answered; None for answers from a file
    - computed: items that this evaluation computed, the others were known; seconds: how long they took
    - size_adjusted: the score adjusted by size; only with reference_parameters=
- comparison: None without baseline=, else a dict (evals/bookkeeping/baseline.py):
    - baseline: the file; kept: whether this evaluation was kept there as the baseline (then nothing else)
    - tasks: by name: score, baseline (its score), delta, interval (of delta), ratio (score / baseline), overlay (the total with only
      the answers to this task laid over the baseline)
    - not_compared: names of the tasks that the baseline does not have; unchanged: those that only the baseline has
    - total: the sum of the ratios, where unchanged tasks count 1; None if a ratio is undefined

The marks of a task are those of `Task.mark`, in the order of the items. In predictions and on the report, a mark also has `requests`
(context, continuation, logprob, tokens, bytes, greedy of each) or `prompt`.
"""
