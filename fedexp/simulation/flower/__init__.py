"""The fence: every private name of Flower, and every patch of Flower or PyTorch, is in here.

Each sits in a small function whose docstring says what is used, why, and what happens without it.
`tests/simulation/test_fence.py` checks each name against the installed release. Ray's private
names are in `fedexp.simulation.ray.private`, under the same rules.
"""

__all__: list[str] = []
