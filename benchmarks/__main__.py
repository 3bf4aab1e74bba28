"""The quick form of every benchmark."""

from benchmarks import aggregation, checkpoints, engine, hypergradient, partition, scale

for module, flags in (
    (partition, []),
    (aggregation, ["--quick"]),
    (hypergradient, ["--quick"]),
    (engine, ["--quick"]),
    (scale, ["--quick"]),
    (checkpoints, ["--quick"]),
):
    print(f"== {module.__name__}", flush=True)
    module.main(flags)
