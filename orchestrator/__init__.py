"""When do several vLLM engines on one GPU under NVIDIA MPS beat one engine?

    sweeps/*.yaml -> spec -> plan: repeats grouped into (GPU kind, model) blocks
      -> pool: one GpuHost actor a GPU takes blocks -> deployment: MPS daemon and engines, resident side by side
      -> runner: windows interleaved over arms -> store: Parquet, written where the work ran
      -> verdicts: ratio, interval, reasons -> dashboards

Nothing in this package imports vLLM or torch except what runs in the engines' own processes: `nursery_main`,
`engine_main` and `engine_probe`.
"""
