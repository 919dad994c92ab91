# One image for every process: `hitl web` unless another command is given (`hitl worker`, `hitl migrate`).
# tests/test_image.py runs these steps, and the processes from what they install.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

COPY requirements.txt requirements-build.txt ./
RUN python -m venv /build \
    && python -m venv --without-pip /venv \
    && /build/bin/pip install --only-binary :all: --require-hashes -r requirements-build.txt \
    && /build/bin/pip --python /venv/bin/python install --only-binary :all: --require-hashes -r requirements.txt

COPY pyproject.toml README.md LICENSE worker_settings.py ./
COPY migrations migrations
COPY service service
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /build/bin/pip --python /venv/bin/python install --no-deps --no-index --find-links /dist hitl-service


FROM python:3.11-slim-bookworm
# No build tools: what is installed is all there will be.
RUN pip uninstall --yes --root-user-action=ignore pip setuptools wheel \
    && useradd --system --uid 10001 --no-create-home --home-dir /app hitl \
    && install -d -o 10001 /files
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HITL_HOST=0.0.0.0 \
    HITL_PORT=8080 \
    LOG_FORMAT=json
WORKDIR /app
USER 10001
EXPOSE 8080
# Of the web process; a container that runs another command is started with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['HITL_PORT'] + '/healthz', timeout=2)"]
CMD ["hitl", "web"]
