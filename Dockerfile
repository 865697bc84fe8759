# Two images: `control-plane` (services, router) and `node` (agent with torch, for simulated or real GPUs).
#   docker build --target control-plane -t switchgear/control-plane .
#   docker build --target node -t switchgear/node .
# PyPI's torch brings the CUDA libraries, some gigabytes. For a CPU-only one give the index that <https://pytorch.org/get-started/locally/>
# names: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY lib lib
COPY services services
COPY agents agents
COPY workloads workloads
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON} AS control-plane
# A volume that is mounted for the first time takes over the owner of the folder below it.
RUN useradd --uid 10001 --create-home switchgear \
    && install -d -o switchgear -g switchgear -m 0700 /var/lib/switchgear /var/lib/switchgear/pki \
       /secrets /secrets/services /secrets/postgres /secrets/grafana /secrets/router /secrets/prometheus /secrets/n1 /secrets/n2 /shared
COPY constraints.txt /usr/local/share/switchgear/
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /usr/local/share/switchgear/constraints.txt "$(echo /wheels/*.whl)[server]"
USER switchgear
WORKDIR /shared
ENV SWITCHGEAR_STATE_DIR=/var/lib/switchgear
ENTRYPOINT ["switchgear"]

FROM control-plane AS node
ARG PIP_EXTRA_INDEX_URL
USER root
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /usr/local/share/switchgear/constraints.txt "$(echo /wheels/*.whl)[train]"
USER switchgear
