"""Names for notebooks: models, texts, files, memory and options of `suite_plumbing`.

No module of the suite imports this one.
"""

from mamba_mixers.hooks import forward_hooks
from suite_plumbing.arguments import (
    DEFAULT_LAYERS,
    DTYPES,
    resolve_device,
    resolve_dtype,
    resolve_layer_indices,
)
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.checks import validate_choice, validate_int
from suite_plumbing.commands import (
    announcement,
    run_main,
    texts_from_options,
)
from suite_plumbing.errors import AnalysisError, is_out_of_memory
from suite_plumbing.memory_usage import MemoryTracker
from suite_plumbing.models import (
    execution_device,
    load_model,
    load_tokenizer,
    require_tokenizer,
    resolve_model,
)
from suite_plumbing.options import (
    COMMON_OPTIONS,
    FIGURE_FORMATS,
    add_common_options,
    parse_formats,
    parse_layers,
)
from suite_plumbing.progress import configure_logging, progress, set_seed
from suite_plumbing.provenance import (
    SCHEMA_VERSION,
    SUITE_VERSION,
    provenance,
    weights_sha256,
)
from suite_plumbing.result_files import (
    StrPath,
    check_output_dir,
    finite_or_none,
    five_digits,
    read_json,
    six_digits,
    table_html,
    to_jsonable,
    write_atomically,
    write_csv,
    write_json,
    write_tensors,
)
from suite_plumbing.texts import (
    EXAMPLE_TEXTS,
    EncodedText,
    batches_by_length,
    check_texts,
    distinct_texts,
    encode_texts,
    pad_batch,
    padding_id,
    read_book,
    read_texts_file,
    repeated_texts,
    text_origins,
)

__all__ = [
    "COMMON_OPTIONS",
    "DEFAULT_LAYERS",
    "DEMO_MODEL_PATH",
    "DTYPES",
    "EXAMPLE_TEXTS",
    "FIGURE_FORMATS",
    "SCHEMA_VERSION",
    "SUITE_VERSION",
    "AnalysisError",
    "EncodedText",
    "MemoryTracker",
    "StrPath",
    "add_common_options",
    "announcement",
    "batches_by_length",
    "check_output_dir",
    "check_texts",
    "configure_logging",
    "distinct_texts",
    "encode_texts",
    "execution_device",
    "finite_or_none",
    "five_digits",
    "forward_hooks",
    "is_out_of_memory",
    "load_model",
    "load_tokenizer",
    "pad_batch",
    "padding_id",
    "parse_formats",
    "parse_layers",
    "progress",
    "provenance",
    "read_book",
    "read_json",
    "read_texts_file",
    "repeated_texts",
    "require_tokenizer",
    "resolve_device",
    "resolve_dtype",
    "resolve_layer_indices",
    "resolve_model",
    "run_main",
    "set_seed",
    "six_digits",
    "table_html",
    "text_origins",
    "texts_from_options",
    "to_jsonable",
    "validate_choice",
    "validate_int",
    "weights_sha256",
    "write_atomically",
    "write_csv",
    "write_json",
    "write_tensors",
]
