"""An app whose ClientApp no device runs."""
