"""Every name of Flower that no release promises to keep and that devices and servers need."""

__all__: list[str] = []
