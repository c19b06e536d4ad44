"""Headway: serves one large language model and keeps a latency promise to each application."""
