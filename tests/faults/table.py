"""The 122 faults that a trainer has to survive: how each ends here, and the tests that hold it.

A fault is tested by `cases` (commands, typed in a directory with text.txt and a trained `run`, with the exit code and a
pattern of the message; `test_commands.py` runs them), by named `tests`, or both. `why` says what was decided where more
than one thing could be right, or why a fault cannot occur. `python scripts/faults.py` prints it all.
"""

import ast
import bz2
import gzip
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Case(NamedTuple):
    """A command, what it ends with, and a pattern of what it says (standard error, or standard output where it ends with 0)."""

    arguments: tuple[str, ...]
    exit_code: int
    message: str
    files: Mapping[str, bytes] = MappingProxyType({})  # written before
    environment: Mapping[str, str] = MappingProxyType({})


class Fault(NamedTuple):
    """One row. `tests` are node ids without their parameters."""

    number: int
    words: str
    cases: tuple[Case, ...] = ()
    tests: tuple[str, ...] = ()
    why: str = ""


def training(*settings: str, code: int, message: str, files: dict[str, bytes] | None = None) -> Case:
    """A small training of text.txt with `settings` that override what it has."""
    return Case(("TRAIN", *settings), code, message, files or {})


def reading(content: bytes, code: int, message: str, *settings: str) -> Case:
    """A small training of a file with `content`."""
    return training("data.path=given.txt", *settings, code=code, message=message, files={"given.txt": content})


def refusing(setting: str, message: str) -> Case:
    """A training that a setting keeps from beginning."""
    return training(setting, code=2, message=message)


TEXT, CORPUS, TOKENIZER, STREAM = (f"tests/data/test_{name}.py" for name in ("text", "corpus", "tokenizer", "stream"))
CHECKPOINT, RUN, KILL, SIGNALS, STATE = (
    f"tests/training/test_{name}.py" for name in ("checkpoint", "run_directory", "kill_while_saving", "signals", "state")
)
SETTINGS, TRAIN = "tests/test_settings.py", "tests/commands/test_train.py"
EVALUATE, SAMPLE, SCORE = (f"tests/inference/test_{name}.py" for name in ("evaluate", "sample", "score"))
CHECKED = "tests/training/test_gradient_check.py"
HERE = "tests/faults/test_"
CACHE, CHECKS = "tests/ops/test_native_cache.py", "tests/ops/test_native_checks.py"
ENOUGH = b"a line of words\n" * 60
ARPA = b"\\data\\\nngram 1=4\n\n\\1-grams:\n-0.5\t</s>\n-99\t<s>\n-0.5\ta\n-0.43\t<unk>\n\n\\end\\\n"

