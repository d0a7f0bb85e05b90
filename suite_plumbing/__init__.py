"""Plumbing that knows no mixer: options, texts, models, files, progress, errors.

May import the standard library and the packages of requirements.txt; nothing of the suite. What a
command line is read with (bundled, checks, options, command_lines, analysis_options, step_options,
signals) imports the standard library alone.

analysis_options  The options of the commands that run an analysis or read what one has written
arguments       What a user passes in besides texts: choices, integers, devices, dtypes and layers
bundled         What comes with the suite: its folder and the demo model, found from any working
                directory
checks          Checks of what a user passes in that need the standard library alone: a choice, an
                integer
command_lines   What reading the options of any command shares, before torch and other large
                packages are loaded
commands        The command line that all modules share: options, a job made of them, exit
                statuses, results
corpus_texts    Texts of a corpus, read one after another however many there are, and shared out
                among tasks
errors          The one error that a pipeline records and goes on from, which others count as such,
                and what becomes of those of other libraries
kept_values     What a run has measured so far, value by value in a file, from which a stopped run
                goes on
lazy_names      Names that a folder passes on from its modules, each loaded when it is first asked
                for
loud_libraries  Lines of other libraries that say nothing to a user of the suite
memory_usage    How much memory an analysis takes, measured on the device that it runs on
messages        Words of error messages: values and reasons of other libraries, cut short
model_folders   What a model folder holds, checked before memory is taken for its weights
model_inputs    What a model is called with: token ids and their mask, however a user passes them
models          Models and tokenizers: loaded from a folder or the hub, checked before anything
                runs on them
native_checkpoints  Checkpoints as mamba_ssm and mambapy leave them: recognised, read, checked
native_models   Models of native checkpoints: the sizes read off the weights, the model made in
                memory
no_memory       Whether an exception says that memory ran out, and one line for it while
                modules are loaded
one_thread      Torch's threads: one where waking others costs more than they do
options         The options that all commands share, spelled once
other_names     The same argument by other names: text or texts, layer or layers, in every method
                of the suite
output_folders  Output folders: each one run's own until it ends, and cleared of what a killed run
                left
parallel        Work on layers that do not need each other, side by side on a processor's cores
paths           Paths as a user writes them, refused in one line where they can be none
precision       The suite's own arithmetic keeps its precision, whatever the caller's mixed
                precision says
progress        Progress bars, logging and the seed of a run
provenance      Where a result comes from: versions, command, commit, model, device, seed
related_texts   Related texts: what of a text has been read before, and which texts are copies of
                one another
result_files    Files of results: written whole or not at all, strict JSON, CSV and safetensors
result_reading  Results read back: a run's JSON with its tensors, and the sections of its texts
                and steps
runs            One run of a command: its id, and what it holds until it ends
saved_objects   Result objects in files: a dataclass of tensors and plain values, whole, and back
                again
signals         Signals: a command that is interrupted or terminated ends with its status, wherever
                it stands
step_options    The options of the commands that take one step
texts           Texts: checked, read from files, encoded, batched; and tokens as a reader sees
                them
"""
