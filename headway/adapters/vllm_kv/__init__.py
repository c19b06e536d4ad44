"""Our KV connector for unforked vLLM, loaded by name through `kv_connector_module_path`.

    connector.py       the class vLLM asks for; hands each hook to one of the two sides
    messages.py        what the two sides tell each other
    scheduler_side.py  decides which blocks are sent and received in a step; counts
    worker_side.py     moves the pages, with `headway.adapters.kv_grpc`
    pages.py           vLLM's KV tensors as pages
    engine_core.py     what the worker process can ask of vLLM's EngineCore process

Both sides live in the EngineCore process: vLLM runs a model on one device without further
processes, and more than one device per engine is refused.

Checked against vLLM 0.32.0 (run) and 0.25.1 (read): the hooks used here are the same in both.
"""
