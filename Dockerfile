# One image for one box, cluster.yaml and deploy/kuberay:
#   docker build -t vidgen-ray:0.1.0 .
# torch's wheels bring their own CUDA libraries, so the small base with the CUDA runtime is enough.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# Dependencies change less often than code: they are a layer of their own.
COPY constraints.txt pyproject.toml README.md ./
COPY scripts/setup.sh scripts/setup.sh
COPY vidgen_ray/__init__.py vidgen_ray/__init__.py
ARG EXTRAS=image
RUN PIP_NO_CACHE_DIR=1 VENV=/opt/venv scripts/setup.sh ".[${EXTRAS}]"
COPY vidgen_ray vidgen_ray
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --force-reinstall .

# hadolint ignore=DL3006
FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# A C compiler and Python's headers are for torch.compile; rsync and ssh for `ray up`; wget for the
# probes of KubeRay; tini to reap what Ray leaves behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev openssh-client python3 python3-dev rsync tini wget \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
# Ray jobs and KubeRay start login shells, which forget PATH unless a profile says it again.
# hadolint ignore=SC2016
RUN echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/vidgen.sh \
    && (userdel --remove ubuntu 2> /dev/null || true) \
    && useradd --uid 1000 --create-home --shell /bin/bash vidgen \
    && install -d -o vidgen -g vidgen /app /app/outputs /app/loras /cache /cache/huggingface
WORKDIR /app
COPY --chown=vidgen:vidgen serve_config.yaml PROJECT_SUMMARY.json ./
COPY --chown=vidgen:vidgen jobs jobs
# A container's loopback is its own: what is published is said by `docker run -p`, and without API
# keys the server refuses to start.
RUN sed -i 's/^  host: 127\.0\.0\.1/  host: 0.0.0.0/' \
        serve_config.yaml
# A file's name is no secret.
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    RAY_USAGE_STATS_ENABLED=0 \
    VIDGEN_API_KEYS_FILE=/app/keys.yaml \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=vidgen_ray.serving.http.proxy.middlewares
USER 1000
VOLUME ["/app/outputs", "/app/loras", "/cache"]
EXPOSE 8000
# Weights are downloaded and loaded before the first answer.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=4 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=8)"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["vidgen", "serve", "serve_config.yaml"]
