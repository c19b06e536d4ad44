# vLLM and Headway: what the images of both kinds of worker stand on. From the repository's root:
#   docker build --target cpu --tag headway-engine:cpu --file infra/docker/engine.Dockerfile .
#   docker build --target gpu --tag headway-engine:gpu --file infra/docker/engine.Dockerfile .
FROM python:3.11-slim-bookworm AS base
# libnuma is linked by vLLM's CPU kernels; the compiler builds Triton's launchers at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home headway
WORKDIR /app
COPY requirements/bootstrap.lock requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/bootstrap.lock \
    && uv venv /opt/headway
# As MALLOC_ENVIRONMENT in headway/adapters/process.py: buffers of pages are kept for the next.
ENV MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824

FROM base AS cpu
COPY pyproject.toml README.md LICENSE ./
COPY requirements/cpu.lock requirements/torch.lock requirements/
COPY headway headway
# The lock files constrain instead of being installed: cpu.lock has the tools of developers too.
RUN uv pip install --python /opt/headway/bin/python --no-cache --compile-bytecode \
        --torch-backend cpu -c requirements/cpu.lock -c requirements/torch.lock ".[cpu]" \
    && rm -rf headway pyproject.toml
USER 10001

FROM base AS gpu
COPY requirements/gpu.lock requirements/
RUN uv pip install --python /opt/headway/bin/python --no-cache --no-deps --compile-bytecode \
        -r requirements/gpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY headway headway
RUN uv pip install --python /opt/headway/bin/python --no-cache --no-deps --compile-bytecode . \
    && rm -rf headway pyproject.toml
USER 10001
