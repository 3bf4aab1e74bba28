"""The ClientApp of the bundle: our devices run their own, and this one answers nothing."""

from flwr.clientapp import ClientApp

app = ClientApp()
