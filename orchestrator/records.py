"""The four tables of a store, declared once: Polars schemas with units in the column names.

Version history, newest first. A renamed or redefined column gets a new name, never a new meaning.
    1  first version; `windows.prefill_tokens_s`, `windows.output_tokens_s` and `trials.planned_boots` came later and
       are null in older files

`trials`    one row an arm and repeat: what was asked, where it ran, how it ended
`windows`   one row a window: rates, latencies, certificate, what bounded it
`requests`  one row a request that was alive in a window: raw time stamps
`samples`   one row a reading (long format): token counts a second, counters, clocks, power, CPU
Every table carries `trial_id` and `attempt_id`; readers keep only the attempts that a commit object names.
Times called `*_ns` are CLOCK_MONOTONIC of the host that measured (virtual time where `backend` is `simulated`),
`*_unix_s` are wall clock. Shares and utilisations are fractions, 0 to 1.
"""

from __future__ import annotations

import polars as pl

SCHEMA_VERSION = 1

Columns = dict[str, pl.DataType | type[pl.DataType]]

TRIALS_COLUMNS: Columns = {
    "trial_id": pl.String,
    "attempt_id": pl.String,
    "repeat_id": pl.String,
    "sweep": pl.String,
    "repeat": pl.Int64,
    "backend": pl.String,  # vllm | vllm-cpu | simulated
    "gpu_kind": pl.String,  # as asked for; part of the identity
    "gpu_name": pl.String,  # as found
    "gpu_uuid": pl.String,
    "host": pl.String,
    "model": pl.String,
    "kind": pl.String,  # mixed | prefill | decode
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "concurrency": pl.Int64,  # total over the arm's engines
    "arm": pl.String,
    "baseline": pl.String,  # name of the arm that this repeat compares against
    "sharing": pl.String,  # single | timesliced | mps
    "engines": pl.Int64,
    "active_thread_percentage": pl.Int64,  # null outside MPS
    "engine_args": pl.String,  # JSON: the sweep's arguments with the arm's overrides
    "cores_per_engine": pl.Int64,
    "pinned": pl.Boolean,
    "tie_margin": pl.Float64,
    "planned_boots": pl.Int64,  # of the cell, where the sweep file says stopping: fixed; else null
    "measurement": pl.String,  # JSON of trial.Measurement
    "residency": pl.String,  # resident | alone
    "resident_arms": pl.List(pl.String),
    "block_id": pl.String,
    "boot_id": pl.String,  # null where the arm never came up
    "outcome": pl.String,  # ok | skipped | failed
    "reason": pl.String,  # null where ok
    "log_tail": pl.String,
    "started_unix_s": pl.Float64,
    "boot_s": pl.Float64,
    "measuring_s": pl.Float64,  # from the first window order to the last answer, warm-ups included
    "kv_bytes_per_engine": pl.Int64,
    "max_model_len_tokens": pl.Int64,
    "max_num_seqs": pl.Int64,
    "weights": pl.String,  # dummy | random | checkpoint | none (simulated)
    "placement": pl.String,  # JSON: core sets by process, topology, niceness
    "software": pl.String,  # JSON: versions of vLLM, torch, CUDA, driver, this project
    "engine": pl.String,  # JSON: what the engine arguments came to, and the boot by phase
    "spec_sha": pl.String,  # names the sweep file kept under specs/
}
TRIALS = pl.Schema(TRIALS_COLUMNS)

