"""Fields of other APIs and servers that clients send here: which are left aside, and which are refused by name.

A field that nobody here knows is left aside, as OpenAI-compatible servers do, and named in the answer's header
X-Ignored-Fields. Refused is what would silently give another answer than was asked for: a field that is known to change
it and is not honoured, one that other servers call otherwise, and a slip of the finger for one of ours.
"""

from collections.abc import Collection, Mapping

# Known, and of no effect on what is generated here: meant for no field of ours.
IGNORED = frozenset(
    ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
# Would choose the adapter, which is for `model` to say.
ADAPTERS: Mapping[str, tuple[object, ...]] = {
    "adapter_id": ("",),
    "lora_path": ("", []),
    "lora_name": ("",),
    "lora": ([],),
    "adapters": ("", []),
}
# Would change the answer: accepted only with the values that leave it as it is.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **ADAPTERS,
    "suffix": ("",),  # of completions a field of its own
    "length_penalty": (1,),
    "repeat_penalty": (1,),
    "rep_pen": (1,),
    "encoder_repetition_penalty": (1,),
    "repeat_last_n": (-1,),  # all that went before, as it is here
    "repetition_detection": (),
    "penalty_alpha": (0,),
    "diversity_penalty": (0,),
    "guidance_scale": (1,),
    "negative_prompt": ("",),
    "do_sample": (True,),
    "typical_p": (1,),
    "typical": (1,),
    "typ_p": (1,),
    "top_a": (0,),
    "top_n_sigma": (0, -1),
    "tfs_z": (1,),
    "eta_cutoff": (0,),
    "epsilon_cutoff": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "smoothing_factor": (0,),
    "no_repeat_ngram_size": (0,),
    "use_beam_search": (False,),
    "num_beams": (1,),
    "suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "eos_token_id": (),
    "stop_regex": ("", []),
    "no_stop_trim": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "prompt_embeds": (),
    "logits_processors": ([],),
    "custom_logit_processor": ("",),
    "thinking_token_budget": (),
    "guided_whitespace_pattern": ("",),
    "grammar": ("",),
    "json_schema": ({},),
    "regex": ("",),
    "ebnf": ("",),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "documents": ([],),
    "chat_template": ("",),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "web_search_options": (),
    "truncate_prompt_tokens": (),
}
MESSAGE_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "function_call": (),
    "prefix": (False,),
    "partial": (False,),
}
# What other servers, and the other dialects, call a field of ours.
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "model": tuple(ADAPTERS),
    "messages": ("input",),
    "max_tokens": (
        "max_completion_tokens",
        "max_output_tokens",
        "max_new_tokens",
        "max_length",
        "max_gen_len",
        "n_predict",
        "num_predict",
    ),
    "stop": ("stop_sequences", "stop_strings"),
    "stop_token_ids": ("eos_token_id",),
    "include_stop_str_in_output": ("no_stop_trim",),
    "seed": ("random_seed", "sampling_seed"),
    "n": ("num_return_sequences",),
    "temperature": ("do_sample",),
    "repetition_penalty": ("repeat_penalty", "rep_pen"),
    "logit_bias": ("suppress_tokens", "bad_words_ids"),
}
_SLIP_CHARS = 6  # shorter names are one letter apart without being meant for each other


def find_refused(given: Mapping[str, object], neutral: Mapping[str, tuple[object, ...]]) -> str | None:
    """The first field that would change the answer and is not honoured."""
    return next((key for key in neutral if given.get(key) is not None and given[key] not in neutral[key]), None)


def name_here(key: str, own: Collection[str]) -> str | None:
    """What a field is called in a body whose fields are `own`, as far as it is known by another name."""
    names = next(([name, *others] for name, others in OTHER_NAMES.items() if key in (name, *others)), [])
    return next((name for name in names if name in own), None)


def guess_field(key: str, own: Collection[str], given: Collection[str] = ()) -> str | None:
    """The one of a body's `own` fields that is not `given` and that an unknown key is meant for, None where it is for none."""
    if (name := name_here(key, own)) is not None and name not in given:
        return name
    near = (name for name in sorted(own) if _normalize(key) == _normalize(name) or _one_slip(key, name))
    return next((name for name in near if name not in given), None)


def _normalize(name: str) -> str:
    """Without what spellings differ in: maxTokens, max-tokens."""
    return name.replace("_", "").replace("-", "").lower()


def _one_slip(one: str, other: str) -> bool:
    """Whether one letter too many, too few, a wrong one, or two in the wrong order make the difference."""
    if min(len(one), len(other)) < _SLIP_CHARS or abs(len(one) - len(other)) > 1 or one == other:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
