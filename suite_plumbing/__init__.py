"""Plumbing that knows no mixer: options, texts, models, files, progress, errors.

May import the standard library and the packages of requirements.txt; nothing of the suite.

arguments       What a user passes in besides texts: choices, integers, devices, dtypes and layers
commands        The command line that all modules share: options, a job made of them, exit
                statuses, results
errors          The one error that a pipeline records and goes on from, and which others count as
                such
lazy_names      Names that a folder passes on from its modules, each loaded when it is first asked
                for
memory_usage    How much memory an analysis takes, measured on the device that it runs on
model_inputs    What a model is called with: token ids and their mask, however a user passes them
models          Models and tokenizers: loaded from a folder or the hub, checked before anything
                runs on them
progress        Progress bars, logging and the seed of a run
provenance      Where a result comes from: versions, command, commit, model, device, seed
result_files    Files of results: written whole or not at all, strict JSON, CSV and safetensors
result_reading  Results read back: a run's JSON with its tensors, and the sections of its texts
                and steps
texts           Texts: checked, read from files, encoded, batched; and tokens as a reader sees
                them
"""