FAULTS = (
    # ---- text
    Fault(
        1, "invalid UTF-8",
        (reading(ENOUGH + b"caf\xe9\n", 3, r"given\.txt is not UTF-8: byte 0xE9 at offset 963, in line 61\."),),
        (f"{TEXT}::test_invalid_utf8_is_refused_with_its_place",),
        "Refused with the command that converts; nothing is replaced behind one's back.",
    ),
    Fault(
        2, "UTF-16 or UTF-32",
        (reading("héllo\n".encode("utf-16"), 3, r"given\.txt is UTF-16, not plain text.*iconv -f UTF-16 -t UTF-8 given\.txt"),),
        (f"{TEXT}::test_what_is_no_plain_text_is_recognised",),
    ),
    Fault(
        3, "byte order mark", (),
        (f"{TEXT}::test_only_the_first_byte_order_mark_is_dropped",
         f"{CORPUS}::test_windows_line_ends_and_byte_order_marks_give_the_same_corpus"),
    ),
    Fault(
        4, "CRLF, lone CR, both", (),
        (f"{CORPUS}::test_windows_line_ends_and_byte_order_marks_give_the_same_corpus",
         f"{TEXT}::test_lone_carriage_returns_are_kept_and_counted_in_a_warning"),
        "CRLF is always read as LF; a lone CR is a character like any other.",
    ),
    Fault(
        5, "NUL and other control bytes",
        (reading(b"a\x00b c\n" * 200, 0, r"perplexity"),),
        (f"{TEXT}::test_control_characters_are_kept_and_counted_in_a_warning",),
    ),
    Fault(
        6, "U+2028, U+0085, \\x1c, no-break space", (),
        (f"{TOKENIZER}::test_only_the_line_feed_ends_a_line",
         f"{TOKENIZER}::test_words_are_separated_by_ascii_whitespace_alone",
         f"{TOKENIZER}::test_blocks_cut_anywhere_give_the_ids_of_the_whole_text"),
    ),
    Fault(
        7, "empty file, only whitespace, only newlines",
        (reading(b"", 3, r"given\.txt is empty"), reading(b" \n\n", 3, r"given\.txt holds nothing but whitespace")),
        (f"{CORPUS}::test_a_blank_text_is_refused",),
    ),
    Fault(
        8, "one token, one type",
        (reading(b"a", 3, r"has 0 tokens\. Every split needs at least 2"),
         reading(b"a" * 900, 0, r"perplexity 1\.0")),
        (f"{CORPUS}::test_a_text_of_one_type_is_a_corpus", f"{CORPUS}::test_a_split_of_fewer_than_two_tokens_is_refused"),
    ),
    Fault(
        9, "no newline at the end", (),
        (f"{CORPUS}::test_a_last_line_without_end_gets_its_eos_for_words",
         f"{CORPUS}::test_a_last_line_without_end_stays_so_for_characters",
         f"{SCORE}::test_last_line_of_words_is_ended_and_of_characters_is_left_as_it_is"),
    ),
    Fault(
        10, "a line of 100 MB, a file of 1 GB", (),
        (f"{CORPUS}::test_a_long_line_needs_little_memory",
         f"{HERE}hostile.py::test_a_line_of_ten_million_characters_needs_little_memory",
         f"{SCORE}::test_one_line_of_ten_million_characters_is_read_in_chunks",
         f"{TOKENIZER}::test_a_word_without_end_is_refused_instead_of_held_in_memory"),
    ),
    Fault(
        11, "missing file, directory, no permission, dangling link",
        (training("data.path=texd.txt", code=3,
                  message=r"no file or directory \S+texd\.txt.*Did you mean \S+text\.txt\?.*directory, /"),
         training("data.path=run", code=3, message=r"The directory run lacks train, valid, test; it holds"),
         Case(("score", "run", "nowhere/x.txt"), 3, r"The nearest directory that exists is \S+here\.")),
        (f"{TEXT}::test_a_missing_path_says_where_it_was_looked_for_and_what_is_there",
         f"{TEXT}::test_a_dangling_link_is_called_one", f"{TEXT}::test_a_file_without_permission_says_so",
         f"{TEXT}::test_a_device_and_a_directory_are_refused"),
    ),
    Fault(
        12, "splits that are the same text", (),
        (f"{CORPUS}::test_splits_with_the_same_text_are_warned_of",),
        "Warned of where whole splits are equal; a split inside another one is not looked for.",
    ),
    Fault(
        13, "validation shorter than a chunk or than its streams; no test split",
        (training("data.valid_fraction=0.003", "data.test_fraction=0", code=0, message=r"there is no test split"),
         training("data.path=splits", code=3, message=r"lacks test; it holds",
                  files={"splits/train.txt": ENOUGH, "splits/valid.txt": ENOUGH})),
        (f"{EVALUATE}::test_more_streams_than_tokens_are_fewer_streams_with_a_warning",
         f"{EVALUATE}::test_every_token_is_scored_once_by_the_stream_that_it_stands_in",
         f"{CORPUS}::test_a_directory_with_a_short_split_asks_for_more_text"),
    ),
    Fault(
        14, "batch_size x (chunk_length + 1) beyond the text",
        (training("trainer.batch_size=500", code=3,
                  message=r"too few for trainer\.batch_size=500.*at least .* = 5,500.*Type trainer\.batch_size=190 or less"),),
        (f"{STREAM}::test_too_few_tokens_are_refused_with_the_largest_batch_that_fits",
         f"{STREAM}::test_a_text_for_which_no_batch_is_small_enough_asks_for_more_text"),
    ),
    Fault(
        15, "tokens left over", (),
        (f"{STREAM}::test_every_target_appears_once_but_for_the_documented_remainder",
         f"{EVALUATE}::test_every_token_is_scored_once_by_the_stream_that_it_stands_in"),
    ),
    Fault(
        16, "text changed before resuming", (),
        (f"{TRAIN}::test_a_changed_text_is_refused_on_resume", f"{CORPUS}::test_the_fingerprint_changes_with_every_split"),
    ),
    Fault(
        17, "text edited behind the token cache", (),
        (f"{CORPUS}::test_another_text_is_another_cache", f"{CORPUS}::test_other_options_are_another_cache",
         f"{TEXT}::test_a_text_that_changes_between_two_readings_is_refused_whatever_its_size_and_time"),
    ),
    Fault(
        18, "token cache damaged, cut, or written twice at once", (),
        (f"{CORPUS}::test_a_damaged_cache_is_built_again_with_a_line_in_the_log",
         f"{CORPUS}::test_a_cache_of_which_a_file_is_lost_is_built_again",
         f"{CORPUS}::test_two_processes_may_build_the_same_cache_at_once"),
    ),
    Fault(
        19, "words of validation that training lacks", (),
        (f"{CORPUS}::test_the_vocabulary_comes_from_the_training_split_alone",
         f"{CORPUS}::test_the_description_holds_the_facts",
         f"{TOKENIZER}::test_word_ids_come_back_exactly_also_with_unknown_words"),
    ),
    Fault(
        20, "<unk> and <eos> in the text itself", (),
        (f"{TOKENIZER}::test_a_literal_unk_is_the_unknown_word", f"{TOKENIZER}::test_a_literal_eos_is_the_end_of_a_line",
         f"{TOKENIZER}::test_literals_are_ordinary_characters_for_char",
         f"{CORPUS}::test_a_literal_eos_is_warned_of_for_words_only"),
    ),
    Fault(
        21, "composed and decomposed accents, zero-width characters", (),
        (f"{HERE}text.py::test_composed_and_decomposed_letters_stay_what_they_are",),
        "Text is normalised only where data.normalize says so: bits per character are those of the text as it is read, "
        "and samples are made of what was read.",
    ),
    Fault(
        22, "compressed file",
        (reading(gzip.compress(ENOUGH), 3, r"given\.txt is gzip, not plain text.*gzip -dc given\.txt > text\.txt"),
         reading(bz2.compress(ENOUGH), 3, r"bzip2 -dc"), reading(b"PK\x03\x04rest", 3, r"unzip given\.txt")),
        (f"{TEXT}::test_what_is_no_plain_text_is_recognised",),
        "Recognised and refused with the command to type: no archive is ever unpacked here, so no member of one can escape.",
    ),
    Fault(
        23, "ids beyond 16 bits, ten million types",
        (training("model.hidden_size=65536", "model.num_layers=3", code=6,
                  message=r"[\d,]+ parameters need at least .* GB.* cpu has .* GB\. Each of these would fit: model"),),
        (f"{CORPUS}::test_ids_are_small_where_they_can_be", f"{TOKENIZER}::test_too_many_types_are_refused",
         f"{HERE}memory.py::test_a_model_that_cannot_fit_is_refused_before_anything_is_allocated"),
    ),
    Fault(
        24, "standard input, pipe or device as text",
        (training("data.path=/dev/null", code=3, message=r"/dev/null is a device\. Text is read from regular files"),),
        (f"{TEXT}::test_a_pipe_is_refused_without_waiting_for_it", f"{TEXT}::test_a_device_and_a_directory_are_refused"),
    ),
    # ---- settings
    Fault(
        25, "unknown setting",
        (refusing("trainer.epoch=3", r"trainer\.epoch does not exist; did you mean trainer\.num_epochs\?"),),
        (f"{SETTINGS}::test_all_mistakes_are_reported_together_with_the_nearest_key",),
    ),
    Fault(
        26, "unknown setting that is added with +",
        (refusing("+trainer.epoch=3", r"trainer\.epoch does not exist"), refusing("++typo=1", r"typo does not exist"),
         Case(("resume=run", "+trainer.epoch=3"), 2, r"trainer\.epoch does not exist")),
    ),
    Fault(
        27, "unknown choice",
        (refusing("model=lstmm", r"allowed are .*elman, .*gru, .*lstm, .*window; did you mean lstm\?"),),
    ),
    Fault(
        28, "value of a wrong type",
        (refusing("trainer.chunk_length=2.5", r"chunk_length=2\.5 is not usable; allowed is a whole number"),
         refusing("trainer.num_steps=1e3", r"num_steps=1000\.0 is not usable"),
         refusing("data.path=null", r"data\.path=null is not usable; allowed is text")),
    ),
    Fault(
        29, "rates, norms and decays that are negative, zero, NaN or infinite",
        (training("optimizer.learning_rate=nan", "trainer.clip_norm=-1", "optimizer.weight_decay=inf", code=2,
                  message=r"3 settings cannot be used(.|\n)*learning_rate=nan(.|\n)*weight_decay=inf(.|\n)*clip_norm=-1"),),
        (f"{SETTINGS}::test_all_mistakes_are_reported_together_with_the_nearest_key",),
    ),
    Fault(
        30, "dropout of 1, above 1, below 0",
        (refusing("model.dropout=1", r"at least 0 and below 1"), refusing("model.dropout=1.5", r"below 1"),
         refusing("model.zoneout=-0.1", r"at least 0")),
    ),
    Fault(
        31, "no steps at all",
        (training("trainer.num_epochs=0", "trainer.num_steps=null", code=0, message=r"perplexity"),),
        (f"{TRAIN}::test_no_steps_at_all_still_gives_a_model",),
    ),
    Fault(
        32, "sizes of zero or less, tied sizes that differ",
        (training("trainer.batch_size=0", "model.hidden_size=-1", "model.num_layers=0", code=2,
                  message=r"hidden_size=-1(.|\n)*num_layers=0(.|\n)*batch_size=0"),
         training("model=window", "model.context=0", code=2, message=r"context=0 is out of range; allowed is at least 1"),
         refusing("model.tie_weights=true", r"are 8 and 6\. Set model\.embed_size=8, or model\.project=true")),
    ),
    Fault(
        33, "settings that have no meaning together",
        (refusing("model.context=4", r"model\.context does not exist here; it belongs to model settings of the kind window"),
         training("optimizer=sgd", "optimizer.beta1=0.5", code=2, message=r"beta1=0\.5 would be ignored by sgd"),
         refusing("trainer.backward_length=3", r"shorter than trainer\.chunk_length")),
        (f"{HERE}settings.py::test_a_setting_without_effect_is_said",
         "tests/test_choices.py::test_every_mistake_of_an_optimiser_is_said_at_once_under_the_names_of_settings"),
    ),
    Fault(
        34, "seed missing, negative, too large, not a number",
        (refusing("trainer.seed=-1", r"at least 0"), refusing("trainer.seed=4294967296", r"at most 4294967295"),
         refusing("trainer.seed=true", r"whole number"), refusing("trainer.seed=null", r"whole number"),
         Case(("sample", "run", "--seed", "-1"), 2, r"not a whole number from 0 to 4294967295")),
        why="The seed is 1 unless another is given, and stands in settings.json: there is no run without a known one.",
    ),
    Fault(
        35, "a GPU that is not there",
        (refusing("trainer.device=cuda:7", r"allowed are auto, cpu, cuda"),
         refusing("trainer.device=mps", r"allowed are auto, cpu, cuda")),
        (f"{TRAIN}::test_a_gpu_that_is_absent_is_said_before_anything_is_written",),
    ),
    Fault(
        36, "run directory that cannot be written, is a file, has a name of 300 characters",
        (refusing("hydra.run.dir=text.txt", r"The run directory cannot be made: .*File exists: 'text\.txt'"),
         refusing("hydra.run.dir=/proc/nothing", r"cannot be made.*Choose another with hydra\.run\.dir=DIRECTORY"),
         refusing("hydra.run.dir=" + 300 * "n", r"File name too long")),
        (f"{RUN}::test_a_place_that_cannot_be_a_directory_is_refused_at_once",
         f"{RUN}::test_a_directory_that_may_not_be_written_is_refused_before_work_begins",
         f"{RUN}::test_a_full_disk_is_told_before_work_begins_and_leaves_no_lock"),
    ),
    Fault(
        37, "two processes in one run directory", (),
        (f"{HERE}runs.py::test_a_second_process_in_a_run_directory_is_refused_and_changes_nothing",
         f"{RUN}::test_of_processes_that_race_for_one_lock_exactly_one_gets_it",
         f"{RUN}::test_a_new_run_is_refused_where_another_one_left_checkpoints_and_a_resumed_one_is_not"),
    ),
    Fault(
        38, "another working directory; blanks, =, commas and Unicode in paths",
        (refusing("data.path=a,b.txt", r"gives several values.*quote it twice: 'data\.path=\"a,b\.txt\"'"),
         refusing("data.path=a=b{", r"cannot be read as key=value\. Quote a value .* twice.*'data\.path=\"a=b\{\"'")),
        (f"{HERE}runs.py::test_paths_with_blanks_commas_and_unicode_work_once_quoted",
         f"{HERE}runs.py::test_from_another_directory_the_text_is_missed_by_its_full_name_and_can_be_given_anew"),
    ),
    Fault(
        39, "interpolations that go in a circle, mandatory values that are missing",
        (refusing("data.cache_dir=${data.cache_dir}", r"cannot be resolved: Recursive interpolation"),
         refusing("data.cache_dir=${nowhere}", r"'nowhere' not found"),
         refusing("data.cache_dir=???", r"Missing mandatory value"),
         refusing("model.hidden_size=???", r"Missing mandatory value")),
    ),
    # ---- checkpoints
    Fault(
        40, "checkpoint cut anywhere, empty, prolonged, with a flipped bit", (),
        (f"{CHECKPOINT}::test_a_truncated_or_prolonged_file_is_named",
         f"{CHECKPOINT}::test_a_flipped_bit_anywhere_is_noticed_and_the_file_named",
         f"{CHECKPOINT}::test_a_missing_file_is_named",
         f"{CHECKPOINT}::test_resuming_falls_back_to_the_newest_whole_checkpoint_and_says_so",
         f"{HERE}runs.py::test_a_damaged_checkpoint_ends_with_4_and_names_the_file"),
    ),
    Fault(
        41, "kill -9 at any moment, also while saving, renaming, removing", (),
        (f"{KILL}::test_a_kill_at_any_call_that_touches_the_disk_leaves_whole_checkpoints",
         f"{KILL}::test_a_kill_at_any_moment_leaves_whole_checkpoints",
         f"{TRAIN}::test_a_resumed_run_ends_bit_for_bit_like_the_uninterrupted_one",
         f"{HERE}resume.py::test_a_resumed_training_ends_bit_for_bit_like_the_uninterrupted_one",
         f"{HERE}runs.py::test_a_run_that_was_killed_before_its_first_checkpoint_begins_again",
         f"{HERE}chaos.py::test_a_disturbed_training_ends_like_the_undisturbed_one"),
    ),
    Fault(
        42, "disk full, quota or I/O error while saving or logging", (),
        (f"{CHECKPOINT}::test_whichever_call_fails_the_checkpoint_before_is_left_and_nothing_half_done",
         f"{KILL}::test_a_full_disk_costs_only_the_checkpoint_being_written",
         f"{HERE}runs.py::test_a_full_disk_costs_no_step_and_no_record",
         f"{HERE}runs.py::test_only_a_last_save_that_fails_ends_a_run_with_6",
         f"{HERE}runs.py::test_the_best_model_of_a_moment_without_space_is_kept_as_soon_as_there_is_some",
         f"{HERE}runs.py::test_too_little_space_is_said_before_training",
         f"{HERE}chaos.py::test_a_disturbed_training_ends_like_the_undisturbed_one"),
    ),
    Fault(
        43, "SIGTERM, SIGINT, SIGHUP, SIGUSR1, also during validation", (),
        (f"{TRAIN}::test_a_signal_saves_prints_how_to_resume_and_loses_nothing",
         f"{SIGNALS}::test_a_signal_ends_the_loop_with_its_exit_code_and_says_what_happens",
         f"{SIGNALS}::test_a_second_signal_ends_at_once_but_still_cleans_up",
         f"{HERE}runs.py::test_a_signal_before_validation_breaks_it_off_with_everything_saved",
         f"{HERE}interruptions.py::test_a_signal_within_an_evaluation_breaks_it_off_and_changes_nothing",
         f"{HERE}runs.py::test_sigusr1_saves_and_training_goes_on"),
    ),
    Fault(
        44, "checkpoint of another model, another size, another vocabulary",
        (Case(("resume=run", "model.hidden_size=9"), 2, r"model\.hidden_size is 8 in this run and cannot become 9"),
         Case(("resume=run", "model=gru"), 2, r"A resumed run keeps its groups of settings")),
        (f"{HERE}hostile.py::test_weights_of_another_shape_are_said_in_one_line",
         f"{TRAIN}::test_settings_that_make_another_model_are_refused_on_resume"),
    ),
    Fault(
        45, "settings changed on resuming",
        (Case(("resume=run", "trainer.batch_size=5", "tokenizer.name=word"), 2,
              r"tokenizer\.name is char .* cannot become word(.|\n)*trainer\.batch_size is 4 .* cannot become 5"),),
        (f"{SETTINGS}::test_changes_between_two_settings_carry_their_rule_for_resuming",
         f"{HERE}runs.py::test_a_changed_rate_is_warned_of_and_kept_and_a_longer_run_is_simply_done"),
    ),
    Fault(
        46, "newer schema, other PyTorch, other device, other precision", (),
        (f"{CHECKPOINT}::test_a_newer_schema_is_refused_with_what_to_install",
         f"{CHECKPOINT}::test_the_checkpoint_of_schema_1_loads_for_ever",
         "tests/training/test_random_state.py::test_a_state_of_another_device_is_left_out_with_a_warning"),
        "Tensors are read on the CPU and copied into the model wherever it is; device and precision are warned of on resuming.",
    ),
    Fault(
        47, "malicious checkpoint, tokenizer or settings", (),
        (f"{CHECKPOINT}::test_a_malicious_pickle_does_not_run", f"{CHECKPOINT}::test_a_saved_torch_archive_does_not_run_either",
         f"{CHECKPOINT}::test_a_manifest_cannot_name_a_file_elsewhere",
         f"{CHECKPOINT}::test_a_header_that_asks_for_terabytes_is_refused_before_anything_is_allocated",
         f"{HERE}hostile.py::test_a_malicious_pickle_in_a_run_does_not_run",
         f"{HERE}hostile.py::test_a_target_in_a_setting_is_refused_wherever_it_stands",
         f"{HERE}hostile.py::test_an_interpolation_in_a_run_is_never_resolved",
         f"{HERE}hostile.py::test_a_model_of_absurd_size_in_a_checkpoint_is_refused_before_anything_is_allocated",
         f"{HERE}fuzz.py::test_any_change_of_a_documents_content_is_usable_or_refused"),
        "There is no downloader and nothing is ever unpacked, so neither a checksum nor an escaping member can be forgotten.",
    ),
    Fault(
        48, "checkpoint directory that is empty, a file, an address",
        (Case(("sample", "https://example.org/run"), 4, r"is an address on the network"),
         Case(("sample", "text.txt"), 4, r"text\.txt is a file\. A checkpoint is a directory"),
         Case(("sample", "."), 4, r"holds no checkpoint.*Runs there: run"),
         Case(("sample", "runn"), 4, r"runn does not exist .*Did you mean \S*run\?"),
         Case(("resume=text.txt",), 4, r"is not a run directory: \S+text\.txt holds no settings\.json")),
        (f"{CHECKPOINT}::test_what_is_no_checkpoint_is_described",
         f"{TRAIN}::test_a_run_directory_without_a_checkpoint_says_so"),
    ),
    # ---- sampling
    Fault(
        49, "prompt with unknown characters",
        (Case(("sample", "run", "--strict", "--prompt", "the #"), 3, r"The prompt contains '#', unknown to this model"),
         Case(("sample", "run", "--prompt", "the #"), 0, r"(?m)^the #")),
        (f"{SAMPLE}::test_unknown_characters_of_a_prompt_are_listed_and_read_as_unk",
         f"{SAMPLE}::test_unknown_characters_are_refused_where_there_is_no_unk"),
    ),
    Fault(50, "empty prompt", (Case(("sample", "run", "--prompt", ""), 0, r"\n$"),)),
    Fault(
        51, "prompt longer than the window, prompt file that is no text",
        (Case(("sample", "run", "--prompt-file", "given.txt"), 3, r"given\.txt is not UTF-8", {"given.txt": b"\xff"}),
         Case(("sample", "run", "--prompt", "the cat " * 400), 0, r"^(the cat ){400}")),
        (f"{SAMPLE}::test_the_prompt_is_read_once_in_chunks_and_then_token_by_token",),
    ),
    Fault(
        52, "temperature 0, negative, tiny or NaN; top-k and top-p out of range; no tokens",
        (Case(("sample", "run", "--temperature", "nan"), 2, r"--temperature is nan\. Allowed are 0 .*--temperature 0\.8"),
         Case(("sample", "run", "--temperature", "-1"), 2, r"--temperature is -1"),
         Case(("sample", "run", "--temperature", "1e-300"), 0, r"."),
         Case(("sample", "run", "--temperature", "0"), 0, r"."),
         Case(("sample", "run", "--top-k", "0"), 2, r"--top-k is 0"),
         Case(("sample", "run", "--top-p", "1.1"), 2, r"--top-p is 1\.1"),
         Case(("sample", "run", "--max-tokens", "-1"), 2, r"--max-tokens is -1")),
        (f"{SAMPLE}::test_tiny_temperatures_are_greedy_and_do_not_underflow",
         f"{SAMPLE}::test_settings_out_of_range_are_refused_with_what_to_type"),
    ),
    Fault(
        53, "weights that are not finite", (),
        (f"{SAMPLE}::test_weights_that_are_not_finite_are_named",
         f"{HERE}hostile.py::test_weights_that_are_not_finite_end_sampling_with_4"),
    ),
    Fault(
        54, "closed pipe, terminal without UTF-8", (),
        (f"{HERE}terminal.py::test_a_reader_that_goes_away_ends_sampling_quietly",
         f"{HERE}terminal.py::test_characters_that_the_terminal_lacks_are_written_as_escapes"),
    ),
    # ---- running
    Fault(
        55, "loss, gradient or validation that is not finite", (),
        (f"{HERE}nonfinite.py::test_stopping_keeps_the_state_and_the_chunk_and_ends_with_5",
         f"{HERE}nonfinite.py::test_skipping_leaves_out_the_chunk_and_nothing_else",
         f"{HERE}nonfinite.py::test_rolling_back_halves_the_rate_and_finishes",
         f"{HERE}nonfinite.py::test_a_validation_that_is_not_a_number_is_divergence",
         f"{HERE}nonfinite.py::test_a_model_that_is_not_finite_is_never_saved",
         f"{TRAIN}::test_a_diverging_run_stops_with_its_own_exit_code_and_keeps_its_checkpoint",
         f"{STATE}::test_a_jump_is_a_spike_and_noise_is_not"),
    ),
    Fault(
        56, "perplexity too large for a number", (),
        (f"{EVALUATE}::test_unlikely_text_has_infinite_perplexity_and_no_overflow",),
    ),
    Fault(
        57, "out of memory at the first step, later, or in validation", (),
        (f"{HERE}memory.py::test_running_out_of_memory_ends_with_6_and_says_what_would_fit",
         f"{HERE}memory.py::test_a_model_that_cannot_fit_is_refused_before_anything_is_allocated",
         f"{HERE}memory.py::test_the_estimate_is_less_than_what_training_takes",
         f"{HERE}memory.py::test_a_limit_on_memory_is_said_not_thrown"),
    ),
    Fault(
        58, "token beyond the vocabulary", (),
        (f"{EVALUATE}::test_token_that_the_model_does_not_know_is_refused",
         f"{CORPUS}::test_a_damaged_cache_is_built_again_with_a_line_in_the_log",
         f"{HERE}fuzz.py::test_any_change_of_a_documents_content_is_usable_or_refused"),
        "Ids are checked on the CPU when they are loaded, before any device sees them.",
    ),
    Fault(
        59, "TensorBoard that cannot be written, NaN as a scalar, lists as hyper-parameters", (),
        (f"{HERE}runs.py::test_training_goes_on_without_tensorboard",
         f"{HERE}runs.py::test_a_full_disk_costs_no_step_and_no_record",
         f"{HERE}runs.py::test_what_is_not_finite_is_null_in_the_records_and_lists_are_hyper_parameters"),
        "TensorBoard is a dependency, so it cannot be missing.",
    ),
    Fault(
        60, "no terminal", (),
        (f"{HERE}terminal.py::test_without_a_terminal_there_are_plain_lines_and_no_bar",),
        "tqdm is a dependency, so it cannot be missing.",
    ),
    Fault(
        61, "clock that jumps back; TensorBoard steps that overlap after resuming", (),
        (f"{HERE}runs.py::test_no_step_is_shown_twice_after_resuming",
         f"{HERE}terminal.py::test_durations_do_not_depend_on_the_time_of_day"),
    ),
    Fault(
        62, "torch.compile or Triton not available", (),
        ("tests/ops/test_backends.py::test_a_named_backend_that_cannot_serve_raises_and_says_why",),
        "torch.compile is not used. `auto` takes what there is and logs it; a backend that is named is taken or refused.",
    ),
    Fault(
        63, "a job of a sweep that fails", (),
        (f"{HERE}runs.py::test_a_failing_job_does_not_stop_a_sweep_and_is_listed",),
    ),
    Fault(
        64, "a process of several dies",
        (Case(("TRAIN",), 2, r"WORLD_SIZE=2 says .*processes are started by torchrun", environment={"WORLD_SIZE": "2"}),),
        why="What torchrun sets for its processes is missing; tests/distributed has processes that die.",
    ),
    Fault(
        65, "a compiled library in the cache that another user planted", (),
        (f"{CACHE}::test_a_planted_library_never_runs", f"{CACHE}::test_a_folder_that_everybody_can_write_is_refused",
         f"{CACHE}::test_a_folder_of_another_user_is_refused", f"{CACHE}::test_whatever_the_umask_nobody_else_can_write",
         f"{CACHE}::test_a_folder_that_is_swapped_after_it_was_opened_changes_nothing",
         f"{CACHE}::test_a_refusal_is_said_once_whatever_is_computed",
         f"{CACHE}::test_root_makes_nothing_in_the_home_of_another_user"),
        "One warning, and eager computes (exit 0). A folder of one's own that the group can write (umask 002) is closed to it.",
    ),
    Fault(
        66, "links in the cache, also in place of its lock", (),
        (f"{CACHE}::test_a_lock_that_is_no_file_of_mine_is_neither_followed_nor_written",
         f"{CACHE}::test_a_link_in_place_of_the_folder_is_refused_and_one_above_it_is_followed"),
    ),
    Fault(
        67, "a compiled library that is damaged, altered, or made for another machine", (),
        (f"{CACHE}::test_whatever_becomes_of_the_files_it_is_the_stored_library_that_is_loaded_or_a_new_one",
         f"{CACHE}::test_a_library_that_does_not_load_is_built_again_by_itself",
         f"{CACHE}::test_the_library_and_its_hash_are_on_disk_before_they_get_their_names"),
        "It is built again by itself.",
    ),
    Fault(
        68, "a compiler that makes rubbish, fails or never ends", (),
        (f"{CACHE}::test_a_bad_compile_is_refused_and_does_not_stay", f"{CACHE}::test_what_a_compiler_says_is_quoted",
         f"{CACHE}::test_a_compiler_that_never_ends_is_ended_with_all_it_started",
         f"{CACHE}::test_a_build_that_is_interrupted_leaves_no_compiler_and_no_folder",
         f"{CACHE}::test_what_killed_builds_left_is_removed_and_nothing_else"),
        "A line after 15 s, the end of its whole process group after 90; eager computes, and the next run tries again.",
    ),
    Fault(
        69, "a lock of the cache that somebody holds for ever", (),
        (f"{CACHE}::test_a_lock_that_another_holds_is_waited_for_with_patience_and_a_line",
         f"{CACHE}::test_a_library_that_is_there_needs_no_lock",
         f"{CACHE}::test_a_file_system_without_locks_is_built_on_all_the_same"),
    ),
    Fault(
        70, "a machine on which the native backend cannot be built: no home, no /proc, noexec, full, CXX", (),
        (f"{CACHE}::test_without_a_home_the_reason_says_so", f"{CACHE}::test_a_machine_without_proc_says_so",
         f"{CACHE}::test_a_file_system_that_runs_no_code_is_named_before_anything_is_compiled",
         f"{CACHE}::test_a_cache_that_cannot_be_made_is_named", f"{CACHE}::test_what_is_wrong_with_cxx_is_said",
         f"{CACHE}::test_cxx_may_have_arguments_and_blanks", f"{CACHE}::test_a_tilde_in_lmtrain_cache_is_the_home"),
        "Each has its own sentence, said once; eager computes.",
    ),
    Fault(
        71, "tensors and token ids handed to native code that do not fit", (),
        (f"{CHECKS}::test_no_kernel_takes_a_tensor_that_does_not_fit",
         f"{CHECKS}::test_a_target_outside_the_vocabulary_is_an_index_error",
         f"{CHECKS}::test_a_uniform_number_outside_0_to_1_draws_nothing",
         f"{CHECKS}::test_a_network_whose_parts_do_not_fit_is_refused"),
        "ValueError or IndexError in Python; no address is used before.",
    ),
    Fault(
        72, "a gradient that overflows on its way to a finite value", (),
        ("tests/ops/test_activations.py::test_gradients_far_out_are_those_of_float64_and_finite_where_these_are",),
    ),
    Fault(
        73, "torch.func over functions with a backward pass by hand", (),
        ("tests/ops/test_activations.py::test_torch_func_gives_what_autograd_gives",
         "tests/ops/test_transforms.py::test_vmap_gives_what_a_loop_gives_and_so_do_its_gradients",
         "tests/ops/test_transforms.py::test_jvp_is_right_or_says_what_to_use_instead"),
    ),
    Fault(
        74, "a learner made from another's fields loses what is none", (),
        ("tests/training/test_graphed.py::test_a_learner_that_records_keeps_every_attribute_of_the_plain_one",
         "tests/training/test_graphed.py::test_every_attribute_that_a_learner_declares_is_a_field_or_belongs_to_its_class"),
    ),
    Fault(
        75, "weights that PyTorch draws and init=fan leaves at 0", (),
        ("tests/models/test_neural.py::test_every_tensor_that_torch_draws_is_drawn_from_the_same_distribution",
         "tests/models/test_neural.py::test_the_bias_of_a_candidate_is_drawn_last_and_moves_no_other_weight"),
    ),
    Fault(
        76, "two containers, one volume and one host name: two processes in one run directory", (),
        (
            f"{RUN}::test_of_processes_in_two_containers_with_one_host_name_only_one_trains",
            f"{RUN}::test_of_processes_that_race_for_one_lock_exactly_one_gets_it",
        ),
        "The kernel holds the lock (flock). A process of an older lmtrain that still trains holds none and is not seen.",
    ),
    Fault(
        77, "a lock that outlives its process: kill -9, a forked child, torn text, a link or a pipe in its place", (),
        (
            f"{RUN}::test_a_lock_is_free_the_moment_its_process_is_killed_even_where_a_child_of_it_lives_on",
            f"{RUN}::test_a_torn_lock_that_nobody_holds_is_taken_over",
            f"{RUN}::test_what_stands_in_the_way_of_the_lock_is_renamed_and_nothing_is_written_through_it",
        ),
    ),
    Fault(
        78, "somebody else locks the directory or the lock file", (),
        (f"{RUN}::test_who_locks_the_directory_or_holds_the_lock_file_for_himself_makes_nobody_wait",),
        "Nobody waits: who does not get the lock is refused at once.",
    ),
    Fault(
        79, "a file system without flock", (),
        (f"{RUN}::test_a_file_system_without_locks_is_said_once_and_nobody_is_refused",),
        "A warning, and a lock file that says who trains; two processes cannot be kept apart there.",
    ),
    Fault(
        80, "a run directory that holds somebody else's files", (),
        (
            f"{HERE}files.py::test_a_directory_with_a_file_of_a_runs_name_that_no_run_wrote_is_refused_untouched",
            f"{HERE}files.py::test_in_a_sweep_only_the_job_whose_place_is_taken_fails",
            f"{HERE}files.py::test_a_sweep_overwrites_no_list_of_another_program",
        ),
        "Files of other names are no hindrance: a run may begin beside them, also in the working directory.",
    ),
    Fault(
        81, "a refused run in a directory that was there", (),
        (
            f"{HERE}files.py::test_a_run_begins_beside_files_of_other_names_and_a_refused_one_takes_only_its_own_away",
            f"{HERE}files.py::test_a_new_directory_goes_with_the_run_that_was_refused",
        ),
    ),
    Fault(
        82, "the run directory is removed, or replaced by another run's, while its run trains", (),
        (
            f"{HERE}files.py::test_a_run_whose_directory_is_removed_saves_in_a_new_one_that_can_be_resumed",
            f"{RUN}::test_a_directory_in_which_another_run_is_by_now_is_left_alone",
        ),
        "It is made again, with the settings, so that it can be resumed. Earlier records are gone.",
    ),
    Fault(
        83, "SIGTERM, SIGHUP or kill -9 in the midst of mix or arpa", (),
        (f"{HERE}files.py::test_a_command_that_is_stopped_leaves_nothing_or_what_the_same_command_removes",),
    ),
    Fault(
        84, "kill -9 while the token cache is written", (),
        (f"{HERE}files.py::test_what_killed_builders_left_in_the_cache_goes_and_what_a_live_one_writes_stays",),
    ),
    Fault(
        85, "a model is read while its run trains and removes older checkpoints", (),
        (
            f"{HERE}files.py::test_a_reader_never_meets_the_pruner",
            f"{HERE}files.py::test_a_checkpoint_that_was_removed_is_not_called_damaged",
        ),
    ),
    Fault(
        86, "metrics.jsonl, lmtrain.log, run.json, tensorboard/ or a pointer is something else, or holds any bytes", (),
        (
            f"{HERE}files.py::test_nothing_that_stands_in_the_way_of_a_run_that_goes_on_prevents_it",
            f"{HERE}files.py::test_a_record_of_any_bytes_prevents_no_training_and_loses_nothing",
        ),
        "It is renamed and said; nothing is computed from it.",
    ),
    Fault(
        87, "a process that is suspended", (),
        (
            f"{HERE}files.py::test_the_time_for_which_a_process_is_stopped_does_not_count",
            f"{HERE}files.py::test_time_that_is_waited_for_something_or_in_which_no_other_thread_gets_on_counts",
        ),
        "Stops of less than a second count. Time that evaluation and saving take counts.",
    ),
    Fault(
        88, "a checkpoint in which one value is forged, under a manifest that agrees", (),
        (f"{HERE}forged.py::test_what_no_run_wrote_is_refused_by_file_and_field",
         f"{HERE}forged.py::test_moments_of_one_number_are_refused_before_a_kernel_writes_past_them",
         "tests/training/test_optimizer.py::test_moments_that_a_kernel_would_read_or_write_past_are_refused"),
        "The run that reads a checkpoint describes what it would have written, and everything is compared with that before it "
        "is used. A value that another run could have written may change the result.",
    ),
    Fault(
        89, "a random generator whose forged state points beyond its table", (),
        ("tests/training/test_random_state.py::test_a_generator_that_would_read_beyond_its_words_is_refused",
         "tests/training/test_random_state.py::test_every_state_that_a_generator_can_be_in_is_taken"),
    ),
    Fault(
        90, "moments of the optimiser that are not finite though the model is", (),
        (f"{HERE}nonfinite.py::test_moments_that_are_not_finite_are_not_saved",),
        "The square of a gradient of 1e20 is infinite. Such a state would not be read back, so it is not written either.",
    ),
    Fault(
        91, "momentum that is turned on when a run goes on, or whose first gradient comes later than that of others", (),
        ("tests/training/test_optimizer.py::test_momentum_begins_at_zero_where_a_resumed_run_turns_it_on",
         "tests/training/test_optimizer.py::test_momentum_begins_at_zero_for_a_parameter_whose_first_gradient_comes_later"),
    ),
    Fault(
        92, "a token of probability zero in a text that is scored",
        (Case(("evaluate", "run", "--temperature", "1e-300"), 0, r"perplexity exp\(.* nats per token"),),
        (f"{HERE}sums.py::test_no_command_prints_nan_whatever_the_model_the_text_and_the_temperature",
         f"{HERE}sums.py::test_no_command_prints_nan_in_two_thousand_more",
         f"{HERE}sums.py::test_an_impossible_word_makes_only_those_sums_infinite_that_it_belongs_to",
         f"{HERE}sums.py::test_a_training_whose_validation_is_impossible_writes_no_nan_and_says_which_token",
         f"{HERE}sums.py::test_mixing_says_which_token_is_impossible_and_refuses_what_is_impossible_in_every_part"),
        "Subsets are summed by themselves. Infinity is written with the first such token, as null in JSON; nan never is.",
    ),
    Fault(
        93, "a model that gives numbers which are none, or comes to it while it adapts", (),
        (f"{HERE}sums.py::test_weights_that_are_not_numbers_end_in_a_paragraph_and_print_no_result",),
    ),
    Fault(
        94, "a text of blank lines, evaluated and scored",
        (Case(("evaluate", "run", "--text", "given.txt"), 0, "1 token scored", {"given.txt": b"\n"}),
         Case(("score", "run", "given.txt"), 0, "1 token scored", {"given.txt": b"\n"}),
         Case(("evaluate", "run", "--text", "given.txt"), 3, "given.txt is empty", {"given.txt": b""})),
        (f"{HERE}sums.py::test_evaluate_and_score_say_the_same_of_the_smallest_texts",),
    ),
    Fault(
        95, "ARPA files as other programs write them",
        (Case(("arpa", "m.arpa", "--output", "m"), 0, "Saved in m: order 1", {"m.arpa": gzip.compress(ARPA)}),
         Case(("arpa", "m.arpa", "--output", "m"), 3, r"\(iARPA\)\. .* compile-lm m\.arpa", {"m.arpa": b"iARPA\n" + ARPA}),
         Case(("arpa", "m.arpa", "--output", "m"), 3, "has '-0_5' where a number", {"m.arpa": ARPA.replace(b"-0.5", b"-0_5")}),
         Case(("arpa", "m.arpa", "--output", "m"), 3, r"Type  sed '.*/ngram 1=4/' m\.arpa > mended\.arpa",
              {"m.arpa": ARPA.replace(b"1=4", b"1=3")})),
        ("tests/models/test_arpa.py::test_every_way_of_writing_the_same_model_is_read_as_the_same",
         "tests/models/test_arpa.py::test_any_model_in_any_dialect_gives_the_probabilities_of_the_format",
         "tests/models/test_arpa.py::test_packed_files_are_read_and_damaged_ones_refused",
         "tests/models/test_arpa.py::test_an_n_gram_is_used_although_its_context_is_not_listed",
         "tests/models/test_arpa.py::test_what_is_no_arpa_file_is_named_with_what_to_type"),
    ),
    Fault(
        96, "an ARPA file that is no distribution", (),
        ("tests/models/test_arpa.py::test_what_sums_to_three_is_read_with_a_warning",
         "tests/models/test_arpa.py::test_a_context_whose_probabilities_do_not_sum_to_one_is_named",
         "tests/models/test_arpa.py::test_rounded_logarithms_are_a_distribution"),
        "It is read with a warning, as other programs read it; sums within 1 % of one come from logarithms with few digits.",
    ),
    Fault(
        97, "add_k behind a context that was never seen", (),
        ("tests/models/test_ngram.py::test_add_k_gives_every_word_the_same_probability_behind_a_context_never_seen",
         "tests/models/test_ngram.py::test_probabilities_equal_the_definition"),
    ),
    Fault(
        98, "a mixture of models that are nearly alike", (),
        ("tests/models/test_mixture.py::test_models_that_are_nearly_alike_are_told_apart_to_a_billionth",
         "tests/models/test_mixture.py::test_no_other_weights_gain_more_than_a_billionth"),
    ),
    Fault(
        99, "a run that goes on in another precision, backend, number of threads or PyTorch than before", (),
        (f"{HERE}arithmetic.py::test_what_auto_became_is_kept_and_compared",
         f"{HERE}arithmetic.py::test_another_backend_is_warned_of_when_it_is_chosen",
         f"{HERE}arithmetic.py::test_threads_limits_and_versions_are_compared",
         f"{HERE}arithmetic.py::test_a_process_that_saved_nothing_does_not_count",
         f"{HERE}arithmetic.py::test_a_record_of_any_form_is_no_reason_to_fail"),
        "It goes on, and says that it is no longer the run it was; run.json keeps what each process computed with.",
    ),
    Fault(
        100, "names of files that shell or settings read as something else: ${...}, quotes, bytes, null, 1e5",
        (training('data.path="\\${oc.env:HOME}.txt"', code=3, message=r"no file or directory .*/\$\{oc\.env:HOME\}\.txt"),),
        ("tests/test_shell.py::test_a_name_is_typed_so_that_shell_and_settings_read_it_as_it_is",
         f"{HERE}hydra.py::test_a_run_and_a_text_whose_names_are_numbers"),
    ),
    Fault(
        101, "a name that begins with ~ where there is no such user",
        (Case(("score", "run", "~no_such_user.txt"), 3, "There is no file"),),
        (f"{HERE}hydra.py::test_a_name_that_begins_with_a_tilde",
         "tests/test_shell.py::test_a_home_that_is_not_known_makes_a_name_of_the_tilde"),
        "It is a name then, as for a shell. Paths that lmtrain prints begin with ./ where they would begin with ~ or -.",
    ),
    Fault(
        102, "text of others: escape sequences, text that runs backwards, shell commands in a checkpoint",
        (Case(("score", "run", "a\x1b[31m\u202e"), 3, r"a\\x1b\[31m\\u202e"),),
        (f"{HERE}terminal.py::test_what_a_message_holds_of_others_is_shown_and_not_obeyed",
         f"{HERE}terminal.py::test_no_text_of_a_checkpoint_is_part_of_a_command_to_type",
         f"{HERE}terminal.py::test_no_vocabulary_makes_a_terminal_obey",
         "tests/test_shell.py::test_nothing_that_a_terminal_obeys_is_shown"),
        "Messages show it as escape sequences; samples do so on a terminal and reach a pipe as they are.",
    ),
    Fault(
        103, "standard streams that are closed or cannot be read", (),
        (f"{HERE}terminal.py::test_standard_streams_that_are_closed_end_nothing",
         f"{HERE}terminal.py::test_standard_input_that_cannot_be_read_is_a_paragraph"),
    ),
    Fault(
        104, "an environment that changes how Hydra reports errors", (),
        (f"{HERE}hydra.py::test_no_environment_changes_exit_codes",),
    ),
    Fault(
        105, "settings of one's own: --config-dir, --config-name, hydra.searchpath, further groups, choices of Hydra's groups",
        (training("--config-dir", "nowhere", code=2, message="--config-dir nowhere is not a directory"),),
        (f"{HERE}hydra.py::test_settings_are_found_where_hydra_finds_them",
         f"{HERE}hydra.py::test_every_choice_of_hydras_own_groups_works"),
        "The check before anything starts composes as Hydra does, with Hydra's own search path.",
    ),
    Fault(
        106, "options of Hydra that exclude each other, and whatever else Hydra refuses",
        (Case(("-m", "--cfg", "job"), 2, "-m and --cfg were given together"),),
        (f"{HERE}hydra.py::test_what_hydra_refuses_is_a_paragraph",),
    ),
    Fault(
        107, "hydra.job.chdir=true", (), (f"{HERE}hydra.py::test_no_path_moves_with_hydras_working_directory",),
        "Paths start where the command was typed. Nothing that a run writes goes by the working directory.",
    ),
    Fault(
        108, "an error that is sent to another process", (),
        ("tests/test_errors.py::test_every_error_survives_pickling_and_copying",),
    ),
    Fault(
        109, "too little address space to load PyTorch", (),
        ("tests/test_errors.py::test_too_little_memory_to_load_pytorch_ends_with_one_paragraph",),
        "It is tried beforehand where there is a limit: libraries that PyTorch loads end the process by abort().",
    ),
    Fault(
        110, "causes that are not the learning rate: optimizer.epsilon=0, trainer.clip_norm=0, averages of 100,000 tokens",
        (),
        (f"{HERE}nonfinite.py::test_a_division_of_0_by_0_is_named_as_the_cause",
         f"{HERE}nonfinite.py::test_a_rate_that_is_much_too_high_is_brought_down_by_halving",
         f"{HERE}memory.py::test_averages_of_many_tokens_are_refused_at_once_and_named"),
    ),
    Fault(
        111, "a text that is replaced, appended to or cut while it is read", (),
        ("tests/data/test_changing_texts.py::test_no_cache_is_ever_of_another_text",
         "tests/data/test_changing_texts.py::test_a_text_that_changes_while_it_is_encoded_is_refused",
         "tests/data/test_text.py::test_a_text_that_changes_between_two_readings_is_refused_whatever_its_size_and_time"),
        "Every pass hashes all that it reads; one that met another text than the first ends in exit code 3.",
    ),
    Fault(
        112, "a cache of any shape: damaged, forged, of another text", (),
        ("tests/data/test_token_cache.py::test_any_change_of_a_manifest_is_noticed_or_could_be_right",
         "tests/data/test_token_cache.py::test_a_manifest_of_any_bytes_is_built_again",
         "tests/data/test_token_cache.py::test_any_change_of_the_ids_is_noticed_or_stays_in_the_vocabulary",
         "tests/data/test_token_cache.py::test_a_cache_under_the_key_of_another_text_is_built_again"),
        "It is built again, with a line in the log.",
    ),
    Fault(
        113, "vocabularies and words too large for a JSON document",
        (training("tokenizer=word", code=3, message=r"more than 1,048,576 characters without whitespace: 'aaaa.*tokenizer=char",
                  files={"text.txt": b"data " + b"a" * (5 << 19) + b" end\n"}),),
        (f"{HERE}limits.py::test_a_vocabulary_too_large_for_json_is_saved_loaded_resumed_mixed_and_exported",
         f"{HERE}limits.py::test_words_of_a_million_characters_are_trained_on_saved_and_exported",
         f"{HERE}limits.py::test_a_word_is_too_long_wherever_the_text_is_cut",
         f"{HERE}limits.py::test_one_type_more_than_can_be_saved_is_refused_before_training",
         f"{HERE}limits.py::test_one_word_more_than_can_be_saved_is_refused_in_an_arpa_file",
         f"{HERE}limits.py::test_ten_million_types_are_trained_on_saved_and_loaded_in_eight_gigabytes"),
        "Ten million types and words of 1,048,576 characters are saved; what exceeds that is refused before training.",
    ),
    Fault(
        114, "a document that can be written, but is too long or too deep to be read", (),
        (f"{HERE}limits.py::test_more_parts_than_a_mixture_has_are_refused_before_any_is_scored",
         f"{HERE}limits.py::test_a_mixture_of_mixtures_that_is_too_deep_is_refused_before_any_is_scored",
         f"{HERE}limits.py::test_the_record_of_a_run_loses_its_oldest_sessions_rather_than_the_run",
         f"{HERE}limits.py::test_losses_of_any_number_of_evaluations_start_the_average_as_if_all_were_kept"),
        "Refused before anything is computed where it is asked for; lists that grow with a run are bounded.",
    ),
    Fault(
        115, "held-out text of one model in the training text of another", (),
        ("tests/commands/test_contamination.py::test_a_part_that_was_trained_on_the_test_text_is_named",
         "tests/commands/test_contamination.py::test_validation_on_which_the_weights_are_fitted_is_looked_for_too",
         "tests/commands/test_contamination.py::test_a_file_that_was_trained_on_is_found",
         "tests/commands/test_contamination.py::test_a_text_that_repeats_itself_by_nature_is_not_warned_of",
         "tests/data/test_overlap.py::test_a_text_is_found_however_it_was_cut",
         "tests/data/test_overlap.py::test_the_share_is_that_of_the_lines"),
        "The share is printed, and warned of from 1 % on, plus twice what the other held-out text shows (at most 5 %).",
    ),
    Fault(
        116, "texts on which numbers mean little: unknown or endless words, marked or shared lines",
        (training("tokenizer=word", code=0, message=r"differs from all others .*Type tokenizer=char\.",
                  files={"text.txt": b"".join(b"%x\n" % (7 * n) ** 4 for n in range(1000))}),),
        ("tests/data/test_advice.py::test_an_unknown_word_that_training_never_has_is_remarked_on",
         "tests/data/test_advice.py::test_what_is_said_to_be_typed_helps",
         "tests/data/test_advice.py::test_texts_of_different_kinds_are_remarked_on",
         "tests/data/test_advice.py::test_words_that_do_not_end_or_never_come_again_are_remarked_on",
         "tests/data/test_advice.py::test_another_kind_of_space_is_named_with_what_replaces_it",
         "tests/data/test_advice.py::test_marked_lines_are_remarked_on",
         "tests/data/test_advice.py::test_splits_that_share_their_lines_are_remarked_on",
         "tests/data/test_advice.py::test_usual_corpora_are_not_remarked_on"),
        "A warning before training, each with what to type; usual corpora are not remarked on.",
    ),
    Fault(
        117, "bits per character of models that do not spell every word, compared with others", (),
        ("tests/commands/test_sweeps.py::test_bits_per_character_are_not_listed_for_models_that_do_not_spell_every_word",
         "tests/commands/test_sweeps.py::test_neither_do_the_records_and_tensorboard_hold_them",
         "tests/commands/test_sweeps.py::test_a_search_never_prefers_a_model_that_does_not_spell",
         "tests/commands/test_sweeps.py::test_it_is_known_beforehand_whether_vocabularies_vary"),
        "They are left out. A search whose vocabularies vary minimises bits per character, and infinity where there are none.",
    ),
    Fault(
        118, "gradients that reach back over more steps than an epoch's first chunk has", (),
        ("tests/training/test_learner.py::test_gradients_are_those_of_bptt_made_by_hand",
         "tests/models/test_neural.py::test_where_the_state_is_carried_from_changes_neither_loss_nor_gradients"),
        "All tokens are run at once, and the incoming state is carried until something lies before it.",
    ),
    Fault(
        119, "settings whose combination nobody has tried", (),
        (f"{HERE}combinations.py::test_a_combination_trains_and_resumes_exactly_or_is_refused_by_a_rule",
         f"{HERE}combinations.py::test_a_thousand_combinations_train_and_resume_exactly_or_are_refused_by_a_rule"),
        "Each trains and resumes to the same bits, or a rule that the test writes down forbids it.",
    ),
    Fault(
        120, "a signal before, in or behind an evaluation, a sample, a save, a rollback or the last step", (),
        (f"{HERE}interruptions.py::test_a_signal_at_a_moment_of_every_kind_changes_nothing",
         f"{HERE}interruptions.py::test_a_signal_at_any_moment_changes_nothing",
         f"{HERE}interruptions.py::test_a_wish_to_save_before_a_wish_to_stop_changes_nothing"),
        "What the loop decides, it decides from what is saved.",
    ),
    Fault(
        121, "a sample that cannot be drawn, in training", (),
        (f"{TRAIN}::test_a_model_that_expects_only_unknown_words_still_trains_and_shows_a_sample",),
        "A sample is no reason to end a training: it is drawn with <unk>, or a warning says that there is none.",
    ),
    Fault(
        122, "a log that is a link to another file; a name or a version with line ends in a message", (),
        (f"{HERE}hydra.py::test_a_link_in_place_of_the_log_is_not_followed",
         f"{HERE}hydra.py::test_text_of_others_forges_no_line_of_ours"),
        "Nothing is appended to the file that the link names, and no line of a message is somebody else's.",
    ),
    Fault(
        130, "a gradient that is wrong, in training", (),
        (f"{CHECKED}::test_a_wrong_gradient_is_found_and_named",
         f"{CHECKED}::test_a_wrong_function_of_ours_stops_the_training"),
        "With trainer.check_gradients=N training stops with exit code 1, and the tensor is named.",
    ),
    Fault(
        131, "a check of gradients that raises a false alarm, or that changes what is trained", (),
        (f"{CHECKED}::test_kinks_raise_no_alarm",
         f"{CHECKED}::test_right_gradients_pass_and_looking_at_them_changes_nothing",
         f"{CHECKED}::test_training_is_bit_for_bit_as_without_it_and_goes_on_so"),
        "Kinks and rounding are told from errors; random numbers, states and weights stay as they are, bit for bit.",
    ),
    Fault(
        132, "a signal while modules are imported, or where nothing that is raised is heard; SIGUSR1 outside of the loop", (),
        ("tests/test_terminal.py::test_a_module_is_imported_to_its_end_before_a_signal_ends_what_is_done",
         "tests/test_terminal.py::test_a_second_signal_waits_for_no_module",
         "tests/test_terminal.py::test_a_signal_whose_exception_is_lost_ends_the_process_later",
         "tests/test_terminal.py::test_a_save_that_nothing_can_answer_is_not_asked_for"),
        "The process ends with 128 + the number of the signal: behind the import, or at the next moment that can.",
    ),
)  # fmt: skip


def missing_tests(root: Path) -> list[str]:
    """The named tests that do not exist below `root`, the top of the repository."""
    defined: dict[str, set[str]] = {}
    missing = []
    for fault in FAULTS:
        for node in fault.tests:
            path, _, name = node.partition("::")
            if path not in defined:
                source = (root / path).read_text(encoding="utf-8") if (root / path).is_file() else ""
                defined[path] = {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)}
            if name not in defined[path]:
                missing.append(node)
    return missing
