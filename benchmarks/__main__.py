"""The quick form of every benchmark."""

from benchmarks import aggregation, engine, scale

for module in (aggregation, engine, scale):
    print(f"== {module.__name__}", flush=True)
    module.main(["--quick"])
