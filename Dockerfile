# The image of every node of a cluster: docker build --build-arg TARGET=cuda|cpu -t REGISTRY/kosbert-ray:0.1.0 .
# TARGET=cuda has PyTorch with its CUDA libraries (the host brings the driver), TARGET=cpu has PyTorch without them, and OpenVINO.
# Python's minor version and Ray's version must be those of whoever submits jobs; constraints.txt pins all packages.
FROM python:3.11.14-slim-bookworm

ARG TARGET=cuda
# wget: KubeRay's health checks; gcc and libc6-dev: torch.compile (encoder.compile).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray

WORKDIR /opt/kosbert-ray
COPY pyproject.toml README.md LICENSE NOTICE constraints.txt ./
COPY kosbert_ray kosbert_ray
RUN case "$TARGET" in \
        cuda) pip install --no-cache-dir -c constraints.txt . ;; \
        cpu) pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
                 "torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu" '.[cpu]' ;; \
        *) echo "TARGET is cuda or cpu, not $TARGET" >&2; exit 2 ;; \
    esac

COPY jobs jobs
COPY configs configs
USER ray
ENV RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1
CMD ["kosbert-ray", "--help"]
