"""The ClientApp of a device with PyTorch that waits where a test wants it to."""

from slow_app import paced

from fedexp.devices import app

client = paced(app.client)
