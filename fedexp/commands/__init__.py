"""What the words behind `fedexp` do, but for those of devices."""

__all__: list[str] = []
