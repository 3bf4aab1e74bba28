"""Federated learning on real devices: one server, many nodes, one open port."""
