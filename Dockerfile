# accm and its service. With a GPU: docker build -t accm .     Without: docker build --build-arg TORCH=cpu -t accm .
# What is pinned in constraints.txt is installed into a virtual environment in the first stage; the second stage has
# that environment and nothing else of ours. `make container-check` builds this and sorts a session in it.

# any image with Python 3.11 to 3.13 and its venv module; GPU drivers come from the host, CUDA's libraries with torch
ARG BASE_IMAGE=python:3.11-slim

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS build

# gpu: torch as on PyPI, with CUDA. cpu: from the index of PyTorch's own CPU builds, a sixth of the size; an empty
# TORCH_CPU_INDEX leaves it to pip's configuration.
ARG TORCH=gpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

ENV PATH=/opt/accm/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/accm
WORKDIR /build

# from the largest and most lasting to what changes with each commit; the secret is a pip.conf, for those who need one
COPY constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    case "$TORCH" in \
        gpu) pip install -c constraints.txt torch ;; \
        cpu) pip install -c constraints.txt ${TORCH_CPU_INDEX:+--index-url "$TORCH_CPU_INDEX"} torch ;; \
        *) echo "TORCH is '$TORCH'; it has to be gpu or cpu" >&2; exit 1 ;; \
    esac
COPY pyproject.toml ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*p["dependencies"], *p["optional-dependencies"]["service"], sep="\n")' >requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY accm_core accm_core
COPY service service
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-deps . && pip check && pip uninstall --yes pip


# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="accm" \
      org.opencontainers.image.description="Spike sorting by adaptive contrastive learning: the command and the service" \
      org.opencontainers.image.licenses="BSD-3-Clause"

# Uploads, jobs, models and numba's compiled code (20 s the first time) lie on the volume; what else is written is
# small and in /tmp. So the root file system can be read-only, with a tmpfs there.
ENV PATH=/opt/accm/bin:$PATH \
    ACCM_DATA=/data \
    BENTOML_DO_NOT_TRACK=True \
    BENTOML_HOME=/tmp/bentoml \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/data/cache/numba \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PYTHONUNBUFFERED=1

RUN groupadd --gid 10001 accm \
    && useradd --uid 10001 --gid accm --home-dir /tmp --no-create-home --shell /usr/sbin/nologin accm \
    && install --directory --owner=accm --group=accm --mode=0750 /data
COPY --from=build /opt/accm /opt/accm

# by number, so that Kubernetes can tell that it is not root
USER 10001:10001
WORKDIR /tmp
VOLUME /data
EXPOSE 3000

# fails until every worker answers; a first start takes longest
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/readyz', timeout=4)"]

# refuses to start without ACCM_API_KEY; `docker run accm sort /data/session.nwb` and every other command work, too
ENTRYPOINT ["accm"]
CMD ["serve", "--host", "0.0.0.0"]
