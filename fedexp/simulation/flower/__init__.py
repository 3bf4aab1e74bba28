"""What of Flower's and PyTorch's own classes is copied less, or replaced, for the sake of speed."""

__all__: list[str] = []
