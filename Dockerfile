# The serving image: parnet-deploy, its server and what its engines need to run. No torch, no
# compiler, no pip of its own. FLAVOUR (cpu, openvino, cuda, tensorrt, rtx) picks what is in it;
# docs/serving.md says which BASE each stands on, and how to run them.
#
# BASE is any image with Python 3.11 or later, pip and venv; give it with its digest where builds
# must be the same again. Behind a package index of one's own, a build takes two secrets: pip.conf,
# and ca.pem, which a pip.conf names as "cert = /run/secrets/ca.pem".
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS wheels
ARG FLAVOUR=cpu
WORKDIR /source
COPY requirements/build.lock requirements/serve-${FLAVOUR}.lock requirements/
# NVIDIA publishes two small packages of TensorRT RTX as sources only; what builds them is hashed, too.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv --without-pip /opt/build && \
    python3 -m pip --python /opt/build/bin/python install --no-cache-dir \
      --require-hashes --only-binary :all: --requirement requirements/build.lock && \
    python3 -m pip --python /opt/build/bin/python wheel --no-cache-dir --no-build-isolation \
      --require-hashes --only-binary :all: --no-binary tensorrt-rtx,tensorrt-rtx-cu13 \
      --requirement requirements/serve-${FLAVOUR}.lock --wheel-dir /wheels
COPY LICENSE README.md pyproject.toml ./
COPY parnet_deploy parnet_deploy
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /wheels

FROM ${BASE} AS packages
ARG FLAVOUR=cpu
COPY --from=wheels /wheels /wheels
# TensorRT's Python module is not on the public index: its flavour takes that of BASE. And no
# dependencies are looked for: the lock had them, with ONNX Runtime as the flavour runs it.
RUN if [ "$FLAVOUR" = tensorrt ]; then site=--system-site-packages; fi && \
    python3 -m venv --without-pip ${site:-} /opt/parnet-deploy && \
    python3 -m pip --python /opt/parnet-deploy/bin/python install --no-cache-dir \
      --no-index --no-deps /wheels/*.whl && \
    find /opt/parnet-deploy -type d -name tests -prune -exec rm -r {} +

FROM ${BASE} AS serve
LABEL org.opencontainers.image.title="parnet-deploy" \
      org.opencontainers.image.description="ParNet engines over the Open Inference Protocol" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /opt/parnet-deploy /opt/parnet-deploy
ENV PATH=/opt/parnet-deploy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready, not live: Docker has one check, and its readers (depends_on, proxies) send work by it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["/opt/parnet-deploy/bin/python", "-ISc", "import http.client, sys; connection = http.client.HTTPConnection('127.0.0.1', 8000, timeout=2); connection.request('GET', '/v2/health/ready'); sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["parnet-deploy"]
CMD ["serve", "/engines", "--host", "0.0.0.0"]
