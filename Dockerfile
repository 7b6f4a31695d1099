# The image of every node of a cluster: docker build --build-arg TARGET=cuda|cpu -t REGISTRY/kosbert-ray:0.1.0 .
# TARGET=cuda has PyTorch with its CUDA libraries (the host brings the driver); TARGET=cpu has PyTorch without them, and OpenVINO.
# Python's minor version and Ray's version must be those of whoever submits jobs; constraints.txt pins all packages.
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE}

ARG TARGET=cuda
# Where the CPU build of PyTorch comes from.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# wget: KubeRay's health checks; gcc and libc6-dev: torch.compile (encoder.compile), which gains on GPUs only.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget $(test "$TARGET" = cuda && echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /opt/kosbert-ray
COPY pyproject.toml README.md LICENSE NOTICE constraints.txt ./
COPY configs configs
COPY kosbert_ray kosbert_ray
RUN case "$TARGET" in \
        cuda) pip install --no-cache-dir -c constraints.txt . ;; \
        cpu) pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" \
                 "torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu" '.[cpu]' ;; \
        *) echo "TARGET is cuda or cpu, not $TARGET" >&2; exit 2 ;; \
    esac \
    && rm -rf kosbert_ray build *.egg-info \
    && find /opt/venv -type d -name tests -prune -exec rm -rf {} +

COPY jobs jobs
USER ray
ENV RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1
CMD ["kosbert-ray", "--help"]
