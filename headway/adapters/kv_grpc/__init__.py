"""KV pages from one engine to another over gRPC: the portable transport.

A prefill engine's process owns a `KvSender`, a decode engine's process a `KvReceiver`; each
runs its own thread and event loop, so that an engine never waits for the network. The wire
protocol is `proto/headway/v1/kv_transfer_service.proto`.
"""
