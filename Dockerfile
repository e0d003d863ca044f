# Corral in front of llama.cpp's own server image, which brings the engine.
#
#   docker build -t corral .                                                    for NVIDIA GPUs
#   docker build -t corral:cpu --build-arg ENGINE=ghcr.io/ggml-org/llama.cpp:server .      without
#
# ENGINE may be any tag of that image (a dated one, for a build that does not change under your feet), or
# any image of your own with a Debian or Ubuntu of Python 3.11 and a /app/llama-server.
ARG ENGINE=ghcr.io/ggml-org/llama.cpp:server-cuda

# The one package, in an environment of its own. pip stays behind in this stage.
FROM ${ENGINE} AS packages
# Nobody runs this stage.
# hadolint ignore=DL3002
USER 0
WORKDIR /build
# Which version is the distribution's choice: pinned here, it would vanish from its archive in a month.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pip python3-venv
COPY requirements.txt .
RUN python3 -m venv --without-pip /opt/corral \
 && python3 -m pip --python /opt/corral/bin/python install --no-cache-dir --no-deps --require-hashes -r requirements.txt

FROM ${ENGINE}
# The base image brings labels of its own, and says by them that this is llama.cpp. What only a builder knows
# is empty here: docker build --label org.opencontainers.image.revision=$(git rev-parse HEAD)
LABEL org.opencontainers.image.title="corral" \
      org.opencontainers.image.description="One OpenAI-compatible gate in front of a herd of llama-server processes" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="" \
      org.opencontainers.image.created="" \
      org.opencontainers.image.source="" \
      org.opencontainers.image.url=""
USER 0
WORKDIR /app
# The user is in group 0, and the data belong to that group: so the image also works where a platform runs
# it as root, or as a user that it has made up (which is then in group 0, as on OpenShift).
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -c 'import sys; sys.exit("Corral needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)' \
 && useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin corral \
 && install -d -o 10001 -g 0 -m 2775 /data /data/models /data/logs /data/state
COPY --from=packages /opt/corral /opt/corral
COPY LICENSE entrypoint.sh ./
COPY scripts scripts
# Compiled once here: nobody but root can write beside the sources later.
RUN python3 -m compileall -q scripts

# The base image tells every llama-server to listen to everybody. Here they listen to the gateway alone.
# What CUDA compiles for a GPU would lie in the home directory, /tmp, beside the status file.
ENV PATH=/opt/corral/bin:$PATH \
    LLAMA_SERVER_PATH=/app/llama-server \
    LLAMA_ARG_HOST=127.0.0.1 \
    CUDA_CACHE_PATH=/data/cuda

EXPOSE 8000 8001
USER 10001
# It asks the health server, so it never counts as traffic.
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s CMD ["python3", "/app/scripts/health_check.py"]
ENTRYPOINT ["/app/entrypoint.sh"]
