"""KV pages from one engine to another over gRPC: the portable transport.

Between hosts each transfer is a gRPC stream whose frames carry the pages. On one host, which a
sender finds out by trying, the pages go through memory that the receiver offers, and gRPC
carries everything else.

A prefill engine's process owns a `KvSender`, a decode engine's process a `KvReceiver`; each
runs its own thread and event loop, so that an engine never waits for the network. The wire
protocol is `proto/headway/v1/kv_transfer_service.proto`.
"""
