"""Groups of clients trained at once, as far as that is known or found to equal the plain loop."""

__all__: list[str] = []
