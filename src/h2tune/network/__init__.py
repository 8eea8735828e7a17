"""Federations over a network: kits, the server's and a client's process, and their health."""