WINDOWS_COLUMNS: Columns = {
    "trial_id": pl.String,
    "attempt_id": pl.String,
    "boot_id": pl.String,
    "block_id": pl.String,
    "order_index": pl.Int64,  # position among all windows of the repeat, over arms
    "round_index": pl.Int64,  # which pass over the arms: windows of one round are paired
    "window_index": pl.Int64,  # position among the windows of this trial
    "previous_arm": pl.String,  # whose window came before on this GPU (null: none), for the carry-over test
    "start_ns": pl.Int64,
    "duration_s": pl.Float64,
    "warmup_s": pl.Float64,
    "output_tokens": pl.Int64,  # credited by their own time stamps
    "prompt_tokens": pl.Int64,  # credited when the request's first token came
    "prefill_tokens_s": pl.Float64,  # prompt tokens a second, tapered (orchestrator.taper); null unless kind is prefill
    "output_tokens_s": pl.Float64,  # the same of output tokens; null unless requests are prefilled and decoded
    "requests_completed": pl.Int64,
    "requests_failed": pl.Int64,
    "in_flight_mean": pl.Float64,
    "ttft_p50_s": pl.Float64,
    "ttft_p99_s": pl.Float64,
    "tpot_p50_s": pl.Float64,
    "tpot_p99_s": pl.Float64,
    "e2e_p50_s": pl.Float64,
    "e2e_p99_s": pl.Float64,
    # what the schedulers and engines saw; null where the backend cannot say
    "steps": pl.Int64,
    "steps_full_graph_share": pl.Float64,
    "steps_piecewise_graph_share": pl.Float64,
    "steps_eager_share": pl.Float64,
    "steps_tokens": pl.Int64,  # of all steps, prompts' included
    "steps_padding_share": pl.Float64,  # of the tokens computed: what filled steps up to the sizes of their CUDA graphs
    "running_mean": pl.Float64,
    "waiting_mean": pl.Float64,
    "kv_usage_max": pl.Float64,
    "preemptions": pl.Int64,
    "prefix_cache_hits": pl.Int64,
    # host
    "engine_core_cpu_max": pl.Float64,  # share of one core, the busiest engine's
    "engine_core_speed_mops": pl.Float64,  # of the slowest engine's core, million loop turns a second
    "frontend_cpu_max": pl.Float64,
    "driver_cpu": pl.Float64,
    "steal_share": pl.Float64,  # of the cores in use
    "loop_lag_p99_s": pl.Float64,
    # GPU over the window
    "gpu_active_share": pl.Float64,  # graphics engine active
    "sm_active_share": pl.Float64,
    "sm_occupancy_share": pl.Float64,
    "tensor_active_share": pl.Float64,
    "dram_active_share": pl.Float64,
    "sm_clock_mhz": pl.Float64,
    "power_w": pl.Float64,
    "energy_j": pl.Float64,
    "power_capped_share": pl.Float64,  # of the clock readings
    "thermal_capped_share": pl.Float64,
    "gpu_memory_used_bytes": pl.Int64,
    # believed or not, and why
    "certified": pl.Boolean,
    "certificate_failures": pl.List(pl.String),
    "certificate": pl.String,  # JSON: every check with what it saw
    "bound_by": pl.String,  # engine_core | frontend | gpu_compute | gpu_memory | power | kv | unknown
}
WINDOWS = pl.Schema(WINDOWS_COLUMNS)

REQUESTS_COLUMNS: Columns = {
    "trial_id": pl.String,
    "attempt_id": pl.String,
    "window_index": pl.Int64,
    "engine": pl.Int64,
    "client": pl.Int64,
    "sequence": pl.Int64,  # nth request of this client since it was started
    "prompt_tokens": pl.Int64,
    "output_tokens_asked": pl.Int64,  # a client's first request asks for a random residual length
    "output_tokens": pl.Int64,  # received
    "sent_ns": pl.Int64,
    "first_token_ns": pl.Int64,  # null: none came
    "last_token_ns": pl.Int64,
    "status": pl.String,  # ok | aborted (cut off at the window's end) | failed
}
REQUESTS = pl.Schema(REQUESTS_COLUMNS)

SAMPLES_COLUMNS: Columns = {
    "trial_id": pl.String,
    "attempt_id": pl.String,
    "window_index": pl.Int64,
    "time_ns": pl.Int64,  # end of the interval that the reading covers
    "source": pl.String,  # gpu | engine<i>, also .core, .frontend, .step, .part | driver | cores
    "metric": pl.String,  # output_tokens, sm_clock_mhz, power_w, sm_active_share, cpu_share, ...
    "value": pl.Float64,
}
SAMPLES = pl.Schema(SAMPLES_COLUMNS)

TABLES: dict[str, pl.Schema] = {
    "trials": TRIALS,
    "windows": WINDOWS,
    "requests": REQUESTS,
    "samples": SAMPLES,
}
